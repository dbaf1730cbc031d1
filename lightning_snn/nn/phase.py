"""Passes of a network that are not its run on spikes, for forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import nn

Phase = Literal["collect", "replay"]

_phase: ContextVar[Phase | None] = ContextVar("phase", default=None)
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def rate_phase() -> Phase | None:
    """Return the current pass of `rate_run`: "collect" on spikes, "replay" on rates, or None outside.

    For forward hooks that observe spikes.

    Example:
        >>> rate_phase() is None
        True
    """
    return _phase.get()


def has_instance_forward(module: nn.Module) -> bool:
    """Return whether a `forward` was set on the instance, other than by `rate_run` during its passes.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> layer.forward = lambda x: x
        >>> has_instance_forward(layer)
        True
    """
    return "forward" in vars(module) and rate_phase() is None


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """Enter a context in which `rate_phase` returns `phase`."""
    token = _phase.set(phase)
    try:
        yield
    finally:
        _phase.reset(token)


@contextmanager
def recomputing() -> Iterator[None]:
    """Enter a context in which observers compute quantities of a run again, such as membrane potentials."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def on_spikes() -> bool:
    """Return whether modules are called in the run on spikes, not on rates or while observers compute potentials.

    Example:
        >>> on_spikes()
        True
        >>> with recomputing():
        ...     on_spikes()
        False
    """
    return rate_phase() != "replay" and not _recomputing.get()
