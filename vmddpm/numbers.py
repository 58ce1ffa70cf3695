"""Numbers that a configuration may hold, whatever they mean."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from vmddpm.errors import InputError, VmddpmError

SEEDS = 1 << 63  # how many there are: from 0 on, as far as every generator here tells them apart
LARGEST = SEEDS - 1  # whole number, as int64 holds it
LONGEST = 10_000_000  # minutes, 19 years


def check_numbers(
    config: Any, prefix: str = "", most: Mapping[str, float] | None = None, error: type[VmddpmError] = InputError
) -> None:
    """Refuses numbers of a configuration that nothing can be computed with. A YAML file and a command line spell NaN,
    infinity (1e400 is that as well) and whole numbers of any length.

    Args:
        config: a dataclass; numbers in its lists and tuples count too.
        prefix: in front of a field's name in the message, such as "gan.".
        most: the largest value of a field, or of each number in it, where less than int64 holds is too much.
        error: what is raised.

    Raises:
        VmddpmError: `error`, naming the field, its value and what it must be.

    Example:
        >>> check_numbers(DiffusionConfig(beta_end=float("inf")))
        Traceback (most recent call last):
        vmddpm.errors.InputError: beta_end is inf; it must be a finite number
    """
    for field in fields(config):
        value, limit = getattr(config, field.name), (most or {}).get(field.name, LARGEST)
        or_null = ", or null" if field.default is None else ""
        for number in _numbers(value):
            if not isinstance(number, int) and not math.isfinite(number):
                raise error(f"{prefix}{field.name} is {number!r}; it must be a finite number{or_null}")
            if abs(number) > limit:
                raise error(f"{prefix}{field.name} is {shown(number)}; it must be at most {limit:,}{or_null}")


def check_seed(name: str, seed: int) -> None:
    """Raises InputError unless 0 <= seed < 2^63: a longer one would draw what another, shorter one draws."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"{name} is {shown(seed)}; it must be from 0 to below 2^63")


def shown(value: Any) -> str:
    """A value in a message; a whole number of hundreds of digits by how many there are."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    return f"{value!r:.200}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)):
        yield value
