"""`vmddpm ablate`."""

from typing import Any

from vmddpm.cli.table1 import make, with_options

COMMON = ("extractor.path",)
SUMMARY = "the paper's Table II: with and without Sequence Regeneration"
HELP = """Make Table II, the ablation of Sequence Regeneration, with alternative readings: ordered in sampling, patches,
zero-order hold, one direction. Several seeds give means and deviations; an interrupted command resumes.

example:
  vmddpm ablate --preset tiny --out tables
  vmddpm ablate --preset paper --dataset acdc --root ACDC/training --extractor.path inception-2015-12-05.pt --out t"""


def build(new_parser: Any) -> Any:
    return with_options(new_parser(description=HELP))


def run(parser: Any, options: Any) -> None:
    make("ablate", parser, options)
