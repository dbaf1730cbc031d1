"""Networks of snntorch and SpikingJelly: how they are run by their own loops, and random ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from snntorch import surrogate as snntorch_surrogate
from torch import Tensor, nn

from lightning_snn import LIF
from lightning_snn.convert import SnntorchLIF
from lightning_snn.functional import ArcTangent, FastSigmoid, Sigmoid, Triangular
from lightning_snn.nn import IF, AdaptiveLIF, Recurrent, RecurrentLIF, SynapticLIF


def spikingjelly() -> Any:
    """Return `spikingjelly.activation_based` with its parts; skip the test without it."""
    peer = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    peer.parts = functional, layer, neuron, surrogate
    return peer


def run_snntorch(network: nn.Module, x: Tensor) -> Tensor:
    """Return the first outputs `[T, B, ...]` of a loop over time steps from rest."""
    for part in network.modules():
        if isinstance(part, snntorch.SpikingNeuron):
            part.reset_mem()
    outputs = [network(step) for step in x]
    return torch.stack([output[0] if isinstance(output, tuple) else output for output in outputs])


def keep_dtype(network: nn.Module) -> None:
    """Make the spikes of snntorch have the dtype of their input: it returns float32, which float64 layers refuse."""
    for part in network.modules():
        if isinstance(part, snntorch.SpikingNeuron):
            part.spike_grad = _KeepsDtype(part.spike_grad)


class _KeepsDtype:
    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        self.spike = spike

    def __call__(self, distance: Tensor) -> Tensor:
        return self.spike(distance).to(distance.dtype)


def run_spikingjelly(network: nn.Module, x: Tensor, step_mode: str = "m") -> Tensor:
    """Return the outputs `[T, B, ...]` from rest, in one call or step by step."""
    functional = spikingjelly().parts[0]
    functional.reset_net(network)
    return network(x) if step_mode == "m" else torch.stack([network(step) for step in x])


def scale_weights(network: nn.Module, factor: float = 4.0) -> None:
    """Enlarge the weights of layers between neurons, so that neurons of all layers spike."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                part.weight.mul_(factor)


def to_grid(network: nn.Module) -> None:
    """Round all parameters of layers to multiples of 1/8, so that potentials meet thresholds exactly."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                for parameter in part.parameters():
                    parameter.copy_((parameter * 8).round() / 8)


SURROGATES = (
    lambda: None,
    lambda: snntorch_surrogate.fast_sigmoid(slope=25),
    lambda: snntorch_surrogate.atan(alpha=3.0),
    lambda: snntorch_surrogate.sigmoid(slope=10),
    lambda: snntorch_surrogate.straight_through_estimator(),
    lambda: snntorch_surrogate.spike_rate_escape(),
    lambda: snntorch_surrogate.SFS(),  # refused
)


def random_snntorch(seed: int, grid: bool) -> tuple[nn.Module, Tensor]:
    """Return a random network of snntorch, and an input."""
    draw = random.Random(seed)
    torch.manual_seed(seed)

    def neuron(width: int, maps: bool) -> nn.Module:
        kind = draw.choice(["Leaky", "Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic"])
        per_channel = not grid and draw.random() < 0.3
        shape = (width, 1, 1) if maps else (width,)
        decay = draw.choice([1.0, 0.5]) if grid else draw.uniform(0.3, 0.99)
        beta: Any = torch.rand(shape) * 0.6 + 0.3 if per_channel else decay
        options: dict[str, Any] = {
            "threshold": 1.0 if grid else draw.uniform(0.5, 1.5),
            "reset_mechanism": draw.choice(["subtract", "zero", "none"]),
            "spike_grad": draw.choice(SURROGATES)(),
            "init_hidden": True,
            "learn_threshold": draw.random() < 0.2,
        }
        if kind == "Lapicque":
            return snntorch.Lapicque(R=draw.uniform(1.0, 2.0), C=draw.uniform(1.2, 3.0), time_step=0.9, **options)
        options["reset_delay"] = draw.random() < 0.7
        options["learn_beta"] = not grid and draw.random() < 0.3
        if kind in ("RLeaky", "RSynaptic"):
            if draw.random() < 0.4:
                options.update(all_to_all=False, V=draw.choice([-0.5, 0.25]))
            elif maps:
                options.update(conv2d_channels=width, kernel_size=3)
            else:
                options.update(linear_features=width)
        if kind in ("Synaptic", "RSynaptic"):
            return getattr(snntorch, kind)(draw.choice([0.5, 0.25]), beta, **options)
        return getattr(snntorch, kind)(beta, **options)

    network, x = _random_network(draw, neuron)
    return _finished(network, x, grid)


def random_plain(seed: int, grid: bool) -> tuple[nn.Module, Tensor]:
    """Return a random network of this library, and an input."""
    draw = random.Random(seed)
    torch.manual_seed(seed)

    def neuron(width: int, maps: bool) -> nn.Module:
        decay = draw.choice([1.0, 0.5]) if grid else draw.uniform(0.3, 0.99)
        options: dict[str, Any] = {
            "threshold": 1.0 if grid else draw.uniform(0.5, 1.5),
            "reset": draw.choice(["subtract", "zero"]),
            "detach_reset": draw.random() < 0.5,
            "surrogate": draw.choice([ArcTangent(), FastSigmoid(), FastSigmoid(0.04), Sigmoid(), Triangular(2.0)]),
        }
        order = draw.choice(["reset_then_leak", "reset_then_leak", "leak_then_reset"])
        kind = draw.choice(
            ["LIF", "LIF", "IF", "SynapticLIF", "RecurrentLIF", "Recurrent", "AdaptiveLIF", "SnntorchLIF"]
        )
        if kind == "IF":
            return IF(**options)
        if kind == "RecurrentLIF" and not maps:
            return RecurrentLIF(width, decay, **options)
        if kind == "Recurrent" and not maps:
            return Recurrent(LIF(decay, order=order, **options), width)
        if kind == "SynapticLIF":
            return SynapticLIF(0.5, decay, order=order, **options)
        if kind == "AdaptiveLIF":  # refused
            return AdaptiveLIF(decay)
        if kind == "SnntorchLIF":
            return SnntorchLIF(decay, reset_delay=draw.random() < 0.5, surrogate=options["surrogate"])
        learned = not grid and draw.random() < 0.3
        channels = width if not grid and draw.random() < 0.3 else None
        return LIF(decay, order=order, learn_beta=learned, channels=channels, **options)

    network, x = _random_network(draw, neuron)
    return _finished(network, x, grid)


def random_spikingjelly(seed: int, grid: bool) -> tuple[nn.Module, Tensor, str]:
    """Return a random network of SpikingJelly, an input, and its step mode."""
    functional, layer, neuron, surrogate = spikingjelly().parts
    draw = random.Random(seed)
    torch.manual_seed(seed)

    def node(width: int, maps: bool) -> nn.Module:
        kind = draw.choice(["IFNode", "IFNode", "LIFNode", "ParametricLIFNode", "CUBALIFNode", "SimpleIFNode"])
        names = ["ATan", "Sigmoid", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf"]
        names.append("S2NN")  # refused
        options: dict[str, Any] = {
            "v_threshold": 1.0 if grid else draw.uniform(0.5, 1.5),
            "v_reset": draw.choice([None, 0.0, -0.5]),
            "surrogate_function": getattr(surrogate, draw.choice(names))(),
        }
        if kind == "CUBALIFNode":
            return neuron.CUBALIFNode(0.5, 0.5 if grid else draw.uniform(0.3, 0.9), **options)
        options["detach_reset"] = draw.random() < 0.5
        if "LIF" in kind:
            options["decay_input"] = draw.random() < 0.5
            options["tau" if kind == "LIFNode" else "init_tau"] = 2.0 if grid else draw.uniform(1.1, 4.0)
        return getattr(neuron, kind)(**options)

    network, x = _random_network(draw, node, layers=layer)
    mode = draw.choice("sm")
    functional.set_step_mode(network, mode)
    return (*_finished(network, x, grid), mode)


def _random_network(
    draw: random.Random, neuron: Callable[[int, bool], nn.Module], layers: Any = nn
) -> tuple[nn.Sequential, Tensor]:
    if draw.random() < 0.5:
        parts = [layers.Linear(5, 6), neuron(6, False), layers.Linear(6, 4), neuron(4, False)]
        x = torch.rand(12, 3, 5)
    else:
        pool = draw.choice(["AvgPool2d", "MaxPool2d"])
        parts = [layers.Conv2d(1, 3, 3, padding=1), neuron(3, True), getattr(layers, pool)(2), layers.Flatten()]
        parts += [layers.Linear(12, 4, bias=draw.random() < 0.5), neuron(4, False)]
        x = torch.rand(12, 3, 1, 4, 4)
    if draw.random() < 0.3:
        parts = [nn.Sequential(*parts[:2]), *parts[2:]]
    return nn.Sequential(*parts), x


def _finished(network: nn.Module, x: Tensor, grid: bool) -> tuple[nn.Module, Tensor]:
    scale_weights(network)
    if grid:
        to_grid(network)
        x = (x * 2).round()
    return network, x
