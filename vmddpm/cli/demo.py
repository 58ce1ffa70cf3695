"""`vmddpm demo`."""

from pathlib import Path
from typing import Any

SUMMARY = "train on a brain MRI for a few minutes and view the samples"
HELP = """Train a small VM-DDPM on slices of a brain MRI (the MNI152 template that comes with nilearn), then draw new
slices next to real ones. A plan is printed first: how many steps this machine, as busy as it is, can train in the
time, and whether they are enough for recognisable brains. Run the same command again to train further.

example:
  vmddpm demo --minutes 6 --out runs/demo
  vmddpm demo --preset demo-3d --minutes 10 --out runs/demo-3d"""


def build(new_parser: Any) -> Any:
    parser = new_parser(description=HELP)
    parser.add_argument("--minutes", type=float, default=6.0, help="duration of the whole command")
    parser.add_argument("--out", type=str, default="runs/demo", help="the run folder")
    parser.add_argument("--preset", type=str, default="demo", help="demo (slices), or demo-3d (volumes, which are "
                        "also written as NIfTI)")  # fmt: skip
    parser.add_argument("--images", type=int, default=None, help="maximum number of real and of synthetic images in "
                        "the picture; default: 64, or 12 volumes")  # fmt: skip
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm import cli
    from vmddpm.demo import demo

    demo(
        Path(options.out), minutes=options.minutes, images=options.images, preset=options.preset, started=cli.started,
    )  # fmt: skip
