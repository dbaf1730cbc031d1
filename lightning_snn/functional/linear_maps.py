r"""The linear map of a layer as three operations, without its matrix of patches and without autograd.

The weights of a layer are one matrix W of shape `[O, I]`: a row for each output unit or channel and, where the layer
has a bias, a last column that sees a constant. With the inputs x of sample n at position p (dense layers have one
position) written as a vector :math:`x_{np}`, the three operations are

.. math:: u_{nop} = \sum_i W_{oi} x_{npi}, \qquad
    C_{oi} = \sum_{np} g_{nop} x_{npi}, \qquad
    t_{np} = \sum_{o} g_{nop} W_{o},

the last gathered at the inputs that each patch was read from. They are exact for any W and g, so that sums over
samples and positions of products such as :math:`G x^2` take the memory of the weights only.
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
    """What message passing needs of a linear layer."""

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """``W x``.

        Args:
            x: inputs `[M, ...]`.
            weight: `[O, I]`, with the column of the bias last.
            constant: what the column of the bias sees: 1 for means and squares of the inputs, 0 for their variances.

        Returns:
            `[M, O, ...]`.
        """

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """``sum g x`` over samples and positions.

        Args:
            x: inputs `[M, ...]`.
            g: a value at each output, `[M, O, ...]`.
            constant: what the column of the bias sees.

        Returns:
            `[O, I]`.
        """

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """``W^T g``, the column of the bias left out.

        Args:
            g: a value at each output, `[M, O, ...]`.
            weight: `[O, I]`, with the column of the bias last.
            shape: the shape of the inputs.

        Returns:
            a value at each input, of that shape.
        """


def _split(weight: Tensor, bias: bool, constant: float) -> tuple[Tensor, Tensor | None]:
    """The weights without the column of the bias, and what that column adds to every output."""
    if not bias:
        return weight, None
    if constant == 0:
        return weight[:, :-1], None
    column = weight[:, -1]
    return weight[:, :-1], column if constant == 1 else column * constant


def _with_bias(sums: Tensor, g: Tensor, constant: float) -> Tensor:
    """Sums `[O, I]` with the column of the bias appended: the sum of g times what that column sees."""
    samples = [axis for axis in range(g.dim()) if axis != 1]
    column = g.sum(samples) * constant if constant else sums.new_zeros(len(sums))
    return torch.cat([sums, column[:, None]], dim=1)


@dataclass(frozen=True)
class DenseMap:
    """A fully connected layer on inputs `[M, N]`; ``I = N``, or ``N + 1`` with a bias.

    Attributes:
        bias: whether the last column of the weights is a bias.
    """

    bias: bool = True

    def apply(self, x: Tensor, weight: Tensor, constant: float = 1.0) -> Tensor:
        """``W x``, `[M, O]`; see `LinearMap`."""
        return F.linear(x, *_split(weight, self.bias, constant))

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """``g^T x``, `[O, I]`; see `LinearMap`."""
        sums = g.T @ x
        return _with_bias(sums, g, constant) if self.bias else sums

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """``g W``, `[M, N]`; see `LinearMap`."""
        return (g @ (weight[:, :-1] if self.bias else weight)).reshape(shape)


@dataclass(frozen=True)
class ConvolutionMap:
    """A 2-D convolution on inputs `[M, C, H, W]`; ``I = C / groups * kernel height * kernel width``, one more with a
    bias, in the order of `torch.nn.Conv2d.weight` flattened.

    Attributes:
        in_channels: C.
        kernel_size, stride, padding, dilation: as of `torch.nn.Conv2d`, (vertical, horizontal); padding with zeros.
        groups: as of `torch.nn.Conv2d`.
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
        """``W x``, `[M, O, H', W']`; see `LinearMap`."""
        weight, bias = _split(weight, self.bias, constant)
        kernel = weight.reshape(self._kernel(len(weight)))
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)

    def correlate(self, x: Tensor, g: Tensor, constant: float = 1.0) -> Tensor:
        """The gradient of a kernel, `[O, I]`; see `LinearMap`."""
        kernel = self._kernel(g.shape[1])
        sums = conv2d_weight(x, kernel, g, self.stride, self.padding, self.dilation, self.groups).flatten(1)
        return _with_bias(sums, g, constant) if self.bias else sums

    def transpose(self, g: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """The gradient of the inputs, `[M, C, H, W]`; see `LinearMap`."""
        kernel = (weight[:, :-1] if self.bias else weight).reshape(self._kernel(len(weight)))
        return conv2d_input(torch.Size(shape), kernel, g, self.stride, self.padding, self.dilation, self.groups)
