"""Triton kernels of the scan of noisy LIF neurons and its backward pass; see `functional.scans.noisy_loop`.

A program keeps the moments of a block of neurons in registers and loops over time. The noise is given. Square roots and
quotients round as on a CPU. Gradients of decay and threshold accumulate in registers and leave as one value per neuron,
so they are deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_snn.functional.scans.triton_parts import after_spikes, marked, neurons_of, parameter


@triton.jit(do_not_specialize=["steps"])
def noisy_forward(
    mean: tl.tensor,
    variance: tl.tensor,
    noise: tl.tensor,
    beta: tl.tensor,
    squared: tl.tensor,
    threshold: tl.tensor,
    spikes: tl.tensor,
    standardized: tl.tensor,
    precision_root: tl.tensor,
    beta_number: tl.tensor,
    squared_number: tl.tensor,
    threshold_number: tl.tensor,
    floor: tl.tensor,
    steps: tl.tensor,
    neurons: tl.tensor,
    mean_step: tl.tensor,
    variance_step: tl.tensor,
    beta_stride: tl.tensor,
    beta_count: tl.tensor,
    threshold_stride: tl.tensor,
    threshold_count: tl.tensor,
    MODE: tl.constexpr,
    ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Run the recurrence; `squared` is the square of the decay."""
    index = neurons_of(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    decay_squared = parameter(squared, squared_number, beta_stride, beta_count, index, inside)
    level = parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    carried = tl.zeros([BLOCK], tl.float32)
    spread = tl.zeros([BLOCK], tl.float32)
    at_mean = mean + index
    at_variance = variance + index
    at_noise = noise + index
    at_spikes = spikes + index
    at_standardized = standardized + index
    at_root = precision_root + index
    for t in range(steps):
        is_first = t == 0  # nothing leaks then, whatever the decay
        membrane = tl.where(is_first, 0.0, carried * decay)
        membrane = membrane + tl.load(at_mean, mask=inside, other=0).to(tl.float32)
        added = tl.load(at_variance, mask=inside, other=0).to(tl.float32)
        if MODE == "moment":
            spread = tl.where(is_first, 0.0, spread * decay_squared)
            spread = spread + added
        else:
            spread = added
        root = tl.div_rn(1.0, tl.sqrt_rn(spread + floor))
        score = (membrane - level) * root
        draw = tl.load(at_noise, mask=inside, other=0)
        fired = tl.where(score > draw, 1.0, 0.0)
        tl.store(at_spikes, marked(fired, score).to(spikes.dtype.element_ty), mask=inside)
        tl.store(at_standardized, score, mask=inside)
        tl.store(at_root, root, mask=inside)
        if MODE == "step":
            membrane = membrane - tl.div_rn(draw, root)
        carried = after_spikes(membrane, fired, level, False, ZERO)
        if ZERO:
            spread = spread - spread * fired
        at_mean += mean_step
        at_variance += variance_step
        at_noise += neurons
        at_spikes += neurons
        at_standardized += neurons
        at_root += neurons


@triton.jit
def _iwst_weight(
    score: tl.tensor,
    spike: tl.tensor,
    lam: tl.tensor,
    log_norm: tl.tensor,
    slope: tl.tensor,
    BOUND: tl.constexpr,
    MILLS: tl.constexpr,
) -> tl.tensor:
    """Return the weight of IW-ST by the Mills ratio; see `functional.estimators` and `functional.gaussian`."""
    t = tl.where(score > BOUND, BOUND, tl.where(score < -BOUND, -BOUND, score))  # NaN stays NaN
    toward = tl.where(spike > 0.5, t, -t)
    density = tl.exp(-0.5 * t * t - log_norm)
    reciprocal = 1.0 / (slope * tl.abs(t) + 1.0)
    mills = tl.zeros_like(t)
    for i in tl.static_range(len(MILLS)):
        mills = mills * reciprocal + MILLS[i]
    mills = mills * reciprocal
    # density over twice the probability of the sample, which in the lower tail is density * mills
    ratio = tl.where(toward < 0, 0.5 / mills, density / (2.0 - 2.0 * density * mills))
    return ratio * (1.0 - lam) + density * lam


@triton.jit(do_not_specialize=["steps"])
def noisy_backward(
    standardized: tl.tensor,
    precision_root: tl.tensor,
    spikes: tl.tensor,
    weight: tl.tensor,
    noise: tl.tensor,
    beta: tl.tensor,
    squared: tl.tensor,
    threshold: tl.tensor,
    grad_spikes: tl.tensor,
    grad_standardized: tl.tensor,
    grad_mean: tl.tensor,
    grad_variance: tl.tensor,
    grad_beta: tl.tensor,
    grad_threshold: tl.tensor,
    beta_number: tl.tensor,
    squared_number: tl.tensor,
    threshold_number: tl.tensor,
    floor: tl.tensor,
    lam: tl.tensor,
    log_norm: tl.tensor,
    mills_slope: tl.tensor,
    steps: tl.tensor,
    neurons: tl.tensor,
    grad_step: tl.tensor,
    standardized_step: tl.tensor,
    beta_stride: tl.tensor,
    beta_count: tl.tensor,
    threshold_stride: tl.tensor,
    threshold_count: tl.tensor,
    MODE: tl.constexpr,
    ZERO: tl.constexpr,
    DETACHED: tl.constexpr,
    BOUND: tl.constexpr,
    MILLS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Run the backward pass from the last step to the first; a gradient that is None is not written, or is 0.

    Without `weight`, the weights of the gradient are those of IW-ST.
    """
    index = neurons_of(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    decay_squared = parameter(squared, squared_number, beta_stride, beta_count, index, inside)
    level = parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    # dL/d(U, Q) after the reset of a step, and before the reset of the next step
    after_u = tl.zeros([BLOCK], tl.float32)
    after_q = tl.zeros([BLOCK], tl.float32)
    before_u = tl.zeros([BLOCK], tl.float32)
    before_q = tl.zeros([BLOCK], tl.float32)
    of_beta = tl.zeros([BLOCK], tl.float32)
    of_threshold = tl.zeros([BLOCK], tl.float32)
    end = (steps - 1).to(tl.int64)
    at_standardized = standardized + index + end * neurons
    at_root = precision_root + index + end * neurons
    at_spikes = spikes + index + end * neurons
    at_mean = grad_mean + index + end * neurons
    at_variance = grad_variance + index + end * neurons
    if weight is not None:
        at_weight = weight + index + end * neurons
    if MODE == "step":
        at_noise = noise + index + end * neurons
    if grad_spikes is not None:
        at_grad = grad_spikes + index + end * grad_step
    if grad_standardized is not None:
        at_direct = grad_standardized + index + end * standardized_step
    for _ in range(steps):
        score = tl.load(at_standardized, mask=inside, other=0)
        root = tl.load(at_root, mask=inside, other=1)
        spike = tl.load(at_spikes, mask=inside, other=0).to(tl.float32)
        if weight is not None:
            slope = tl.load(at_weight, mask=inside, other=0)
            at_weight -= neurons
        else:
            slope = _iwst_weight(score, spike, lam, log_norm, mills_slope, BOUND, MILLS)
        membrane = score / root + level
        if MODE == "step":
            draw = tl.load(at_noise, mask=inside, other=0)
            membrane = membrane - draw / root
            at_noise -= neurons
        spread = 1.0 / (root * root) - floor
        if grad_beta is not None:
            of_beta += before_u * after_spikes(membrane, spike, level, False, ZERO)
            if MODE == "moment":
                kept = spread - spread * spike if ZERO else spread
                of_beta += before_q * (kept * (2.0 * decay))
        if grad_threshold is not None and not ZERO:
            of_threshold -= after_u * spike
        through = tl.zeros([BLOCK], tl.float32)
        if grad_spikes is not None:
            through = tl.load(at_grad, mask=inside, other=0).to(tl.float32)
            at_grad -= grad_step
        if not DETACHED:
            if ZERO:
                through = through - after_u * membrane
                if MODE == "moment":
                    through = through - after_q * spread
            else:
                through = through - after_u * level
        # z = (U - threshold) / sqrt(Q): dz/dU = root and dz/dQ = -z root^2 / 2
        through = through * (slope * root)
        if grad_standardized is not None:
            through += tl.load(at_direct, mask=inside, other=0).to(tl.float32) * root
            at_direct -= standardized_step
        if ZERO:
            after_u = after_u * (1.0 - spike)
            after_q = after_q * (1.0 - spike)
        if grad_threshold is not None:
            of_threshold -= through
        before_u = after_u + through
        before_q = after_q + through * (-0.5 * (score * root))
        if MODE == "step":  # the sample in the membrane is sqrt(Q) times the noise
            before_q -= 0.5 * (after_u * draw) * root
        tl.store(at_mean, before_u.to(grad_mean.dtype.element_ty), mask=inside)
        tl.store(at_variance, before_q.to(grad_variance.dtype.element_ty), mask=inside)
        after_u = before_u * decay
        if MODE == "moment":
            after_q = before_q * decay_squared
        at_standardized -= neurons
        at_root -= neurons
        at_spikes -= neurons
        at_mean -= neurons
        at_variance -= neurons
    if grad_beta is not None:
        tl.store(grad_beta + index, of_beta, mask=inside)
    if grad_threshold is not None:
        tl.store(grad_threshold + index, of_threshold, mask=inside)
