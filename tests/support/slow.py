"""Cases of tests that are left to the slow part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def others_slow(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """The values, or tuples of values, as parameters of a test; all but the `fast` ones are marked as slow."""
    return [value if value in fast else _slow(*value if isinstance(value, tuple) else (value,)) for value in values]


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)
