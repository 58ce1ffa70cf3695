"""General checks of the numbers in a configuration."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from vmddpm.errors import InputError, VmddpmError

SEEDS = 1 << 63  # number of seeds, from 0 on, that every generator here distinguishes
MAX_INT64 = SEEDS - 1  # largest int64
MAX_MINUTES = 10_000_000  # minutes, 19 years


def check_numbers(
    config: Any, prefix: str = "", limits: Mapping[str, float] | None = None, error: type[VmddpmError] = InputError
) -> None:
    """Refuse numbers that are not finite or do not fit into int64. YAML and the command line can express NaN, infinity
    (also as 1e400) and integers of any length.

    Args:
        config: a dataclass; numbers in its lists and tuples are checked too.
        prefix: prefix of a field's name in the message, such as "gan.".
        limits: largest values of some fields, or of each number in them, where int64 allows too much.
        error: the class of the error.

    Raises:
        VmddpmError: `error`, naming the field, its value and what it must be.

    Example:
        >>> check_numbers(DiffusionConfig(beta_end=float("inf")))
        Traceback (most recent call last):
        vmddpm.errors.InputError: beta_end is inf; it must be a finite number
    """
    for field in fields(config):
        value, limit = getattr(config, field.name), (limits or {}).get(field.name, MAX_INT64)
        or_null = ", or null" if field.default is None else ""
        for number in _numbers(value):
            if not isinstance(number, int) and not math.isfinite(number):
                raise error(f"{prefix}{field.name} is {number!r}; it must be a finite number{or_null}")
            if abs(number) > limit:
                raise error(f"{prefix}{field.name} is {shown(number)}; it must be at most {limit:,}{or_null}")


def check_seed(name: str, seed: int) -> None:
    """Raise InputError unless 0 <= seed < 2^63; larger seeds would repeat the random numbers of smaller ones."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"{name} is {shown(seed)}; it must be from 0 to below 2^63")


def shown(value: Any) -> str:
    """A value for a message; integers of hundreds of digits are replaced by their number of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    return f"{value!r:.200}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)):
        yield value
