"""`vmddpm train`; its options and their help are the fields and docstrings of the configuration dataclasses."""

from dataclasses import fields
from typing import Any

from vmddpm.cli.presets import PRESETS

COMMON = (
    "data.root", "data.pattern", "data.size", "data.channels", "data.limit", "model.base_channels", "training.steps",
    "training.minutes", "training.batch_size", "training.precision", "training.device", "training.seed",
    "condition.labels", "condition.image",
)  # fmt: skip
SUMMARY = "train, or continue a run"
HELP = """Train a VM-DDPM or a baseline on a folder of images, or continue the run in a run folder.

example:
  vmddpm train --config paper-brats2018 --data.root BraTS2018 --run runs/brats
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm train --system unetgan --data.root slices --run runs/unetgan
  vmddpm train --config demo --data.root lungs --condition.labels folder --run runs/lungs
  vmddpm train --config paper-acdc --print_config
  torchrun --nproc-per-node 4 -m -- vmddpm.cli train --config paper-chestxray --data.root store --run runs/chest"""

LONG_TRAINING = 86400  # seconds of training above which the user is warned


def build(new_parser: Any) -> Any:
    from vmddpm.training import RunConfig

    parser = new_parser(description=HELP)
    parser.add_argument("--config", action="config", help=f"a YAML file, or a preset: {', '.join(PRESETS)}")
    parser.add_argument("--run", type=str, required=True, help="the run folder; an existing run is continued")
    parser.add_class_arguments(RunConfig)
    return parser


def run(parser: Any, options: Any) -> None:
    from vmddpm.data import SliceDataset
    from vmddpm.data.conditioned import ConditionReader
    from vmddpm.data.remarks import counted, summary
    from vmddpm.systems import cost
    from vmddpm.training import RunConfig, RunFolder, train
    from vmddpm.training.conditions import with_conditions
    from vmddpm.training.memory import check_fits
    from vmddpm.training.ranks import process_group

    parts = parser.instantiate(options)
    config = RunConfig(**{field.name: parts[field.name] for field in fields(RunConfig)})
    folder = RunFolder(parts.run)
    config = with_conditions(config, config.model.classes or folder.classes())
    with process_group(config.training.device, scans=config.system == "vmddpm") as ranks:
        if ranks.is_main:
            folder.check(config)
            need = check_fits(config, ranks.device, ranks.world_size) if config.system in ("vmddpm", "unet") else None
            price = cost(config)
            memory = f", needs {need} of memory to train" if need else ""
            print(f"{config.system}: {price}{memory}")
            if ranks.device.type == "cpu":
                _announce(config, price.flops, ranks.world_size, chosen=bool(options.config))
        conditions = ConditionReader(config.condition, config.data) if config.condition.is_set else None
        dataset = ranks.main_process_first(lambda: SliceDataset(config.data, progress=ranks.is_main))
        images: Any = dataset
        if conditions is not None:
            classes = config.model.classes
            images = ranks.main_process_first(lambda: conditions.read(dataset, classes, progress=ranks.is_main))
            config = with_conditions(config, images.classes or classes)
        if ranks.is_main:
            limit = ", the most that data.limit allows" if len(dataset) == config.data.limit else ""
            seen = counted(dataset.seen, "crop" if config.data.spatial_dims == 3 else "slice")
            print(f"{counted(len(dataset), 'image')} from {config.data.root} ({seen} read{limit})")
            print(*summary(dataset.remarks), sep="\n", end="\n" if dataset.remarks else "")
            if dataset.remarks:
                print(f"each of these files will be in {folder.remarks_path}")
            if config.model.classes:
                print("classes:", ", ".join(f"{name} ({counted(n, 'image')})" for name, n in images.counts().items()))
        train(config, images, folder)
        if ranks.is_main:
            curve = folder.path / "loss.png"
            missing = "no loss curve: training.log_every exceeds the steps"
            loss_curve = f"loss curve in {curve}" if curve.exists() else missing
            print(f"done: weights in {folder.weights('ema')}, {loss_curve}")


def _announce(config: Any, flops: int, processes: int, *, chosen: bool) -> None:
    """Print how long a training takes on a CPU, if it takes more than a day. Raises InputError if the length comes from
    the defaults, without --config."""
    from vmddpm.errors import InputError
    from vmddpm.systems import seconds_on_cpu
    from vmddpm.training.report import duration

    seconds = seconds_on_cpu(config, flops, processes)
    if seconds < LONG_TRAINING:
        return
    estimate = f"about {duration(seconds)} on this CPU for {config.training.steps:,} steps"
    if not chosen:
        raise InputError(
            f"without --config, model and length are the paper's: {estimate}; use --config demo for a model that a CPU "
            "trains in minutes, or name the paper's, as in --config paper-brats2018, to train it anyway"
        )
    print(f"warning: {estimate}; --training.minutes or --training.steps make it shorter")
