"""`vmddpm prepare`; its options are those of the data set, and the fields of DataConfig."""

import os
from pathlib import Path
from typing import Any

SUMMARY = "read a data set once, into a store"
DATASETS = {  # description, and arguments of an example
    "acdc": ("ACDC: cardiac MR, end-diastolic and end-systolic frames", "ACDC --out stores/acdc"),
    "brats": (
        "BraTS 2017 to 2023: brain MR, one modality",
        "MICCAI_BraTS_2018_Data_Training --out stores/brats --modality flair --test-share 0.1",
    ),
    "chestxray": (
        "ChestX-ray14: archives or unpacked images, the first 34,999", "ChestX-ray14 --out stores/chestxray"
    ),
    "folder": (
        "any folder of medical images or pictures",
        "scans --out stores/mine --patient '(sub-[0-9]+)' --data.size 64",
    ),
}  # fmt: skip
EXAMPLES = {name: f"  vmddpm prepare {name} {arguments}" for name, (_, arguments) in DATASETS.items()}
HELP = """Read a data set as distributed, in many processes, into a store for `vmddpm train --data.root`.

example:
""" + "\n".join(EXAMPLES.values())
COMMANDS = {name: summary for name, (summary, _) in DATASETS.items()}
COMMON = ("data.size", "data.channels", "data.axes", "data.limit", "data.min_foreground", "data.on_error")


def build(new_parser: Any, name: str) -> Any:
    from vmddpm.data import DataConfig
    from vmddpm.data.layouts import MODALITIES, OPTIONS

    one = new_parser(description=f"{COMMANDS[name]}.\n\nexample:\n{EXAMPLES[name]}")
    one.add_argument("root", type=str, help="the folder of the data set")
    one.add_argument("--out", type=str, required=True, help="the store, a new folder")
    one.add_argument("--processes", type=int, default=os.cpu_count(), help="number of decoding processes")
    one.add_argument("--test-share", type=float, default=0.0, help="approximate share of patients in the test split")
    if name == "acdc":
        one.add_argument("--frames", choices=("ed-es", "cine"), default="ed-es",
                         help="frames of each heart: ed-es (end-diastole and end-systole) or cine (all)")  # fmt: skip
    if name == "brats":
        one.add_argument("--modality", choices=MODALITIES, default="flair", help="which of the four modalities")
    if name == "chestxray":
        one.add_argument("--official-split", action="store_true",
                         help="use the official split in train_val_list.txt and test_list.txt")  # fmt: skip
    if name == "folder":
        one.add_argument("--patient", type=str, default=None,
                         help="regular expression for file paths; its first group is the patient")  # fmt: skip
    one.add_class_arguments(DataConfig, "data", skip={"root", "cache_dir", "split"})
    one.set_defaults({f"data.{field}": value for field, value in OPTIONS[name].items()})
    return one


def run(parser: Any, options: Any, name: str) -> None:
    from vmddpm.data import DataConfig, DataError, layouts
    from vmddpm.data.prepare import prepare_store
    from vmddpm.data.remarks import counted, summary

    root = Path(os.path.expanduser(options.root)).absolute()
    config = DataConfig(root=str(root), **options.data.as_dict())
    names = ("frames", "modality", "patient", "official_split")
    own = {option: options[option] for option in names if option in options}
    if own.get("official_split") and options.test_share:
        raise DataError("the official split assigns every image; leave test-share out")
    layout = getattr(layouts, name)(root, config, **own)
    made = prepare_store(layout, config, Path(options.out), made_from={"dataset": name, **own},
                         test_share=options.test_share, processes=options.processes)  # fmt: skip
    paper = f"; the paper has {layout.paper:,}" if layout.paper else ""
    print(f"{counted(made['images'], 'image')} of {counted(made['seen'], 'slice')} read{paper}")
    for split, (images, patients) in made["splits"].items():
        print(f"{split}: {counted(images, 'image')} of {counted(patients, 'patient')}")
    print(*summary(made["remarks"]), sep="\n", end="\n" if made["remarks"] else "")
    if made["remarks"]:
        print(f"each of these files is in {Path(options.out) / 'store.json'}, under remarks")
    print(f"{made['images'] / made['seconds']:.1f} images/s; the store is {options.out}")
