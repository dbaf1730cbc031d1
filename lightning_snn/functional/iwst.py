r"""IW-ST: importance-weighted straight-through gradients of noisy binary units (after Walker et al. 2025, arXiv
2505.17962).

A unit spikes when its standardized pre-activation t exceeds a noise sample, ``x = 1[t + eps > 0]``, so ``P(x = 1) =
F(t)``. One backward pass estimates ``dE[f(x)]/dt = F'(t) (f(1) - f(0))`` by ``w(x, t) f'(x)`` with

.. math:: w(x, t) = F'(t)\,p(x) / P(x) , \qquad p(x) = \lambda P(x) + (1 - \lambda) / 2 .

The target p weighs the two points where the slope is known. lambda = 1 is the straight-through estimator whose
surrogate is the noise density (no variance for linear losses); lambda = 0 is DARN(1/2), ReinMax for logistic noise (no
bias for quadratic losses, but a variance that explodes in saturated units); lambda = -1 is DARN(mean). Every lambda is
unbiased where the slope does not depend on the unit's own value, and none is for general losses or deep networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.checks import check_between, check_choice

Noise = Literal["gaussian", "logistic"]
EstimatorName = Literal["straight_through", "reinmax", "darn_mean", "agr", "gumbel_rao", "gumbel_straight_through"]

# where the rarer of the two samples has probability 6e-16: farther out, formulas only lose digits
_SATURATED = {"gaussian": 8.0, "logistic": 35.0}
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def saturated(t: Tensor, noise: Noise) -> Tensor:
    """A copy of `t`, clamped to where both samples have a probability of at least 6e-16."""
    bound = _SATURATED[noise]
    return t.clamp(-bound, bound)


def toward_sample(t: Tensor, spikes: Tensor) -> Tensor:
    """``t / 2`` where the unit spiked and ``-t / 2`` where not, a new tensor: positive for the likelier sample."""
    return torch.mul(spikes, t).sub_(t, alpha=0.5)


def density_(t: Tensor, noise: Noise) -> Tensor:
    """The density ``F'(t)`` of the noise, written over `t`."""
    if noise == "gaussian":
        return t.mul_(t).mul_(-0.5).sub_(_LOG_SQRT_2PI).exp_()
    rarer = t.abs_().neg_().sigmoid_()
    return rarer.mul_(1 - rarer)


def iwst_weight(t: Tensor, spikes: Tensor, lam: float = 0.5, noise: Noise = "gaussian") -> Tensor:
    """The backward weight ``w(x, t)`` of IW-ST(lambda).

    Args:
        t: standardized pre-activation, any shape; weights are constant beyond |t| = 8 (Gaussian) or 35 (logistic).
        spikes: the samples in {0, 1}, same shape.
        lam: lambda, 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian" (probit units) or "logistic".

    Returns:
        weights of the shape and dtype of `t`, in [0, 4.06] for Gaussian and [0, 1/2] for logistic noise when lambda
        is in [0, 1].
    """
    t = saturated(t, noise)
    if lam == 1.0:
        return density_(t, noise)
    ratio = toward_sample(t, spikes)
    if noise == "logistic":
        other = ratio.mul_(-2).sigmoid_()  # 1 - P(x)
        return other.mul(-lam).add_(0.5 * (1 + lam)).mul_(other)
    # P(x) = erfc / 2, which does not underflow before |t| = 8 and costs a tenth of erfcx or log_ndtr
    ratio.mul_(-math.sqrt(2)).erfc_().reciprocal_()
    return ratio.mul_(1 - lam).add_(lam).mul_(density_(t, noise))


def chi_squared(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian") -> Tensor:
    r"""The variance that IW-ST(lambda) adds to a unit, relative to the square of its gradient for a linear loss.

    .. math:: \chi^2 = \sum_x p(x)^2 / P(x) - 1 = (1 - \lambda)^2 \left[\frac{1}{4 P (1 - P)} - 1\right]

    In a deep and nearly linear network second moments multiply, by 1 plus the mean of this in each layer. Above 10 the
    estimate is little but noise: take a larger lambda, or more noise.

    Args:
        t: standardized pre-activation, any shape; constant beyond |t| = 8 (Gaussian) or 35 (logistic), as the weight.
        lam: lambda in [-1, 1].
        noise: "gaussian" or "logistic".

    Returns:
        the chi-squared distance of each unit, of the shape and dtype of `t`, in [0, 4e14 (1 - lam)^2].

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """
    _check(lam, noise)
    t = saturated(t, noise)
    if noise == "logistic":
        return (0.5 * t).sinh_().square_().mul_((1 - lam) ** 2)
    root = t * math.sqrt(0.5)
    variance = root.erfc().mul_((-root).erfc_())  # 4 P (1 - P)
    return root.erf_().square_().div_(variance).mul_((1 - lam) ** 2)


def _check(lam: float, noise: Noise) -> None:
    check_between("lam", lam, -1.0, 1.0)
    check_choice("noise", noise, get_args(Noise))


class Estimator:
    """Base of the gradient estimators of a noisy binary unit: a hard sample forwards, a weight backwards.

    A new estimator is a frozen dataclass with a field `noise` that defines `weight`.
    """

    noise: Noise
    random: ClassVar[bool] = False  # whether the weight draws, so that it belongs in the forward pass

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the gradient of the samples is multiplied by to become the gradient of `t`.

        Args:
            t: standardized pre-activation, float32 or float64, any shape; finite weights for any finite value.
            spikes: the samples in {0, 1}, same shape.
            generator: source of randomness of a `random` estimator; None is torch's default.

        Returns:
            weights ``w(x, t)`` of the shape and dtype of `t`, a new tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no weight")


@dataclass(frozen=True)
class IWST(Estimator):
    """IW-ST(lambda): see `iwst_weight`.

    Args:
        lam: lambda, 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian", so that ``P(spike) = Phi(t)``, or "logistic", so that ``P(spike) = sigmoid(t)``.

    Raises:
        ValueError: if `lam` is not in [-1, 1] or `noise` is another.
    """

    lam: float = 0.5
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        _check(self.lam, self.noise)

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return iwst_weight(t, spikes, self.lam, self.noise)


def estimator_named(estimator: float | EstimatorName | Estimator, noise: Noise = "gaussian") -> Estimator:
    """IW-ST of that lambda, or the estimator of that name with its defaults; an `Estimator` passes through.

    Args:
        estimator: lambda in [-1, 1], or "straight_through" (lambda = 1), "reinmax" (0), "darn_mean" (-1), "agr",
            "gumbel_rao", "gumbel_straight_through".
        noise: the noise of an estimator that is not given as one.

    Raises:
        ValueError: if `estimator` is none of these.
    """
    from lightning_snn.functional import gumbel  # which builds on this module

    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str):
        named: dict[str, Callable[[], Estimator]] = {
            "straight_through": lambda: IWST(1.0, noise),
            "reinmax": lambda: IWST(0.0, noise),
            "darn_mean": lambda: IWST(-1.0, noise),
            "agr": lambda: gumbel.AnalyticalGumbelRao(noise=noise),
            "gumbel_rao": lambda: gumbel.GumbelRao(noise=noise),
            "gumbel_straight_through": lambda: gumbel.GumbelStraightThrough(noise=noise),
        }
        if estimator in named:
            return named[estimator]()
    elif isinstance(estimator, (int, float)) and not isinstance(estimator, bool) and -1 <= estimator <= 1:
        return IWST(float(estimator), noise)
    raise ValueError(
        "Expected argument `estimator` to be a number from -1 to 1, an Estimator or one of "
        f"{', '.join(map(repr, get_args(EstimatorName)))}, but got {estimator!r}"
    )


def noisy_spikes(t: Tensor, estimator: Estimator, generator: torch.Generator | None = None) -> Tensor:
    """Binary samples of noisy units, differentiable by an estimator.

    Args:
        t: standardized pre-activation ``(mean - threshold) / standard deviation``, any shape.
        estimator: gives the noise and the backward weight.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`.
    """
    if torch.is_grad_enabled():  # t.requires_grad would be False under vmap
        return _NoisySpikes.apply(t, estimator, generator)[0]
    return _samples(t, estimator.noise, generator)


def iwst(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian", generator: torch.Generator | None = None) -> Tensor:
    """Binary samples of noisy units, differentiable by IW-ST(lambda).

    Args:
        t: standardized pre-activation ``(mean - threshold) / standard deviation``, any shape.
        lam: lambda in [-1, 1]; see `iwst_weight`.
        noise: "gaussian", so that ``P(spike) = Phi(t)``, or "logistic", so that ``P(spike) = sigmoid(t)``.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`.

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """
    return noisy_spikes(t, IWST(lam, noise), generator)


def _samples(t: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
    wide = torch.promote_types(t.dtype, torch.float32)
    if noise == "gaussian":
        sample = torch.randn(t.shape, dtype=wide, device=t.device, generator=generator)
    else:
        sample = torch.rand(t.shape, dtype=wide, device=t.device, generator=generator).logit_()
    # compare the noise itself: no probability is computed, so none can round to 0 or 1
    return (sample > -t).to(t.dtype)


class _NoisySpikes(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, estimator: Estimator, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        spikes = _samples(t, estimator.noise, generator)
        return spikes, _weight(estimator, t, spikes, generator) if estimator.random else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        t, estimator, _ = inputs
        spikes, weight = output
        ctx.estimator = estimator
        if weight is None:
            ctx.save_for_backward(t, spikes)
        else:
            ctx.mark_non_differentiable(weight)
            ctx.save_for_backward(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
        if ctx.estimator.random:
            (weight,) = ctx.saved_tensors
        else:
            weight = _weight(ctx.estimator, *ctx.saved_tensors)
        return grad * weight, None, None


def _weight(estimator: Estimator, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    wide = torch.promote_types(t.dtype, torch.float32)
    return estimator.weight(t.to(wide), spikes, generator).to(t.dtype)
