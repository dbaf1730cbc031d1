"""Passes of a network that are not its run on spikes, for forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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


def check_records(layer: nn.Module, term: str) -> None:
    """Raise a RuntimeError if the present call of a layer builds no graph, through which a term needs its gradient.

    Reentrant activation checkpointing is such a call: its second call, which builds the graph, is part of the backward
    pass, in which the term is already computed.

    Args:
        layer: the layer.
        term: term of the objective that is computed from its output.

    Example:
        >>> check_records(LIF(), "`penalties`")
        >>> with torch.no_grad():
        ...     check_records(LIF(), "`penalties`")
        Traceback (most recent call last):
        RuntimeError: Expected LIF to be called with gradients enabled for `penalties`, but they are disabled. Use
        activation checkpointing with use_reentrant=False, and no `torch.no_grad()` inside the network
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            f"Expected {type(layer).__name__} to be called with gradients enabled for {term}, but they are disabled. "
            "Use activation checkpointing with use_reentrant=False, and no `torch.no_grad()` inside the network"
        )
