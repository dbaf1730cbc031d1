"""Current pass of rate-based backpropagation, for forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["collect", "replay"]

_phase: ContextVar[Phase | None] = ContextVar("phase", default=None)


def rate_phase() -> Phase | None:
    """Return the current pass of `rate_run`: "collect" on spikes, "replay" on rates, or None outside.

    For forward hooks that observe spikes.

    Example:
        >>> rate_phase() is None
        True
    """
    return _phase.get()


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """Enter a context in which `rate_phase` returns `phase`."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)
