"""Launches of the Triton kernels of the noisy scan: one each forward and backward, whatever the number of steps."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.estimators.base import SATURATED
from lightning_snn.functional.gaussian import LOG_SQRT_2PI, MILLS_POLYNOMIAL, MILLS_SLOPE
from lightning_snn.functional.scans.noisy_loop import VARIANCE_FLOOR, draw_noise
from lightning_snn.functional.scans.triton_launch import (
    BLOCK,
    OPTIONS,
    Table,
    buffer_in_order_of,
    give_back,
    in_order_of,
    is_wide,
    on_device_of,
    table,
    time_major,
)
from lightning_snn.functional.scans.triton_noisy_kernels import noisy_backward, noisy_forward


def noisy_forward_kernel(
    mean: Tensor,
    variance: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    noise: Tensor | None,
    generator: torch.Generator | None,
    dynamics: Dynamics,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spikes, standardized pre-activations, ``1 / sqrt(Q)`` and draws, as the operator declares them.

    Args:
        mean: mean of the input current, `[T, B, ...]`, in float32, bfloat16 or float16.
        variance: variance of the input current, `[T, B, ...]`, in one of these dtypes.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        noise: standard normal noise `[T, N]`, in the order of the memory of a step; None draws it.
        generator: source of the noise; None is torch's default.
        dynamics: reset.
        mode: "moment", "step" or "trace".
    """
    spikes, standardized = torch.empty_like(mean), torch.empty_like(mean, dtype=torch.float32)
    precision_root, draws = torch.empty_like(standardized), standardized.new_empty(0)
    if noise is None:
        noise = draw_noise(standardized, generator)
        draws = noise if mode == "step" else draws
    if mean.numel() == 0:
        return spikes, standardized, precision_root, draws
    outputs = spikes, standardized, precision_root
    written = [time_major(each) for each in outputs]
    row = written[1][0]
    means, variances = in_order_of(row, mean), in_order_of(row, variance)
    decay, squared, level = *_decay(beta, row), table(threshold, row)
    neurons = row.numel()
    with on_device_of(mean):
        noisy_forward[(triton.cdiv(neurons, BLOCK),)](
            means,
            variances,
            noise.contiguous(),
            decay.values,
            squared.values,
            level.values,
            *written,
            decay.number,
            squared.number,
            level.number,
            VARIANCE_FLOOR,
            len(mean),
            neurons,
            means.stride(0),
            variances.stride(0),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            MODE=mode,
            ZERO=dynamics.reset == "zero",
            WIDE=is_wide(neurons),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    give_back(outputs, written)
    return spikes, standardized, precision_root, draws


def noisy_backward_kernel(
    standardized: Tensor,
    precision_root: Tensor,
    spikes: Tensor,
    weight: Tensor | None,
    draws: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    grad_spikes: Tensor | None,
    grad_standardized: Tensor | None,
    lam: float,
    dynamics: Dynamics,
    mode: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of mean, variance, decay and threshold, as the operator declares them.

    Args:
        standardized: pre-activations z, `[T, B, ...]`, float32.
        precision_root: ``1 / sqrt(Q)``, `[T, B, ...]`, float32.
        spikes: of the scan, `[T, B, ...]`.
        weight: weights of the gradient, `[T, B, ...]`; None are those of IW-ST.
        draws: noise of mode "step", `[T, N]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        grad_spikes: gradient of the spikes, `[T, B, ...]`; None is 0.
        grad_standardized: gradient of the pre-activations, `[T, B, ...]`; None is 0.
        lam: lambda of IW-ST.
        dynamics: reset, and whether it is detached.
        mode: "moment", "step" or "trace".
        dtypes: of the gradients of mean and variance.
        wants_beta: whether to return the gradient of the decay of every neuron.
        wants_threshold: whether to return the gradient of the threshold of every neuron.
    """
    of_mean, of_variance = (torch.empty_like(standardized, dtype=dtype) for dtype in dtypes)
    rows = [
        torch.empty_like(standardized[0]) if wanted else standardized.new_empty(0)
        for wanted in (wants_beta, wants_threshold)
    ]
    if standardized.numel() == 0:
        for values in rows:
            values.zero_()
        return of_mean, of_variance, *rows  # type: ignore[return-value]
    outputs = of_mean, of_variance
    written = [time_major(each) for each in outputs]
    row = written[0][0]
    written_rows = [buffer_in_order_of(row, values) if len(values) else None for values in rows]
    scan = [
        None if each is None else in_order_of(row, each, True)
        for each in (standardized, precision_root, spikes, weight)
    ]
    gradients = [None if each is None else in_order_of(row, each) for each in (grad_spikes, grad_standardized)]
    decay, squared, level = *_decay(beta, row), table(threshold, row)
    neurons = row.numel()
    with on_device_of(standardized):
        noisy_backward[(triton.cdiv(neurons, BLOCK),)](
            *scan,
            None if draws is None else draws.contiguous(),
            decay.values,
            squared.values,
            level.values,
            *gradients,
            *written,
            *written_rows,
            decay.number,
            squared.number,
            level.number,
            VARIANCE_FLOOR,
            lam,
            LOG_SQRT_2PI,
            MILLS_SLOPE,
            len(standardized),
            neurons,
            *(0 if each is None else each.stride(0) for each in gradients),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            MODE=mode,
            ZERO=dynamics.reset == "zero",
            DETACHED=dynamics.detach_reset,
            BOUND=SATURATED["gaussian"],
            MILLS=MILLS_POLYNOMIAL,
            WIDE=is_wide(neurons),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    give_back(outputs, written)
    give_back(rows, written_rows)
    return of_mean, of_variance, *rows  # type: ignore[return-value]


def _decay(beta: float | Tensor, row: Tensor) -> tuple[Table, Table]:
    """Return the decay and its square, which the loop computes before it rounds a number to float32."""
    if not isinstance(beta, Tensor):
        return table(beta, row), table(beta * beta, row)
    decay = table(beta, row)
    assert decay.values is not None
    values = decay.values if beta.dim() == 0 else decay.values.float()
    return decay, decay._replace(values=values * values)
