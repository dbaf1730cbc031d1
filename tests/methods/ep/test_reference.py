"""Local message passing of dense probit networks, against the equations written out with dense solves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_snn.methods.ep import Natural
from tests.methods.ep.task import dense, digits, prepared, updated

NOISE = 8 / math.pi


def tilted(mean: Tensor, variance: Tensor, p_spike: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and curvature of the log evidence of a neuron whose spike has probability `p_spike` by other messages."""
    z = mean / (variance + NOISE).sqrt()
    evidence = p_spike * torch.special.ndtr(z) + (1 - p_spike) * torch.special.ndtr(-z)
    ratio = (2 * p_spike - 1) * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) / evidence
    curvature = ratio * (ratio + z) / (variance + NOISE)
    return ratio / (variance + NOISE).sqrt(), curvature.clamp(min=0).minimum(0.999 / variance)


def own_score(uncorrected: Tensor, weights: Tensor, variance: Tensor, p_spike: Tensor) -> Tensor:
    """The score whose subtraction from the potential leaves a potential of that score, by bisection."""
    low, high = torch.full_like(uncorrected, -3.0), torch.full_like(uncorrected, 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = middle > tilted(uncorrected - weights * middle, variance, p_spike)[0]
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def precision_of_samples(inputs: Tensor, weights: Tensor, curvature: Tensor) -> Tensor:
    """Return what a sample adds to each weight's precision, per squared input: others, without this sample, and noise.

    With k equal shares, a variance V of the potential without this sample and t from elsewhere, this is
    1 / (t + (1 - 1 / k) V), and V less what the sample tells, V^2 / (k (V + t)), is the variance with the sample.
    """
    elsewhere = 1 / curvature.clamp(min=1e-200) - weights
    others = 1 - (inputs**4).sum(1, keepdim=True) / (inputs**2).sum(1, keepdim=True) ** 2
    apart = elsewhere - weights
    without = 2 * weights * elsewhere / (apart + (apart**2 + 4 * others * weights * elsewhere).sqrt())
    inverse = elsewhere + others * without
    return torch.where(curvature > 1e-150, 1 / inverse, 0)


def log_odds_to_inputs(seen: tuple[Tensor, ...], mean: Tensor, precision: Tensor, message: tuple[Tensor, Tensor]):
    inputs, (score, curvature) = seen[0], message
    log_odds = score @ mean + (inputs - 0.5) * (curvature @ mean**2)
    return (log_odds + 0.5 * (score**2 - curvature) @ (1 / precision))[:, :-1]


def potentials(
    x: Tensor, means: list[Tensor], precisions: list[Tensor], scores: list[Tensor | float]
) -> list[tuple[Tensor, ...]]:
    seen = []
    p, spread = x, torch.zeros_like(x)
    for mean, precision, score in zip(means, precisions, scores, strict=True):
        inputs = torch.cat([p, torch.ones_like(p[:, :1])], 1)
        noise = torch.cat([spread, torch.zeros_like(p[:, :1])], 1)
        weights = inputs**2 @ (1 / precision).T
        variance = weights + noise @ (mean**2 + 1 / precision).T
        potential = inputs @ mean.T - weights * score
        seen.append((inputs, noise, weights, variance, potential))
        p = torch.special.ndtr(potential / (variance + NOISE).sqrt())
        spread = p * (1 - p)
    return seen


def reference(
    cavities: list[Natural],
    x: Tensor,
    y: Tensor,
    iterations: int,
    damping: float,
    start: list[Natural] | None = None,
    exact: bool = True,
) -> list[Natural]:
    """One batch, every matrix in full; not `exact` is one step of conjugate gradients in place of each solution."""
    first = cavities if start is None else start
    means = [natural.precision_mean / natural.precision for natural in first]
    precisions = [natural.precision.clone() for natural in first]
    observed = torch.nn.functional.one_hot(y, len(means[-1])).to(x.dtype)
    scores: list[Tensor | float] = [0.0 for _ in cavities]
    if start is not None:
        p_spike = observed
        seen = potentials(x, means, precisions, scores)
        for index in reversed(range(len(means))):
            _, _, weights, variance, potential = seen[index]
            scores[index] = own_score(potential, weights, variance, p_spike)
            message = tilted(potential - weights * scores[index], variance, p_spike)
            p_spike = torch.sigmoid(log_odds_to_inputs(seen[index], means[index], precisions[index], message))
    for _ in range(iterations):
        seen = potentials(x, means, precisions, scores)
        p_spike = observed
        for index in reversed(range(len(means))):
            inputs, noise, weights, variance, potential = seen[index]
            mean, precision, cavity = means[index], precisions[index], cavities[index]
            score, curvature = tilted(potential, variance, p_spike)
            p_spike = torch.sigmoid(log_odds_to_inputs(seen[index], mean, precision, (score, curvature)))
            site = curvature / (1 - weights * curvature)
            pull = site * potential + score * (1 + weights * site)
            ridge = ((curvature - score**2).T @ noise).clamp(min=0)
            wanted = cavity.precision + ridge + precision_of_samples(inputs, weights, curvature).T @ inputs**2
            solved = torch.empty_like(mean)
            for o in range(len(mean)):
                matrix = torch.diag(cavity.precision[o] + ridge[o]) + inputs.T @ (site[:, o, None] * inputs)
                right = cavity.precision_mean[o] + inputs.T @ pull[:, o]
                if exact:
                    solved[o] = torch.linalg.solve(matrix, right)
                else:
                    residual = right - matrix @ mean[o]
                    direction = residual / wanted[o]
                    solved[o] = mean[o] + (residual @ direction) / (direction @ matrix @ direction) * direction
            means[index] = mean + damping * (solved - mean)
            precisions[index] = precision + damping * (wanted - precision)
            share = damping if index == len(means) - 1 else 1.0
            scores[index] = scores[index] + share * (score - scores[index])
    return [Natural(precision, precision * mean) for mean, precision in zip(means, precisions, strict=True)]


def assert_alike(found: list[Natural], expected: list[Natural], before: list[Natural], tolerance: float = 1e-3) -> None:
    """The parameters of each layer agree to a share of the largest move."""
    for one, other, start in zip(found, expected, before, strict=True):
        for values, wanted, first in zip(one, other, start, strict=True):
            largest = (values - first).abs().max()
            assert largest > 0.05
            assert (values - wanted).abs().max() < tolerance * largest


@pytest.mark.parametrize("sizes", [(12, 3), (12, 6, 3), (12, 6, 4, 3)])
def test_messages_are_those_of_the_equations_written_out(sizes):
    x, y = digits(40, 12)
    network = prepared(dense(*sizes))
    cavities = [block.layer.natural for block in network.chain.blocks]
    found = updated(network, x, y, 8, 0.4, 60).natural
    assert_alike(found, reference(cavities, x, y, 8, 0.4), cavities)


@pytest.mark.parametrize("sizes", [(12, 3), (12, 6, 3), (12, 6, 4, 3)])
def test_messages_of_a_returning_batch_are_those_of_the_equations_written_out(sizes):
    x, y = digits(40, 12)
    network = prepared(dense(*sizes))
    cavities = [block.layer.natural for block in network.chain.blocks]
    start = updated(network, x, y, 2, 0.4, 60).natural
    found = updated(network, x, y, 3, 0.4, 60, cavities, start).natural
    assert_alike(found, reference(cavities, x, y, 3, 0.4, start), start)


@pytest.mark.parametrize("sizes", [(12, 3), (12, 6, 3)])
def test_steps_of_one_solver_iteration_are_those_written_out_to_rounding(sizes):
    x, y = digits(40, 12)
    network = prepared(dense(*sizes))
    cavities = [block.layer.natural for block in network.chain.blocks]
    found = updated(network, x, y, 3, 0.4, 1).natural
    assert_alike(found, reference(cavities, x, y, 3, 0.4, exact=False), cavities, 1e-10)
    again = updated(network, x, y, 1, 1.0, 1, cavities, found).natural
    assert_alike(again, reference(cavities, x, y, 1, 1.0, found, exact=False), found, 1e-8)
