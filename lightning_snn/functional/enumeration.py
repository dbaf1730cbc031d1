r"""Exact bias and variance of gradient estimators, by enumeration of all joint states of a small noisy network.

With n binary units the expected loss is a finite sum over the 2^n states x, whose probabilities are products of
``P(x_i | t_i)``. Nothing is sampled:

.. math::
    \text{truth} = \nabla \sum_x P(x)\,L(x), \qquad
    \text{mean} = \sum_x P(x)\,g(x), \qquad
    \text{variance} = \sum_x P(x)\,[g(x) - \text{mean}]^2 ,

where g(x) is one backward pass at the state x with the estimator's weight in place of the derivative of a spike.
Cost: three runs of the network for each of 2^n states. Use it to compare estimators, not for training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.functional.estimators import Estimator, EstimatorName, Noise, estimator_named
from lightning_snn.functional.gaussian import normal_cdf

Spike = Callable[[Tensor], Tensor]
Program = Callable[[Spike, dict[str, Tensor]], Tensor]

_MAX_UNITS = 20


@dataclass(frozen=True)
class GradientStatistics:
    """Exact statistics of an estimated gradient, by name of the input.

    Args:
        truth: gradient of the expected loss.
        mean: mean of the estimate over all states.
        variance: elementwise variance of the estimate from one sample.
        probability: total probability of all states. Its distance from 1 indicates the rounding error of the others.
    """

    truth: dict[str, Tensor]
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    probability: float

    def relative_bias(self, name: str | None = None) -> float:
        """Return ``|mean - truth| / |truth|`` of one input, or of all as one vector; nan or inf if the truth is 0."""
        return _ratio(self._all(self.mean, name) - self._all(self.truth, name), self._all(self.truth, name))

    def relative_deviation(self, name: str | None = None) -> float:
        """Return ``sqrt(E |g - mean|^2) / |truth|`` of the one-sample estimate g; nan or inf if the truth is 0."""
        return _ratio(self._all(self.variance, name).sqrt(), self._all(self.truth, name))

    def cosine(self, name: str | None = None) -> float:
        """Return the cosine of the angle between mean and truth, in [-1, 1]; nan if one of them is 0."""
        mean, truth = self._all(self.mean, name), self._all(self.truth, name)
        return float(mean @ truth / (mean.norm() * truth.norm()))

    def _all(self, tensors: dict[str, Tensor], name: str | None) -> Tensor:
        chosen: Iterable[Tensor] = tensors.values() if name is None else (tensors[name],)
        return torch.cat([tensor.flatten() for tensor in chosen])


def gradient_statistics(
    program: Program,
    inputs: Mapping[str, Tensor],
    estimator: float | EstimatorName | Estimator = 0.5,
    noise: Noise = "gaussian",
    states_at_once: int = 4096,
) -> GradientStatistics:
    """Compute the exact bias, variance and cosine of an estimator of the gradient of an expected loss.

    Args:
        program: function ``program(spike, inputs) -> loss`` of torch operations. It calls ``x = spike(t)`` for each
            group of its noisy units, such as each layer and time step, and returns a scalar. t is a standardized
            pre-activation of any shape and x are its samples. The program runs under `torch.vmap`: it must not branch
            on values, write in place to tensors that it creates before its first spike, or use other noise.
        inputs: tensors to differentiate with respect to, by name. Use float64.
        estimator: lambda of IW-ST, a name or an `Estimator`; see `estimator_named`. Its weight must not be random. The
            mean of Gumbel-Rao and of the Gumbel straight-through estimator is that of `AnalyticalGumbelRao`.
        noise: "gaussian" or "logistic"; ignored if `estimator` is an `Estimator`.
        states_at_once: number of states held in memory at a time.

    Returns:
        truth, mean and variance for each input.

    Raises:
        ValueError: if the program has no noisy unit or more than 20, or does not return a scalar; if the weight of the
            estimator is random; if there are no inputs, or one does not have a floating dtype.

    A layer of two noisy units and a quadratic loss, which IW-ST(0) estimates without bias:

    >>> def program(spike, inputs):
    ...     return (spike(inputs["t"]).sum() - 0.3) ** 2
    >>> t = torch.tensor([0.5, -1.0], dtype=torch.float64)
    >>> gradient_statistics(program, {"t": t}, 0.0).relative_bias() < 1e-12
    True
    >>> gradient_statistics(program, {"t": t}, 1.0).relative_bias() > 0.1
    True

    Two LIF neurons over T = 3 steps, whose six spikes make 64 states; the reset carries gradients through time:

    >>> def lif(spike, inputs):
    ...     membrane, count = 0.0, 0.0
    ...     for current in inputs["weight"] @ torch.ones(3, 2, 1, dtype=torch.float64):  # [T, N, 1]
    ...         membrane = 0.9 * membrane + current
    ...         spikes = spike((membrane - 1.0) / 0.5)
    ...         membrane, count = membrane - spikes, count + spikes
    ...     return ((count - 1.0) ** 2).sum()
    >>> weight = torch.eye(2, dtype=torch.float64)
    >>> gradient_statistics(lif, {"weight": weight}, 1.0).cosine("weight") > 0.9
    True
    """
    estimator = estimator_named(estimator, noise)
    if estimator.random:
        raise ValueError(
            f"Expected argument `estimator` to have weights that are not random, but got {estimator!r}. "
            "For the mean of Gumbel estimators use AnalyticalGumbelRao"
        )
    check_integer("states_at_once", states_at_once)
    if not inputs or not all(tensor.is_floating_point() for tensor in inputs.values()):
        found = {name: tensor.dtype for name, tensor in inputs.items()}
        raise ValueError(f"Expected argument `inputs` to hold tensors of a floating dtype, but got {found}")
    given = {name: tensor.detach() for name, tensor in inputs.items()}
    units, device = _count_units(program, given)
    shifts = torch.arange(units, device=device)

    def weighted_loss(at: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``P(x) L(x)``, whose gradient summed over states is the truth, and P(x)."""
        source = _ForcedSpikes(state, estimator)
        loss = program(source.constant, at)
        return source.probability * loss, source.probability

    def surrogate_loss(at: dict[str, Tensor], state: Tensor) -> Tensor:
        return program(_ForcedSpikes(state, estimator).differentiable, at)

    def total(at: dict[str, Tensor], states: Tensor) -> tuple[Tensor, Tensor]:
        losses, probabilities = torch.func.vmap(weighted_loss, (None, 0))(at, states)
        return losses.sum(), probabilities

    true_gradient = torch.func.grad(total, has_aux=True)
    estimates = torch.func.vmap(torch.func.grad(surrogate_loss), (None, 0))
    truth, mean, squares = ({name: torch.zeros_like(x) for name, x in given.items()} for _ in range(3))
    mass = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, 2**units, states_at_once):
        numbers = torch.arange(start, min(start + states_at_once, 2**units), device=device)
        states = (numbers[:, None] >> shifts) & 1
        slopes, probabilities = true_gradient(given, states)
        gradients = estimates(given, states)
        here = probabilities.sum()
        mass = mass + here
        for name in given:
            truth[name] += slopes[name]
            _merge(mean[name], squares[name], gradients[name], probabilities, here / mass)
    variance = {name: square / mass.to(square.dtype) for name, square in squares.items()}
    return GradientStatistics(truth, mean, variance, float(mass))


def _merge(mean: Tensor, squares: Tensor, gradients: Tensor, probabilities: Tensor, share: Tensor) -> None:
    """Update the running mean and sum of squares about it with weighted `gradients` (Chan et al. 1979).

    Sums of squares about zero would cancel for an estimator of small variance.
    """
    here = probabilities.sum()
    chunk_mean = torch.tensordot(probabilities, gradients, 1) / here
    step = chunk_mean - mean
    mean += step * share
    squares += torch.tensordot(probabilities, (gradients - chunk_mean).square_(), 1)
    squares += step.square() * (here * (1 - share))


class _ForcedSpikes:
    """Replacement of the sampler that returns the bits of one state, group by group."""

    def __init__(self, state: Tensor, estimator: Estimator) -> None:
        self.state, self.estimator = state, estimator
        self.used = 0
        self.probability: Tensor = torch.ones((), device=state.device)

    def constant(self, t: Tensor) -> Tensor:
        """Return the next bits, and multiply `probability` by their probability as a function of t."""
        spikes = self._next(t)
        toward = torch.where(spikes > 0, t, -t)
        probabilities = normal_cdf(toward) if self.estimator.noise == "gaussian" else torch.sigmoid(toward)
        self.probability = self.probability * probabilities.prod()
        return spikes

    def differentiable(self, t: Tensor) -> Tensor:
        """Return the next bits, with the estimator's weight as their derivative."""
        spikes, constant = self._next(t), t.detach()
        return spikes + (t - constant) * self.estimator.weight(constant, spikes)

    def _next(self, t: Tensor) -> Tensor:
        bits = self.state[self.used : self.used + t.numel()]
        self.used += t.numel()
        return bits.reshape(t.shape).to(t.dtype)


def _count_units(program: Program, inputs: dict[str, Tensor]) -> tuple[int, torch.device]:
    units, device = 0, torch.device("cpu")

    def count(t: Tensor) -> Tensor:
        nonlocal units, device
        units, device = units + t.numel(), t.device
        return torch.zeros_like(t)

    with torch.no_grad():
        loss = program(count, inputs)
    if not 0 < units <= _MAX_UNITS:
        raise ValueError(
            f"Expected argument `program` to have from 1 to {_MAX_UNITS} noisy units over all layers and time steps, "
            f"but got {units}"
        )
    if loss.numel() != 1 or loss.ndim:
        raise ValueError(f"Expected argument `program` to return a scalar loss, but got shape {tuple(loss.shape)}")
    return units, device


def _ratio(one: Tensor, other: Tensor) -> float:
    return float(one.norm() / other.norm())
