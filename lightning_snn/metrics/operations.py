"""Effective and dense synaptic operations of connection layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_snn.methods.bayes import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.metrics.functional import accumulation_dtype
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.neurons import Neuron, Recurrent, RecurrentLIF

_PIECE = 2**19  # elements of an input that are processed together


class Connection:
    """Operation counts of a linear map whose weight is a matrix `[outputs, inputs]`, and base of those of other layers.

    Args:
        layer: a layer with a parameter `weight`.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def row_dimensions(self) -> int:
        """Number of dimensions of one row of the layer's input."""
        return 1

    def refusal(self) -> str | None:
        """Return why the operations of this layer cannot be counted, None if they can."""
        return None

    def dense_operations(self, shape: torch.Size) -> int:
        """Count the operations of one row of an input of this shape if no input and no weight were zero."""
        weights: int = self.layer.weight.numel()
        return weights

    def fan_out(self, shape: torch.Size) -> Tensor:
        """Count the nonzero weights between each input of a row and all outputs, int64 of the shape of a row."""
        return self.nonzero().sum(0)

    def nonzero(self) -> Tensor:
        """Return which weights are not zero; sampled weights never are."""
        weight: Tensor = self.layer.weight.detach()
        return torch.ones_like(weight, dtype=torch.bool) if isinstance(self.layer, BayesianLayer) else weight != 0


class ConvolutionConnection(Connection):
    """Operation counts of a convolution with zero padding, exact in stride, padding, dilation and the edges."""

    @property
    def row_dimensions(self) -> int:
        return 1 + len(self.layer.kernel_size)

    def refusal(self) -> str | None:
        padding = getattr(self.layer, "padding_mode", "zeros")
        return None if padding == "zeros" else f"padding_mode={padding!r}"

    def dense_operations(self, shape: torch.Size) -> int:
        covered = (int(_covered(*axis, torch.device("cpu")).sum()) for axis in _axes(self.layer, shape))
        channel_pairs: int = self.layer.in_channels // self.layer.groups * self.layer.out_channels
        return math.prod(covered) * channel_pairs

    def fan_out(self, shape: torch.Size) -> Tensor:
        # nonzero weights for each input channel and kernel offset; the channels of a group are consecutive
        fan: Tensor = self.nonzero().unflatten(0, (self.layer.groups, -1)).sum(1).flatten(0, 1)
        device = fan.device
        # Not all devices support matrix products of integers. Floats are exact as long as sums stay below 2^24.
        fan = fan.to(accumulation_dtype(device))
        with torch.autocast(device.type, enabled=False):
            for axis in _axes(self.layer, shape):
                # Sum over the offsets of this axis; its positions become the last axis.
                fan = torch.tensordot(fan, _covered(*axis, device).to(fan), dims=([1], [1]))
        return fan.round().long()


CONNECTION_RULES: LayerRules[type[Connection]] = LayerRules(
    unknown="its operations are not counted: see `register_connection`"
)
# of neurons with weights between them, which receive their own spikes one step later
RECURRENCE_RULES: LayerRules[type[Connection]] = LayerRules(unknown="it has no recurrent weights")


def register_connection(kind: type[nn.Module], connection: type[Connection], recurrent: bool = False) -> None:
    """Set how the synaptic operations of layers of a type are counted.

    Args:
        kind: the layer type.
        connection: a subclass of `Connection`.
        recurrent: whether the connection is between the neurons of a spiking layer, which receive their own spikes.

    Raises:
        TypeError: if an argument is of another kind.
    """
    if not (isinstance(connection, type) and issubclass(connection, Connection)):
        raise TypeError(f"Expected argument `connection` to be a subclass of Connection, but got {connection!r}")
    (RECURRENCE_RULES if recurrent else CONNECTION_RULES).register(kind, connection)


_LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, BayesLinear)
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, BayesConv1d, BayesConv2d)
_RECURRENT: tuple[type[nn.Module], ...] = (RecurrentLIF, Recurrent, BayesRecurrentLIF)
for _kind in _LINEAR:
    register_connection(_kind, Connection)
for _kind in _CONVOLUTIONS:
    register_connection(_kind, ConvolutionConnection)
for _name in ("Conv1d", "Conv2d", "Conv3d"):  # with a forward of their own, for sequences
    CONNECTION_RULES.register_name(
        f"spikingjelly.activation_based.layer.stateless_wrapper.{_name}", ConvolutionConnection
    )
for _kind in _RECURRENT:
    register_connection(_kind, Connection, recurrent=True)


def connection_of(layer: nn.Module) -> Connection | None:
    """Return how operations of a layer's inputs are counted, None if they cannot be."""
    kind = CONNECTION_RULES.find(layer)
    found = None if kind is None else kind(layer)
    return None if found is None or found.refusal() else found


def recurrence_of(layer: nn.Module) -> Connection | None:
    """Return how operations of a spiking layer's own spikes are counted, None if it has no recurrent weights."""
    kind = RECURRENCE_RULES.find(layer)
    return None if kind is None else kind(layer)


def is_uncounted(layer: nn.Module) -> bool:
    """Return whether a layer has weights, or connections between its neurons, whose operations are not counted."""
    if connection_of(layer) is not None or recurrence_of(layer) is not None:
        return False
    own: list[Tensor] = list(layer.parameters(recurse=False))
    if isinstance(layer, Neuron):
        own += layer.buffers(recurse=False)
        if not layer.independent and not any(connection_of(part) or recurrence_of(part) for part in layer.modules()):
            return True
    return any(not is_lazy(each) and each.dim() > 1 for each in own)


class Effective(NamedTuple):
    """Effective synaptic operations, int64 scalars on the input's device.

    Attributes:
        accumulates: operations of time steps whose inputs are all -1, 0 or 1, each a single addition.
        total: operations of all time steps; those of other time steps also multiply.
    """

    accumulates: Tensor
    total: Tensor


def synaptic_operations(layer: nn.Module, x: Tensor) -> Tensor:
    """Count the effective synaptic operations of one call of a connection layer.

    N = sum_i 1[x_i != 0] fan_out(i)

    Here fan_out(i) is the number of nonzero weights between input i and all outputs. In a linear layer these are the
    weights of one column of its matrix. In a convolution they are the weights of the input's group, counted at every
    output position whose kernel covers the input, so stride, padding, dilation and the edges of the image are exact.
    The weights of Bayesian layers are sampled and count as nonzero.

    Args:
        layer: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `BayesLinear`, `BayesConv1d` or `BayesConv2d`, with
            zero padding, or a layer of a type registered by `register_connection`.
        x: input of the layer, as its `forward` takes it.

    Returns:
        An int64 scalar on the input's device, the sum over all rows of the input.

    Raises:
        TypeError: if the layer has a different type.
        ValueError: if the padding of a convolution is not zero padding.

    Source: J. Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems",
    Nature Communications 16, 2025.

    Example:
        >>> synaptic_operations(nn.Linear(3, 4), torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
        tensor(8)
    """
    kind = CONNECTION_RULES.find(layer)
    if kind is None:
        raise TypeError(
            f"Expected argument `layer` to be a connection, but got {type(layer).__name__}: "
            f"{CONNECTION_RULES.reason(layer)}"
        )
    connection = kind(layer)
    if (reason := connection.refusal()) is not None:
        raise ValueError(f"Expected argument `layer` to have padding_mode 'zeros', but got {reason}")
    return effective_operations(x[None], connection.fan_out(x.shape)).total


def effective_operations(steps: Tensor, fan: Tensor) -> Effective:
    """Count the effective synaptic operations of the inputs of a connection layer.

    Args:
        steps: inputs of each time step, shape `[steps, ..., *fan.shape]`.
        fan: number of nonzero weights for each input, from `fan_out`.
    """
    inputs = steps.detach().flatten(1, -fan.dim() - 1) if steps.dim() > fan.dim() + 1 else steps.detach()[:, None]
    costs, spiking = [], []
    # Pieces that fit into the cache are four times as fast as all steps at once.
    for piece in inputs.split(max(1, _PIECE // max(1, inputs[0].numel()))):
        signs = piece.sign()
        spiking.append((piece == signs).flatten(1).all(1))
        busy = signs.abs_().sum(1, dtype=torch.promote_types(signs.dtype, torch.float32))
        costs.append((busy.long() * fan).flatten(1).sum(1))
    cost = torch.cat(costs)
    return Effective((cost * torch.cat(spiking)).sum(), cost.sum())


_Axis = tuple[int, int, int, int, int, int]


def _axes(layer: Any, shape: torch.Size) -> list[_Axis]:
    """Return size, kernel, stride, dilation, and padding before and after for each axis of a convolution."""
    count = len(layer.kernel_size)
    return [
        (shape[axis - count], layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis], *padding)
        for axis, padding in enumerate(_padding(layer))
    ]


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(width, width) for width in layer.padding]


def _covered(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, device: torch.device
) -> Tensor:
    """Return which input positions contribute to an output through which kernel offset, bool `[size, kernel]`.

    For each pair there is at most one output position.
    """
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    first = torch.arange(size, device=device)[:, None] + before - dilation * torch.arange(kernel, device=device)
    return (first >= 0) & (first < outputs * stride) & (first % stride == 0)
