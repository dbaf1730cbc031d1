"""The scan of noisy LIF neurons and its backward pass as loops over time; `functional.noisy_lif` has the equations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.estimators import Estimator
from lightning_snn.functional.scans.buffers import CACHED_ELEMENTS, minus_scaled, spread_over, steps_per_block
from lightning_snn.functional.surrogate import propagate_nan

VARIANCE_FLOOR = 1e-8  # keeps 1 / sqrt(Q) finite before the first input


class NoisyScan(NamedTuple):
    """Result of a scan.

    Attributes:
        spikes: in {0, 1} or NaN, `[T, B, ...]`, of the dtype of the mean.
        standardized: pre-activations z, `[T, B, ...]`, in float32 or wider.
        precision_root: ``1 / sqrt(Q)``, of the same shape and dtype.
        draws: standard normal noise that mode "step" drew, `[T, N]`, in the order of the memory of a step; else empty.
    """

    spikes: Tensor
    standardized: Tensor
    precision_root: Tensor
    draws: Tensor


class NoisyGradients(NamedTuple):
    """Result of the backward pass of a scan, in float32 or wider.

    Attributes:
        mean: gradient of the mean, `[T, B, ...]`.
        variance: gradient of the variance, `[T, B, ...]`.
        beta: gradient of the decay of every neuron, `[B, ...]`; None if it is not requested.
        threshold: gradient of the threshold of every neuron, `[B, ...]`; None if it is not requested.
    """

    mean: Tensor
    variance: Tensor
    beta: Tensor | None
    threshold: Tensor | None


def draw_noise(sequence: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise `[T, N]` for the N neurons of a sequence `[T, B, ...]`.

    A CPU draws one step after the other, because its loop keeps the noise of one step only. Other devices draw all
    steps at once. So a seed gives the same noise to a loop and to a kernel.
    """
    noise = sequence.new_empty(len(sequence), sequence[0].numel())
    for part in noise if noise.device.type == "cpu" else [noise]:
        part.normal_(generator=generator)
    return noise


def noisy_forward_loop(
    mean: Tensor,
    variance: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    recurrent: Tensor | None,
    recurrent_variance: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
    dynamics: Dynamics,
    mode: str,
) -> NoisyScan:
    """Run the scan of `functional.noisy_lif`.

    Args:
        mean: mean of the input current, `[T, B, ...]`.
        variance: variance of the input current, `[T, B, ...]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        recurrent: weights `[N, N]` from spikes to the mean current of the next step, or None.
        recurrent_variance: their variances, or None.
        noise: standard normal noise `[T, N]`, in the order of the memory of a step; None draws it.
        generator: source of the noise; None is torch's default.
        dynamics: reset.
        mode: "moment", "step" or "trace".
    """
    accumulator = torch.promote_types(mean.dtype, torch.float32)
    # empty_like keeps a channels-last layout
    spikes = torch.empty_like(mean)
    standardized = torch.empty_like(mean, dtype=accumulator)
    precision_root = torch.empty_like(standardized)  # 1 / sqrt(Q)
    membrane = torch.empty_like(standardized[0])
    spread = torch.empty_like(membrane) if mode == "moment" or recurrent_variance is not None else None
    draws = standardized.new_empty(0)
    if noise is None and (mode == "step" or mean.device.type != "cpu"):
        noise = draw_noise(standardized, generator)
        draws = noise if mode == "step" else draws
    # a flat tensor: a generator takes four times as long to fill a channels-last tensor
    flat = standardized.new_empty(membrane.numel() if noise is None else 0)
    beta, threshold = spread_over(beta, membrane), spread_over(threshold, membrane)
    beta_squared = beta * beta
    weights, weight_variances = (
        None if matrix is None else matrix.t().to(accumulator) for matrix in (recurrent, recurrent_variance)
    )
    # neurons that receive spikes need them with their NaN at the next step
    block = 1 if weights is not None else steps_per_block(mean)
    for t in range(mean.shape[0]):
        if t == 0:
            membrane.copy_(mean[0])
        else:
            torch.mul(membrane, beta, out=membrane).add_(mean[t])
        if spread is not None:
            if t == 0 or mode != "moment":
                spread.copy_(variance[t])
            else:
                torch.mul(spread, beta_squared, out=spread).add_(variance[t])
        if t > 0 and weights is not None:
            before = spikes[t - 1].to(accumulator)
            membrane.addmm_(before, weights)
            if spread is not None and weight_variances is not None:
                spread.addmm_(before, weight_variances)
        root, score, spike = precision_root[t], standardized[t], spikes[t]
        torch.add(variance[t].to(accumulator) if spread is None else spread, VARIANCE_FLOOR, out=root).rsqrt_()
        torch.sub(membrane, threshold, out=score).mul_(root)
        draw = flat.normal_(generator=generator) if noise is None else noise[t]
        draw = draw.as_strided(membrane.shape, membrane.stride())
        torch.gt(score, draw, out=spike)
        if (t + 1) % block == 0 or t == mean.shape[0] - 1:
            steps = slice(t // block * block, t + 1)
            propagate_nan(spikes[steps], standardized[steps], out=spikes[steps])
        if t == mean.shape[0] - 1:
            break
        if mode == "step":
            membrane.addcdiv_(draw, root, value=-1)
        if dynamics.reset == "subtract":
            minus_scaled(membrane, spike.to(accumulator), threshold, out=membrane)
        else:
            membrane.addcmul_(membrane, spike.to(accumulator), value=-1)
            if spread is not None:
                spread.addcmul_(spread, spike.to(accumulator), value=-1)
    return NoisyScan(spikes, standardized, precision_root, draws)


def noisy_backward_loop(
    standardized: Tensor,
    precision_root: Tensor,
    spikes: Tensor,
    weight: Tensor | None,
    draws: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    recurrent: Tensor | None,
    recurrent_variance: Tensor | None,
    grad_spikes: Tensor | None,
    grad_standardized: Tensor | None,
    estimator: Estimator,
    dynamics: Dynamics,
    mode: str,
    wants_beta: bool,
    wants_threshold: bool,
) -> NoisyGradients:
    """Run the backward pass of the scan.

    Args:
        standardized: pre-activations z, `[T, B, ...]`.
        precision_root: ``1 / sqrt(Q)``, `[T, B, ...]`.
        spikes: of the scan, `[T, B, ...]`.
        weight: weights of the gradient, `[T, B, ...]`; None computes them by `estimator`.
        draws: noise of mode "step", `[T, N]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        recurrent: weights `[N, N]` from spikes to the mean current of the next step, or None.
        recurrent_variance: their variances, or None.
        grad_spikes: gradient of the spikes, `[T, B, ...]`; None is 0.
        grad_standardized: gradient of the pre-activations, `[T, B, ...]`; None is 0.
        estimator: gradient estimator that is not random; unused if there is a `weight`.
        dynamics: reset, and whether it is detached.
        mode: "moment", "step" or "trace".
        wants_beta: whether to compute the gradient of the decay.
        wants_threshold: whether to compute the gradient of the threshold.
    """
    beta, threshold = spread_over(beta, standardized[0]), spread_over(threshold, standardized[0])
    in_memory = torch.empty_like(standardized[0]).stride()  # of the draws of a step
    accumulator, (steps, batch) = standardized.dtype, standardized.shape[:2]
    hard, moment, step = dynamics.reset == "zero", mode == "moment", mode == "step"
    if grad_spikes is None:
        grad_spikes = standardized.new_zeros(()).expand_as(standardized)

    # dL/d(U, Q) of each step, before its reset
    grad_mean, grad_variance = torch.empty_like(standardized), torch.empty_like(standardized)
    grad_beta = torch.zeros_like(standardized[0]) if wants_beta else None
    grad_threshold = torch.zeros_like(standardized[0]) if wants_threshold else None
    rows_at_once, steps_at_once = _block(standardized)
    for first in range(0, batch, rows_at_once):
        rows = slice(first, first + rows_at_once)
        decay, level = _of_rows(beta, rows), _of_rows(threshold, rows)
        decay_squared = decay * decay
        # after the reset of the present step, and before the reset of the next step
        after_u, after_q = torch.zeros_like(standardized[0, rows]), torch.zeros_like(standardized[0, rows])
        before_u, before_q = after_u, after_q
        through = torch.empty_like(after_u)
        for t in range(steps - 1, -1, -1):
            root, spike = precision_root[t, rows], spikes[t, rows].to(accumulator)
            grad = grad_spikes[t, rows].to(accumulator)
            if t == steps - 1 or (t + 1) % steps_at_once == 0:
                block = slice(t // steps_at_once * steps_at_once, t + 1)
                score = standardized[block, rows]
                # through z = (U - threshold) / sqrt(Q): dz/dU = root and dz/dQ = -z root^2 / 2
                slope = estimator.weight(score, spikes[block, rows]) if weight is None else weight[block, rows]
                to_u = slope * precision_root[block, rows]
                to_q = torch.mul(score, precision_root[block, rows]).mul_(-0.5)
            if step:
                assert draws is not None
                noise = draws[t].as_strided(standardized.shape[1:], in_memory)[rows]
            if hard or grad_beta is not None:
                membrane = standardized[t, rows] / root + level
                if step:
                    membrane.addcdiv_(noise, root, value=-1)
                spread = root.square().reciprocal_().sub_(VARIANCE_FLOOR)
            if grad_beta is not None:
                kept_u = membrane * (1 - spike) if hard else membrane - level * spike
                grad_beta[rows].addcmul_(before_u, kept_u)
                if moment:
                    kept_q = spread * (1 - spike) if hard else spread
                    grad_beta[rows].addcmul_(before_q, kept_q * (2 * decay))
            if grad_threshold is not None and not hard:
                grad_threshold[rows].addcmul_(after_u, spike, value=-1)
            if recurrent is not None:
                grad = torch.addmm(grad, before_u, recurrent.to(accumulator))
                if recurrent_variance is not None:
                    grad.addmm_(before_q, recurrent_variance.to(accumulator))
            if dynamics.detach_reset:
                through.copy_(grad)
            elif hard:
                torch.addcmul(grad, after_u, membrane, value=-1, out=through)
                if moment:
                    through.addcmul_(after_q, spread, value=-1)
            else:
                minus_scaled(grad, after_u, level, out=through)
            through.mul_(to_u[t - block.start])
            if grad_standardized is not None:
                through.addcmul_(grad_standardized[t, rows], root)
            if hard:
                after_u.mul_(1 - spike)
                after_q.mul_(1 - spike)
            if grad_threshold is not None:
                grad_threshold[rows].sub_(through)
            before_u, before_q = grad_mean[t, rows], grad_variance[t, rows]
            torch.add(after_u, through, out=before_u)
            torch.addcmul(after_q, through, to_q[t - block.start], out=before_q)
            if step:  # the sample in the membrane is sqrt(Q) times the noise
                before_q.addcmul_(after_u * noise, root, value=-0.5)
            if t > 0:
                torch.mul(before_u, decay, out=after_u)
                if moment:
                    torch.mul(before_q, decay_squared, out=after_q)
    return NoisyGradients(grad_mean, grad_variance, grad_beta, grad_threshold)


# elements of one step of a block of rows; a block of steps has CACHED_ELEMENTS, so its operands fit into the cache
_CACHED_STEP = CACHED_ELEMENTS // 2


def _block(sequence: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and of steps of a sequence `[T, B, ...]` that form a block of the backward pass."""
    rows = max(1, _CACHED_STEP // max(1, sequence[0, :1].numel()))
    return rows, max(1, CACHED_ELEMENTS // max(1, sequence[0, :rows].numel()))


def _of_rows(value: float | Tensor, rows: slice) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 0 else value
