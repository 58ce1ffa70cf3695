"""`vmddpm info`."""

from typing import Any

SUMMARY = "versions and backends"
HELP = """Show versions, devices and kernel backends, and why a backend is off.

example:
  vmddpm info"""


def build(new_parser: Any) -> Any:
    return new_parser(description=HELP)


def run(parser: Any, options: Any) -> None:
    from vmddpm.info import describe

    print(describe())
