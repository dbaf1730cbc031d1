"""Constraints of hardware on any module: on its weights, and on the spike times of networks of time to first spike."""

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
from lightning_snn.methods.ttfs.layers import FirstSpike, SpikeEncoder, TimeWindow, first_spike_layers
from lightning_snn.methods.ttfs.windows import cascade


class Constrained(ExitStack):
    """Constraints that act on a module from now until `close`, or within a ``with`` block.

    A layer's weight is the constrained one while its forward runs; else it is the plain parameter, so that optimizers,
    checkpoints, copies and averages of weights know of nothing. Neurons of time to first spike take
    ``overflow="clip"``, and their windows are frozen. Windows are not shortened: see `shorten_windows`.

    Args:
        module: any module.
        constraints: what acts on it.

    Attributes:
        never_called: names of the layers with constrained weights that were not called so far. Whoever reads their
            weights without a call reads the plain ones.

    Raises:
        ValueError: if the module has nothing that a constraint acts on, or layers that it cannot act on; names them.

    Example:
        >>> with Constrained(network, HardwareConstraints(weight_bits=4)), torch.no_grad():
        ...     logits = network(x)
    """

    def __init__(self, module: nn.Module, constraints: HardwareConstraints) -> None:
        super().__init__()
        layers = weight_layers(module, constraints) if constraints.on_weights else {}
        windows = _windows(module, constraints)
        self.never_called = dict.fromkeys(layers)
        for name, layer in layers.items():
            hooks = _WeightHooks(name, constraints, self.never_called)
            self.enter_context(layer.register_forward_pre_hook(hooks.before))
            # a forward that raises leaves the plain weight, too
            self.enter_context(layer.register_forward_hook(hooks.after, always_call=True))
        for window in windows:
            if isinstance(window, FirstSpike):
                self._set(window, constraints=constraints.times, overflow="clip")
            else:
                # inputs have no potential whose slope could differ
                self._set(window, constraints=replace(constraints.times, slope_mismatch=0.0))
        for neurons in first_spike_layers(module).values():
            self._set(neurons, adaptive=False)

    def _set(self, module: nn.Module, **values: Any) -> None:
        for name, value in values.items():
            self.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)


class _WeightHooks:
    """Shadow a layer's weight during its forward; methods, so that copies of the layer need nothing of this one."""

    def __init__(self, name: str, constraints: HardwareConstraints, never_called: dict[str, None]) -> None:
        self.name, self.constraints, self.never_called = name, constraints, never_called

    def before(self, layer: nn.Module, arguments: Any) -> None:
        self.never_called.pop(self.name, None)
        # an entry of the instance comes before the module's parameter of the same name
        layer.__dict__["weight"] = self.constraints.weight(layer.get_parameter("weight"), _channel_dimension(layer))

    def after(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        layer.__dict__.pop("weight", None)


def shorten_windows(module: nn.Module, factor: float, peaks: dict[str, Tensor] | None = None) -> None:
    """Divide the windows of all neurons of time to first spike, for good.

    Args:
        module: holds `FirstSpike` neurons.
        factor: what windows are divided by, at least 1.
        peaks: by name, the largest drives, to which windows are set before they are divided; neurons that are not
            named, or never spike, keep theirs.

    Raises:
        ValueError: if `factor` is outside its range.
    """
    check_between("factor", factor, 1, float("inf"))
    for name, neurons in first_spike_layers(module).items():
        peak = (peaks or {}).get(name, neurons.window)
        neurons.window.copy_(torch.where(peak > 0, peak, neurons.window) / factor)
    cascade(module)


def export_weights(module: nn.Module, constraints: HardwareConstraints) -> dict[str, IntegerWeights]:
    """The integers that a chip stores for every linear and convolutional layer, by the layer's name.

    Args:
        module: any module.
        constraints: with `weight_bits`, as in the fine-tuning.

    Returns:
        codes, scale and offset of each layer: ``weight = offset + scale * codes``, with a scale and an offset a
        channel for ``weight_ranges="channel"``. Biases stay as they are.

    Raises:
        ValueError: if `weight_bits` is not set, or the module has no such layer, or one that constraints cannot act on.

    Example:
        >>> integers = export_weights(module, HardwareConstraints(weight_bits=4))["network.0"]
    """
    return {
        name: constraints.integers(layer.get_parameter("weight"), _channel_dimension(layer))
        for name, layer in weight_layers(module, constraints).items()
    }


def weight_layers(module: nn.Module, constraints: HardwareConstraints) -> dict[str, nn.Module]:
    """Linear and convolutional layers by name; those that constraints on weights cannot act on are refused."""
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, _ConvNd))
    }
    if not layers:
        raise ValueError(
            f"Expected {type(module).__name__} to have linear or convolutional layers for constraints on weights, but "
            "got none"
        )
    computed = [name for name, layer in layers.items() if "weight" not in layer._parameters]
    if computed:
        raise ValueError(
            "Expected the weights of linear and convolutional layers to be parameters, but got some that are computed "
            f"from others (parametrized): {', '.join(computed)}"
        )
    if constraints.weight_ranges == "channel":
        # a channel's weights are no slice of theirs
        mixed = [name for name, layer in layers.items() if isinstance(layer, _ConvTransposeNd) and layer.groups > 1]
        if mixed:
            raise ValueError(
                f'Expected no transposed convolutions in groups for weight_ranges="channel", but got {", ".join(mixed)}'
            )
    return layers


def _channel_dimension(layer: nn.Module) -> int:
    """Of the weight, that of the output channels."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def _windows(module: nn.Module, constraints: HardwareConstraints) -> list[TimeWindow]:
    """Layers that constraints on times act on; without such constraints there are none."""
    if not constraints.on_times:
        return []
    windows = {name: layer for name, layer in module.named_modules() if isinstance(layer, TimeWindow)}
    if not first_spike_layers(module):
        raise ValueError(
            f"Expected {type(module).__name__} to have FirstSpike neurons for {', '.join(constraints.on_times)}, but "
            "got none"
        )
    others = [name for name, layer in windows.items() if not isinstance(layer, (FirstSpike, SpikeEncoder))]
    if others:
        raise ValueError(
            f"Expected spiking layers of unit slope for {', '.join(constraints.on_times)}, but got {', '.join(others)}"
        )
    return list(windows.values())
