"""Base class of gradient estimators of noisy binary units, and differentiable samples of these units."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.functional.draws import normal_like, uniform_like
from lightning_snn.functional.gaussian import LOG_SQRT_2PI
from lightning_snn.functional.surrogate import propagate_nan

Noise = Literal["gaussian", "logistic"]

# at this |t| the less probable sample has probability 6e-16; beyond it, the formulas only lose precision
SATURATED = {"gaussian": 8.0, "logistic": 35.0}


def saturated(t: Tensor, noise: Noise) -> Tensor:
    """Return a copy of `t`, clamped so that both samples have a probability of at least 6e-16."""
    bound = SATURATED[noise]
    return t.clamp(-bound, bound)


def toward_sample(t: Tensor, spikes: Tensor) -> Tensor:
    """Return ``t / 2`` for units that spiked and ``-t / 2`` for others, in a new tensor."""
    return torch.mul(spikes, t).sub_(t, alpha=0.5)


def density_(t: Tensor, noise: Noise) -> Tensor:
    """Compute the density ``F'(t)`` of the noise in place."""
    if noise == "gaussian":
        return t.mul_(t).mul_(-0.5).sub_(LOG_SQRT_2PI).exp_()
    tail = t.abs_().neg_().sigmoid_()
    return tail.mul_(1 - tail)


class Estimator:
    """Base class of gradient estimators of noisy binary units: hard samples forward, weighted gradients backward.

    To add an estimator, write a frozen dataclass with a field `noise` that defines `weight`.

    Attributes:
        noise: distribution of the noise, "gaussian" or "logistic".
        random: whether the weight is random. A random weight is computed in the forward pass.
    """

    noise: Noise
    random: ClassVar[bool] = False

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the weight, the ratio of the gradient of `t` to the gradient of the samples.

        Args:
            t: standardized pre-activation, float32 or float64, any shape. Weights are finite for any finite value.
            spikes: samples in {0, 1}, of the same shape.
            generator: source of randomness of a `random` estimator; None is torch's default.

        Returns:
            weights ``w(x, t)`` of the shape and dtype of `t`, a new tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no weight")


def noisy_spikes(t: Tensor, estimator: Estimator, generator: torch.Generator | None = None) -> Tensor:
    """Sample noisy binary units, with gradients by an estimator.

    Args:
        t: standardized pre-activation ``(mean - threshold) / standard deviation``, any shape.
        estimator: estimator that defines the noise and the backward weight.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`; NaN where `t` is NaN.

    Example:
        >>> from lightning_snn.functional import IWST
        >>> t = torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
        >>> noisy_spikes(t, IWST(lam=1.0), torch.Generator().manual_seed(0)).sum().backward()
        >>> t.grad
        tensor([5.0523e-15, 3.9894e-01, 5.0523e-15])
    """
    if torch.is_grad_enabled():  # t.requires_grad would be False under vmap
        spikes: Tensor = _NoisySpikes.apply(t, estimator, generator)[0]
        return spikes
    return _samples(t, estimator.noise, generator)


def _samples(t: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
    wide = torch.promote_types(t.dtype, torch.float32)
    if noise == "gaussian":
        sample = normal_like(t, wide, generator)
    else:
        sample = uniform_like(t, wide, generator).logit_()
    # compare the noise instead of a probability, which could round to 0 or 1
    return propagate_nan((sample > -t).to(t.dtype), t)


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
