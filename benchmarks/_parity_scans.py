"""The rate scan and the noisy scan for `benchmarks/parity.py`: results, and references in single operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional import Dynamics, iwst_weight
from lightning_snn.functional.eligibility import lif_rate
from lightning_snn.functional.noisy_lif import noisy_lif
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.noisy_loop import VARIANCE_FLOOR, draw_noise

SEED = 7


class Result(NamedTuple):
    """Results on the CPU.

    Attributes:
        spikes: `[T, B, ...]`.
        states: tensors that have to be equal, too.
        gradients: tensors that have to agree with those in float64.
    """

    spikes: Tensor
    states: list[Tensor]
    gradients: list[Tensor]


def on_cpu(spikes: Tensor, states: list[Tensor], gradients: list[Tensor]) -> Result:
    """Return the results on the CPU, without a graph."""
    moved = [[each.detach().cpu() for each in values] for values in ([spikes], states, gradients)]
    return Result(moved[0][0], *moved[1:])


def rate_result(x: Tensor, beta: Tensor, threshold: Tensor, dynamics: Dynamics, compiled: Callable[..., Any]) -> Result:
    """Return spikes, membrane and rate, and the derivatives of the rate, of two calls within a window."""
    scan = compiled(lif_rate)
    half = len(x) // 2
    first, state = scan(x[:half], beta, threshold, dynamics, None, (True, True))
    second, state = scan(x[half:], beta, threshold, dynamics, state, (True, True))
    record = state.record()
    return on_cpu(torch.cat([first, second]), [state.membrane, record.rate], list(record[1:]))


def rate_reference(x: Tensor, beta: Tensor, threshold: Tensor, dynamics: Dynamics) -> Result:
    """Return what `rate_result` does, by autograd: neurons are independent, so a sum has the derivative of each."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shift, *parameters = (
        value.to(wide).expand_as(x[0]).clone().requires_grad_()
        for value in (torch.zeros((), dtype=wide), beta, threshold)
    )
    current = x.to(wide) + shift
    spikes, state = unrolled_lif(current, *parameters, dynamics)
    rate = spikes.sum(0) / len(x)
    gradients = torch.autograd.grad(rate.sum(), (shift, *parameters))
    return on_cpu(spikes.to(x.dtype), [state.membrane if dynamics.pending_reset else state, rate], list(gradients))


def noise_like(mean: Tensor) -> Tensor:
    """Return the noise `[T, B, ...]` that the scan draws after the seed, on the CPU."""
    torch.manual_seed(SEED)
    standardized = torch.empty_like(mean, dtype=torch.promote_types(mean.dtype, torch.float32))
    step = torch.empty_like(standardized[0])
    noise = draw_noise(standardized, None)
    return noise.as_strided(mean.shape, (step.numel(), *step.stride())).cpu()


def noisy_result(
    leaves: list[Tensor], cotangent: Tensor, dynamics: Dynamics, mode: Any, lam: float, compiled: Callable[..., Any]
) -> Result:
    """Return spikes, z, and gradients of mean, variance, decay and threshold."""
    scan = compiled(noisy_lif)
    torch.manual_seed(SEED)
    spikes, z = scan(*leaves, dynamics, lam, mode)
    loss = (spikes * cotangent).sum(dtype=z.dtype) + 0.1 * (z * cotangent).sum(dtype=z.dtype)
    return on_cpu(spikes, [z], list(torch.autograd.grad(loss, leaves)))


def noisy_reference(
    leaves: list[Tensor],
    cotangent: Tensor,
    dynamics: Dynamics,
    mode: Any,
    lam: float,
    noise: Tensor,
    fired: Tensor | None = None,
) -> Result:
    """Return what `noisy_result` does, step by step; `fired` are the spikes, which other rounding could change."""
    mean, variance, beta, threshold = leaves
    wide = torch.promote_types(mean.dtype, torch.float32)
    potential = spread = torch.zeros_like(mean[0], dtype=wide)
    spikes, scores = [], []
    for t, draw in enumerate(noise.to(wide)):
        potential = beta * potential + mean[t]
        spread = beta * beta * spread + variance[t] if mode == "moment" else variance[t].to(wide)
        root = (spread + VARIANCE_FLOOR).rsqrt()
        score = (potential - threshold) * root
        hard = (score > draw).to(wide) if fired is None else fired[t].to(wide)
        spike = hard + iwst_weight(score.detach(), hard, lam) * (score - score.detach())
        if mode == "step":
            potential = potential - draw / root
        reset = spike.detach() if dynamics.detach_reset else spike
        if dynamics.reset == "zero":
            potential, spread = potential - potential * reset, spread - spread * reset
        else:
            potential = potential - threshold * reset
        spikes.append(spike)
        scores.append(score)
    z, all_spikes = torch.stack(scores), torch.stack(spikes)
    loss = (all_spikes * cotangent).sum() + 0.1 * (z * cotangent).sum()
    return on_cpu(all_spikes.to(mean.dtype), [z], list(torch.autograd.grad(loss, leaves)))
