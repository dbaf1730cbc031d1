"""Hardware constraints on the weights of any module and on the spike times of time-to-first-spike networks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_snn.callbacks.hardware.constraints import HardwareConstraints
from lightning_snn.checks import check_between
from lightning_snn.functional.quantization import IntegerWeights
from lightning_snn.methods.ttfs import FirstSpike, SpikeEncoder, TimeWindow, first_spike_layers
from lightning_snn.methods.ttfs.windows import cascade


class Constrained(ExitStack):
    """Constraints that act on a module until `close`, or within a ``with`` block.

    A layer's weight is the constrained one during its forward pass, and otherwise the plain parameter. So optimizers,
    checkpoints, copies, and weight averages are not affected. Time-to-first-spike neurons use ``overflow="clip"``, and
    their windows are frozen. Windows are not shortened: see `shorten_windows`.

    Args:
        module: any module.
        constraints: constraints that act on it.

    Attributes:
        never_called: names of the layers with constrained weights that were not called so far. Code that reads their
            weights without a call gets the plain ones.

    Raises:
        ValueError: if the module has nothing that a constraint acts on, or layers that it cannot act on, which are
            named.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3))
        >>> with Constrained(network, HardwareConstraints(weight_bits=1)), torch.no_grad():
        ...     len((network(torch.eye(4)) - network(torch.zeros(1, 4))).flatten().round(decimals=5).unique())
        2
    """

    def __init__(self, module: nn.Module, constraints: HardwareConstraints) -> None:
        super().__init__()
        layers = weight_layers(module, constraints) if constraints.on_weights else {}
        windows = _windows(module, constraints)
        self.never_called = dict.fromkeys(layers)
        for name, layer in layers.items():
            hooks = _WeightHooks(name, constraints, self.never_called)
            self.enter_context(layer.register_forward_pre_hook(hooks.before))
            # the plain weight returns also if the forward pass raises
            self.enter_context(layer.register_forward_hook(hooks.after, always_call=True))
        for window in windows:
            if isinstance(window, FirstSpike):
                self._set(window, constraints=constraints.times, overflow="clip")
            else:
                # inputs have no membrane potential with a slope
                self._set(window, constraints=replace(constraints.times, slope_mismatch=0.0))
        for neurons in first_spike_layers(module).values():
            self._set(neurons, adaptive=False)

    def _set(self, module: nn.Module, **values: Any) -> None:
        for name, value in values.items():
            self.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)


class _WeightHooks:
    """Hooks that replace a layer's weight during its forward pass; as methods, they work on copies of the layer too."""

    def __init__(self, name: str, constraints: HardwareConstraints, never_called: dict[str, None]) -> None:
        self.name, self.constraints, self.never_called = name, constraints, never_called

    def before(self, layer: nn.Module, arguments: Any) -> None:
        self.never_called.pop(self.name, None)
        # an attribute of the instance takes precedence over the parameter of the same name
        layer.__dict__["weight"] = self.constraints.weight(layer.get_parameter("weight"), _channel_dimension(layer))

    def after(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        layer.__dict__.pop("weight", None)


def shorten_windows(module: nn.Module, factor: float, peaks: dict[str, Tensor] | None = None) -> None:
    """Divide the windows of all time-to-first-spike neurons, permanently.

    Args:
        module: module with `FirstSpike` neurons.
        factor: divisor of the windows, at least 1.
        peaks: largest input current by the name of a layer. Its window is set to this before it is divided. Layers that
            are not named or never spike keep their windows.

    Raises:
        ValueError: if `factor` is out of range.
    """
    check_between("factor", factor, 1, float("inf"))
    for name, neurons in first_spike_layers(module).items():
        peak = (peaks or {}).get(name, neurons.window)
        neurons.window.copy_(torch.where(peak > 0, peak, neurons.window) / factor)
    cascade(module)


def export_weights(module: nn.Module, constraints: HardwareConstraints) -> dict[str, IntegerWeights]:
    """Return the integers that a chip stores for each linear and convolutional layer, by the layer's name.

    Args:
        module: any module.
        constraints: constraints with `weight_bits`, as in the fine-tuning.

    Returns:
        Codes, scale, and offset of each layer: ``weight = offset + scale * codes``. With ``weight_ranges="channel"``
        there is one scale and one offset per channel. Biases are not included.

    Raises:
        ValueError: if `weight_bits` is not set, or the module has no such layer, or one that constraints cannot act on.

    Example:
        >>> integers = export_weights(nn.Sequential(nn.Linear(4, 3)), HardwareConstraints(weight_bits=4))["0"]
        >>> int(integers.codes.max())
        15
    """
    return {
        name: constraints.integers(layer.get_parameter("weight"), _channel_dimension(layer))
        for name, layer in weight_layers(module, constraints).items()
    }


def weight_layers(module: nn.Module, constraints: HardwareConstraints) -> dict[str, nn.Module]:
    """Return linear and convolutional layers by name.

    Raises:
        ValueError: if there are none, or constraints on weights cannot act on some, which are named.
    """
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, _ConvNd))
    }
    if not layers:
        raise ValueError(
            "Expected a module with linear or convolutional layers for constraints on weights, but got "
            f"{type(module).__name__} without any"
        )
    computed = [name for name, layer in layers.items() if "weight" not in layer._parameters]
    if computed:
        raise ValueError(
            "Expected the weights of linear and convolutional layers to be parameters, but got computed "
            f"(parametrized) ones: {', '.join(computed)}"
        )
    if constraints.weight_ranges == "channel":
        # the weights of a channel are not a slice of their weight
        mixed = [name for name, layer in layers.items() if isinstance(layer, _ConvTransposeNd) and layer.groups > 1]
        if mixed:
            raise ValueError(
                f'Expected no grouped transposed convolutions for weight_ranges="channel", but got {", ".join(mixed)}'
            )
    return layers


def _channel_dimension(layer: nn.Module) -> int:
    """Return the dimension of the weight that is the output channels."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def _windows(module: nn.Module, constraints: HardwareConstraints) -> list[TimeWindow]:
    """Return the layers that constraints on spike times act on; none without such constraints."""
    if not constraints.on_times:
        return []
    windows = {name: layer for name, layer in module.named_modules() if isinstance(layer, TimeWindow)}
    if not first_spike_layers(module):
        raise ValueError(
            f"Expected a module with FirstSpike neurons for {', '.join(constraints.on_times)}, but got "
            f"{type(module).__name__} without any"
        )
    others = [name for name, layer in windows.items() if not isinstance(layer, (FirstSpike, SpikeEncoder))]
    if others:
        raise ValueError(
            f"Expected spiking layers with slope 1 for {', '.join(constraints.on_times)}, but got {', '.join(others)}"
        )
    return list(windows.values())
