"""The command `vmddpm`, with a thin module for each sub-command; the packages do the work.

A module defines `SUMMARY`, a line for `vmddpm --help`; `build(new_parser)`, which returns its parser; and `run(parser,
options)`. It may define `COMMON`, the dotted options in its short help. A module with further sub-commands defines
`HELP`, `COMMANDS` (their summaries by name), `build(new_parser, name)` and `run(parser, options, name)` instead.
`new_parser(description=...)` makes a parser with the name of the command.
"""

import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, NoReturn

from vmddpm.cli.messages import print_message, shown
from vmddpm.cli.presets import PRESETS, with_preset_files
from vmddpm.cli.usage import PlainParser, did_you_mean, nearest, refuse
from vmddpm.cli.waiting import sleep_while_waiting
from vmddpm.errors import VmddpmError

__all__ = ["PRESETS", "Call", "build_parser", "main", "parse"]

HELP = """VM-DDPM: Vision-Mamba diffusion for medical image synthesis.

example:
  vmddpm demo --minutes 6 --out runs/demo
  vmddpm train --config demo --data.root slices --training.steps 20000 --run runs/small
  vmddpm sample --run runs/small --images 16 --out samples"""
SWITCHES = """
  --traceback  show where an error occurred; allowed anywhere
  --version    show the version
"""
UNEXPECTED = 70  # exit code of an internal error (EX_SOFTWARE of sysexits.h)
COMMANDS = ("train", "sample", "inpaint", "evaluate", "table1", "ablate", "prepare", "data", "study", "demo", "info")
BASE = ("info",)  # commands that the base install can run
HELP_SWITCHES = ("-h", "--help", "--help-all")

started = time.monotonic()  # start of the command, before torch and the options are loaded, which takes seconds


@dataclass(frozen=True)
class Call:
    """A parsed command line.

    Attributes:
        words: the command and its sub-command, if it has one.
        parser: the parser of its options.
        options: the options, with defaults filled in.
    """

    words: tuple[str, ...]
    parser: Any
    options: Any

    def run(self) -> None:
        _module(self.words[0]).run(self.parser, self.options, *self.words[1:])


def _module(name: str) -> ModuleType:
    return import_module(f"vmddpm.cli.{name}")


def build_parser(*words: str) -> Any:
    """The parser of a command's options: ("train",), or ("study", "create")."""
    prog, module = " ".join(("vmddpm", *words)), _module(words[0])
    if words[0] in BASE:
        return module.build(partial(PlainParser, prog))
    from vmddpm.cli.options import OptionParser

    new_parser = partial(OptionParser.of_command, prog, getattr(module, "COMMON", ()), getattr(module, "PRESETS", ()))
    return module.build(new_parser, *words[1:])


def parse(argv: list[str]) -> Call:
    """Parse a command line. Raises SystemExit: with code 2 and a message if it is invalid; with 0 after help."""
    if argv[:1] == ["--version"]:
        print(f"vmddpm {version('vmddpm')}")
        raise SystemExit(0)
    name, *rest = argv or [""]
    if name not in COMMANDS:
        summaries = {command: str(_module(command).SUMMARY) for command in COMMANDS}
        _answer("vmddpm", "command", [name, *rest], summaries, HELP, SWITCHES)
    words: tuple[str, ...] = (name,)
    module = _module(name)
    if hasattr(module, "COMMANDS"):
        inner, *rest = rest or [""]
        if inner not in module.COMMANDS:
            _answer(f"vmddpm {name}", "sub-command", [inner, *rest], module.COMMANDS, module.HELP)
        words = (name, inner)
    parser = build_parser(*words)
    return Call(words, parser, parser.parse_args(with_preset_files(rest)))


def _answer(
    prog: str, kind: str, words: list[str], summaries: dict[str, str], text: str, switches: str = ""
) -> NoReturn:
    """Handle a first word that is not a command: show help if it is a help option, else refuse it with a hint."""
    word, *rest = words
    if word in HELP_SWITCHES:
        width = max(map(len, summaries))
        lines = (f"  {name:<{width}}  {summary}" for name, summary in summaries.items())
        print(f"usage: {prog} {kind.upper()} [options]\n\n{text.strip()}\n\n{kind}s:", *lines, sep="\n")
        print(f"{switches}\n`{prog} {kind.upper()} --help` shows the options of one.")
        raise SystemExit(0)
    hint = f"its {kind}s are {', '.join(summaries)}; `{prog} --help` says what each does"
    if not word:
        refuse(prog, f"a {kind} is missing", hint)
    if word.startswith("-") and not nearest(word, ("--help", "--version")):
        # The first word may be the option's value.
        command = next((later for later in (*rest[1:], *rest[:1]) if later in summaries), "")
        advice = f"{command} goes first: `{prog} {command} {word} ...`" if command else hint
        refuse(prog, f"{word} must come after the {kind}", advice)
    refuse(prog, f"{word!r} is not a {kind}{did_you_mean(word, [*summaries, '--help', '--version'])}", hint)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: success. 1: an error that the user can fix, reported in one line on stderr. 70: any other error, with its
    traceback. 130: Ctrl-C. 141: the reader of the output has exited, as in `vmddpm info | head -1`. An invalid command
    line exits with 2.
    """
    warnings.showwarning = lambda message, *_: print_message("warning", str(message))
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may contain undecodable bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    global started
    started = time.monotonic()
    sleep_while_waiting()
    given = sys.argv[1:] if argv is None else argv
    words = [word for word in given if word != "--traceback"]
    try:
        try:
            with shown():
                parse(words).run()
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        return _report(error, _name(words), traced=len(words) < len(given))
    return 0


def _name(words: Iterable[str]) -> str:
    return next((f"vmddpm {word}" for word in words if word in COMMANDS), "vmddpm")


def _flush() -> None:
    """Flush stdout while a failure can still set the exit code; Python's own flush at exit would only print it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the rest when Python exits
        raise


def _report(error: Exception, name: str, *, traced: bool) -> int:
    """Print the error that ended the command `name`; return the exit code."""
    line, code = _message_and_code(error, name, "" if traced else "; to see where, add --traceback")
    if traced or code == UNEXPECTED:
        traceback.print_exception(error)
    print(f"{name}: {line}", file=sys.stderr)
    return code


def _message_and_code(error: Exception, name: str, hint: str) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    if isinstance(error, VmddpmError):
        return str(error), 1
    if isinstance(error, OSError):
        return f"{' '.join(str(error).split()) or type(error).__name__}{hint}", 1
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    package = missing.partition(".")[0]
    if package in ("", "vmddpm", "vmddpm_kernels"):
        return "unexpected error; please report the lines above with the output of `vmddpm info`", UNEXPECTED
    if package == "fcntl":
        fix = "the command needs the file locks of Linux or macOS; run it there"
    else:
        fix = f"`pip install \"vmddpm[{'study' if name == 'vmddpm study' else 'train'}]\"` installs it"
    return f"{missing} is missing; {fix}{hint}", 1
