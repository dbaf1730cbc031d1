"""Argument checks whose errors share one grammar: name of the argument, expected value, actual value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raise a ValueError unless `value` is an integer of at least `minimum`.

    >>> check_integer("steps", 0)
    Traceback (most recent call last):
    ValueError: Expected argument `steps` to be an integer of at least 1, but got 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"Expected argument `{name}` to be an integer of at least {minimum}, but got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number larger than 0."""
    if not _is_number(value) or value <= 0:
        raise ValueError(f"Expected argument `{name}` to be a finite number larger than 0, but got {value!r}")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raise a ValueError unless `value` is a finite number from `low` to `high`, inclusive; `high` may be infinite."""
    if not _is_number(value) or not low <= value <= high:
        expected = (
            f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a finite number of at least {low:g}"
        )
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number strictly between 0 and 1."""
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"Expected argument `{name}` to be a number between 0 and 1, both excluded, but got {value!r}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}")


def nearest_name(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question about the name nearest to an unknown one, to append to a message; empty if none is near.

    Example:
        >>> nearest_name("hiden", ["hidden", "neuron"])
        '; did you mean hidden?'
    """
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {prefix}{names[near[0]]}?" if near else ""
