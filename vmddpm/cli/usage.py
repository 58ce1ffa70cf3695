"""Errors for invalid command lines: one line with the fault, one with the remedy."""

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn

USAGE = 2  # exit code of an invalid command line, as in argparse
OTHER_NAMES = {"num": "images", "n": "images", "batch": "batch_size"}  # names in other programs and in earlier versions


def refuse(prog: str, *lines: str) -> NoReturn:
    """Print the lines, the first after the name of the command, and exit with code 2."""
    print(f"{prog}: " + "\n  ".join(line for line in lines if line), file=sys.stderr)
    raise SystemExit(USAGE)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The known word that was probably meant; empty if none is close. Unambiguous abbreviations and the last part of a
    dotted option count as close."""
    choices = list(candidates)
    bare = word.lstrip("-").replace("-", "_")
    plain = {choice.lstrip("-").replace("-", "_"): choice for choice in choices}
    if OTHER_NAMES.get(bare) in plain:
        return plain[OTHER_NAMES[bare]]
    for fits in (str.startswith, lambda name, part: name.split(".")[-1] == part):
        found = {choice for name, choice in plain.items() if bare and fits(name, bare)}
        if len(found) == 1:
            return found.pop()
    close = difflib.get_close_matches(bare, plain, n=1) or difflib.get_close_matches(
        bare.split(".")[-1], [name.split(".")[-1] for name in plain], n=1, cutoff=0.75
    )
    return next((choice for name, choice in plain.items() if close and name in close), "") or next(
        (choice for name, choice in plain.items() if close and name.split(".")[-1] in close), ""
    )


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """"; did you mean X?", or nothing."""
    found = nearest(word, candidates)
    return f"; did you mean {found}?" if found else ""


class PlainParser(argparse.ArgumentParser):
    """A parser for the base install, which lacks jsonargparse, with errors in the style of `OptionParser`."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)  # fmt: skip

    def error(self, message: str) -> NoReturn:
        word = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        reason = f"{word} is not an option{did_you_mean(word, self._option_string_actions)}" if word else message
        refuse(self.prog, reason, f"`{self.prog} --help` shows what it takes")
