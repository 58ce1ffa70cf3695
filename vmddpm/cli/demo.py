"""`vmddpm demo`."""

from pathlib import Path
from typing import Any

SUMMARY = "train on a real brain for a few minutes and look"
HELP = """Train a small VM-DDPM on slices of a real brain MRI (the MNI152 template that comes with nilearn),
then draw new ones beside real ones. A plan is printed first: how many steps there is time for on this machine,
as busy as it is, and whether they are enough to see brains. The same command again goes on from there.

example:
  vmddpm demo --minutes 6 --out runs/demo
  vmddpm demo --preset demo-3d --minutes 10 --out runs/demo-3d"""


def build(new_parser: Any) -> Any:
    parser = new_parser(description=HELP)
    parser.add_argument("--minutes", type=float, default=6.0, help="the time of the whole command")
    parser.add_argument("--out", type=str, default="runs/demo", help="the run folder")
    parser.add_argument("--preset", type=str, default="demo", help="demo, of slices, or demo-3d, of volumes, which are "
                        "written as NIfTI too")  # fmt: skip
    parser.add_argument("--images", type=int, default=None, help="the most real and synthetic images in the picture; "
                        "default: 64, 12 volumes")  # fmt: skip
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm import cli
    from vmddpm.demo import demo

    demo(
        Path(options.out), minutes=options.minutes, images=options.images, preset=options.preset, started=cli.started,
    )  # fmt: skip
