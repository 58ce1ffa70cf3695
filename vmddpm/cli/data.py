"""`vmddpm data check`."""

from pathlib import Path
from typing import Any

SUMMARY = "look for leaks and duplicates in a store"
HELP = """Inspect a store made by `vmddpm prepare`.

example:
  vmddpm data check stores/brats"""
COMMANDS = {"check": "damage, patients in both splits, duplicates"}
CHECK = """Check a store for damaged images, patients in both splits, and exact or near duplicates under two patients'
names. The files that `prepare` left out are listed again. Exit code 1 if anything is found.

example:
  vmddpm data check stores/brats"""
MAX_LISTED = 10


def build(new_parser: Any, _: str) -> Any:
    parser = new_parser(description=CHECK)
    parser.add_argument("store", type=str, help="the folder")
    return parser


def run(parser: Any, options: Any, _: str) -> None:
    from vmddpm.data import DataError
    from vmddpm.data.check import check_store
    from vmddpm.data.remarks import counted, summary

    found, slices = check_store(Path(options.store))
    patients = {split: {info.patient for info in slices if info.split == split} for split in ("train", "test")}
    print(f"{counted(len(slices), 'image')} of {counted(len(patients['train']), 'patient')} in train and "
          f"{len(patients['test']):,} in test; {counted(found.blank, 'image')} of one value")  # fmt: skip

    print(*summary(found.remarks), sep="\n", end="\n" if found.remarks else "")

    def source_of(i: int) -> str:
        return f"{slices[i].source} ({slices[i].axis} {slices[i].index}, frame {slices[i].frame}, {slices[i].split})"

    lists = {
        "damaged images": found.damaged,
        "patients in both splits": found.shared_patients,
        "files whose names look like one patient's, in both splits": found.similar_names,
        "empty splits": found.empty_splits,
        "exact duplicates under two patients' names": [f"{source_of(i)} = {source_of(j)}" for i, j in found.exact],
        "near duplicates under two patients' names": [f"{source_of(i)} ~ {source_of(j)}" for i, j in found.near],
    }
    for heading, lines in lists.items():
        print(f"{heading}: {len(lines):,}")
        print(*(f"  {line}\n" for line in lines[:MAX_LISTED]), sep="", end="")
        if len(lines) > MAX_LISTED:
            print(f"  ... and {len(lines) - MAX_LISTED:,} more")
    if any(lists.values()):
        raise DataError(f"{options.store}: problems were found, see above")
