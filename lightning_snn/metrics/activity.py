"""What a spiking network does while it runs: its spikes, and the synaptic operations that they cause.

Both are NeuroBench's (Yik et al. 2025) definitions, with connections taken as dense, that is, weights that happen to be
zero count too:

- Spikes per neuron per step: spikes of all spiking layers, over neurons times time steps times samples.
- Effective synaptic operations: for every input of a connection layer that is not zero, the number of outputs that it
  reaches; nothing else does work on event-driven hardware. The first layer's inputs are the data, which need not be
  binary. A recurrent spiking layer adds, for every spike, one operation for each neuron of the layer. Biases,
  normalisation, pooling and the neurons themselves count nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.bayes import BayesConv1d, BayesConv2d, BayesLinear
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lif import RecurrentLIF
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.registry import spiking_layers

_LINEAR = (nn.Linear, BayesLinear)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, BayesConv1d, BayesConv2d)
_CONNECTIONS = (*_LINEAR, *_CONVOLUTIONS)


def synaptic_operations(layer: nn.Module, x: Tensor) -> Tensor:
    """Effective synaptic operations of one call of a connection layer.

    N = sum_i 1[x_i != 0] fan_out(i), where fan_out(i) is the number of outputs that input i reaches: the output
    features of a linear layer; of a convolution the output channels of its group times the output positions whose
    kernel covers it, so that stride, padding, dilation and the image's rim are accounted for exactly.

    Args:
        layer: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `BayesLinear`, `BayesConv1d` or `BayesConv2d`, with
            zero padding.
        x: input of the layer, as its `forward` takes it.

    Returns:
        An int64 scalar on the input's device, summed over all rows of the input.

    Raises:
        TypeError: if the layer is of another kind.
        ValueError: if a convolution pads with anything but zeros.

    Source: J. Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems",
    Nature Communications 16, 2025.
    """
    if isinstance(layer, _LINEAR):
        return torch.count_nonzero(x) * layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        if not _pads_with_zeros(layer):
            raise ValueError(f"Expected argument `layer` to have padding_mode 'zeros', but got {layer.padding_mode!r}")
        return _convolution_operations(layer, x)
    expected = ", ".join(kind.__name__ for kind in _CONNECTIONS)
    raise TypeError(f"Expected argument `layer` to be one of {expected}, but got {type(layer).__name__}")


@dataclass
class Activity:
    """Totals of what a network did within `record_activity`; the tensors stay on the network's device.

    Attributes:
        spikes: number of spikes of each spiking layer, int64 scalars.
        neuron_steps: neurons times steps times samples of each spiking layer.
        operations: effective synaptic operations of each connection layer and recurrent spiking layer, int64 scalars.
        samples: samples seen, counted where the network is called by `lightning_snn.run`. Whoever calls it otherwise
            sets this number.
        raster: spikes of the first sample in each spiking layer, a list of pieces of shape `(steps, N)`.
        uncounted: layers with a weight matrix whose operations are not counted.
    """

    spikes: dict[str, Tensor] = field(default_factory=dict)
    neuron_steps: dict[str, int] = field(default_factory=dict)
    operations: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    raster: dict[str, list[Tensor]] = field(default_factory=dict)
    uncounted: list[str] = field(default_factory=list)

    def spikes_per_neuron_per_step(self) -> float:
        """Spikes per neuron and time step over all spiking layers, in [0, 1] for binary spikes; nan if none ran."""
        neuron_steps = sum(self.neuron_steps.values())
        return float(sum(self.spikes.values())) / neuron_steps if neuron_steps else float("nan")

    def spike_rates(self) -> dict[str, float]:
        """Spikes per neuron and time step of each spiking layer."""
        return {name: float(count) / self.neuron_steps[name] for name, count in self.spikes.items()}

    def synaptic_operations_per_sample(self) -> float:
        """Effective synaptic operations that one sample costs, over all its time steps; nan if no sample was seen."""
        return float(sum(self.operations.values())) / self.samples if self.samples else float("nan")

    def first_sample(self) -> dict[str, Tensor]:
        """Spikes of the first sample in each spiking layer that ran, shape `(T, N)`."""
        return {name: torch.cat(pieces) for name, pieces in self.raster.items()}


@contextmanager
def record_activity(
    network: nn.Module, activity: Activity | None = None, first_sample: bool = False
) -> Iterator[Activity]:
    """Count spikes and synaptic operations of every call of a network within this context.

    K noisy samples of a prediction are K runs: their operations add up, what they share counts once.

    Args:
        network: any module; its spiking layers, also those of other libraries, are found by `nn.registry`.
        activity: totals to add to; None starts new ones.
        first_sample: keep the spikes of the first sample too. Layers of other libraries that are called step by step
            give one step a call, so that the context should then enclose the steps of one batch.

    Returns:
        A context that gives the `Activity`. The hooks are gone when it ends, also by an exception.

    Example:
        >>> with record_activity(network) as activity:
        ...     run(network, x)
        >>> activity.spikes_per_neuron_per_step()
    """
    activity = Activity() if activity is None else activity
    handles = []
    try:
        handles.append(network.register_forward_pre_hook(lambda module, args: _count_samples(activity, args)))
        for name, layer in spiking_layers(network):
            handles.append(layer.register_forward_hook(_spike_counter(activity, name, first_sample)))
        for name, layer in network.named_modules():
            if isinstance(layer, _CONNECTIONS) and _pads_with_zeros(layer):
                handles.append(layer.register_forward_pre_hook(_operation_counter(activity, name)))
            elif _has_weight_matrix(layer) and not isinstance(layer, RecurrentLIF) and name not in activity.uncounted:
                activity.uncounted.append(name)
        yield activity
    finally:
        for handle in handles:
            handle.remove()


def _count_samples(activity: Activity, args: tuple[Any, ...]) -> None:
    steps = time_steps()
    if steps is not None and args:
        activity.samples += args[0].shape[0] // steps


def _operation_counter(activity: Activity, name: str) -> Any:
    def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
        # a Gaussian activation is an analogue value that the layer hears through its mean
        x = args[0].mean if isinstance(args[0], Moments) else args[0]
        activity.operations[name] = activity.operations.get(name, 0) + synaptic_operations(layer, x)

    return count


def _spike_counter(activity: Activity, name: str, first_sample: bool) -> Any:
    seen = False

    def count(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal seen
        spikes = (output[0] if isinstance(output, tuple) else output).detach()
        number = torch.count_nonzero(spikes)
        activity.spikes[name] = activity.spikes.get(name, 0) + number
        activity.neuron_steps[name] = activity.neuron_steps.get(name, 0) + spikes.numel()
        if isinstance(layer, RecurrentLIF):
            activity.operations[name] = activity.operations.get(name, 0) + number * layer.features
        steps = time_steps()
        if first_sample and not (steps is not None and seen):
            activity.raster.setdefault(name, []).append(_over_time(layer, spikes, steps)[:, 0].flatten(1))
        seen = True

    return count


def _over_time(layer: nn.Module, spikes: Tensor, steps: int | None) -> Tensor:
    """Spikes of one call, `[steps, B, ...]`."""
    if steps is not None:
        return spikes.unflatten(0, (steps, -1))
    # SpikingJelly's multi-step mode; every other layer of another library takes one step a call
    return spikes if getattr(layer, "step_mode", "s") == "m" else spikes[None]


def _pads_with_zeros(layer: nn.Module) -> bool:
    return getattr(layer, "padding_mode", "zeros") == "zeros"


def _has_weight_matrix(layer: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in layer.parameters(recurse=False))


def _convolution_operations(layer: Any, x: Tensor) -> Tensor:
    axes = len(layer.kernel_size)
    padding = _padding(layer)
    operations = (x != 0).flatten(0, x.dim() - axes - 1).sum(0)
    for axis in range(axes):
        reached = _reached(
            x.shape[axis - axes],
            layer.kernel_size[axis],
            layer.stride[axis],
            layer.dilation[axis],
            padding[axis],
            x.device,
        )
        operations = operations * reached.view(-1, *(1,) * (axes - axis - 1))
    return operations.sum() * (layer.out_channels // layer.groups)


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(width, width) for width in layer.padding]


def _reached(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], device: torch.device
) -> Tensor:
    """For each input position on one axis, the number of output positions whose kernel covers it, shape `(size,)`."""
    outputs = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    first = stride * torch.arange(outputs, device=device) - padding[0]
    covered = first[:, None] + dilation * torch.arange(kernel, device=device)
    return (covered.flatten()[:, None] == torch.arange(size, device=device)).sum(0)
