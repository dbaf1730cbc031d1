r"""Autograd functions of the rate pass: values recorded in the spiking pass, with gradients in closed form.

In the rate pass, a tensor ``[K*B, ...]`` holds the mean output of a layer over each of K windows of time. A function
returns the recorded mean, and its gradient uses the recorded derivative of the layer (after Yu et al. 2024, arXiv
2410.11488).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def recorded(
    x: Tensor,
    value: Tensor,
    slope: Tensor,
    parameters: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Return a recorded value of ``f(x, p, ...)``, with the recorded elementwise derivatives ``dy/dx`` and ``dy/dp``.

    Args:
        x: input rates; only their gradient is used.
        value: value to return, of the shape of `x`; cast to its dtype.
        slope: derivative of `value` with respect to `x`, of the shape of `x`.
        parameters: pairs of a parameter, of a shape that broadcasts to `x`, and the derivative of `value` with respect
            to its entry, of the shape of `x`.

    Returns:
        `value` with gradients of `x` and the parameters.

    Example:
        >>> x = torch.tensor([0.3], requires_grad=True)
        >>> recorded(x, torch.tensor([0.5]), slope=torch.tensor([2.0])).backward()
        >>> x.grad
        tensor([2.])
    """
    tensors = [tensor for tensor, _ in parameters]
    derivatives = [derivative for _, derivative in parameters]
    result: Tensor = _Recorded.apply(x, value, slope, *tensors, *derivatives)  # type: ignore[no-untyped-call]
    return result


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor, *rest: Tensor) -> Tensor:
        parameters, derivatives = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in parameters]
        ctx.dtype = x.dtype
        ctx.save_for_backward(slope, *derivatives)
        return value.view_as(x) if value.dtype == x.dtype else value.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, *derivatives = ctx.saved_tensors
        grads = [
            (grad * derivative).sum_to_size(shape).to(dtype)
            for (shape, dtype), derivative in zip(ctx.parameters, derivatives, strict=True)
        ]
        return ((grad * slope).to(ctx.dtype), None, None, *grads, *(None for _ in derivatives))


def expand_over_steps(rates: Tensor, outputs: Tensor, scale: float = 1.0) -> Tensor:
    r"""Return the outputs of all steps, and pass their gradient to the rates.

    ``dL/d rates_k = scale * sum_t dL/d outputs_t`` over the steps t of window k.

    Args:
        rates: outputs of the rate pass, `[K, B, ...]`; only their gradient is used.
        outputs: outputs of the spiking pass, `[T, B, ...]`, with T a multiple of K; returned unchanged.
        scale: factor of the gradient.

    Returns:
        `outputs` with the gradient of `rates`.

    Example:
        >>> rates = torch.zeros(1, 1, requires_grad=True)
        >>> expand_over_steps(rates, torch.tensor([[0.0], [1.0], [1.0]])).sum().backward()
        >>> rates.grad
        tensor([[3.]])
    """
    result: Tensor = _ExpandOverSteps.apply(rates, outputs, scale)  # type: ignore[no-untyped-call]
    return result


class _ExpandOverSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rates: Tensor, outputs: Tensor, scale: float) -> Tensor:
        ctx.windows, ctx.scale, ctx.dtype = rates.shape[0], scale, rates.dtype
        return outputs.view_as(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        summed = grad.unflatten(0, (ctx.windows, -1)).sum(1)
        return (summed if ctx.scale == 1 else summed * ctx.scale).to(ctx.dtype), None, None


def batch_norm_of_rates(
    x: Tensor,
    normalized: Tensor,
    inverse_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Apply recorded batch normalization to rates, with the gradient through the statistics of the batch.

    .. math::
        y = \gamma \hat x + \beta, \qquad
        \partial L / \partial x = \gamma / \sigma \, [g - \langle g \rangle - \hat x \langle g \hat x \rangle]

    Averages are over the samples and positions of a channel within a group. This is the sum over T steps of the
    gradients of batch normalization if g is the same at all steps.

    Args:
        x: rates, shape `[G*N, C, ...]`, G groups one after the other; only their gradient is used.
        normalized: mean over time of the normalized inputs, of the shape of `x`.
        inverse_std: recorded ``1 / sigma`` of each group, `[G, C]`.
        weight: gamma `[C]`; None for 1.
        bias: beta `[C]`; None for 0.
        average: function that averages a tensor over the processes that share the statistics; None for one process.

    Returns:
        normalized rates y of the shape and dtype of `x`.
    """
    result: Tensor = _BatchNormOfRates.apply(  # type: ignore[no-untyped-call]
        x, normalized, inverse_std, weight, bias, average
    )
    return result


class _BatchNormOfRates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        normalized: Tensor,
        inverse_std: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        average: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        scale = inverse_std if weight is None else inverse_std * weight
        ctx.save_for_backward(normalized, scale)
        ctx.average, ctx.dtype = average, x.dtype
        ctx.affine = [None if tensor is None else tensor.dtype for tensor in (weight, bias)]
        shape = (1, -1, *(1,) * (x.dim() - 2))
        if weight is None:
            return normalized.to(x.dtype, copy=True)
        offset = torch.zeros_like(weight) if bias is None else bias
        return torch.addcmul(offset.view(shape), normalized, weight.view(shape)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normalized, scale = ctx.saved_tensors
        count, channels = scale.shape
        if count == 1 and ctx.average is None:
            # the backward pass of torch for inputs with mean 0 and variance 1
            zero, one, required = torch.zeros_like(scale[0]), torch.ones_like(scale[0]), [True] * 3
            grad_x, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(
                grad.to(normalized.dtype), normalized, scale[0], None, None, zero, one, True, 0.0, required
            )
            return _as_grads(ctx, grad_x, weight_grad, bias_grad)
        # [G, N, C, ...] over [G, 1, C, 1, ...]
        normalized, groups = (each.unflatten(0, (count, -1)) for each in (normalized, grad.to(normalized.dtype)))
        over = [1, *range(3, groups.dim())]
        sums = torch.stack([groups.sum(over, keepdim=True), (groups * normalized).sum(over, keepdim=True)])
        means = sums / (groups[0].numel() // channels)
        if ctx.average is not None:
            means = ctx.average(means)
        grad_x = torch.addcmul(groups - means[0], normalized, means[1], value=-1).mul_(scale.view_as(means[0]))
        bias_grad, weight_grad = sums.sum(1).flatten(1)
        return _as_grads(ctx, grad_x.flatten(0, 1), weight_grad, bias_grad)


def _as_grads(ctx: Any, grad_x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, ...]:
    """Return gradients in the order and dtypes of the inputs of `_BatchNormOfRates`."""
    weight_dtype, bias_dtype = ctx.affine
    return (
        grad_x.to(ctx.dtype),
        None,
        None,
        None if weight_dtype is None else weight.to(weight_dtype),
        None if bias_dtype is None else bias.to(bias_dtype),
        None,
    )


def argmax_offsets(
    indices: Tensor,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convert the flat indices that two-dimensional max-pooling returns to positions within each window.

    Args:
        indices: positions in the input plane, `[..., H_out, W_out]`.
        width: W of the input plane.
        kernel: kernel size of the pooling, `(rows, columns)`.
        stride: stride of the pooling, `(rows, columns)`.
        padding: padding of the pooling, `(rows, columns)`.
        dilation: dilation of the pooling, `(rows, columns)`.

    Returns:
        ``row * kernel columns + column`` within the window, of the shape of `indices`.

    Example:
        >>> x = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]]])
        >>> indices = F.max_pool2d(x, 2, stride=1, return_indices=True)[1]
        >>> argmax_offsets(indices, 3, (2, 2), (1, 1), (0, 0), (1, 1)).flatten()
        tensor([1, 3])
    """
    rows, columns = indices.div(width, rounding_mode="floor"), indices % width
    height_out, width_out = indices.shape[-2:]
    top = torch.arange(height_out, device=indices.device) * stride[0] - padding[0]
    left = torch.arange(width_out, device=indices.device) * stride[1] - padding[1]
    return (rows - top[:, None]) // dilation[0] * kernel[1] + (columns - left) // dilation[1]


def max_pool_of_rates(
    x: Tensor,
    value: Tensor,
    argmax_share: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return recorded means of max-pooled spikes, and pass their gradient to the inputs that were maxima.

    The gradient of each input is weighted by the share of steps in which it was the maximum of the window.

    Args:
        x: rates before pooling, `[N, C, H, W]`; only their gradient is used.
        value: mean of the pooled outputs over the steps, `[N, C, H_out, W_out]`.
        argmax_share: share of the steps in which each position of a window was its maximum,
            `[N, C, kernel positions, H_out, W_out]`; the sum over positions is 1.
        kernel: kernel size of the pooling, `(rows, columns)`.
        stride: stride of the pooling, `(rows, columns)`.
        padding: padding of the pooling, `(rows, columns)`.
        dilation: dilation of the pooling, `(rows, columns)`.

    Returns:
        `value` with the gradient of `x`.
    """
    geometry = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    result: Tensor = _MaxPoolOfRates.apply(x, value, argmax_share, geometry)  # type: ignore[no-untyped-call]
    return result


class _MaxPoolOfRates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, argmax_share: Tensor, geometry: tuple[tuple[int, ...], ...]
    ) -> Tensor:
        ctx.save_for_backward(argmax_share)
        ctx.geometry, ctx.plane, ctx.dtype = geometry, x.shape[-2:], x.dtype
        return value.to(x.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (argmax_share,) = ctx.saved_tensors
        kernel, stride, padding, dilation = ctx.geometry
        covered = tuple(
            (size - 1) * step + gap * (length - 1) + 1
            for size, step, gap, length in zip(grad.shape[-2:], stride, dilation, kernel, strict=True)
        )
        routed = F.fold(
            (argmax_share * grad.unsqueeze(2)).flatten(1, 2).flatten(2),
            covered,
            kernel,
            dilation=dilation,
            stride=stride,
        )
        # windows cover the padding, but not always the last rows and columns
        rows, columns = (
            (-before, size + before - length) for before, size, length in zip(padding, ctx.plane, covered, strict=True)
        )
        return F.pad(routed, (*columns, *rows)).to(ctx.dtype), None, None, None
