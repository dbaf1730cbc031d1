r"""Linear maps whose weights learn from traces of their inputs, and scalars with given gradients.

A map :math:`x_t = W s_t + b` before neurons of decay :math:`\lambda` has the gradients

.. math:: \nabla W = \sum_t \delta_t a_t^\top, \quad \nabla b = \sum_t A_t \delta_t, \qquad
    a_t = \lambda a_{t-1} + s_t, \quad A_t = \lambda A_{t-1} + 1

with :math:`\delta_t` the error at its output, while the error at its input is :math:`W^\top \delta_t`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Kernel(NamedTuple):
    """Geometry of a convolution with zero padding, as in `torch.nn.Conv2d`.

    Attributes:
        stride: one number per dimension.
        padding: width of the zero padding, one number per dimension.
        dilation: one number per dimension.
        groups: number of groups.
        transposed: whether it is a transposed convolution.
        output_padding: of a transposed convolution, one number per dimension; empty is 0.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


class InputTrace(NamedTuple):
    """State of a trace.

    Attributes:
        inputs: decaying sum of the inputs, `[B, ...]`, float32 or wider.
        ones: decaying sum of ones, the trace of the constant input of a bias, `[1]`.
    """

    inputs: Tensor
    ones: Tensor


@torch.no_grad()
def input_traces(
    x: Tensor, decay: float | Tensor, state: InputTrace | None = None
) -> tuple[Tensor, Tensor, InputTrace]:
    """Compute the traces of inputs.

    Args:
        x: inputs, shape `[T, B, ...]`, any floating dtype.
        decay: decay per step in [0, 1], a number or a scalar tensor.
        state: traces before the first step; None is 0.

    Returns:
        traces of the shape and dtype of `x`, traces of ones `[T]`, float32 or wider, and the state after the last step.

    Example:
        >>> input_traces(torch.ones(3, 1, 1), 0.5)[0].flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = InputTrace(torch.zeros_like(x[0], dtype=wide), torch.zeros(1, dtype=wide, device=x.device))
    inputs, ones = state
    traces, counts = torch.empty_like(x), []
    for trace, current in zip(traces.unbind(0), x.unbind(0), strict=True):
        inputs = decay * inputs + current
        ones = decay * ones + 1
        trace.copy_(inputs)
        counts.append(ones)
    return traces, torch.cat(counts), InputTrace(inputs, ones)


def traced_map(
    x: Tensor, traces: Tensor, ones: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel | None = None
) -> Tensor:
    """Return the linear map of `x`, with gradients of its weights by traces of the inputs.

    Args:
        x: inputs of all steps, `[T*B, ...]`.
        traces: traces of the inputs, of the same shape; only the gradient of `weight` uses them.
        ones: traces of ones, `[T]`; only the gradient of `bias` uses them.
        weight: weight as in `torch.nn.Linear`, or as in `torch.nn.Conv2d` and its relatives.
        bias: bias, or None.
        kernel: geometry of a convolution; None is a linear layer.

    Example:
        >>> weight = torch.tensor([[2.0]], requires_grad=True)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> traces, ones, _ = input_traces(x.view(2, 1, 1), 0.5)
        >>> traced_map(x, traces.flatten(0, 1), ones, weight, None).sum().backward()
        >>> weight.grad
        tensor([[4.5000]])
    """
    mapped: Tensor = _TracedMap.apply(x, traces, ones, weight, bias, kernel)
    return mapped


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel | None) -> Tensor:
    if kernel is None:
        return F.linear(x, weight, bias)
    place = weight.dim() - 3
    if kernel.transposed:
        sizes = (kernel.stride, kernel.padding, kernel.output_padding, kernel.groups, kernel.dilation)
        return _TRANSPOSED[place](x, weight, bias, *sizes)
    return _CONVOLUTIONS[place](x, weight, bias, kernel.stride, kernel.padding, kernel.dilation, kernel.groups)


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, kernel: Kernel | None, of_input: bool) -> Tensor:
    """Return the gradient of the inputs or of the weight of a map."""
    if kernel is None:
        return grad @ weight if of_input else grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    after = kernel.output_padding or (0,) * len(kernel.stride)
    geometry = (kernel.stride, kernel.padding, kernel.dilation, kernel.transposed, after, kernel.groups)
    wanted = [of_input, not of_input, False]
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)
    gradient: Tensor = found[0] if of_input else found[1]
    return gradient


class _TracedMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, traces: Tensor, ones: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel | None
    ) -> Tensor:
        ctx.save_for_backward(traces, ones, weight)
        ctx.kernel = kernel
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype
        return _mapped(x, weight, bias, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        traces, ones, weight = ctx.saved_tensors
        kernel, (dtype, of_bias) = ctx.kernel, ctx.dtypes
        # autocast may have made the output narrower than the inputs
        narrow = weight.to(grad.dtype)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _gradient(grad, traces.to(grad.dtype), narrow, kernel, True).to(dtype)
        if ctx.needs_input_grad[3]:
            grad_weight = _gradient(grad, traces.to(grad.dtype), narrow, kernel, False).to(weight.dtype)
        if ctx.needs_input_grad[4]:
            steps = grad.unflatten(0, (len(ones), -1))
            channels = 2 if kernel is not None else grad.dim()
            others = [axis for axis in range(1, steps.dim()) if axis != channels]
            grad_bias = (steps.sum(others, dtype=ones.dtype).t() @ ones).to(of_bias)
        return grad_x, None, None, grad_weight, grad_bias, None


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar whose gradients with respect to parameters are given.

    Args:
        value: the scalar.
        parameters: the parameters.
        gradients: one per parameter, of its shape; cast to its dtype.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> (3 * with_gradients(torch.tensor(0.5), [weight], [torch.tensor([1.0, 2.0])])).backward()
        >>> weight.grad
        tensor([3., 6.])
    """
    scalar: Tensor = _WithGradients.apply(value, *gradients, *parameters)
    return scalar


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *rest: Tensor) -> Tensor:
        gradients, parameters = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = [(grad * gradient).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return None, *[None] * len(found), *found
