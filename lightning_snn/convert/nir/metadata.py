"""Metadata of nodes: reset, order, surrogate, learned values and exact numbers, for which NIR has no fields.

The fields of a node count. Metadata refine them only where both agree up to rounding, so a graph that another program
changed is read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_snn.convert.nir.package import KEY
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.functional.dynamics import ORDERS, RESETS, Dynamics, Order, Reset
from lightning_snn.functional.surrogate import SURROGATES, Surrogate, surrogate_named
from lightning_snn.nn.stateful import StatefulLayer

_ROUNDINGS = 8
_STORED = ("_logit", "_log", "_channels")


class NeuronNotes(NamedTuple):
    """Metadata of a layer of neurons.

    Attributes:
        reset: "subtract" or "zero"; None if there is no note.
        order: order of leak and reset.
        detach_reset: whether the reset passes no gradient.
        surrogate: derivative of the spike.
        at_or_above: whether the threshold was moved to the next larger number for simulators that compare by ``>=``.
        numbers: exact values by name.
        stored: parameters and buffers of values by their name in a state dict.
    """

    reset: Reset | None = None
    order: Order = "reset_then_leak"
    detach_reset: bool = False
    surrogate: Surrogate = surrogate_named("arctangent")
    at_or_above: bool = False
    numbers: Mapping[str, float] = {}
    stored: Mapping[str, np.ndarray] = {}


def notes_of(layer: StatefulLayer, dynamics: Dynamics | None, at_or_above: bool = False) -> dict[str, Any]:
    """Return the metadata of a layer with declared values.

    Args:
        layer: the layer.
        dynamics: reset, order and surrogate; None if it never spikes.
        at_or_above: see `NeuronNotes`.
    """
    notes: dict[str, Any] = {
        "numbers": layer.fixed_numbers,
        "stored": {
            name: storable(value)
            for name, value in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
            if name.endswith(_STORED)
        },
    }
    if dynamics is not None:
        notes |= {"reset": dynamics.reset, "order": dynamics.order, "detach_reset": dynamics.detach_reset}
        names = {kind: name for name, kind in SURROGATES.items()}
        if type(dynamics.surrogate) in names:
            notes["surrogate"] = names[type(dynamics.surrogate)]
            notes["width"] = float(dynamics.surrogate.width)  # type: ignore[attr-defined]
    if at_or_above:
        notes["at_or_above"] = True
    return {KEY: {name: value for name, value in notes.items() if not isinstance(value, dict) or value}}


def storable(values: Tensor) -> np.ndarray | float:
    """Return values as an array, or as a number: nir 1.0.8 writes no arrays without dimensions."""
    return values.item() if values.dim() == 0 else values.detach().cpu().numpy()


def neuron_notes(metadata: Mapping[str, Any]) -> NeuronNotes:
    """Return the notes in the metadata of a node, those of another program's node without any.

    Raises:
        Unconvertible: if they were not written by `notes_of`.
    """
    found = metadata.get(KEY)
    if not isinstance(found, Mapping):
        return NeuronNotes()
    reset, order, name = found.get("reset"), found.get("order", "reset_then_leak"), found.get("surrogate", "arctangent")
    for key, value, known in (
        ("reset", reset, (None, *RESETS)),
        ("order", order, ORDERS),
        ("surrogate", name, tuple(SURROGATES)),
    ):
        if not isinstance(value, str | None) or value not in known:
            raise Unconvertible(f"its metadata hold the {key} {str(value)[:40]!r}, which is unknown")
    try:
        width = found.get("width")
        surrogate: Any = SURROGATES[name] if width is None else lambda: SURROGATES[name](width=float(width))  # type: ignore[call-arg]
        return NeuronNotes(
            reset,
            order,
            bool(found.get("detach_reset", False)),
            surrogate(),
            bool(found.get("at_or_above", False)),
            {str(key): float(value) for key, value in dict(found.get("numbers", {})).items()},
            {str(key): np.asarray(value) for key, value in dict(found.get("stored", {})).items()},
        )
    except (TypeError, ValueError) as error:
        raise Unconvertible(f"its metadata are damaged: {error}") from error


def is_learned(notes: NeuronNotes, name: str, value: float | np.ndarray) -> bool:
    """Return whether a value was learned when the node was written, and can be: a learned decay is in (0, 1)."""
    if f"{name}_log" in notes.stored:
        return True
    return f"{name}_logit" in notes.stored and bool(np.all(np.asarray(value) > 0) and np.all(np.asarray(value) < 1))


def exact(notes: NeuronNotes, name: str, value: float | np.ndarray, dtype: np.dtype) -> float | np.ndarray:
    """Return the exact number behind a value of a node's fields, or that value if the notes hold no such number."""
    number = notes.numbers.get(name)
    if number is None or isinstance(value, np.ndarray) or not _agree(np.asarray(number), np.asarray(value), dtype):
        return value
    return number


def restore(layer: nn.Module, notes: NeuronNotes, dtype: np.dtype) -> None:
    """Load the stored parameters and buffers of values that agree with those of a layer, in place."""
    assert isinstance(layer, StatefulLayer)
    for name in layer.constants:
        for kind in _STORED:
            stored, own = notes.stored.get(f"{name}{kind}"), getattr(layer, f"{name}{kind}", None)
            if stored is None or not isinstance(own, Tensor) or stored.shape != own.shape or stored.dtype.kind != "f":
                continue
            before, kept = _values(layer, name), own.detach().clone()
            own.data.copy_(torch.from_numpy(stored))
            if not _agree(_values(layer, name), before, dtype):
                own.data.copy_(kept)


def _values(layer: StatefulLayer, name: str) -> np.ndarray:
    value = layer.value(name)
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _agree(one: np.ndarray, other: np.ndarray, dtype: np.dtype) -> bool:
    return bool(np.allclose(one, other, rtol=_ROUNDINGS * np.finfo(dtype).eps, atol=_ROUNDINGS * np.finfo(dtype).eps))
