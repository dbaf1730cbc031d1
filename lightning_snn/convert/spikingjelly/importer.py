"""Networks of SpikingJelly become plain networks of this library."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from lightning_snn.convert.graph import folded_network
from lightning_snn.convert.layers import row_layer, sequence_layer
from lightning_snn.convert.library import Axis, Use
from lightning_snn.convert.refusals import Unconvertible, check_network
from lightning_snn.convert.spikingjelly.surrogates import from_surrogate_function
from lightning_snn.convert.surrogates import rescaled
from lightning_snn.convert.values import floating_dtype, next_below
from lightning_snn.nn.conventions import derives_from
from lightning_snn.nn.neurons import IF, LIF, Neuron, Recurrent, SynapticLIF

_PACKAGE = "spikingjelly.activation_based"
_NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode", "CUBALIFNode", "SimpleIFNode", "SimpleLIFNode")
_POOLING = tuple(f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveAvg") for n in (1, 2, 3))
_CONVOLUTIONS = tuple(f"{kind}{n}d" for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3))
STATELESS = {
    "stateless_wrapper": ("Flatten", "GroupNorm", "Linear", "Upsample", *_CONVOLUTIONS, *_POOLING),
    "bn": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
}
_REASONS = {
    "Dropout": "its mask stays for all steps: use nn.Dropout, which draws one for each step",
    "Dropout2d": "its mask stays for all steps: use nn.Dropout2d, which draws one for each step",
    "ElementWiseRecurrentContainer": "its recurrence has no counterpart: use LinearRecurrentContainer",
    "QIFNode": "its charge is quadratic: write it as a `lightning_snn.nn.Neuron`, see docs/extending.md",
    "EIFNode": "its charge is exponential: write it as a `lightning_snn.nn.Neuron`, see docs/extending.md",
    "IzhikevichNode": "write it as a `lightning_snn.nn.Neuron`, as docs/extending.md does",
}


def from_spikingjelly(network: nn.Module) -> nn.Module:
    """Convert a network of SpikingJelly to a plain network of this library, with equal spikes.

    In step mode "s" the network handles one time step per call, in step mode "m" a sequence `[T, B, ...]`. Layers of
    `spikingjelly.activation_based.layer` become those of `torch.nn`, IFNode and LIFNode become `IF` and `LIF`.
    SpikingJelly's neurons spike at a potential of at least the threshold, those of this library above it: the threshold
    is the next smaller number of the dtype of the network, in which it is to be used. ``decay_input=True``, an input
    divided by tau, becomes a threshold times tau, and a surrogate of 1 / tau of the height.

    Args:
        network: the network, which stays as it is; in float32 or float64.

    Returns:
        A plain network with parameters of its own, `[T*B, ...]` to `[T*B, ...]`: nested `nn.Sequential`s if the network
        is one or its layers form a chain, else a `torch.fx.GraphModule`.

    Raises:
        ValueError: if some layers or operations have no exact counterpart, or the forward loops over time; lists them,
            with the reason and what could be done.

    Warns:
        UserWarning: if a ParametricLIFNode divides its input by its learned tau.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> from_spikingjelly(nn.Sequential(layer.Linear(4, 8, step_mode="m"), neuron.IFNode(step_mode="m")))
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): IF(beta=1, threshold=1, reset=zero, surrogate=Sigmoid(width=0.25))
        )
    """
    check_network("from_spikingjelly", network)
    library = _SpikingJelly(network, floating_dtype("from_spikingjelly", network), _takes_sequences(network))
    converted = folded_network(network, library)
    library.warn()
    return converted


class _SpikingJelly:
    function = "from_spikingjelly"

    def __init__(self, network: nn.Module, dtype: torch.dtype, sequences: bool) -> None:
        self.names = {module: name for name, module in network.named_modules()}
        self.dtype, self.sequences = dtype, sequences
        self.fixed_inputs: list[str] = []

    def is_neuron(self, module: nn.Module) -> bool:
        return derives_from(module, f"{_PACKAGE}.base.MemoryModule", f"{_PACKAGE}.neuron.base_node.SimpleBaseNode")

    def is_whole(self, module: nn.Module) -> bool:
        return type(module).__module__.startswith(f"{_PACKAGE}.layer.")

    def returns_states(self, neuron: nn.Module) -> bool:
        return False

    def takes_spikes(self, neuron: nn.Module) -> bool:
        return False

    def layer(self, layer: nn.Module) -> nn.Module:
        kind = type(layer).__name__
        if not self.is_whole(layer):
            return sequence_layer(layer) if self.sequences else row_layer(layer)
        if kind in ("MultiStepContainer", "SeqToANNContainer", "StepModeContainer"):
            steps = nn.Sequential(*layer.children())
            inner = _SpikingJelly(steps, self.dtype, sequences=False)
            converted = folded_network(steps, inner) if _has_layers(steps, inner) else _rows(steps)
            self.fixed_inputs += [f"{self.names[layer]}.{name}" for name in inner.fixed_inputs]
            return converted
        if kind in STATELESS.get(type(layer).__module__.rpartition(".")[2], ()):
            return _plain(layer)
        raise Unconvertible(_REASONS.get(kind, "it has no counterpart: use the layers of torch.nn between neurons"))

    def neuron(self, neuron: Any, use: Use, axis: Axis | None) -> nn.Module:
        kind = type(neuron).__name__
        if kind == "LinearRecurrentContainer" and self.is_whole(neuron):
            return self._recurrent(neuron)
        if not type(neuron).__module__.startswith(f"{_PACKAGE}.neuron.") or kind not in _NEURONS:
            own = not type(neuron).__module__.startswith("spikingjelly.")
            reason = "it is a class of your own: write it as a `lightning_snn.nn.Neuron`, see docs/extending.md"
            raise Unconvertible(reason if own else _REASONS.get(kind, f"supported are {', '.join(_NEURONS[:4])}"))
        return self._neuron(neuron, kind)

    def warn(self) -> None:
        """Warn of learned time constants that also scale the input."""
        if self.fixed_inputs:
            warnings.warn(
                f"{self.function}: {', '.join(self.fixed_inputs)} divide their input by a tau that they learn. The "
                "converted neurons learn their decay, and the input keeps its present scale; decay_input=False has no "
                "such scale",
                stacklevel=3,
            )

    def _neuron(self, neuron: Any, kind: str) -> Neuron:
        _check_options(neuron)
        simple = kind.startswith("Simple")
        rest = 0.0 if neuron.v_reset is None else float(neuron.v_reset)
        threshold = float(neuron.v_threshold) - rest
        if threshold <= 0:
            raise Unconvertible(
                f"its v_threshold {neuron.v_threshold:g} is not larger than its v_reset {rest:g}, which it rests at: "
                "use a larger v_threshold"
            )
        if simple and rest != 0:
            raise Unconvertible(
                f"it starts at 0 and is reset to {rest:g}: use {kind.removeprefix('Simple')}, which starts at v_reset"
            )
        options: dict[str, Any] = {
            "reset": "subtract" if neuron.v_reset is None else "zero",
            "detach_reset": bool(neuron.detach_reset),
        }
        surrogate = from_surrogate_function(neuron.surrogate_function)
        if kind in ("IFNode", "SimpleIFNode"):
            return IF(next_below(threshold, self.dtype), surrogate=surrogate, **options)
        if kind == "CUBALIFNode":
            if rest != 0:
                raise Unconvertible(f"it leaks towards 0 and is reset to {rest:g}: use v_reset=0.0 or None")
            decays = float(neuron.c_decay), float(neuron.v_decay)
            if not all(0 <= decay <= 1 for decay in decays):
                raise Unconvertible(f"its decays {decays} are not in [0, 1]")
            return SynapticLIF(*decays, next_below(threshold, self.dtype), surrogate=surrogate, **options)
        learned = neuron.w.detach() if kind == "ParametricLIFNode" else None
        tau = float(neuron.tau) if learned is None else 1 / torch.sigmoid(learned.double()).item()
        if tau < 1:
            raise Unconvertible(f"its tau {tau:g} is less than 1, a negative decay: use a larger one")
        # membrane potentials in units in which the input has weight 1
        factor = tau if neuron.decay_input else 1.0
        threshold = next_below(threshold * factor, self.dtype)
        made = LIF(
            1 - 1 / tau, threshold, surrogate=rescaled(surrogate, factor), learn_beta=learned is not None, **options
        )
        if learned is not None:
            logit = made.to(self.dtype).parameter_of("beta")
            assert logit is not None
            with torch.no_grad():
                logit.copy_(-learned)
            logit.requires_grad_(neuron.w.requires_grad)
            if neuron.decay_input:
                self.fixed_inputs.append(self.names.get(neuron, kind))
        return made

    def _recurrent(self, container: Any) -> nn.Module:
        neuron = container.sub_module
        features = container.sub_module_out_features
        if not self.is_neuron(neuron) or container.rc.out_features != features:
            raise Unconvertible(
                "its module is not a layer of neurons with as many outputs as inputs: use a neuron as sub_module"
            )
        weight, bias = container.rc.weight.detach(), container.rc.bias
        inputs = container.rc.in_features - features
        made = Recurrent(self._neuron_of(neuron), features).to(self.dtype)
        made.weight = nn.Parameter(weight[:, inputs:].clone(), container.rc.weight.requires_grad)
        before = weight[:, :inputs]
        if torch.equal(before, torch.eye(features).to(before)) and (bias is None or not bool(bias.any())):
            return made
        linear = nn.Linear(inputs, features, bias is not None).to(self.dtype)
        linear.weight = nn.Parameter(before.clone(), container.rc.weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return nn.Sequential(linear, made)

    def _neuron_of(self, neuron: nn.Module) -> Neuron:
        made = self.neuron(neuron, "spikes", None)
        assert isinstance(made, Neuron)
        return made


def _takes_sequences(network: nn.Module) -> bool:
    modes: dict[str, str] = {}
    within: set[nn.Module] = set()
    for name, module in network.named_modules():
        if module in within:
            continue
        if type(module).__module__ == f"{_PACKAGE}.layer.container":
            within.update(part for part in module.modules() if part is not module)
        mode = getattr(module, "step_mode", None)
        mode = "m" if mode is None and derives_from(module, f"{_PACKAGE}.base.MultiStepModule") else mode
        if mode is not None:
            modes.setdefault(mode, name or "the network")
    if len(modes) > 1:
        raise ValueError(
            "Expected argument `network` of from_spikingjelly to have layers of one step mode, but got "
            + " and ".join(f'"{mode}" in {name}' for mode, name in sorted(modes.items()))
            + '. Call `spikingjelly.activation_based.functional.set_step_mode(network, "m")`'
        )
    return "m" in modes


def _check_options(neuron: Any) -> None:
    reasons = []
    if getattr(neuron, "_neuron_precision", None) is not None:
        reasons.append("its states have a precision of their own: convert it in float32 or float64")
    if neuron._forward_hooks or neuron._forward_pre_hooks:
        reasons.append("it has forward hooks, which would be lost: remove them")
    if not math.isfinite(neuron.v_threshold):
        reasons.append(f"its v_threshold is {neuron.v_threshold}: use a finite one")
    if reasons:
        raise Unconvertible("; ".join(reasons))


def _has_layers(network: nn.Module, library: _SpikingJelly) -> bool:
    return any(library.is_neuron(part) or library.is_whole(part) for part in network.modules())


def _rows(layers: nn.Sequential) -> nn.Sequential:
    for layer in layers.modules():
        if next(layer.children(), None) is None:
            row_layer(layer)
    return layers


def _plain(layer: nn.Module) -> nn.Module:
    """Return the layer of torch.nn that a layer of SpikingJelly extends by a step mode; parameters are shared."""
    kind = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn."))
    made: nn.Module = object.__new__(kind)
    held = {name: value for name, value in vars(layer).items() if "step_mode" not in name}
    made.__dict__.update({name: dict(value) if type(value) is dict else value for name, value in held.items()})
    return made
