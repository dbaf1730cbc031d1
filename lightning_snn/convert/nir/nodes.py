"""Nodes of NIR as layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_snn.convert.nir.constants import (
    GAIN_TOLERANCE,
    checked_decay,
    next_float,
    per_channel,
)
from lightning_snn.convert.nir.metadata import NeuronNotes, exact, is_learned, neuron_notes, restore
from lightning_snn.convert.nir.package import KEY, import_nir
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.functional.dynamics import Reset
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.neurons import IF, LIF, LeakyIntegrator, SynapticLIF
from lightning_snn.nn.scale import Scale
from lightning_snn.nn.stateful import StatefulLayer


class Source(NamedTuple):
    """Simulation that a graph was written for.

    Attributes:
        dt: step in seconds.
        dtype: floating point type of the network.
        strict: whether it spikes at ``v > v_threshold``, and not at ``v >= v_threshold``; None is as the metadata say.
        reset: reset of all neurons; None is as the metadata say, or as `v_reset`.
        assumed: whether `dt` is a guess.
    """

    dt: float
    dtype: torch.dtype
    strict: bool | None = None
    reset: Reset | None = None
    assumed: bool = False


def linear(node: Any, source: Source) -> nn.Module:
    """Return the layer of a Linear or Affine node."""
    weight, bias = _tensor(node.weight, source), getattr(node, "bias", None)
    if weight.dim() != 2 or (bias is not None and np.shape(bias) != weight.shape[:1]):
        raise Unconvertible(f"its weight is of shape {list(weight.shape)}, and not a matrix with one bias per row")
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=source.dtype)
    return _with_weights(made, weight, bias, source)


def convolution(node: Any, source: Source) -> nn.Module:
    """Return the layer of a Conv1d or Conv2d node."""
    weight = _tensor(node.weight, source)
    flat = isinstance(node, import_nir().Conv1d)
    dimensions = 1 if flat else 2
    if weight.dim() != dimensions + 2:
        raise Unconvertible(f"its weight is of shape {list(weight.shape)}")
    groups, padding = int(node.groups), node.padding
    stride, dilation = _integers(node.stride, dimensions, 1), _integers(node.dilation, dimensions, 1)
    if isinstance(padding, bytes):
        padding = padding.decode("utf8")
    if not isinstance(padding, str):
        padding = _integers(padding, dimensions, 0)
    biased = node.bias is not None and node.metadata.get(KEY, {}).get("bias", True)
    kind: Any = nn.Conv1d if flat else nn.Conv2d
    made = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        padding,
        dilation,
        groups,
        bool(biased),
        dtype=source.dtype,
    )
    return _with_weights(made, weight, node.bias if biased else None, source)


def pooling(node: Any, source: Source) -> nn.Module:
    """Return the layer of an AvgPool2d or SumPool2d node; a sum is an average with the divisor 1."""
    kernel, stride = _integers(node.kernel_size, 2, 1), _integers(node.stride, 2, 1)
    divisor = 1 if isinstance(node, import_nir().SumPool2d) else None
    return nn.AvgPool2d(kernel, stride, _integers(node.padding, 2, 0), divisor_override=divisor)


def flatten(node: Any, source: Source) -> nn.Module:
    """Return the layer of a Flatten node, whose dimensions are counted without the batch."""
    start, end = (each if each < 0 else each + 1 for each in (int(node.start_dim), int(node.end_dim)))
    return nn.Flatten(start, end)


def scale(node: Any, source: Source) -> nn.Module:
    """Return the layer of a Scale node."""
    return _scale(np.asarray(node.scale), source)


def delay(node: Any, source: Source) -> nn.Module:
    """Return the layer of a Delay node."""
    steps = np.unique(np.asarray(node.delay, np.float64) / source.dt)
    rounded = np.round(steps)
    if len(steps) == 0 or (np.abs(steps - rounded) > GAIN_TOLERANCE * np.maximum(rounded, 1)).any():
        raise Unconvertible(f"its delay is no multiple of dt = {source.dt:g} s: pass the dt of its maker")
    if len(np.unique(rounded)) != 1 or rounded[0] < 0:
        raise Unconvertible("its delay differs between neurons, or is negative: use a Delay node for each")
    return SynapticDelays((int(rounded[0]),))


def if_neurons(node: Any, source: Source) -> nn.Module:
    """Return the neurons of an IF node."""
    gain = _pulse_gain(node, source)
    notes = neuron_notes(node.metadata)
    at_rest = np.zeros_like(gain)
    threshold = _threshold(node, gain, at_rest, notes, source)
    made = IF(
        threshold=_given(threshold),
        reset=_reset(node, at_rest, notes, source),
        detach_reset=notes.detach_reset,
        surrogate=notes.surrogate,
        learn_threshold=is_learned(notes, "threshold", threshold),
    )
    return _filled(made, {"threshold": threshold}, notes, source)


def lif_neurons(node: Any, source: Source) -> nn.Module:
    """Return the neurons of a LIF node."""
    beta = checked_decay(np.asarray(node.tau), source.dt, "tau")
    notes = neuron_notes(node.metadata)
    gain, leak = np.asarray(node.r) * source.dt / node.tau, np.asarray(node.v_leak)
    return _leaky(LIF, {"beta": beta}, node, gain, leak, notes, source)


def synaptic_neurons(node: Any, source: Source) -> nn.Module:
    """Return the neurons of a CubaLIF node."""
    decays = {
        "alpha": checked_decay(np.asarray(node.tau_syn), source.dt, "tau_syn"),
        "beta": checked_decay(np.asarray(node.tau_mem), source.dt, "tau_mem"),
    }
    notes = neuron_notes(node.metadata)
    gain = np.asarray(node.w_in) * source.dt / node.tau_syn * (np.asarray(node.r) * source.dt / node.tau_mem)
    return _leaky(SynapticLIF, decays, node, gain, np.asarray(node.v_leak), notes, source)


def leaky_integrator(node: Any, source: Source) -> nn.Module:
    """Return the integrator of a LI or I node."""
    notes = neuron_notes(node.metadata)
    if isinstance(node, import_nir().I):
        return _scaled(LeakyIntegrator(1.0), _pulse_gain(node, source), source)
    if np.any(node.v_leak):
        raise Unconvertible("its v_leak is not 0, and the potential of an integrator rests at 0: subtract v_leak")
    beta = exact(
        notes, "beta", per_channel(checked_decay(np.asarray(node.tau), source.dt, "tau"), "tau"), _numpy(source)
    )
    made: StatefulLayer = LeakyIntegrator(_given(beta), learn_beta=is_learned(notes, "beta", beta))
    return _scaled(_filled(made, {"beta": beta}, notes, source), np.asarray(node.r) * source.dt / node.tau, source)


def current_integrator(node: Any, source: Source) -> nn.Module:
    """Return the integrators of a CubaLI node: of the current, and of the potential."""
    if np.any(node.v_leak):
        raise Unconvertible("its v_leak is not 0, and the potential of an integrator rests at 0: subtract v_leak")
    parts = []
    for name, weight in (("tau_syn", node.w_in), ("tau_mem", node.r)):
        tau = np.asarray(getattr(node, name))
        decay = per_channel(checked_decay(tau, source.dt, name), name)
        made = _filled(LeakyIntegrator(_given(decay)), {"beta": decay}, NeuronNotes(), source)
        parts.append(_scaled(made, np.asarray(weight) * source.dt / tau, source))
    return nn.Sequential(*parts)


def node_layers() -> Mapping[type, Callable[[Any, Source], nn.Module]]:
    """Return the function that makes the layer of each type of node."""
    nir = import_nir()
    return {
        nir.Linear: linear,
        nir.Affine: linear,
        nir.Conv1d: convolution,
        nir.Conv2d: convolution,
        nir.AvgPool2d: pooling,
        nir.SumPool2d: pooling,
        nir.Flatten: flatten,
        nir.Scale: scale,
        nir.Delay: delay,
        nir.IF: if_neurons,
        nir.LIF: lif_neurons,
        nir.CubaLIF: synaptic_neurons,
        nir.LI: leaky_integrator,
        nir.I: leaky_integrator,
        nir.CubaLI: current_integrator,
    }


def _leaky(
    kind: Any,
    decays: dict[str, np.ndarray],
    node: Any,
    gain: np.ndarray,
    leak: np.ndarray,
    notes: NeuronNotes,
    source: Source,
) -> nn.Module:
    values = {
        name: exact(notes, name, per_channel(decay, f"decay {name}"), _numpy(source)) for name, decay in decays.items()
    }
    values["threshold"] = _threshold(node, gain, leak, notes, source)
    made = kind(
        **{name: _given(value) for name, value in values.items()},
        **{f"learn_{name}": is_learned(notes, name, value) for name, value in values.items()},
        reset=_reset(node, leak, notes, source),
        detach_reset=notes.detach_reset,
        surrogate=notes.surrogate,
        order=notes.order,
    )
    return _filled(made, values, notes, source)


def _pulse_gain(node: Any, source: Source) -> np.ndarray:
    """Return the weight of the input of a node without a leak, r dt; r = 1 is the weight 1 of sinabs and snntorch."""
    r = np.asarray(node.r, np.float64)
    if (r == 1).all():
        return r
    if source.assumed and (np.abs(r * source.dt - 1) > GAIN_TOLERANCE).any():
        raise Unconvertible(
            f"its r of {r.max():g} is a weight of {r.max() * source.dt:g} at dt = {source.dt:g} s, which is a guess: "
            f"pass dt, which is {1 / r.max():g} s if the weight is 1"
        )
    gain: np.ndarray = r * source.dt
    return gain


def _threshold(node: Any, gain: np.ndarray, leak: np.ndarray, notes: NeuronNotes, source: Source) -> float | np.ndarray:
    """Return the threshold above the leak potential, in units in which the input has the weight 1."""
    threshold = np.asarray(node.v_threshold)
    if threshold.dtype.kind != "f":
        threshold = threshold.astype(np.float64)
    if not (np.isfinite(gain).all() and (gain > 0).all()):
        raise Unconvertible("its input has a weight (r and the time constants) that is not larger than 0")
    strict = not notes.at_or_above if source.strict is None else source.strict
    if np.any(leak):
        threshold = threshold - leak
    if (np.abs(gain - 1) > GAIN_TOLERANCE).any():
        threshold = threshold / gain
    if not strict:
        threshold = next_float(threshold.astype(_numpy(source)), -np.inf)
    if (threshold <= 0).any():
        raise Unconvertible("its v_threshold is not larger than its v_leak, so it fires without an input")
    return exact(notes, "threshold", per_channel(threshold, "v_threshold"), _numpy(source))


def _reset(node: Any, leak: np.ndarray, notes: NeuronNotes, source: Source) -> Reset:
    reset = source.reset or notes.reset or "zero"
    if reset == "subtract" and np.any(leak):
        raise Unconvertible(
            "its v_leak is not 0, and neurons here subtract their threshold above the potential at rest, which is "
            'another amount than v_threshold: pass reset="zero"'
        )
    if reset == "zero" and np.any(np.asarray(node.v_reset) != leak):
        raise Unconvertible(
            "its v_reset is not the potential at rest, to which neurons here are reset: set v_reset, or pass "
            'reset="subtract" if its simulator subtracts the threshold'
        )
    return reset


def _filled(
    layer: StatefulLayer, values: Mapping[str, float | np.ndarray], notes: NeuronNotes, source: Source
) -> StatefulLayer:
    """Return a layer in the dtype of the network, whose values per channel are not rounded to float32."""
    layer.to(source.dtype)
    for name, value in values.items():
        if isinstance(value, np.ndarray) and layer.parameter_of(name) is None:
            setattr(layer, f"{name}_channels", torch.as_tensor(value, dtype=source.dtype))
    restore(layer, notes, _numpy(source))
    return layer


def _scaled(layer: nn.Module, gain: np.ndarray, source: Source) -> nn.Module:
    """Return a layer whose input is multiplied by its weight, if that is not 1."""
    if (np.abs(gain - 1) <= GAIN_TOLERANCE).all():
        return layer
    return nn.Sequential(_scale(gain, source), layer)


def _scale(factor: np.ndarray, source: Source) -> nn.Module:
    return Scale(factor.reshape(-1)[0] if factor.size and (factor == factor.reshape(-1)[0]).all() else factor).to(
        source.dtype
    )


def _with_weights(layer: Any, weight: torch.Tensor, bias: Any, source: Source) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(_tensor(bias, source))
    made: nn.Module = layer
    return made


def _tensor(values: Any, source: Source) -> torch.Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise Unconvertible(f"it holds {array.dtype} where numbers are expected")
    return torch.from_numpy(np.array(array, order="C")).to(source.dtype)


def _integers(values: Any, count: int, smallest: int) -> Any:
    found = np.asarray(values).reshape(-1)
    if found.dtype.kind not in "iu" or len(found) not in (1, count) or (found < smallest).any():
        raise Unconvertible(f"it holds {values!r} where {count} integers of at least {smallest} are expected")
    return tuple(int(each) for each in np.broadcast_to(found, count))


def _given(value: float | np.ndarray) -> Any:
    return torch.from_numpy(np.asarray(value, np.float64)) if isinstance(value, np.ndarray) else value


def _numpy(source: Source) -> np.dtype:
    return np.dtype(np.float64 if source.dtype == torch.float64 else np.float32)
