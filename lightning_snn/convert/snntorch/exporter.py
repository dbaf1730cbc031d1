"""Plain networks of this library become networks of snntorch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.convert.export import Place, computes_lif, exported
from lightning_snn.convert.library import Axis
from lightning_snn.convert.neurons import SnntorchLIF
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.convert.snntorch.surrogates import to_spike_grad
from lightning_snn.convert.values import floating_dtype
from lightning_snn.nn.neurons import LIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF
from lightning_snn.nn.stateful import StatefulLayer


def to_snntorch(network: nn.Module) -> nn.Module:
    """Convert a plain network of this library to one of snntorch, with equal spikes.

    The result handles one time step per call, and its neurons keep their states, ``init_hidden=True``. Call it on each
    step of a sequence, after `snntorch.utils.reset` or `reset_mem()` of its neurons.

    snntorch's neurons that reset by subtraction do so one step later. For ``order="reset_then_leak"`` the neuron is an
    `RLeaky` without reset, in which every spike takes ``beta * threshold`` from the next membrane potential through its
    recurrent weights. That is the same recurrence; a rounding may differ.

    Args:
        network: a plain network, which stays as it is; in float32 or float64.

    Returns:
        A copy of the network with neurons of snntorch.

    Raises:
        ValueError: if some layers have no exact counterpart, or torch.fx cannot trace the network; lists them, with the
            reason and what could be done.

    Warns:
        UserWarning: if gradients differ, because a reset is not detached there, or does not follow a learned decay.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.5, order="leak_then_reset", detach_reset=True))
        >>> to_snntorch(network)[1]
        Leaky()
    """
    export = _Export(floating_dtype("to_snntorch", network) if isinstance(network, nn.Module) else torch.float32)
    converted = exported("to_snntorch", network, export.neuron)
    if export.warnings:
        warnings.warn(
            "to_snntorch: spikes are equal, but gradients are not: " + "; ".join(export.warnings), stacklevel=2
        )
    return converted


class _Export:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.warnings: list[str] = []

    def neuron(self, place: Place) -> nn.Module:
        made: nn.Module = self._neuron(place).to(self.dtype)
        for name, parameter in made.named_parameters(recurse=False):
            if name in place.layer.constants and (stored := place.layer.parameter_of(name)) is not None:
                parameter.requires_grad_(stored.requires_grad)
        return made

    def _neuron(self, place: Place) -> Any:
        import snntorch

        layer, axis = place.layer, place.axis
        if type(layer) is SnntorchLIF:
            return self._snntorch_lif(layer, axis)
        weight = None
        inner: StatefulLayer = layer
        if isinstance(layer, Recurrent):
            weight, inner = layer.weight, layer.neuron
        elif type(layer) is RecurrentLIF:
            weight = layer.weight
        if type(inner) is SynapticLIF:
            return self._synaptic(place.name, inner, weight, axis)
        if not isinstance(inner, LIF) or not computes_lif(inner):
            remedy = (
                ": return the membrane potential of a snntorch.Leaky with reset_mechanism='none' yourself"
                if type(inner).__name__ == "LeakyIntegrator"
                else ""
            )
            raise Unconvertible(f"it has no counterpart in snntorch{remedy}")
        options = self._options(inner, axis)
        if inner.reset_mode == "zero":
            if weight is None:
                return snntorch.Leaky(**options, reset_mechanism="zero", reset_delay=inner.detach_reset)
            self._note_detached(place.name, inner.detach_reset)
            return self._recurrent(options, weight, reset_mechanism="zero", reset_delay=False)
        delayed = inner.order == "leak_then_reset"
        if delayed and (inner.detach_reset or weight is not None):
            self._note_attached(place.name, inner.detach_reset)
            if weight is None:
                return snntorch.Leaky(**options, reset_mechanism="subtract")
            return self._recurrent(options, weight, reset_mechanism="subtract")
        return self._with_reset_as_weight(place.name, inner, weight, options, delayed)

    def _with_reset_as_weight(
        self, name: str, layer: LIF, weight: Tensor | None, options: dict[str, Any], delayed: bool
    ) -> Any:
        import snntorch

        self._note_detached(name, layer.detach_reset)
        if isinstance(options["beta"], nn.Parameter) or isinstance(options["threshold"], nn.Parameter):
            self.warnings.append(f"the reset of {name} does not follow its learned decay or threshold")
        beta, threshold = options["beta"].detach(), options["threshold"].detach()
        amount = threshold if delayed else beta * threshold
        if weight is None:
            return snntorch.RLeaky(
                **options, V=-amount, all_to_all=False, learn_recurrent=False, reset_mechanism="none"
            )
        reset = torch.diag(amount.flatten().expand(weight.shape[0])).to(weight)
        changed = nn.Parameter(weight.detach() - reset, weight.requires_grad)
        return self._recurrent(options, changed, reset_mechanism="none")

    def _synaptic(self, name: str, layer: SynapticLIF, weight: Tensor | None, axis: Axis | None) -> Any:
        import snntorch

        reset, order, detached, _ = layer.dynamics
        options = self._options(layer, axis)
        if reset == "zero" and weight is None:
            self._note_detached(name, detached)
            return snntorch.Synaptic(**options, reset_mechanism="zero", reset_delay=False)
        if reset == "zero" or order != "leak_then_reset":
            raise Unconvertible(
                'snntorch has no synaptic neuron with this reset: use reset="subtract" and '
                'order="leak_then_reset"' + (', or reset="zero"' if weight is None else "")
            )
        self._note_attached(name, detached)
        if weight is None:
            return snntorch.Synaptic(**options, reset_mechanism="subtract")
        return self._recurrent(options, weight, reset_mechanism="subtract")

    def _snntorch_lif(self, layer: SnntorchLIF, axis: Axis | None) -> Any:
        import snntorch

        options = self._options(layer, axis)
        reset = {"reset_mechanism": layer.reset_mode, "reset_delay": layer.reset_delay}
        weight = layer.recurrent_weight
        if weight is not None and weight.dim() in (2, 4):
            return self._recurrent(options, weight, layer.recurrent_bias, **reset)
        kind = snntorch.Synaptic if layer.synaptic else snntorch.Leaky
        if weight is None and not (layer.drops_input and not layer.synaptic):
            return kind(**options, **reset)
        # only Leaky keeps the input of a step that is reset to zero; its weight to itself is 0 then
        learned = weight is not None and weight.requires_grad
        own = torch.zeros((), dtype=self.dtype) if weight is None else weight.detach().clone()
        kind = snntorch.RSynaptic if layer.synaptic else snntorch.RLeaky
        return kind(**options, **reset, V=own, all_to_all=False, learn_recurrent=learned)

    def _options(self, layer: StatefulLayer, axis: Axis | None) -> dict[str, Any]:
        options: dict[str, Any] = {"init_hidden": True}
        for name in layer.constants:
            options[name] = self._tensor(name, layer, axis)
            if isinstance(options[name], nn.Parameter):
                options[f"learn_{name}"] = True
        assert isinstance(layer, Neuron)
        options["spike_grad"] = to_spike_grad(layer.surrogate)
        return options

    def _tensor(self, name: str, layer: StatefulLayer, axis: Axis | None) -> Tensor:
        value = torch.as_tensor(layer.value(name), dtype=self.dtype).detach().clone()
        if value.dim() == 1 and value.numel() > 1:
            if axis is None:
                raise Unconvertible(f"its {name} per channel needs a linear layer or a convolution before it")
            value = value.view(-1, 1, 1) if axis == "maps" else value
        stored = layer.parameter_of(name)
        return value if stored is None else nn.Parameter(value, stored.requires_grad)

    def _recurrent(self, options: dict[str, Any], weight: Tensor, bias: Tensor | None = None, **reset: Any) -> Any:
        import snntorch

        sizes = (
            {"linear_features": weight.shape[0]}
            if weight.dim() == 2
            else {"conv2d_channels": weight.shape[0], "kernel_size": tuple(weight.shape[2:])}
        )
        kind = snntorch.RSynaptic if "alpha" in options else snntorch.RLeaky
        made: Any = kind(**options, **sizes, **reset)
        made.recurrent.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        silent = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone()
        made.recurrent.bias = nn.Parameter(silent, bias is not None and bias.requires_grad)
        return made

    def _note_detached(self, name: str, detached: bool) -> None:
        if detached:
            self.warnings.append(f"the reset of {name} is detached, that of snntorch's neuron is not")

    def _note_attached(self, name: str, detached: bool) -> None:
        if not detached:
            self.warnings.append(f"the reset of {name} is not detached, that of snntorch's neuron is")
