r"""LIF neurons whose spike noise is the posterior noise of their weights, with IW-ST gradients.

The input current is Gaussian with mean mu_t and variance v_t. Three modes treat its noise differently.

"moment", the default: the membrane is Gaussian, its moments follow those of the input, and it is redrawn at each step,

.. math::
    U_t &= \beta U_{t-1} + \mu_t, \qquad Q_t = \beta^2 Q_{t-1} + v_t, \qquad z_t = (U_t - \theta) / \sqrt{Q_t}, \\
    s_t &= 1[z_t > \epsilon], \qquad U_t \leftarrow U_t - \theta s_t ,

or with reset "zero" ``U <- (1 - s) U, Q <- (1 - s) Q``.

"step": the membrane is sampled. ``Q_t = v_t`` is the noise of the present current only, and the draw that decides the
spike stays in the membrane, ``U_t <- U_t - sqrt(v_t) epsilon``. Exact if the synaptic noise is white in time.

"trace": ``Q_t = v_t``, where the caller passes the variance of the whole membrane without its resets. With a
presynaptic trace ``e_t = beta e_{t-1} + x_t``, this is ``v_t = sigma^2 e_t^2``, the variance under one weight sample
per sequence: exact for the membrane potential before resets only. Its spikes are drawn anew at each step like those of
the other modes, so all three understate the variance of spike counts under static weights: it is 0.13 to 0.32, 0.34 to
0.48 and 0.21 to 0.42 of it in modes "moment", "step" and "trace" (`benchmarks/noise_modes.py`).

In all modes ``P(s_t = 1) = Phi(z_t)``. There is no noise parameter and no surrogate width: the surrogate is
``phi(z) / sqrt(Q)``, whose width the posterior determines. Gradients are exact in expectation for one layer and a
linear loss; in deeper networks they have the bias of IW-ST. Cost: O(T) time, three saved tensors of the size of the
input (four in mode "step"). A moment of NaN stays NaN, and so are its spikes, z and gradients, as in `functional.lif`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.checks import check_choice
from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.estimators import Estimator, estimator_named
from lightning_snn.functional.scans.buffers import CACHED_ELEMENTS, minus_scaled, spread_over, steps_per_block
from lightning_snn.functional.surrogate import propagate_nan

NoiseMode = Literal["moment", "step", "trace"]
NOISE_MODES = ("moment", "step", "trace")

VARIANCE_FLOOR = 1e-8  # keeps 1 / sqrt(Q) finite before the first input


def noisy_lif(
    mean: Tensor,
    variance: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
    estimator: float | Estimator = 0.5,
    mode: NoiseMode = "moment",
    recurrent: Tensor | None = None,
    recurrent_variance: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_current: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample the spikes of noisy LIF neurons over a sequence, as one autograd node.

    Args:
        mean: mean of the input current, `[T, B, ...]`; gets a gradient.
        variance: variance of the input current, `[T, B, ...]`, at least 0; gets a gradient.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        dynamics: reset and `detach_reset`; its surrogate is not used. The order must be "reset_then_leak".
        estimator: gradient estimator for Gaussian noise; a number is the lambda of IW-ST.
        mode: "moment", "step" or "trace", see the module. "trace" supports neither reset "zero" nor recurrent weights.
        recurrent: weights `[N, N]` from the spikes of step t - 1 to the mean current of step t, for inputs `[T, B, N]`.
        recurrent_variance: posterior variances `[N, N]` of the recurrent weights; None if they are known.
        generator: source of the noise; None is torch's default.
        on_current: in mode "step", called with the drawn input current `[T, B, ...]`, without a graph.

    Returns:
        spikes in {0, 1} and standardized pre-activations z, both differentiable and of the shape of `mean`. Spikes have
        its dtype, z is in float32 or wider.

    Raises:
        ValueError: if an argument is outside its range, or if the mode does not support the reset or the recurrent
            weights.

    Example:
        >>> spikes, z = noisy_lif(torch.tensor([[2.0], [0.1]]), torch.full((2, 1), 1e-4), beta=0.5)
        >>> spikes.flatten(), z.flatten().round()
        (tensor([1., 0.]), tensor([100., -36.]))
    """
    dynamics.check()
    check_choice("mode", mode, NOISE_MODES)
    estimator = estimator_named(estimator)
    if estimator.noise != "gaussian":
        raise ValueError(f"Expected argument `estimator` to be of Gaussian noise, but got {estimator}")
    if dynamics.order != "reset_then_leak":
        raise ValueError(
            f'Expected `dynamics.order` to be "reset_then_leak" for noisy neurons, but got "{dynamics.order}"'
        )
    if mode == "trace" and (dynamics.reset == "zero" or recurrent is not None):
        got = 'reset "zero"' if dynamics.reset == "zero" else "recurrent weights"
        raise ValueError(f'Expected reset "subtract" and no recurrent weights with mode "trace", but got {got}')
    result: tuple[Tensor, Tensor] = _NoisyLIFScan.apply(
        mean, variance, beta, threshold, recurrent, recurrent_variance, dynamics, estimator, mode, generator, on_current
    )
    return result


class _NoisyLIFScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        variance: Tensor,
        beta: float | Tensor,
        threshold: float | Tensor,
        recurrent: Tensor | None,
        recurrent_variance: Tensor | None,
        dynamics: Dynamics,
        estimator: Estimator,
        mode: NoiseMode,
        generator: torch.Generator | None,
        on_current: Callable[[Tensor], None] | None,
    ) -> tuple[Tensor, Tensor]:
        accumulator = torch.promote_types(mean.dtype, torch.float32)
        # empty_like keeps a channels-last layout
        spikes = torch.empty_like(mean)
        standardized = torch.empty_like(mean, dtype=accumulator)
        precision_root = torch.empty_like(standardized)  # 1 / sqrt(Q)
        membrane = torch.empty_like(standardized[0])
        spread = torch.empty_like(membrane) if mode == "moment" or recurrent_variance is not None else None
        # draw into a flat tensor: a generator takes four times as long to fill a channels-last tensor
        flat = standardized.new_empty(mean.shape[0] if mode == "step" else 1, membrane.numel())
        numbers = (beta, threshold)
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
            noise = flat[t if mode == "step" else 0].normal_(generator=generator)
            noise = noise.as_strided(membrane.shape, membrane.stride())
            torch.gt(score, noise, out=spike)
            if (t + 1) % block == 0 or t == mean.shape[0] - 1:
                steps = slice(t // block * block, t + 1)
                propagate_nan(spikes[steps], standardized[steps], out=spikes[steps])
            if t == mean.shape[0] - 1:
                break
            if mode == "step":
                membrane.addcdiv_(noise, root, value=-1)
            if dynamics.reset == "subtract":
                minus_scaled(membrane, spike.to(accumulator), threshold, out=membrane)
            else:
                membrane.addcmul_(membrane, spike.to(accumulator), value=-1)
                if spread is not None:
                    spread.addcmul_(spread, spike.to(accumulator), value=-1)
        if mode == "step" and on_current is not None:
            draws = flat.as_strided(mean.shape, (membrane.numel(), *membrane.stride()))
            on_current(mean - draws / precision_root)
        weight = estimator.weight(standardized, spikes, generator) if estimator.random else None
        tensors = (value if isinstance(value, Tensor) else None for value in (*numbers, recurrent, recurrent_variance))
        kept = flat if mode == "step" else None
        ctx.save_for_backward(standardized, precision_root, spikes, weight, kept, *tensors)
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in numbers)
        ctx.dynamics, ctx.estimator, ctx.mode = dynamics, estimator, mode
        ctx.dtypes = mean.dtype, variance.dtype
        ctx.set_materialize_grads(False)
        return spikes, standardized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_standardized: Tensor | None) -> tuple[Tensor | None, ...]:
        (
            standardized,
            precision_root,
            spikes,
            weight,
            flat,
            beta_tensor,
            threshold_tensor,
            recurrent,
            recurrent_variance,
        ) = ctx.saved_tensors
        beta = ctx.numbers[0] if beta_tensor is None else spread_over(beta_tensor, standardized[0])
        threshold = ctx.numbers[1] if threshold_tensor is None else spread_over(threshold_tensor, standardized[0])
        dynamics: Dynamics = ctx.dynamics
        estimator: Estimator = ctx.estimator
        accumulator, (steps, batch) = standardized.dtype, standardized.shape[:2]
        needs_beta, needs_threshold = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        hard, moment, step = dynamics.reset == "zero", ctx.mode == "moment", ctx.mode == "step"
        if grad_spikes is None:
            grad_spikes = standardized.new_zeros(()).expand_as(standardized)

        # dL/d(U, Q) of each step, before its reset
        grad_mean, grad_variance = torch.empty_like(standardized), torch.empty_like(standardized)
        grad_beta = torch.zeros_like(standardized[0]) if needs_beta else None
        grad_threshold = torch.zeros_like(standardized[0]) if needs_threshold else None
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
                    noise = flat[t].as_strided(standardized.shape[1:], standardized.stride()[1:])[rows]
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

        grad_matrices: list[Tensor | None] = [None, None]
        if recurrent is not None:
            earlier = spikes[:-1].flatten(0, 1).to(accumulator)
            pairs = ((recurrent, grad_mean), (recurrent_variance, grad_variance))
            for index, (matrix, gradient) in enumerate(pairs):
                if ctx.needs_input_grad[4 + index]:
                    later = gradient[1:].flatten(0, 1).to(accumulator)
                    grad_matrices[index] = (later.t() @ earlier).to(matrix.dtype)
        return (
            grad_mean.to(ctx.dtypes[0]),
            grad_variance.to(ctx.dtypes[1]),
            None if grad_beta is None else grad_beta.sum_to_size(beta_tensor.shape).to(beta_tensor.dtype),
            None
            if grad_threshold is None
            else grad_threshold.sum_to_size(threshold_tensor.shape).to(threshold_tensor.dtype),
            *grad_matrices,
            None,
            None,
            None,
            None,
            None,
        )


# elements of one step of a block of rows; a block of steps has CACHED_ELEMENTS, so its operands fit into the cache
_CACHED_STEP = CACHED_ELEMENTS // 2


def _block(sequence: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and of steps of a sequence `[T, B, ...]` that form a block of the backward pass."""
    rows = max(1, _CACHED_STEP // max(1, sequence[0, :1].numel()))
    return rows, max(1, CACHED_ELEMENTS // max(1, sequence[0, :rows].numel()))


def _of_rows(value: float | Tensor, rows: slice) -> float | Tensor:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 0 else value
