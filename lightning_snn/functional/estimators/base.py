"""Base of the gradient estimators of a noisy binary unit, and the samples that they differentiate."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.functional.gaussian import LOG_SQRT_2PI

Noise = Literal["gaussian", "logistic"]

# where the rarer of the two samples has probability 6e-16: farther out, formulas only lose digits
_SATURATED = {"gaussian": 8.0, "logistic": 35.0}


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
        return t.mul_(t).mul_(-0.5).sub_(LOG_SQRT_2PI).exp_()
    rarer = t.abs_().neg_().sigmoid_()
    return rarer.mul_(1 - rarer)


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
