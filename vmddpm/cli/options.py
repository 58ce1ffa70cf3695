"""The parser of a command's options, with a short and a full help, and errors of one or two lines.

jsonargparse takes the options from the fields of the configuration dataclasses. Its errors expose its internals, so
they are rewritten here in terms of the command line.
"""

import argparse
import os
import re
import sys
import types
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from vmddpm.cli.usage import did_you_mean, refuse

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the examples."""


class _ShortFormatter(_Formatter):
    """Shows the first sentence of an option's help, and its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = first_sentence(action)
        has_default = action.option_strings and action.default not in (None, argparse.SUPPRESS, False)
        return f"{text} (default: %(default)s)" if has_default and "default" not in text else text


class _WholeHelp(argparse._HelpAction):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(parser.format_help(), end="")
        parser.exit()


class OptionParser(ArgumentParser):
    """The parser of a command.

    Attributes:
        common: the dotted options in the short help, which also shows all options without a dot.
        presets: names that --config accepts in place of a file.
        needed: destinations of the required options.
    """

    common: Iterable[str] = ()
    presets: Iterable[str] = ()
    needed: Iterable[str] = ()

    @classmethod
    def of_command(cls, prog: str, common: Iterable[str], presets: Iterable[str], description: str) -> "OptionParser":
        parser = cls(prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False)
        parser.common, parser.presets = tuple(common), tuple(presets)
        parser.add_argument("--help-all", action=_WholeHelp, help="show every option, in full, and exit")
        return parser

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        self.needed = {action.dest for action in self._actions if action.required}  # jsonargparse clears it in parsing
        given = arguments[0] if arguments else options.get("args")
        self._check_configs(sys.argv[1:] if given is None else list(given))
        return super().parse_args(*arguments, **options)

    def _check_configs(self, words: list[str]) -> None:
        """Refuse --config files without options; jsonargparse reports errors in single options."""
        if "--config" not in self._option_string_actions:
            return
        parts = {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}
        for path in values_of("--config", words):
            if wrong := _no_options(path, parts):
                entry = f"`{min(parts)}:` with indented entries" if parts else "`name: value`"
                refuse(self.prog, f"--config {path or repr(path)}: {wrong}",
                       f"it must be YAML in UTF-8 of {entry}; `{self.prog} --print_config` shows one")  # fmt: skip

    def print_help(self, *_: Any) -> None:
        """Print the short help."""
        shown = [action for action in self._choices() if "." not in action.dest or action.dest in self.common]
        formatter, every_group = self.formatter_class, self._action_groups
        groups: list[Any] = [argparse._ArgumentGroup(self, title) for title in ("arguments", "options")]
        for action in shown:
            groups[bool(action.option_strings)]._group_actions.append(action)
        self.formatter_class, self._action_groups = _ShortFormatter, groups
        try:
            text = self.format_help()
        finally:
            self.formatter_class, self._action_groups = formatter, every_group
        print(text, end="")
        hidden = sum(1 for action in self._choices()) - len(shown)
        more = f"{hidden} more, and " if hidden else ""
        print(f"\n`{self.prog} --help-all` shows {more}what each means in full.")

    def format_help(self, *arguments: Any) -> str:
        self.usage = self._usage().replace("%", "%%")
        return str(super().format_help(*arguments))

    def _usage(self) -> str:
        """The command with its required arguments."""
        needed = [
            f"{self._name(action)} {self._value_name(action)}" if action.option_strings else self._name(action)
            for action in self._choices()
            if not action.option_strings or action.required or action.dest in self.needed
        ]
        named = [part for part in needed if part.startswith("-")]
        positionals = [part for part in needed if not part.startswith("-")]
        return " ".join([self.prog, *positionals, *named, "[options]"])

    def _name(self, action: argparse.Action) -> str:
        """An option as typed, such as "--training.steps", or a positional argument, such as "study"."""
        if action.option_strings:
            return next(text for text in action.option_strings if text.startswith("--"))
        word = self._value_name(action).lower()
        if action.nargs == "?":
            return f"[{word}]"
        return f"{word} [{word} ...]" if action.nargs == "+" else word

    @staticmethod
    def _value_name(action: argparse.Action) -> str:
        return str(action.metavar or action.dest.rpartition(".")[2].upper())

    def _choices(self) -> list[argparse.Action]:
        """The visible options, without those that take a whole part of the configuration as one text."""
        parts = {action.dest.partition(".")[0] for action in self._actions if "." in action.dest}
        return [action for action in self._actions
                if action.help != argparse.SUPPRESS and action.dest not in parts]  # fmt: skip

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser that jsonargparse makes for one value, and whose errors it handles
            super().error(message, ex)
        refuse(self.prog, *self._explain(" ".join(message.split())))

    def _explain(self, message: str) -> tuple[str, str]:
        """Translate a message of argparse or jsonargparse into the fault and the remedy."""
        help_text = f"`{self.prog} --help` shows its options"
        if found := re.match(r"unrecognized arguments: (.*)", message):
            return self._explain_unknown(found[1].split(" "))
        if found := re.match(r"the following arguments are required: (.*)", message):
            return self._explain_missing(found[1].split(", "))
        if found := re.match(r"argument (\S+?)(?:/\S+)?: (expected .*)", message):
            wanted = found[2].replace("expected one argument", "a value is missing")
            return f"{found[1]}: {wanted}", self._purpose(found[1]) or help_text
        if found := re.match(r"argument (\S+): ignored explicit argument '?(.*?)'?$", message):
            return f"{found[1]} takes no value, and got {found[2]!r}", self._purpose(found[1])
        if found := re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            choices = found[3].replace("'", "").split(", ")
            return f"{found[1]} is {found[2]!r}{did_you_mean(found[2], choices)}", f"it is one of {', '.join(choices)}"
        if found := re.match(r'Parser key "config": .*?: \'?([^\']*)', message):
            return self._no_config(found[1], message)
        if found := re.search(r"(?:Group '([\w.]+)' .*)?(?:[Oo]ption|[Kk]ey) '([\w.]+)'", message):
            entry = ".".join(filter(None, found.groups()))
            return (f"{self._origin()} has the entry {entry}, which this command does not have"
                    f"{did_you_mean(entry, [action.dest for action in self._choices()])}",
                    f"`{self.prog} --help-all` shows all entries, as options")  # fmt: skip
        if found := re.match(r'Parser key "([\w.]+)"', message):
            if action := next((action for action in self._choices() if action.dest == found[1]), None):
                return self._explain_value(action, message)
            inner = next((name for name in sorted(self.common) if name.startswith(f"{found[1]}.")), f"{found[1]}.NAME")
            return f"--{found[1]} is not the name of a YAML file", f"give its options one by one: --{inner} VALUE"
        if found := re.match(r"(?:Problems parsing|Unexpected) config:? (.*)", message):
            reason = found[1].replace(' in "<unicode string>"', "")
            return (f"{self._origin()} is not a YAML file of options: {reason}",
                    f"`{self.prog} --help-all` shows the options, which are its entries")  # fmt: skip
        return message, help_text

    def _explain_unknown(self, words: list[str]) -> tuple[str, str]:
        options = [text for action in self._choices() for text in action.option_strings]
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if option is None:
            return f"{words[0]!r} is one word too many", f"usage: {self._usage()}"
        near = did_you_mean(option, options)
        return f"{option} is not an option{near}", f"`{self.prog} --help-all` shows all options"

    def _explain_missing(self, keys: list[str]) -> tuple[str, str]:
        actions = [action for key in keys for action in self._choices() if action.dest == key]
        names = [self._name(action) for action in actions]
        verb = "is" if len(names) == 1 else "are"
        purpose = f"{names[0]}: {first_sentence(actions[0])}" if len(names) == 1 else f"usage: {self._usage()}"
        return f"{', '.join(names)} {verb} missing", purpose

    def _no_config(self, path: str, message: str) -> tuple[str, str]:
        given = next((word for word in values_of("--config", self.args)
                      if os.path.basename(word) == os.path.basename(path)), path)  # fmt: skip
        if os.path.isdir(given):
            return f"--config {given}: is a folder", "give a YAML file"
        if os.path.exists(given):
            return f"--config {given}: cannot be read as YAML with options", message
        names = f"; the presets are {', '.join(self.presets)}" if self.presets else ""
        kind = "neither a file nor a preset" if self.presets else "no file"
        return f"--config {given}: {kind}{did_you_mean(given, self.presets)}", f"give a YAML file{names}"

    def _explain_value(self, action: argparse.Action, message: str) -> tuple[str, str]:
        value = re.search(r"(?:Got|Given) value: (.*)$", message)
        name = self._name(action)
        if action.option_strings and not any(word.partition("=")[0] == name for word in self.args):
            name = f"{action.dest} in {self._origin()}"
        kind = getattr(action, "_typehint", None) or action.type
        wanted = expected(kind)
        near = ""
        if get_origin(kind) is Literal and value:
            near = did_you_mean(value[1], [str(choice) for choice in get_args(kind)])
        return (f"{name} is {value[1]!r}{near}" if value else f"{name} cannot be read",
                f"it must be {wanted}" if wanted else message)  # fmt: skip

    def _origin(self) -> str:
        files = values_of("--config", self.args)
        return files[0] if len(files) == 1 else "the configuration"

    def _purpose(self, option: str) -> str:
        action = self._option_string_actions.get(option)
        return f"{option}: {first_sentence(action)}" if action else ""


def values_of(option: str, words: list[str]) -> list[str]:
    """The values of an option on a command line."""
    joined = [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
    return joined + [after for word, after in pairwise(words) if word == option]


def _no_options(path: str, parts: set[str]) -> str:
    """The reason why a file holds no options. Empty if it holds some, or if jsonargparse will report the fault: a
    missing file or invalid YAML.

    Args:
        parts: the entries that have nested entries.
    """
    if not path:
        return "names no file"
    try:
        entries = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader)
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text (byte {error.start})"
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    if not entries:
        return "is empty"
    if not isinstance(entries, dict):
        return f"is {_kind(entries)}, not entries with names"
    for name, value in entries.items():
        if not isinstance(name, str) or not re.match(r"[^\W\d]", name):
            return f"has the entry {name!r:.40}, which is not a name"
        if name in parts and not isinstance(value, dict):
            return f"has {name} as {_kind(value)}, which must have entries of its own"
    return ""


def _kind(value: Any) -> str:
    """The kind of a YAML value in words. BaseLoader returns text for everything but lists and mappings."""
    return "a list" if isinstance(value, list) else f"the single value {value!r:.40}" if value else "nothing"


def first_sentence(action: argparse.Action) -> str:
    """The first sentence of an option's help, without its full stop."""
    return re.split(r"(?<=[.;])\s", " ".join((action.help or "").split()), maxsplit=1)[0].rstrip(".;")


def expected(kind: Any) -> str:
    """A description of a type's values: int -> "a whole number"; empty for types without one."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if kind in words:
        return words[kind]
    inner, origin = get_args(kind), get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        parts = [expected(one) for one in inner]
        return " or ".join(parts) if all(parts) else ""
    if origin in (list, tuple) and inner:
        example = {int: "1,2", float: "0.5,1"}.get(inner[0], "a,b")
        every = {int: "whole numbers", float: "numbers"}.get(inner[0], "values")
        count = len(inner) if origin is tuple and ... not in inner else None
        return f"{count or 'a list of'} {every} in brackets, such as [{example}]"
    return ""
