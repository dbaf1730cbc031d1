r"""The nodes of the rate pass: values that were recorded while the network spiked, with gradients in closed form.

In the rate pass a tensor ``[K*B, ...]`` holds the mean of a layer's output over each of K windows of time. A node
returns the mean that was recorded and lets the gradient through as if the layer's local derivative were the recorded
one (after Yu et al. 2024, arXiv 2410.11488).
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
    """A recorded value in place of ``f(x, p, ...)``, with ``dy/dx = slope`` and ``dy/dp`` as recorded, elementwise.

    Args:
        x: rate of the input; its value plays no part.
        value: what to return, of the shape of `x`; cast to its dtype.
        slope: derivative of `value` with respect to `x`, of the shape of `x`.
        parameters: pairs of a parameter, of a shape that broadcasts to `x`, and the derivative of `value` with respect
            to its entry, of the shape of `x`.
    """
    tensors = [tensor for tensor, _ in parameters]
    return _Recorded.apply(x, value, slope, *tensors, *(derivative for _, derivative in parameters))


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


def spread_over_steps(rates: Tensor, outputs: Tensor, scale: float = 1.0) -> Tensor:
    r"""The outputs of every step, with the gradient of the rates: ``dL/d rates_k = scale * sum_t dL/d outputs_t`` over
    the steps t of window k.

    Args:
        rates: outputs of the rate pass, `[K, B, ...]`; their values play no part.
        outputs: outputs of the spiking pass, `[T, B, ...]` with T a multiple of K, returned as they are.
        scale: factor of the gradient.
    """
    return _SpreadOverSteps.apply(rates, outputs, scale)


class _SpreadOverSteps(torch.autograd.Function):
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
    r"""Batch normalization by recorded statistics, with the gradient of batch normalization by a batch's own.

    .. math::
        y = \gamma \hat x + \beta, \qquad
        \partial L / \partial x = \gamma / \sigma \, [g - \langle g \rangle - \hat x \langle g \hat x \rangle]

    with the averages over samples and positions of a channel within a group: what the backward pass of batch
    normalization over T steps sums up to when g is the same at all of them.

    Args:
        x: rates, shape `[G*N, C, ...]`, G groups one after the other; their values play no part.
        normalized: mean over time of the normalized inputs, of the shape of `x`.
        inverse_std: recorded ``1 / sigma`` of each group, `[G, C]`.
        weight: gamma `[C]`, None for 1.
        bias: beta `[C]`, None for 0.
        average: takes the mean of a tensor over the processes that share the statistics; None where there is one.
    """
    return _BatchNormOfRates.apply(x, normalized, inverse_std, weight, bias, average)


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
            # torch's own backward pass, of inputs with mean 0 and variance 1
            zero, one, wanted = torch.zeros_like(scale[0]), torch.ones_like(scale[0]), [True] * 3
            grad_x, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(
                grad.to(normalized.dtype), normalized, scale[0], None, None, zero, one, True, 0.0, wanted
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
    """In the order and the dtypes of the inputs."""
    of_weight, of_bias = ctx.affine
    return (
        grad_x.to(ctx.dtype),
        None,
        None,
        None if of_weight is None else weight.to(of_weight),
        None if of_bias is None else bias.to(of_bias),
        None,
    )


def winning_offsets(
    indices: Tensor,
    width: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Which position of its window won, from the flat indices that two-dimensional max-pooling returns.

    Args:
        indices: positions in the plane, `[..., H_out, W_out]`.
        width: W of the plane.
        kernel, stride, padding, dilation: of the pooling, `(rows, columns)`.

    Returns:
        ``row * kernel columns + column`` within the window, of the shape of `indices`.
    """
    rows, columns = indices.div(width, rounding_mode="floor"), indices % width
    height_out, width_out = indices.shape[-2:]
    top = torch.arange(height_out, device=indices.device) * stride[0] - padding[0]
    left = torch.arange(width_out, device=indices.device) * stride[1] - padding[1]
    return (rows - top[:, None]) // dilation[0] * kernel[1] + (columns - left) // dilation[1]


def routed_by_wins(
    x: Tensor,
    value: Tensor,
    wins: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Recorded means of max-pooled spikes; the gradient goes to each input by the share of steps in which it won.

    Args:
        x: rates before pooling, `[N, C, H, W]`; their values play no part.
        value: mean of the pooled outputs over the steps, `[N, C, H_out, W_out]`.
        wins: share of the steps in which each position of a window was its maximum, `[N, C, kernel positions, H_out,
            W_out]`, the sum over positions being 1.
        kernel, stride, padding, dilation: of the pooling, `(rows, columns)`.
    """
    return _RoutedByWins.apply(x, value, wins, (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)))


class _RoutedByWins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, wins: Tensor, geometry: tuple[tuple[int, ...], ...]) -> Tensor:
        ctx.save_for_backward(wins)
        ctx.geometry, ctx.plane, ctx.dtype = geometry, x.shape[-2:], x.dtype
        return value.to(x.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (wins,) = ctx.saved_tensors
        kernel, stride, padding, dilation = ctx.geometry
        covered = tuple(
            (size - 1) * step + spread * (length - 1) + 1
            for size, step, spread, length in zip(grad.shape[-2:], stride, dilation, kernel, strict=True)
        )
        routed = F.fold(
            (wins * grad.unsqueeze(2)).flatten(1, 2).flatten(2), covered, kernel, dilation=dilation, stride=stride
        )
        # the windows cover the padding, and not always the last rows and columns
        rows, columns = (
            (-before, size + before - length) for before, size, length in zip(padding, ctx.plane, covered, strict=True)
        )
        return F.pad(routed, (*columns, *rows)).to(ctx.dtype), None, None, None
