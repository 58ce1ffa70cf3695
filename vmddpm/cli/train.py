"""`vmddpm train`: its options are the fields of the configuration dataclasses, with their docstrings."""

from dataclasses import fields
from typing import Any

from vmddpm.cli.presets import PRESETS

SUMMARY = "train, or continue a run"
HELP = """Train a VM-DDPM, or a system it is compared with, on a folder of images, or continue the run in a run folder.

example:
  vmddpm train --config paper-brats2018 --data.root BraTS2018 --run runs/brats
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm train --system unetgan --data.root slices --run runs/unetgan
  vmddpm train --config paper-acdc --print_config
  torchrun --nproc-per-node 4 -m -- vmddpm.cli train --config paper-chestxray --data.root store --run runs/chest"""


def build(new_parser: Any) -> Any:
    from vmddpm.training import RunConfig

    parser = new_parser(description=HELP)
    parser.add_argument("--config", action="config", help=f"a YAML file, or a preset: {', '.join(PRESETS)}")
    parser.add_argument("--run", type=str, required=True, help="the run folder; a run that is there is continued")
    parser.add_class_arguments(RunConfig)
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm.data import SliceDataset
    from vmddpm.data.remarks import summary
    from vmddpm.systems import cost
    from vmddpm.training import RunConfig, RunFolder, train
    from vmddpm.training.ranks import joined

    parts = parser.instantiate(options)
    config = RunConfig(**{field.name: parts[field.name] for field in fields(RunConfig)})
    folder = RunFolder(parts.run)
    with joined(config.training.device, scans=config.system == "vmddpm") as ranks:
        if ranks.first:
            folder.check(config)
        dataset = ranks.first_before_others(lambda: SliceDataset(config.data, progress=ranks.first))
        if ranks.first:
            print(f"{config.system}: {cost(config)}")
            print(f"{len(dataset)} images from {config.data.root} ({dataset.seen} slices read)")
            print(*summary(dataset.remarks), sep="\n", end="\n" if dataset.remarks else "")
        train(config, dataset, folder)
        if ranks.first:
            print(f"done: weights in {folder.weights('ema')}, loss curve in {folder.path / 'loss.png'}")
