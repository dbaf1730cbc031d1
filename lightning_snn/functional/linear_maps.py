r"""Linear map of a layer as three operations that need neither autograd nor a matrix of patches.

The weights of a layer form one matrix W of shape `[O, I]`, with one row per output unit or channel. If the layer has a
bias, it is the last column, whose input is a constant. With the inputs of sample n at position p (dense layers have one
position) written as a vector :math:`x_{np}`, the three operations are

.. math:: u_{nop} = \sum_i W_{oi} x_{npi}, \qquad
    C_{oi} = \sum_{np} g_{nop} x_{npi}, \qquad
    t_{np} = \sum_{o} g_{nop} W_{o},

where the last one adds up the values at the inputs of each patch. All three are exact for any W and g, so sums of
products such as :math:`G x^2` over samples and positions need memory of the size of the weights only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Pair = tuple[int, int]


class LinearMap(Protocol):
    """Operations of a linear layer that message passing needs."""

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``W x``.

        Args:
            x: inputs `[M, ...]`.
            weight: W `[O, I]`, with the column of the bias last.
            constant: input of the bias: 1 for means and squares of the inputs, 0 for their variances.

        Returns:
            `[M, O, ...]`.
        """

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``sum g x`` over samples and positions.

        Args:
            x: inputs `[M, ...]`.
            g: one value per output, `[M, O, ...]`.
            constant: input of the bias.

        Returns:
            `[O, I]`.
        """

    def square(self, x: Tensor) -> Tensor:
        """Return the squares of the inputs `[M, ...]`."""

    def effective_inputs(self, x: Tensor, outputs: int) -> Tensor:
        """Return the effective number of inputs of each output, ``(sum x^2)^2 / sum x^4``.

        It is 1 if a single input is not 0, and the number of inputs if all have the same size.

        Args:
            x: inputs `[M, ...]`.
            outputs: O.

        Returns:
            numbers from 1, `[M, O, ...]`, or `[M, 1, ...]` if all outputs have the same inputs; 1 without any input.
        """

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """Return ``W^T g`` without the column of the bias.

        Args:
            g: one value per output, `[M, O, ...]`.
            weight: W `[O, I]`, with the column of the bias last.
            shape: shape of the inputs.

        Returns:
            one value per input, of that shape.
        """


def _split(weight: Tensor, bias: bool, constant: float) -> tuple[Tensor, Tensor | None]:
    """Return the weights without the column of the bias, and the bias times its input, or None if it is 0."""
    if not bias:
        return weight, None
    if constant == 0:
        return weight[:, :-1], None
    column = weight[:, -1]
    return weight[:, :-1], column if constant == 1 else column * constant


def _with_bias(sums: Tensor, g: Tensor, constant: float) -> Tensor:
    """Append the column of the bias to sums `[O, I]`: the sum of g times the input of the bias."""
    samples = [axis for axis in range(g.dim()) if axis != 1]
    column = g.sum(samples) * constant if constant else sums.new_zeros(len(sums))
    return torch.cat([sums, column[:, None]], dim=1)


def _effective(second: Tensor, fourth: Tensor, bias: bool) -> Tensor:
    """Return the effective number of inputs from sums of their second and fourth powers without the bias."""
    if bias:
        second, fourth = second + 1, fourth + 1
    return (second.square() / fourth.clamp(min=torch.finfo(fourth.dtype).tiny)).clamp_(min=1)


@dataclass(frozen=True)
class DenseMap:
    """Fully connected layer on inputs `[M, N]`; ``I = N``, or ``N + 1`` with a bias.

    Attributes:
        bias: whether the last column of the weights is a bias.

    Example:
        >>> linear, x = DenseMap(), torch.tensor([[2.0], [3.0]])
        >>> linear.apply(x, torch.tensor([[10.0, 1.0]]))
        tensor([[21.],
                [31.]])
        >>> linear.correlate(x, torch.ones(2, 1))
        tensor([[5., 2.]])
    """

    bias: bool = True

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``W x``, `[M, O]`; see `LinearMap`."""
        return F.linear(x, *_split(weight, self.bias, constant))

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``g^T x``, `[O, I]`; see `LinearMap`."""
        sums = g.T @ x
        return _with_bias(sums, g, constant) if self.bias else sums

    def square(self, x: Tensor) -> Tensor:
        """Return the squares of the inputs, `[M, N]`."""
        return x * x

    def effective_inputs(self, x: Tensor, outputs: int) -> Tensor:
        """Return the effective number of inputs, `[M, 1]`; see `LinearMap`."""
        squared = x * x
        return _effective(squared.sum(1, keepdim=True), (squared * squared).sum(1, keepdim=True), self.bias)

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """Return ``g W``, `[M, N]`; see `LinearMap`."""
        return (g @ (weight[:, :-1] if self.bias else weight)).reshape(shape)


@dataclass(frozen=True)
class ConvolutionMap:
    """2-D convolution on inputs `[M, C, H, W]`.

    ``I = C / groups * kernel height * kernel width``, plus 1 with a bias, in the order of the flattened
    `torch.nn.Conv2d.weight`.

    Attributes:
        in_channels: C.
        kernel_size: as in `torch.nn.Conv2d`, (vertical, horizontal).
        stride: as in `torch.nn.Conv2d`, (vertical, horizontal).
        padding: width of the zero padding, (vertical, horizontal).
        dilation: as in `torch.nn.Conv2d`, (vertical, horizontal).
        groups: as in `torch.nn.Conv2d`.
        bias: whether the last column of the weights is a bias.
    """

    in_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True

    def _kernel(self, outputs: int) -> tuple[int, int, int, int]:
        return (outputs, self.in_channels // self.groups, *self.kernel_size)

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``W x``, `[M, O, H', W']`; see `LinearMap`."""
        weight, bias = _split(weight, self.bias, constant)
        kernel = weight.reshape(self._kernel(len(weight)))
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """Return the gradient of a kernel, `[O, I]`; see `LinearMap`."""
        kernel = self._kernel(g.shape[1])
        sums = conv2d_weight(x, kernel, g, self.stride, self.padding, self.dilation, self.groups).flatten(1)
        return _with_bias(sums, g, constant) if self.bias else sums

    def square(self, x: Tensor) -> Tensor:
        """Return the squares of the inputs, `[M, C, H, W]`."""
        return x * x

    def effective_inputs(self, x: Tensor, outputs: int) -> Tensor:
        """Return the effective number of inputs in the patch of each output; see `LinearMap`."""
        squared, ones = x * x, x.new_ones(self._kernel(self.groups))
        second, fourth = (
            F.conv2d(powers, ones, None, self.stride, self.padding, self.dilation, self.groups)
            for powers in (squared, squared * squared)
        )
        number = _effective(second, fourth, self.bias)
        return number if self.groups == 1 else number.repeat_interleave(outputs // self.groups, 1)

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the gradient of the inputs, `[M, C, H, W]`; see `LinearMap`."""
        kernel = (weight[:, :-1] if self.bias else weight).reshape(self._kernel(len(weight)))
        size = torch.Size(shape)
        grad: Tensor = conv2d_input(size, kernel, g, self.stride, self.padding, self.dilation, self.groups)
        return grad


class KnownInputs:
    """Linear map of a layer whose inputs are used for several products: what depends only on them is computed once.

    Inputs other than `x` are treated as by `linear`.

    Args:
        linear: the linear map.
        x: the inputs `[M, ...]`. They must not change.

    Example:
        >>> x = torch.tensor([[2.0], [3.0]])
        >>> linear = KnownInputs(DenseMap(), x)
        >>> linear.square(x) is linear.square(x)
        True
    """

    def __init__(self, linear: LinearMap, x: Tensor) -> None:
        self.linear, self.x = linear, x
        self._square: Tensor | None = None
        self._effective_inputs: Tensor | None = None

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``W x``; see `LinearMap`."""
        return self.linear.apply(x, weight, constant)

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """Return ``sum g x``, `[O, I]`; see `LinearMap`."""
        return self.linear.correlate(x, g, constant)

    def square(self, x: Tensor) -> Tensor:
        """Return the squares of the inputs."""
        if x is not self.x:
            return self.linear.square(x)
        if self._square is None:
            self._square = self.linear.square(x)
        return self._square

    def effective_inputs(self, x: Tensor, outputs: int) -> Tensor:
        """Return the effective number of inputs of each output; see `LinearMap`."""
        if x is not self.x:
            return self.linear.effective_inputs(x, outputs)
        if self._effective_inputs is None:
            self._effective_inputs = self.linear.effective_inputs(x, outputs)
        return self._effective_inputs

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """Return ``W^T g``; see `LinearMap`."""
        return self.linear.transpose(g, weight, shape)
