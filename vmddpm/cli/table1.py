"""`vmddpm table1`; its options are those of `vmddpm ablate` as well."""

from pathlib import Path
from typing import Any

COMMON = ("extractor.path",)
SUMMARY = "the paper's Table I: train, draw and evaluate every system"
HELP = """Make Table I: DCGAN, SAGAN, UNetGAN, DDPM, DDIM and VM-DDPM are trained (or reused), sampled and evaluated,
and printed next to the paper's figures. An interrupted command resumes; table1 and ablate may share a folder.

example:
  vmddpm table1 --preset tiny --out tables
  vmddpm table1 --preset paper --dataset acdc --root ACDC/training --extractor.path inception-2015-12-05.pt --out t"""


def build(new_parser: Any) -> Any:
    return with_options(new_parser(description=HELP))


def run(parser: Any, options: Any) -> None:
    make("table1", parser, options)


def with_options(parser: Any) -> Any:
    from vmddpm.evaluation import ExtractorConfig

    parser.add_argument("--out", type=str, required=True, help="folder for runs, samples, results and the table")
    parser.add_argument("--preset", type=str, default="tiny",
                        help="tiny (minutes on a CPU, on a brain that comes with nilearn) or paper")  # fmt: skip
    parser.add_argument("--dataset", type=str, default=None,
                        help="data set of the preset paper: chestxray, brats2018 or acdc")  # fmt: skip
    parser.add_argument("--root", type=str, default=None, help="folder of that data set")
    parser.add_argument("--held-out", type=str, default=None,
                        help="folder of held-out real images, for the preset paper")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=None,
                        help="minutes of training for each run, instead of the preset's")  # fmt: skip
    parser.add_argument("--images", type=int, default=None,
                        help="images drawn from each run, instead of the preset's number")  # fmt: skip
    parser.add_argument("--seeds", type=list[int], default=None, help="seeds of training, such as [0,1,2]")
    parser.add_argument("--device", type=str, default=None, help="device: auto, cpu, cuda ...")
    parser.add_class_arguments(ExtractorConfig, "extractor")
    return parser


def make(name: str, parser: Any, options: Any) -> None:
    from vmddpm.tables.commands import make_table

    parts = parser.instantiate(options)
    make_table(
        name, Path(parts.out), preset=parts.preset, dataset=parts.dataset, root=parts.root, held_out=parts.held_out,
        extractor=parts.extractor, minutes=parts.minutes, images=parts.images, seeds=parts.seeds, device=parts.device,
    )  # fmt: skip
