r"""LIF neurons whose spike noise is the posterior noise of their weights, with IW-ST gradients ("moment" mode).

The membrane is a Gaussian whose moments follow the input's, redrawn at each step:

.. math::
    U_t &= \beta U_{t-1} + \mu_t, \qquad Q_t = \beta^2 Q_{t-1} + v_t, \qquad t_t = (U_t - \theta) / \sqrt{Q_t}, \\
    s_t &= 1[t_t + \epsilon > 0], \qquad U_t \leftarrow U_t - \theta s_t ,

or with reset "zero" ``U <- (1 - s) U, Q <- (1 - s) Q``. So ``P(s_t = 1) = Phi(t_t)`` and there is neither a noise
parameter nor a surrogate width: the surrogate is ``phi(t) / sqrt(Q)`` with the width that the posterior has learned.
Exact in expectation for one layer and a linear loss; deeper nets inherit the bias of IW-ST. Cost: O(T) time, three
saved tensors of the size of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.functional.iwst import iwst_weight
from lightning_snn.functional.lif import Dynamics, minus_scaled, spread_over

_EPSILON = 1e-8  # keeps 1 / sqrt(Q) finite where no input has arrived yet


def noisy_lif(
    mean: Tensor,
    variance: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
    lam: float = 0.5,
    recurrent: Tensor | None = None,
) -> Tensor:
    """Sampled spikes over a sequence, as one autograd node.

    Args:
        mean, variance: moments of the input current, each `[T, B, ...]`, variance at least 0; both get gradients.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        dynamics: reset and `detach_reset`; its surrogate plays no part. The order is "reset_then_leak".
        lam: lambda of IW-ST, from 0 to 1.
        recurrent: weights `[N, N]` from the spikes of step t - 1 to the mean current of step t, for inputs `[T, B, N]`.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `mean`.
    """
    dynamics.check()
    if dynamics.order != "reset_then_leak":
        raise ValueError(
            f'Expected `dynamics.order` to be "reset_then_leak" for noisy neurons, but got "{dynamics.order}"'
        )
    return _NoisyLIFScan.apply(mean, variance, beta, threshold, recurrent, dynamics, lam)


class _NoisyLIFScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        variance: Tensor,
        beta: float | Tensor,
        threshold: float | Tensor,
        recurrent: Tensor | None,
        dynamics: Dynamics,
        lam: float,
    ) -> Tensor:
        accumulator = torch.promote_types(mean.dtype, torch.float32)
        # empty_like keeps a channels-last layout
        spikes = torch.empty_like(mean)
        standardised = torch.empty_like(mean, dtype=accumulator)
        precision_root = torch.empty_like(standardised)  # 1 / sqrt(Q)
        membrane, spread = torch.zeros_like(standardised[0]), torch.zeros_like(standardised[0])
        # drawn through a flat view: a generator fills a channels-last tensor four times slower
        flat = torch.empty(membrane.numel(), dtype=accumulator, device=mean.device)
        noise = flat.as_strided(membrane.shape, membrane.stride())
        numbers = (beta, threshold)
        beta, threshold = spread_over(beta, membrane), spread_over(threshold, membrane)
        beta_squared = beta * beta
        for t in range(mean.shape[0]):
            torch.mul(membrane, beta, out=membrane).add_(mean[t])
            torch.mul(spread, beta_squared, out=spread).add_(variance[t])
            if recurrent is not None and t > 0:
                membrane.addmm_(spikes[t - 1].to(accumulator), recurrent.t().to(accumulator))
            root, score, spike = precision_root[t], standardised[t], spikes[t]
            torch.add(spread, _EPSILON, out=root).rsqrt_()
            torch.sub(membrane, threshold, out=score).mul_(root)
            flat.normal_()
            torch.gt(score, noise, out=spike)
            if dynamics.reset == "subtract":
                membrane.sub_(torch.mul(spike, threshold, out=noise))
            else:
                membrane.addcmul_(membrane, spike.to(accumulator), value=-1)
                spread.addcmul_(spread, spike.to(accumulator), value=-1)
        ctx.save_for_backward(
            standardised,
            precision_root,
            spikes,
            *(value if isinstance(value, Tensor) else None for value in (*numbers, recurrent)),
        )
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in numbers)
        ctx.dynamics, ctx.lam = dynamics, lam
        ctx.dtypes = mean.dtype, variance.dtype
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        standardised, precision_root, spikes, beta_tensor, threshold_tensor, recurrent = ctx.saved_tensors
        beta = ctx.numbers[0] if beta_tensor is None else spread_over(beta_tensor, standardised[0])
        threshold = ctx.numbers[1] if threshold_tensor is None else spread_over(threshold_tensor, standardised[0])
        dynamics: Dynamics = ctx.dynamics
        accumulator = standardised.dtype
        needs_beta, needs_threshold = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        hard = dynamics.reset == "zero"

        grad_mean = torch.empty_like(standardised, dtype=ctx.dtypes[0])
        grad_variance = torch.empty_like(standardised, dtype=ctx.dtypes[1])
        # through t = (U - threshold) / sqrt(Q): dt/dU = root and dt/dQ = -t root^2 / 2
        to_u = iwst_weight(standardised, spikes, ctx.lam).mul_(precision_root)
        to_q = torch.mul(standardised, precision_root).mul_(-0.5)
        # dL/d(U, Q) after the reset of the step at hand, and before the reset of the step after it
        after_u, after_q = torch.zeros_like(standardised[0]), torch.zeros_like(standardised[0])
        before_u, before_q = torch.zeros_like(after_u), torch.zeros_like(after_u)
        through = torch.empty_like(after_u)
        grad_beta = torch.zeros_like(after_u) if needs_beta else None
        grad_threshold = torch.zeros_like(after_u) if needs_threshold else None
        beta_squared = beta * beta
        in_place = ctx.dtypes == (accumulator, accumulator)

        for t in range(standardised.shape[0] - 1, -1, -1):
            spike, grad = spikes[t].to(accumulator), grad_spikes[t].to(accumulator)
            if hard or grad_beta is not None:
                membrane = standardised[t] / precision_root[t] + threshold
                spread = precision_root[t].square().reciprocal_().sub_(_EPSILON)
            if grad_beta is not None:
                kept_u = membrane * (1 - spike) if hard else membrane - threshold * spike
                kept_q = spread * (1 - spike) if hard else spread
                grad_beta.addcmul_(before_u, kept_u).addcmul_(before_q, kept_q * (2 * beta))
            if grad_threshold is not None and not hard:
                grad_threshold.addcmul_(after_u, spike, value=-1)
            if recurrent is not None:
                grad = torch.addmm(grad, before_u, recurrent.to(accumulator))
            if dynamics.detach_reset:
                through.copy_(grad)
            elif hard:
                torch.addcmul(grad, after_u, membrane, value=-1, out=through).addcmul_(after_q, spread, value=-1)
            else:
                minus_scaled(grad, after_u, threshold, out=through)
            through.mul_(to_u[t])
            if hard:
                after_u.mul_(1 - spike)
                after_q.mul_(1 - spike)
            if grad_threshold is not None:
                grad_threshold.sub_(through)
            if in_place:
                before_u, before_q = grad_mean[t], grad_variance[t]
            torch.add(after_u, through, out=before_u)
            torch.addcmul(after_q, through, to_q[t], out=before_q)
            if not in_place:
                grad_mean[t], grad_variance[t] = before_u, before_q
            torch.mul(before_u, beta, out=after_u)
            torch.mul(before_q, beta_squared, out=after_q)

        grad_recurrent = None
        if recurrent is not None and ctx.needs_input_grad[4]:
            before = spikes[:-1].flatten(0, 1).to(accumulator)
            grad_recurrent = (grad_mean[1:].flatten(0, 1).to(accumulator).t() @ before).to(recurrent.dtype)
        return (
            grad_mean,
            grad_variance,
            None if grad_beta is None else grad_beta.sum_to_size(beta_tensor.shape).to(beta_tensor.dtype),
            None
            if grad_threshold is None
            else grad_threshold.sum_to_size(threshold_tensor.shape).to(threshold_tensor.dtype),
            grad_recurrent,
            None,
            None,
        )
