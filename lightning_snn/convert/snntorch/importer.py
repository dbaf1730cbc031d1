"""Networks of snntorch become plain networks of this library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.convert.graph import folded_network
from lightning_snn.convert.layers import row_layer
from lightning_snn.convert.library import Axis, Use
from lightning_snn.convert.neurons import SnntorchLIF
from lightning_snn.convert.refusals import Unconvertible, check_network
from lightning_snn.convert.snntorch.surrogates import from_spike_grad
from lightning_snn.convert.surrogates import rescaled
from lightning_snn.convert.values import (
    check_learned_decay,
    floating_dtype,
    given,
    warn_of_differences,
    write_exactly,
)
from lightning_snn.functional.dynamics import Reset
from lightning_snn.nn.conventions import derives_from
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, Neuron, Recurrent, SynapticLIF
from lightning_snn.nn.stateful import StatefulLayer

_NEURONS = ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
_REASONS = {
    "Alpha": "its membrane potential does not depend on the current of the same step: use snntorch.Synaptic",
    "SLSTM": "an LSTM that spikes has no counterpart: use snntorch.RSynaptic",
    "SConv2dLSTM": "an LSTM that spikes has no counterpart: use snntorch.RLeaky with conv2d_channels",
}


def from_snntorch(network: nn.Module) -> nn.Module:
    """Convert a network of snntorch to a plain network of this library, with equal spikes.

    The network handles one time step per call: a container with ``init_hidden=True``, or any module whose forward takes
    the input of a step (and states) and returns the output of a step (and states). States are left out of the output,
    because the converted network holds them in its scans; `lightning_snn.run` starts them from rest. A last neuron with
    ``reset_mechanism="none"`` of which only the membrane potential is returned becomes a `LeakyIntegrator`.

    Neurons become `LIF`, `IF`, `SynapticLIF` and `Recurrent`, or `SnntorchLIF` where these differ from snntorch.

    Args:
        network: the network, which stays as it is; in float32 or float64.

    Returns:
        A plain network with parameters of its own, `[T*B, ...]` to `[T*B, ...]`: nested `nn.Sequential`s if the network
        is one or its layers form a chain, else a `torch.fx.GraphModule`.

    Raises:
        ValueError: if some layers or operations have no exact counterpart, or the forward loops over time; lists them,
            with the reason and what could be done.

    Warns:
        UserWarning: if learned decays or thresholds cannot be stored to the last digit.

    Example:
        >>> import snntorch
        >>> network = nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(beta=0.5, init_hidden=True, output=True))
        >>> from_snntorch(network)[1]
        LIF(beta=0.5, threshold=1, reset=subtract, surrogate=ArcTangent(width=0.3183098861837907), ...)
    """
    check_network("from_snntorch", network)
    library = _Snntorch(network)
    converted = folded_network(network, library)
    warn_of_differences("from_snntorch", library.differences())
    return converted


class _Snntorch:
    function = "from_snntorch"
    sequences = False

    def __init__(self, network: nn.Module) -> None:
        self.names = {module: name for name, module in network.named_modules()}
        self.dtype = floating_dtype(self.function, network)
        self._differences: dict[str, float] = {}

    def differences(self) -> list[tuple[str, float]]:
        """Return the learned values that were rounded, with their relative differences."""
        return list(self._differences.items())

    def is_neuron(self, module: nn.Module) -> bool:
        return derives_from(module, "snntorch._neurons.neurons.SpikingNeuron") or type(module).__module__.startswith(
            "snntorch._neurons."
        )

    def is_whole(self, module: nn.Module) -> bool:
        return type(module).__module__.startswith("snntorch.")

    def returns_states(self, neuron: Any) -> bool:
        return bool(getattr(neuron, "output", False)) or not getattr(neuron, "init_hidden", False)

    def takes_spikes(self, neuron: nn.Module) -> bool:
        return type(neuron).__name__ in ("RLeaky", "RSynaptic")

    def layer(self, layer: nn.Module) -> nn.Module:
        if self.is_whole(layer):
            raise Unconvertible("it has no counterpart: use layers of torch.nn between neurons")
        return row_layer(layer)

    def neuron(self, neuron: Any, use: Use, axis: Axis | None) -> nn.Module:
        kind = type(neuron).__name__
        if not type(neuron).__module__.startswith("snntorch._neurons.") or kind not in _NEURONS:
            reason = "it is a class of your own: write it as a `lightning_snn.nn.Neuron`, see docs/extending.md"
            own = not type(neuron).__module__.startswith("snntorch.")
            raise Unconvertible(reason if own else _REASONS.get(kind, f"supported are {', '.join(_NEURONS)}"))
        _check_options(neuron)
        values = _Values(neuron, axis)
        if use == "membrane":
            made = _integrator(neuron, values)
        else:
            made = _neuron(neuron, values)
        for name, difference in values.write(made, self.dtype).items():
            self._differences[f"{self.names.get(neuron, '')}.{name}".lstrip(".")] = difference
        return made


def _check_options(neuron: Any) -> None:
    reasons = []
    if neuron.inhibition:
        reasons.append("inhibition=True lets only the strongest neuron of a layer spike: set it to False")
    if neuron.state_quant:
        reasons.append("state_quant rounds its states: set it to False, and quantize weights of the converted network")
    factor = neuron.graded_spikes_factor
    if not torch.all(torch.as_tensor(factor) == 1) or isinstance(factor, nn.Parameter):
        reasons.append(
            "its spikes are graded: set graded_spikes_factor to 1 and multiply the weights of the next layer"
        )
    if type(neuron).__name__ == "RSynaptic" and not neuron.reset_delay:
        reasons.append(
            "snntorch resets it by the spikes that it is given, those of the step before, and fails without: set "
            "reset_delay to True"
        )
    if neuron._forward_hooks or neuron._forward_pre_hooks:
        reasons.append("it has forward hooks, which would be lost: remove them")
    if reasons:
        raise Unconvertible("; ".join(reasons))


class _Values:
    """Decays and thresholds of a neuron of snntorch, per channel as this library has them."""

    def __init__(self, neuron: Any, axis: Axis | None) -> None:
        self.neuron, self.axis = neuron, axis
        self.tensors: dict[str, Tensor] = {}
        self.scale: Tensor | None = None
        beta = neuron.beta
        if type(neuron).__name__ == "Lapicque":
            cell = neuron.R * neuron.C
            beta = 1 - neuron.time_step / cell
            self.scale = neuron.R * (1 / cell) * neuron.time_step
        self._add("beta", beta)
        self._add("threshold", neuron.threshold if self.scale is None else neuron.threshold / self.scale)
        if hasattr(neuron, "alpha"):
            self._add("alpha", neuron.alpha)

    def _add(self, name: str, value: Tensor) -> None:
        _check_per_channel(name, value, self.axis)
        if name == "threshold":
            if not bool((value > 0).all()):
                raise Unconvertible("its threshold is not larger than 0: use a positive one")
        else:
            check_learned_decay(name, value)
            if not isinstance(value, nn.Parameter):
                value = value.clamp(0, 1)
        self.tensors[name] = value

    def given(self, *names: str) -> dict[str, float | list[float]]:
        return {name: given(self.tensors[name]) for name in names}

    def learned(self, *names: str) -> dict[str, bool]:
        return {f"learn_{name}": isinstance(self.tensors[name], nn.Parameter) for name in names}

    def write(self, made: nn.Module, dtype: torch.dtype) -> dict[str, float]:
        made.to(dtype)
        owner = made.neuron if isinstance(made, Recurrent) else made
        assert isinstance(owner, StatefulLayer)
        return write_exactly(owner, {name: self.tensors[name] for name in owner.constants}, dtype)


def _check_per_channel(name: str, value: Tensor, axis: Axis | None) -> None:
    """Raise an Unconvertible unless a tensor of snntorch is a number or one value per channel.

    snntorch lets it broadcast from the last dimension: `[N]` for neurons `[B, N]`, `[C, 1, 1]` for `[B, C, H, W]`.
    """
    if value.numel() == 1:
        return
    sizes = list(value.shape)
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    expected = {"features": 1, "maps": max(len(sizes), 2)}
    one_axis = all(size == 1 for size in sizes[1:])
    if axis is None or not one_axis or len(sizes) != expected[axis]:
        raise Unconvertible(
            f"its {name} of shape {list(value.shape)} is not one value per channel of its input: use a number, [N] "
            "after a linear layer or [C, 1, 1] after a convolution"
        )


def _integrator(neuron: Any, values: _Values) -> nn.Module:
    if neuron.reset_mechanism != "none":
        raise Unconvertible(
            'its membrane potential is the output, which its spikes reset: set reset_mechanism to "none" and train '
            "again, which makes it a `LeakyIntegrator`, or return its spikes"
        )
    if type(neuron).__name__ != "Leaky":
        raise Unconvertible("its membrane potential is the output: only that of snntorch.Leaky without reset can be")
    return LeakyIntegrator(values.given("beta")["beta"], values.learned("beta")["learn_beta"])


def _neuron(neuron: Any, values: _Values) -> Neuron:
    kind, reset = type(neuron).__name__, neuron.reset_mechanism
    delayed = bool(getattr(neuron, "reset_delay", True))
    surrogate = from_spike_grad(neuron.spike_grad)
    if values.scale is not None:
        # membrane potentials in units in which the input has weight 1
        surrogate = rescaled(surrogate, 1 / _one("R, C or time_step", values.scale))
    weight, bias = _recurrence(neuron, values.axis) if kind in ("RLeaky", "RSynaptic") else (None, None)
    names = ("beta", "threshold", *(("alpha",) if "alpha" in values.tensors else ()))
    options: dict[str, Any] = {**values.given(*names), **values.learned(*names), "surrogate": surrogate}

    # a delayed reset to zero drops the input of its step, except in Leaky
    plain_reset = (reset == "subtract" and delayed) or (reset == "zero" and (kind == "Leaky" or not delayed))
    dense = weight is None or (weight.dim() == 2 and bias is None)
    if plain_reset and dense:
        made = _plain(kind, reset, delayed, options)
        if weight is None:
            return made
        recurrent = Recurrent(made, weight.shape[0])
        recurrent.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        return recurrent
    if at_once := _self_feedback(neuron, weight, values):
        return at_once(options)
    return SnntorchLIF(
        **options,
        reset=reset,
        reset_delay=delayed,
        recurrent_weight=weight,
        recurrent_bias=bias,
        learn_recurrent=weight is not None and weight.requires_grad,
    )


def _plain(kind: str, reset: Reset, delayed: bool, options: dict[str, Any]) -> Neuron:
    dynamics: dict[str, Any] = {"reset": reset, "detach_reset": delayed}
    if reset == "subtract":
        dynamics["order"] = "leak_then_reset"
    if "alpha" in options:
        return SynapticLIF(**options, **dynamics)
    return LIF(**options, **dynamics)


def _self_feedback(neuron: Any, weight: Tensor | None, values: _Values) -> Callable[[dict[str, Any]], Neuron] | None:
    """Return how to make a `LIF` of neurons whose only reset is the weight of their own last spikes.

    With a weight of minus threshold or minus decay times threshold, that is a reset by subtraction.
    """
    if weight is None or weight.dim() in (2, 4) or neuron.reset_mechanism != "none" or "alpha" in values.tensors:
        return None
    beta, threshold = values.tensors["beta"].flatten(), values.tensors["threshold"].flatten()
    if any(isinstance(each, nn.Parameter) for each in (values.tensors["beta"], values.tensors["threshold"])):
        return None
    if weight.requires_grad:
        return None
    if torch.equal(*torch.broadcast_tensors(weight.flatten(), -threshold)):
        return lambda options: LIF(**options, order="leak_then_reset")
    if torch.equal(*torch.broadcast_tensors(weight.flatten(), -(beta * threshold))):
        return lambda options: LIF(**options)
    return None


def _recurrence(neuron: Any, axis: Axis | None) -> tuple[Tensor, Tensor | None]:
    """Return recurrent weights and bias of an RLeaky or RSynaptic; a bias of zeros that is not learned is none."""
    layer = neuron.recurrent
    if not neuron.all_to_all:
        weight: Tensor = neuron.V
        _check_per_channel("V", weight, axis)
        return weight, None
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise Unconvertible(f"its recurrence is a {type(layer).__name__}: use a Linear or Conv2d")
    if isinstance(layer, nn.Conv2d):
        same = tuple(size // 2 for size in layer.kernel_size)
        plain = (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), same, (1, 1), 1)
        if not plain or layer.padding_mode != "zeros" or any(size % 2 == 0 for size in layer.kernel_size):
            raise Unconvertible("its recurrent convolution does not keep the size of its input: use an odd kernel_size")
    bias = layer.bias
    silent = bias is not None and not bias.requires_grad and not bool(bias.any())
    return layer.weight, None if silent else bias


def _one(name: str, value: Tensor) -> float:
    if value.numel() != 1:
        raise Unconvertible(f"its {name} has several values: use a number")
    number: float = value.item()
    if not math.isfinite(number) or number <= 0:
        raise Unconvertible(f"its {name} gives the input the weight {number:g}: use values with a positive one")
    return number
