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


def reference(cavities: list[Natural], x: Tensor, y: Tensor, iterations: int, damping: float) -> list[Natural]:
    """One batch, every matrix in full."""
    means = [cavity.precision_mean / cavity.precision for cavity in cavities]
    precisions = [cavity.precision.clone() for cavity in cavities]
    scores: list[Tensor | float] = [0.0 for _ in cavities]
    for _ in range(iterations):
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
        p_spike = torch.nn.functional.one_hot(y, len(means[-1])).to(x.dtype)
        for index in reversed(range(len(means))):
            inputs, noise, weights, variance, potential = seen[index]
            mean, precision, cavity = means[index], precisions[index], cavities[index]
            score, curvature = tilted(potential, variance, p_spike)
            log_odds = score @ mean + (inputs - 0.5) * (curvature @ mean**2)
            log_odds = log_odds + 0.5 * (score**2 - curvature) @ (1 / precision)
            p_spike = torch.sigmoid(log_odds[:, :-1])
            site = curvature / (1 - weights * curvature)
            pull = site * potential + score * (1 + weights * site)
            ridge = ((curvature - score**2).T @ noise).clamp(min=0)
            solved = torch.stack(
                [
                    torch.linalg.solve(
                        torch.diag(cavity.precision[o] + ridge[o]) + inputs.T @ (site[:, o, None] * inputs),
                        cavity.precision_mean[o] + inputs.T @ pull[:, o],
                    )
                    for o in range(len(mean))
                ]
            )
            wanted = cavity.precision + ridge + curvature.T @ inputs**2
            means[index] = mean + damping * (solved - mean)
            precisions[index] = precision + damping * (wanted - precision)
            scores[index] = score
    return [Natural(precision, precision * mean) for mean, precision in zip(means, precisions, strict=True)]


@pytest.mark.parametrize("sizes", [(12, 3), (12, 6, 3), (12, 6, 4, 3)])
def test_messages_are_those_of_the_equations_written_out(sizes):
    x, y = digits(40, 12)
    network = prepared(dense(*sizes))
    cavities = [block.layer.natural for block in network.chain.blocks]
    found = updated(network, x, y, 8, 0.4, 60).natural
    for one, other, cavity in zip(found, reference(cavities, x, y, 8, 0.4), cavities, strict=True):
        moved = (one.precision - cavity.precision).abs().max(), (one.precision_mean - cavity.precision_mean).abs().max()
        for values, expected, largest in zip(one, other, moved, strict=True):
            assert largest > 0.1
            assert (values - expected).abs().max() < 1e-3 * largest
