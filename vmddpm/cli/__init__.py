"""The command `vmddpm`: one module here for each sub-command, thin; what it does lives in the packages.

A module has `SUMMARY`, a line for `vmddpm --help`; `build(new_parser)`, its options; and `run(parser, options)`. One
with sub-commands of its own adds them in `extend(parser, new_parser)`: jsonargparse wants the outer ones first.
"""

import io
import os
import sys
import time
import traceback
import warnings
from argparse import RawDescriptionHelpFormatter
from importlib import import_module
from typing import Any

from vmddpm.cli.presets import PRESETS, with_preset_files
from vmddpm.cli.waiting import sleep_while_waiting
from vmddpm.errors import VmddpmError

__all__ = ["PRESETS", "build_parser", "main"]

HELP = """VM-DDPM: Vision-Mamba diffusion for medical image synthesis.

example:
  vmddpm demo --minutes 6 --out runs/demo
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm sample --run runs/small --num 16 --out samples"""
UNEXPECTED = 70  # the exit code of an error that is not the user's (EX_SOFTWARE of sysexits.h)
COMMANDS = ("train", "sample", "evaluate", "table1", "ablate", "prepare", "data", "study", "demo", "info")

started = time.monotonic()  # the command, whose loading of torch and options takes seconds


def build_parser() -> tuple[Any, dict[str, Any]]:
    """The command line and its sub-commands' own parsers, by name."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the examples; jsonargparse hands it on to the sub-commands."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="vmddpm", formatter_class=Formatter, description=HELP)
    parser.add_argument("--traceback", action="store_true", help="show where an error arose; may follow the command")
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
    """Runs one command and returns its exit code.

    0: done. 1: an error that the user can mend, told in one line on stderr. 70: any other, with its traceback. 130:
    Ctrl-C. 141: nobody reads the output any more, as in `vmddpm info | head -1`. A misspelt command line exits with 2.
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    global started
    started = time.monotonic()
    sleep_while_waiting()
    words = with_preset_files(sys.argv[1:] if argv is None else argv)
    try:
        try:
            _run(sorted(words, key=lambda word: word != "--traceback"))  # it goes first, the others keep their order
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        name = next((f"vmddpm {word}" for word in words if word in COMMANDS), "vmddpm")
        return _report(error, name, traced="--traceback" in words)
    return 0


def _run(words: list[str]) -> None:
    parser, parsers = build_parser()
    arguments = parser.parse_args(words)
    name = arguments.subcommand
    import_module(f"vmddpm.cli.{name}").run(parsers[name], arguments[name])


def _flush() -> None:
    """Writes out what was printed while a failure still counts: at its own end Python would only complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is left to be written then
        raise


def _report(error: Exception, name: str, *, traced: bool) -> int:
    """Prints the error that ended the command `name`; returns the exit code."""
    line, code = _told(error, name, "" if traced else "; to see where, add --traceback")
    if traced or code == UNEXPECTED:
        traceback.print_exception(error)
    print(f"{name}: {line}", file=sys.stderr)
    return code


def _told(error: Exception, name: str, hint: str) -> tuple[str, int]:
    """The line for an error, and the exit code."""
    if isinstance(error, VmddpmError):
        return str(error), 1
    if isinstance(error, OSError):
        return f"{' '.join(str(error).split()) or type(error).__name__}{hint}", 1
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    package = missing.partition(".")[0]
    if package in ("", "vmddpm", "vmddpm_kernels"):
        return "unexpected error; please report the lines above with the output of `vmddpm info`", UNEXPECTED
    if package == "fcntl":
        cure = "the command locks files as Linux and macOS do; run it on one of them"
    else:
        cure = f"`pip install \".[{'study' if name == 'vmddpm study' else 'train'}]\"` in the source tree brings it"
    return f"{missing} is missing; {cure}{hint}", 1
