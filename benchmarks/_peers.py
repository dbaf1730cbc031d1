"""Our networks with the neurons of other libraries, run as users of these libraries run them.

Each is used if it is installed: pip install snntorch; pip install --no-deps spikingjelly, and its dependencies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_snn import LIF

try:
    import snntorch
except ImportError:
    snntorch = None
try:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
except ImportError:
    neuron = None

Forward = Callable[[nn.Module, Tensor], Tensor]


def replaced(network: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy with each module replaced by `make(module)`; None keeps the module."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            replacement = make(child)
            if replacement is not None:
                setattr(parent, name, replacement)
    return network


def with_relu(network: nn.Module) -> nn.Module:
    """Return the network with ReLUs instead of spiking neurons."""
    return replaced(network, lambda module: nn.ReLU() if isinstance(module, LIF) else None)


def in_snntorch(network: nn.Module) -> tuple[nn.Module, Forward] | None:
    """Return the network with snntorch's neurons, run step by step in a Python loop; None if it is not installed."""
    if snntorch is None:
        return None

    def leaky(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, LIF):
            return None
        return snntorch.Leaky(beta=module.beta, spike_grad=snntorch.surrogate.sigmoid(4), init_hidden=True)

    def forward(network: nn.Module, x: Tensor) -> Tensor:
        for module in network.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        return torch.stack([network(frame) for frame in x])

    return replaced(network, leaky), forward


def in_spikingjelly(network: nn.Module) -> tuple[nn.Module, Forward] | None:
    """Return the network with SpikingJelly's neurons in multi-step mode; None if it is not installed."""
    if neuron is None:
        return None

    def counterpart(module: nn.Module) -> nn.Module | None:
        if isinstance(module, LIF):
            return neuron.LIFNode(
                1 / (1 - float(module.beta)),
                decay_input=False,
                v_reset=None,
                detach_reset=module.dynamics.detach_reset,
                surrogate_function=surrogate.Sigmoid(4.0),
                step_mode="m",
            )
        kind = getattr(layer, type(module).__name__, None)
        if kind is None or next(module.children(), None) is not None:
            return None
        # the same module, called on [T, B, ...] as SpikingJelly folds time
        copied = copy.deepcopy(module)
        copied.__class__ = kind
        copied._step_mode = "m"
        return copied

    def forward(network: nn.Module, x: Tensor) -> Tensor:
        functional.reset_net(network)
        return network(x)

    return replaced(network, counterpart), forward
