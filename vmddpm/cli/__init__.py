"""The command `vmddpm`: one module here for each sub-command, thin; what it does lives in the packages.

A module has `SUMMARY`, a line for `vmddpm --help`; `build(new_parser)`, its options; and `run(parser, options)`. One
with sub-commands of its own adds them in `extend(parser, new_parser)`: jsonargparse wants the outer ones first.
"""

import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from importlib import import_module
from typing import Any

from vmddpm.cli.presets import PRESETS, with_preset_files

__all__ = ["PRESETS", "build_parser", "main"]

HELP = """VM-DDPM: Vision-Mamba diffusion for medical image synthesis.

example:
  vmddpm demo --minutes 6 --out runs/demo
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm sample --run runs/small --num 16 --out samples"""
COMMANDS = ("train", "sample", "evaluate", "table1", "ablate", "prepare", "data", "study", "demo", "info")


def build_parser() -> tuple[Any, dict[str, Any]]:
    """The command line and its sub-commands' own parsers, by name."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the examples; jsonargparse hands it on to the sub-commands."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="vmddpm", formatter_class=Formatter, description=HELP)
    commands = parser.add_subcommands(required=True)
    parsers = {}
    for name in COMMANDS:
        module = import_module(f"vmddpm.cli.{name}")
        parsers[name] = module.build(ArgumentParser)
        commands.add_subcommand(name, parsers[name], help=module.SUMMARY)
        if hasattr(module, "extend"):
            module.extend(parsers[name], ArgumentParser)
    return parser, parsers


def main(argv: list[str] | None = None) -> int:
    """Runs one command; an error the user can mend is one line on stderr and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        parser, parsers = build_parser()
    except ModuleNotFoundError as error:
        cure = ("the command locks files as Linux and macOS do; run it on one of them" if error.name == "fcntl"
                else "`pip install \".[train]\"` in the source tree brings the command's needs")  # fmt: skip
        print(f"vmddpm: {error.name} is missing; {cure}", file=sys.stderr)
        return 1
    from vmddpm.training import RunError, TrainingError

    arguments = parser.parse_args(with_preset_files(sys.argv[1:] if argv is None else argv))
    name = arguments.subcommand
    try:
        import_module(f"vmddpm.cli.{name}").run(parsers[name], arguments[name])
    except KeyboardInterrupt:
        return 130
    except (RunError, TrainingError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"vmddpm {name}: {error}", file=sys.stderr)
        return 1
    return 0
