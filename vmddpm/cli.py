"""The command `vmddpm`. Each sub-command is a thin function; what it does lives in the packages."""

import sys
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

PRESETS = sorted(path.name[:-5] for path in files("vmddpm.presets").iterdir() if path.name.endswith(".yaml"))

_HELP = "VM-DDPM: Vision-Mamba diffusion for medical image synthesis."
_TRAIN_HELP = """Train a VM-DDPM on a folder of images, or continue the run in a run folder.

example:
  vmddpm train --config paper-brats2018 --data.root BraTS2018 --run runs/brats
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm train --config paper-acdc --print_config"""
_SAMPLE_HELP = """Draw synthetic images with a trained model, as PNG files.

example:
  vmddpm sample --run runs/brats --num 100 --sampler ddim --steps 50 --out samples"""
_DEMO_HELP = """Train a small VM-DDPM on slices of a real brain MRI (the MNI152 template that comes with nilearn),
then draw new ones beside real ones.

example:
  vmddpm demo --minutes 6 --out runs/demo"""
_INFO_HELP = """Show versions, devices and kernel backends, and why a backend is off.

example:
  vmddpm info"""


def build_parser() -> Any:
    """The command line: its options are the fields of the configuration dataclasses, with their docstrings."""
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    from vmddpm.training import RunConfig

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the examples; jsonargparse hands it on to the sub-commands."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="vmddpm", description=_HELP, formatter_class=Formatter)
    commands = parser.add_subcommands(required=True)

    train = ArgumentParser(description=_TRAIN_HELP)
    train.add_argument("--config", action="config", help=f"a YAML file, or a preset: {', '.join(PRESETS)}")
    train.add_argument("--run", type=str, required=True, help="the run folder; a run that is there is continued")
    train.add_class_arguments(RunConfig)
    commands.add_subcommand("train", train, help="train, or continue a run")

    sample = ArgumentParser(description=_SAMPLE_HELP)
    sample.add_argument("--run", type=str, required=True, help="the run folder")
    sample.add_argument("--out", type=str, required=True, help="folder for the images; those already there are kept")
    sample.add_argument("--num", type=int, default=16, help="number of images")
    sample.add_argument("--sampler", type=str, default="ddpm", help="ddpm or ddim")
    sample.add_argument("--steps", type=int, default=None, help="a divisor of the steps of training; default: all")
    sample.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    sample.add_argument("--batch-size", type=int, default=16, help="images at a time; part of what fixes an image")
    sample.add_argument("--weights", type=str, default="ema", help="ema (averaged) or raw")
    sample.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda ...")
    commands.add_subcommand("sample", sample, help="draw images")

    demo = ArgumentParser(description=_DEMO_HELP)
    demo.add_argument("--minutes", type=float, default=6.0, help="training time")
    demo.add_argument("--out", type=str, default="runs/demo", help="the run folder")
    demo.add_argument("--images", type=int, default=64, help="real and synthetic images in the picture")
    commands.add_subcommand("demo", demo, help="train on a real brain for a few minutes and look")

    commands.add_subcommand("info", ArgumentParser(description=_INFO_HELP), help="versions and backends")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; an error the user can mend is one line on stderr and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        parser = build_parser()
    except ModuleNotFoundError as error:
        print(f"vmddpm: {error.name} is missing; install the command's needs with `pip install vmddpm[train]`",
              file=sys.stderr)  # fmt: skip
        return 1
    from vmddpm.data import DataError
    from vmddpm.training import RunError, TrainingError

    arguments = parser.parse_args(_with_presets(sys.argv[1:] if argv is None else argv))
    try:
        _COMMANDS[arguments.subcommand](parser, arguments)
    except KeyboardInterrupt:
        return 130
    except (DataError, RunError, TrainingError, ValueError, ModuleNotFoundError) as error:
        print(f"vmddpm {arguments.subcommand}: {error}", file=sys.stderr)
        return 1
    return 0


def _with_presets(argv: list[str]) -> list[str]:
    """--config NAME of a preset -> --config FILE."""
    expanded = []
    for word in argv:
        name = word.removeprefix("--config=")
        after_config = bool(expanded) and expanded[-1] == "--config"
        if name in PRESETS and (after_config or word.startswith("--config=")):
            word = word[: len(word) - len(name)] + str(files("vmddpm.presets") / f"{name}.yaml")
        expanded.append(word)
    return expanded


def _train(parser: Any, arguments: Any) -> None:
    from vmddpm.data import SliceDataset
    from vmddpm.training import RunConfig, RunFolder, train

    parts = parser.instantiate_classes(arguments)[arguments.subcommand]
    config = RunConfig(**{name: parts[name] for name in ("model", "diffusion", "data", "training")})
    folder = RunFolder(parts.run)
    folder.check(config)
    dataset = SliceDataset(config.data, progress=True)
    print(f"{len(dataset)} images from {config.data.root} ({dataset.seen} slices read)")
    train(config, dataset, folder)
    print(f"done: weights in {folder.weights('ema')}, loss curve in {folder.path / 'loss.png'}")


def _sample(parser: Any, arguments: Any) -> None:
    from vmddpm.generate import generate

    options = arguments.sample
    generate(
        options.run, options.out, options.num, sampler=options.sampler, steps=options.steps, seed=options.seed,
        batch_size=options.batch_size, weights=options.weights, device=options.device,
    )  # fmt: skip


def _demo(parser: Any, arguments: Any) -> None:
    from vmddpm.demo import demo

    options = arguments.demo
    demo(Path(options.out), minutes=options.minutes, count=options.images)


def _info(parser: Any, arguments: Any) -> None:
    from vmddpm.info import describe

    print(describe())


_COMMANDS = {"train": _train, "sample": _sample, "demo": _demo, "info": _info}


if __name__ == "__main__":
    sys.exit(main())
