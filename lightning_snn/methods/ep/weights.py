"""Families of weight distributions: moments from natural parameters, and updates by a batch.

Every weight has a distribution ``q(w)`` proportional to ``base(w) exp(h w - P w^2 / 2)`` with natural parameters
``P`` (precision) and ``h`` (precision times mean). Sites of batches are added to and subtracted from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep import Message, Potential, gaussian_sites, quantized_moments, quantized_sites
from lightning_snn.functional.linear_maps import LinearMap
from lightning_snn.functional.scalars import values_like
from lightning_snn.functional.surrogate import propagate_nan

WeightName = Literal["gaussian", "sign", "binary", "categorical"]
WEIGHTS: tuple[WeightName, ...] = ("gaussian", "sign", "binary", "categorical")

# largest change of a weight's log-odds in one iteration; beyond it, the expansion behind the step does not hold
_LARGEST_STEP = 1.0


class Natural(NamedTuple):
    """Natural parameters of the weights.

    Attributes:
        precision: precisions P, `[O, I]`.
        precision_mean: precisions times means, h, `[O, I]`.

    Example:
        >>> natural = Natural(torch.full((3, 5), 4.0), torch.full((3, 5), 2.0))
        >>> (natural.precision_mean / natural.precision).unique()
        tensor([0.5000])
    """

    precision: Tensor
    precision_mean: Tensor


class Observation(NamedTuple):
    """Messages of a batch to a layer.

    Attributes:
        x: means of the inputs, `[B, ...]`.
        variance: variances of the inputs, `[B, ...]`; None for known inputs.
        potential: Gaussian potentials.
        message: messages to the potentials.
        moments: means and variances `[O, I]` of the present weights; None computes them.
    """

    x: Tensor
    variance: Tensor | None
    potential: Potential
    message: Message
    moments: tuple[Tensor, Tensor] | None = None


class GaussianWeights:
    """Gaussian weights ``N(0, v)``, whose prior means are drawn once with a share f of the variance.

    With all means at 0 the hidden units of a layer would always receive the same messages. The split prior
    ``m0 ~ N(0, f v)``, ``w ~ N(m0, (1 - f) v)`` is still ``N(0, v)`` in total.

    Args:
        variance: v, larger than 0.
        split: f, in [0, 1).

    Example:
        >>> weights = GaussianWeights(variance=2.0, split=0.5)
        >>> mean, variance = weights.moments(weights.prior(torch.empty(3, 5)))
        >>> variance.unique()
        tensor([1.])
    """

    def __init__(self, variance: float, split: float) -> None:
        self.variance, self.split = variance, split

    def prior(self, like: Tensor) -> Natural:
        """Return the natural parameters of the prior, drawn with torch's generator."""
        mean = torch.randn_like(like) * (self.split * self.variance) ** 0.5
        precision = torch.full_like(like, 1 / ((1 - self.split) * self.variance))
        return Natural(precision, precision * mean)

    def moments(self, natural: Natural) -> tuple[Tensor, Tensor]:
        """Return means and variances `[O, I]`."""
        variance = natural.precision.reciprocal()
        return natural.precision_mean * variance, variance

    def draw(self, natural: Natural) -> Tensor:
        """Sample weights `[O, I]` with torch's generator."""
        mean, variance = self.moments(natural)
        return mean + variance.sqrt() * torch.randn_like(mean)

    def step(
        self,
        linear: LinearMap,
        observation: Observation,
        natural: Natural,
        cavity: Natural,
        damping: Tensor,
        solver_iterations: int,
    ) -> Natural:
        """Return the damped step toward cavity times messages: its exact mean, and the messages' curvature."""
        mean, _ = self.moments(natural) if observation.moments is None else observation.moments
        solved, site = gaussian_sites(
            linear,
            observation.x,
            observation.variance,
            observation.potential,
            observation.message,
            cavity,
            mean,
            solver_iterations,
        )
        precision = torch.lerp(natural.precision, site.add_(cavity.precision), damping)
        return Natural(precision, torch.lerp(mean, solved, damping).mul_(precision))

    def squared_distance(self, natural: Natural, other: Natural) -> Tensor:
        """Return the squared distance of `other` from `natural`, `[O, I]`, in squared standard deviations.

        The metric is that of Fisher information, ``(dm^2 + ds^2 / (2 s)) / s`` for means m and variances s.
        """
        precision_change = (other.precision / natural.precision).sub_(1)
        mean_change = (other.precision_mean / other.precision).addcdiv_(
            natural.precision_mean, natural.precision, value=-1
        )
        return mean_change.square_().mul_(natural.precision).add_(precision_change.square_(), alpha=0.5)

    def __repr__(self) -> str:
        return f"GaussianWeights(variance={self.variance:g}, split={self.split:g})"


class LevelWeights:
    """Discrete weights with a few levels of equal prior probability; biases are Gaussian.

    Args:
        levels: the values `[K]` of a weight in ascending order, K at least 2.
        jitter: half the standard deviation of the initial log-odds between the extreme levels. Hidden units that start
            with equal weights would keep them.
        bias_variance: prior variance of the bias in the last column; None for layers without bias.

    Example:
        >>> weights = LevelWeights([-1.0, 1.0], jitter=0.0, bias_variance=None)
        >>> mean, variance = weights.moments(weights.prior(torch.empty(3, 5)))
        >>> mean.unique(), variance.unique()
        (tensor([0.]), tensor([1.]))
    """

    def __init__(self, levels: Sequence[float], jitter: float, bias_variance: float | None) -> None:
        self.levels, self.jitter, self.bias_variance = tuple(levels), jitter, bias_variance

    @property
    def amplitude(self) -> float:
        """Half the distance between the extreme levels."""
        return (self.levels[-1] - self.levels[0]) / 2

    def prior(self, like: Tensor) -> Natural:
        """Return the natural parameters of the prior, drawn with torch's generator."""
        precision, precision_mean = torch.zeros_like(like), torch.randn_like(like) * (self.jitter / self.amplitude)
        if self.bias_variance is not None:
            precision[:, -1], precision_mean[:, -1] = 1 / self.bias_variance, 0.0
        return Natural(precision, precision_mean)

    def moments(self, natural: Natural) -> tuple[Tensor, Tensor]:
        """Return means and variances `[O, I]`."""
        mean, variance, _ = self._moments(natural)
        return mean, variance

    def most_probable(self, natural: Natural) -> tuple[Tensor, Tensor]:
        """Return the most probable levels, with variance 0; a bias keeps its mean and variance."""
        mean, variance = self._moments(natural)[:2]
        levels = values_like(self.levels, mean)
        best = self._log_probabilities(natural, levels).max(-1)
        chosen = propagate_nan(levels[best.indices], best.values)
        certain = torch.zeros_like(chosen)
        return (
            (chosen, certain)
            if self.bias_variance is None
            else (torch.cat([chosen, mean[:, -1:]], 1), torch.cat([certain, variance[:, -1:]], 1))
        )

    def draw(self, natural: Natural) -> Tensor:
        """Sample weights `[O, I]` with torch's generator."""
        levels = values_like(self.levels, natural.precision)
        probabilities = self._log_probabilities(natural, levels).softmax(-1)
        chosen = torch.multinomial(probabilities.flatten(0, 1), 1).view(probabilities.shape[:-1])
        if self.bias_variance is None:
            return levels[chosen]
        mean, variance, _ = _gaussian(*(values[:, -1:] for values in natural))
        return torch.cat([levels[chosen], mean + variance.sqrt() * torch.randn_like(mean)], 1)

    def step(
        self,
        linear: LinearMap,
        observation: Observation,
        natural: Natural,
        cavity: Natural,
        damping: Tensor,
        solver_iterations: int,
    ) -> Natural:
        """Return the damped step toward cavity times messages; the change of log-odds is bounded."""
        moments = self._moments(natural)
        limit = torch.full_like(natural.precision[:1], _LARGEST_STEP / self.amplitude)
        if self.bias_variance is not None:
            limit[:, -1] = torch.inf
        moved = quantized_sites(
            linear,
            observation.x,
            observation.variance,
            observation.potential,
            observation.message,
            cavity,
            natural,
            moments,
            damping,
            limit,
            solver_iterations,
        )
        return Natural(*moved)

    def squared_distance(self, natural: Natural, other: Natural) -> Tensor:
        """Return the squared distance of the means of `other` from those of `natural`, `[O, I]`, in its variances.

        To first order in the change of the natural parameters, without the cancellation in means near a level.
        """
        _, variance, center = self._moments(natural)
        precision, precision_mean = (after - before for after, before in zip(other, natural, strict=True))
        return variance * (precision_mean - center * precision).square()

    def _moments(self, natural: Natural) -> tuple[Tensor, Tensor, Tensor]:
        levels = values_like(self.levels, natural.precision)
        uniform = torch.zeros_like(levels)
        if self.bias_variance is None:
            return quantized_moments(uniform, levels, *natural)
        weights = quantized_moments(uniform, levels, *(values[:, :-1] for values in natural))
        bias = _gaussian(*(values[:, -1:] for values in natural))
        mean, variance, center = (torch.cat(parts, 1) for parts in zip(weights, bias, strict=True))
        return mean, variance, center

    def _log_probabilities(self, natural: Natural, levels: Tensor) -> Tensor:
        """Return the log-probability of each level up to a constant, `[O, I, K]`, without the column of the bias."""
        end = None if self.bias_variance is None else -1
        precision, precision_mean = (values[:, :end, None] for values in natural)
        return levels * (precision_mean - 0.5 * levels * precision)

    def __repr__(self) -> str:
        return f"LevelWeights(levels={self.levels})"


def _gaussian(precision: Tensor, precision_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    variance = precision.reciprocal()
    mean = precision_mean * variance
    return mean, variance, mean
