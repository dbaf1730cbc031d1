"""Libraries that examples and documents may use, and that need not be installed."""

from __future__ import annotations

import importlib.util
import re

import pytest

OPTIONAL = ("spikingjelly", "nir", "nirtorch", "neurobench")
_NAMES = re.compile(rf"(?<![a-z])({'|'.join(OPTIONAL)})(?![a-z])")


def skip_without_libraries(text: str) -> None:
    """Skip the test if a text uses an optional library that is not installed."""
    for name in dict.fromkeys(_NAMES.findall(text)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: see CONTRIBUTING.md")
