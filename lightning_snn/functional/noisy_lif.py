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
from lightning_snn.functional.estimators import IWST, Estimator, estimator_named
from lightning_snn.functional.scans.noisy_loop import noisy_backward_loop, noisy_forward_loop
from lightning_snn.functional.scans.noisy_operators import noisy_backward, noisy_forward
from lightning_snn.functional.scans.variants import tensor_and_number
from lightning_snn.functional.tracing import plain_operations

NoiseMode = Literal["moment", "step", "trace"]
NOISE_MODES = ("moment", "step", "trace")


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
    """The scan as one node: by the operators, or by the loop for recurrent weights and exporters."""

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
        (beta_tensor, beta_number), (threshold_tensor, threshold_number) = map(tensor_and_number, (beta, threshold))
        if recurrent is not None or plain_operations(opaque=True):
            spikes, standardized, precision_root, draws = noisy_forward_loop(
                mean, variance, beta, threshold, recurrent, recurrent_variance, None, generator, dynamics, mode
            )
        else:
            spikes, standardized, precision_root, draws = noisy_forward(
                mean,
                variance,
                beta_tensor,
                beta_number,
                threshold_tensor,
                threshold_number,
                None,
                generator,
                dynamics.reset,
                mode,
            )
        if mode == "step" and on_current is not None:
            step = torch.empty_like(standardized[0])
            noise = draws.as_strided(mean.shape, (step.numel(), *step.stride()))
            on_current(mean - noise / precision_root)
        weight = estimator.weight(standardized, spikes, generator) if estimator.random else None
        kept = draws if mode == "step" else None
        parameters = (beta_tensor, threshold_tensor, recurrent, recurrent_variance)
        ctx.save_for_backward(standardized, precision_root, spikes, weight, kept, *parameters)
        ctx.numbers = beta_number, threshold_number
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
            draws,
            beta_tensor,
            threshold_tensor,
            recurrent,
            recurrent_variance,
        ) = ctx.saved_tensors
        beta_number, threshold_number = ctx.numbers
        dynamics: Dynamics = ctx.dynamics
        estimator: Estimator = ctx.estimator
        wants_beta, wants_threshold = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        of_recurrent: list[Tensor | None] = [None, None]
        built_in = type(estimator) is IWST
        opaque = recurrent is None and not plain_operations(opaque=True)
        if opaque and weight is None and not built_in and (standardized.is_cuda or torch.compiler.is_compiling()):
            # the loop computes it in blocks that fit into the cache of a CPU
            weight = estimator.weight(standardized, spikes)
        if opaque and (built_in or weight is not None):
            of_mean, of_variance, of_beta, of_threshold = noisy_backward(
                standardized,
                precision_root,
                spikes,
                weight,
                draws,
                beta_tensor,
                beta_number,
                threshold_tensor,
                threshold_number,
                grad_spikes,
                grad_standardized,
                estimator.lam if isinstance(estimator, IWST) else 1.0,
                dynamics.reset,
                dynamics.detach_reset,
                ctx.mode,
                *ctx.dtypes,
                wants_beta,
                wants_threshold,
            )
        else:
            of_mean, of_variance, of_beta, of_threshold = noisy_backward_loop(
                standardized,
                precision_root,
                spikes,
                weight,
                draws,
                beta_number if beta_tensor is None else beta_tensor,
                threshold_number if threshold_tensor is None else threshold_tensor,
                recurrent,
                recurrent_variance,
                grad_spikes,
                grad_standardized,
                estimator,
                dynamics,
                ctx.mode,
                wants_beta,
                wants_threshold,
            )
            for index, (matrix, gradient) in enumerate(((recurrent, of_mean), (recurrent_variance, of_variance))):
                if matrix is not None and ctx.needs_input_grad[4 + index]:
                    earlier = spikes[:-1].flatten(0, 1).to(gradient.dtype)
                    later = gradient[1:].flatten(0, 1)
                    of_recurrent[index] = (later.t() @ earlier).to(matrix.dtype)
        return (
            of_mean.to(ctx.dtypes[0]),
            of_variance.to(ctx.dtypes[1]),
            of_beta.sum_to_size(beta_tensor.shape).to(beta_tensor.dtype) if wants_beta else None,
            of_threshold.sum_to_size(threshold_tensor.shape).to(threshold_tensor.dtype) if wants_threshold else None,
            *of_recurrent,
            None,
            None,
            None,
            None,
            None,
        )
