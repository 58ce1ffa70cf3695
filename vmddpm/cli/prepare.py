"""`vmddpm prepare`: its options are those of the data set, and the fields of DataConfig."""

import os
from pathlib import Path
from typing import Any

SUMMARY = "read a data set once, into a store"
DATASETS = {  # what it is, and an example's arguments
    "acdc": ("ACDC: cardiac MR, the end-diastolic and end-systolic frames", "ACDC --out stores/acdc"),
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
HELP = """Read a data set as its owners ship it, in many processes, into a store for `vmddpm train --data.root`.

example:
""" + "\n".join(EXAMPLES.values())


def build(new_parser: Any) -> Any:
    return new_parser(description=HELP)


def extend(parser: Any, new_parser: Any) -> None:
    from vmddpm.data import DataConfig
    from vmddpm.data.layouts import MODALITIES, OPTIONS

    datasets = parser.add_subcommands(required=True, dest="dataset")
    for name, (summary, _) in DATASETS.items():
        one = new_parser(description=f"{summary}.\n\nexample:\n{EXAMPLES[name]}")
        one.add_argument("root", type=str, help="the folder of the data set")
        one.add_argument("--out", type=str, required=True, help="the store, a new folder")
        one.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that decode")
        one.add_argument("--test-share", type=float, default=0.0, help="share of the patients, about, on the test side")
        if name == "acdc":
            one.add_argument("--frames", choices=("ed-es", "cine"), default="ed-es", help="two frames, or all")
        if name == "brats":
            one.add_argument("--modality", choices=MODALITIES, default="flair", help="which of the four")
        if name == "chestxray":
            one.add_argument("--official-split", action="store_true",
                             help="sides by the owners' train_val_list.txt and test_list.txt")  # fmt: skip
        if name == "folder":
            one.add_argument("--patient", type=str, default=None,
                             help="regular expression whose first group, in a file's path, is the patient")  # fmt: skip
        one.add_class_arguments(DataConfig, "data", skip={"root", "cache_dir", "split"})
        one.set_defaults({f"data.{field}": value for field, value in OPTIONS[name].items()})
        datasets.add_subcommand(name, one, help=summary)


def run(parser: Any, options: Any) -> None:
    from vmddpm.data import DataConfig, DataError, layouts
    from vmddpm.data.prepare import prepare_store
    from vmddpm.data.remarks import summary

    name = options.dataset
    chosen = options[name]
    root = Path(os.path.expanduser(chosen.root)).absolute()
    config = DataConfig(root=str(root), **chosen.data.as_dict())
    own = {option: chosen[option] for option in ("frames", "modality", "patient", "official_split") if option in chosen}
    if own.get("official_split") and chosen.test_share:
        raise DataError("the official split says which side an image is on; leave test-share out")
    layout = getattr(layouts, name)(root, config, **own)
    made = prepare_store(layout, config, Path(chosen.out), made_from={"dataset": name, **own},
                         test_share=chosen.test_share, processes=chosen.processes)  # fmt: skip
    paper = f"; the paper has {layout.paper:,}" if layout.paper else ""
    print(f"{made['images']:,} images of {made['seen']:,} slices read{paper}")
    for side, (images, patients) in made["sides"].items():
        print(f"{side}: {images:,} images of {patients:,} patients")
    print(*summary(made["remarks"]), sep="\n", end="\n" if made["remarks"] else "")
    print(f"{made['images'] / made['seconds']:.1f} images/s; the store is {chosen.out}")
