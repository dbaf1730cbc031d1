"""Which of its passes rate-based backpropagation is in, for those who watch a network from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Phase = Literal["collect", "replay"]

_phase: ContextVar[Phase | None] = ContextVar("phase", default=None)


def rate_phase() -> Phase | None:
    """Which pass of `rate_run` the network is in: "collect" with its spikes, or "replay" with rates; None outside.

    For forward hooks that watch spikes.
    """
    return _phase.get()


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """A context within which `rate_phase` says so."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)
