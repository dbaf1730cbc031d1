"""Passes of a network that are not its run on spikes, for forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_snn.nn.run_context import Phase, ThreadForward, recomputes, run_values, values_set


def rate_phase() -> Phase | None:
    """Return the current pass of `rate_run`: "collect" on spikes, "replay" on rates, or None outside.

    For forward hooks that observe spikes.

    Example:
        >>> rate_phase() is None
        True
    """
    return run_values().phase


def has_instance_forward(module: nn.Module) -> bool:
    """Return whether a `forward` was set on the instance, other than by `rate_run` during its passes.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> layer.forward = lambda x: x
        >>> has_instance_forward(layer)
        True
    """
    forward = vars(module).get("forward")
    return (forward.own if isinstance(forward, ThreadForward) else forward) is not None


@contextmanager
def in_phase(phase: Phase) -> Iterator[None]:
    """Enter a context in which `rate_phase` returns `phase`."""
    with values_set(phase=phase):
        yield


@contextmanager
def recomputing() -> Iterator[None]:
    """Enter a context in which observers compute quantities of a run again, such as membrane potentials."""
    with values_set(observed=True):
        yield


def on_spikes() -> bool:
    """Return whether modules are called in the run on spikes.

    They are not on rates, while observers compute potentials, and in the second call by activation checkpointing.

    Example:
        >>> on_spikes()
        True
        >>> with recomputing():
        ...     on_spikes()
        False
    """
    values = run_values()
    return values.phase != "replay" and not values.observed and not recomputes()
