"""Plain networks of this library become networks of SpikingJelly."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from lightning_snn.checks import check_choice
from lightning_snn.convert.export import Place, computes_lif, exported
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.convert.spikingjelly.importer import STATELESS
from lightning_snn.convert.spikingjelly.surrogates import to_surrogate_function
from lightning_snn.convert.values import floating_dtype, next_above
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import LIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF

StepMode = Literal["s", "m"]
_ELEMENTWISE = (nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh)


def to_spikingjelly(network: nn.Module, step_mode: StepMode = "m") -> nn.Module:
    """Convert a plain network of this library to one of SpikingJelly, with equal spikes.

    SpikingJelly's neurons spike at a potential of at least the threshold, those of this library above it: the threshold
    is the next larger number of the dtype of the network, in which it is to be used. Call
    `spikingjelly.activation_based.functional.reset_net` before every sequence.

    Args:
        network: a plain network, which stays as it is; in float32 or float64. In step mode "m" it is an
            `nn.Sequential`, nested or not.
        step_mode: "m" for a network that takes sequences `[T, B, ...]`, "s" for one time step per call.

    Returns:
        A copy of the network with neurons of SpikingJelly, and in step mode "m" its layers, under the same names.

    Raises:
        ValueError: if some layers have no exact counterpart, or torch.fx cannot trace the network; lists them, with the
            reason and what could be done.

    Example:
        >>> to_spikingjelly(nn.Sequential(nn.Linear(4, 8), LIF(0.5)))[1].tau
        2.0
    """
    check_choice("step_mode", step_mode, ("s", "m"))
    export = _Export(
        floating_dtype("to_spikingjelly", network) if isinstance(network, nn.Module) else torch.float32, step_mode
    )
    if step_mode == "m" and unnested(network) == [network] and not isinstance(network, Neuron):
        raise ValueError(
            'Expected argument `network` of to_spikingjelly in step_mode="m" to be an nn.Sequential, but got a '
            f'{type(network).__name__}, whose forward takes [T*B, ...]. Use step_mode="s"'
        )
    return exported("to_spikingjelly", network, export.neuron, export.layer)


class _Export:
    def __init__(self, dtype: torch.dtype, step_mode: StepMode) -> None:
        self.dtype, self.step_mode = dtype, step_mode

    def neuron(self, place: Place) -> nn.Module:
        from spikingjelly.activation_based import layer as layers

        layer = place.layer
        if isinstance(layer, (Recurrent, RecurrentLIF)):
            inner = layer.neuron if isinstance(layer, Recurrent) else layer
            features = layer.features
            made: Any = layers.LinearRecurrentContainer(self._node(inner), features, features, bias=False)
            same = torch.eye(features).to(layer.weight)
            weight = torch.cat([same, layer.weight.detach()], dim=1)
            made.rc.weight = nn.Parameter(weight, layer.weight.requires_grad)
        else:
            made = self._node(layer)
        made.step_mode = self.step_mode
        found: nn.Module = made
        return found

    def layer(self, layer: nn.Module) -> nn.Module:
        """Return a stateless layer that takes `[T, B, ...]` in step mode "m"."""
        from spikingjelly.activation_based import layer as layers

        kind = type(layer).__name__
        if self.step_mode == "s" or type(layer) in _ELEMENTWISE:
            return layer
        if type(layer) is getattr(nn, kind, None) and any(kind in names for names in STATELESS.values()):
            made: Any = object.__new__(getattr(layers, kind))
            made.__dict__.update(vars(layer))
            made.step_mode = "m"
            found: nn.Module = made
            return found
        container: nn.Module = layers.SeqToANNContainer(layer)
        return container

    def _node(self, layer: nn.Module) -> nn.Module:
        from spikingjelly.activation_based import neuron

        if type(layer) is SynapticLIF:
            reset, order, detached, _ = layer.dynamics
        elif isinstance(layer, LIF) and computes_lif(layer):
            reset, order, detached = layer.reset_mode, layer.order, layer.detach_reset
        else:
            raise Unconvertible("it has no counterpart in SpikingJelly")
        if reset == "subtract" and order != "reset_then_leak":
            raise Unconvertible('SpikingJelly resets at once: use order="reset_then_leak"')
        numbers = layer.fixed_numbers
        learned = [name for name in layer.constants if layer.parameter_of(name) is not None]
        for name in layer.constants:
            if name not in numbers and (name not in learned or name != "beta" or type(layer) is SynapticLIF):
                raise Unconvertible(f"its {name} is learned or per channel: SpikingJelly has a fixed number for all")
        options: dict[str, Any] = {
            "v_threshold": next_above(numbers["threshold"], self.dtype),
            "v_reset": None if reset == "subtract" else 0.0,
            "surrogate_function": to_surrogate_function(layer.surrogate),
        }
        made: Any
        if type(layer) is SynapticLIF:
            made = neuron.CUBALIFNode(numbers["alpha"], numbers["beta"], **options)
        elif "beta" in learned:
            logit = layer.parameter_of("beta")
            assert logit is not None
            if logit.dim() > 0:
                raise Unconvertible("its learned beta is per channel: SpikingJelly has one for all")
            made = neuron.ParametricLIFNode(decay_input=False, **options)
            made.w = nn.Parameter(-logit.detach(), logit.requires_grad)
        elif numbers["beta"] == 1:
            made = neuron.IFNode(**options)
        elif numbers["beta"] == 0:
            raise Unconvertible("its beta is 0: SpikingJelly's tau is larger than 1, use a small beta")
        else:
            made = neuron.LIFNode(tau=1 / (1 - numbers["beta"]), decay_input=False, **options)
        made.detach_reset = detached
        found: nn.Module = made
        return found
