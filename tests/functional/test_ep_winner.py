"""The winner-take-all factor: against the closed form of two outputs, against autograd, and far into the tails."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.ep import (
    WINNER_NOISE,
    bounded,
    winner_log_probabilities,
    winner_message,
)


def potentials(outputs: int, largest_variance: float, samples: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Means `[B, C]`, variances `[B, C]` and labels `[B]`, in float64."""
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(samples, outputs, generator=generator, dtype=torch.double)
    variance = largest_variance * torch.rand(samples, outputs, generator=generator, dtype=torch.double)
    return mean, variance, torch.randint(outputs, (samples,), generator=generator)


def log_evidence(mean: Tensor, variance: Tensor, labels: Tensor, noise_variance: float) -> Tensor:
    """The integral over the winner's noisy potential by the trapezoidal rule, with a graph to the means."""
    t = torch.linspace(-60, 60, 801, dtype=mean.dtype)  # exact to rounding for deviations above 1
    total = variance + noise_variance
    terms = torch.special.log_ndtr((t[:, None, None] - mean) / total.sqrt())
    own = torch.nn.functional.one_hot(labels, mean.shape[1]).bool()
    density = -0.5 * ((t[:, None, None] - mean) ** 2 / total + total.log() + math.log(2 * math.pi))
    return torch.where(own, density, terms).sum(2).logsumexp(0) + math.log(120 / 800)


@pytest.mark.parametrize(("outputs", "nodes", "tolerance"), [(2, 32, 2e-7), (10, 32, 2e-4), (10, 64, 1e-6)])
def test_message_has_the_derivatives_of_the_log_evidence(outputs, nodes, tolerance):
    mean, variance, labels = potentials(outputs, 2.0)
    mean.requires_grad_()
    exact = log_evidence(mean, variance, labels, WINNER_NOISE)
    (score,) = torch.autograd.grad(exact.sum(), mean, create_graph=True)
    second = [torch.autograd.grad(score[:, k].sum(), mean, retain_graph=True)[0][:, k] for k in range(outputs)]
    ours = winner_message(mean.detach(), variance, labels, nodes=nodes)
    torch.testing.assert_close(ours.log_evidence[:, 0], exact.detach(), rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.score, score.detach(), rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.curvature, -torch.stack(second, 1), rtol=0, atol=2 * tolerance)
    assert ours.curvature.min() >= 0
    # shifts of all potentials change nothing
    torch.testing.assert_close(ours.score.sum(1), 0 * exact.detach(), rtol=0, atol=outputs * tolerance)
    # another noise is another factor
    assert (winner_message(mean.detach(), variance, labels, 0.1).score - score).abs().max() > 0.1


def test_two_outputs_are_one_neuron_that_sees_their_difference():
    mean, variance, labels = potentials(2, 2.0, samples=200)
    z = (mean[:, 0] - mean[:, 1]) / (variance.sum(1) + 2 * WINNER_NOISE).sqrt()
    expected = torch.stack([torch.special.log_ndtr(z), torch.special.log_ndtr(-z)], 1)
    found = winner_log_probabilities(mean, variance)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    own = expected.gather(1, labels[:, None])
    torch.testing.assert_close(winner_message(mean, variance, labels).log_evidence, own, rtol=0, atol=1e-9)
    certain = winner_log_probabilities(mean, 0 * variance)
    probit = torch.special.log_ndtr((mean[:, 0] - mean[:, 1]) / (8 / math.pi) ** 0.5)
    torch.testing.assert_close(certain[:, 0], probit, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("nodes", "error"), [(32, 7e-3), (64, 1e-3)])
def test_quadratures_of_all_outputs_sum_to_nearly_one_and_probabilities_exactly(nodes, error):
    mean, variance, _ = potentials(10, 50.0, samples=100)
    sums = sum(winner_message(mean, variance, torch.full((100,), k), nodes=nodes).log_evidence.exp() for k in range(10))
    assert (sums - 1).abs().max() < error
    assert (sums - 1).abs().max() > 1e-6
    total = winner_log_probabilities(mean, variance, nodes=nodes).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


def test_probabilities_are_those_of_drawn_winners():
    draws = 40_000
    mean, variance, _ = potentials(4, 3.0, samples=3)
    torch.manual_seed(0)
    noise = torch.randn(draws, 3, 4, dtype=torch.double) * (variance + 0.5).sqrt()
    frequencies = torch.nn.functional.one_hot((mean + noise).argmax(2), 4).double().mean(0)
    assert (winner_log_probabilities(mean, variance, 0.5).exp() - frequencies).abs().max() < 5 * 0.5 / draws**0.5


@pytest.mark.parametrize("scale", [30.0, 1e3])
@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_float32_is_safe_far_from_the_label(scale, variance):
    mean, _, labels = potentials(10, 1.0, samples=100)
    mean, spread = (scale * mean).float(), torch.full((100, 10), variance)
    message = bounded(winner_message(mean, spread, labels), spread)
    assert all(values.isfinite().all() for values in message[:3])
    assert message.curvature.min() >= 0
    assert winner_log_probabilities(mean, spread).isfinite().all()
    # every score pulls the label up and the others down
    assert (message.score.gather(1, labels[:, None]) >= 0).all()
    assert (message.score.scatter(1, labels[:, None], 0.0) <= 0).all()


def test_the_joint_curvature_scaled_by_its_diagonal_is_at_most_two():
    """So steps of a share below 1 of the parallel update of all outputs do not overshoot."""
    for outputs, least in ((2, 1.9999), (4, 1.4)):
        mean, variance, labels = potentials(outputs, 2.0)
        for sample in range(4):
            here = slice(sample, sample + 1)
            joint = torch.autograd.functional.hessian(
                lambda means, v=variance[here], y=labels[here]: -log_evidence(means, v, y, WINNER_NOISE).sum(),
                mean[here],
            )[0, :, 0]
            scale = joint.diagonal().rsqrt()
            largest = torch.linalg.eigvalsh(scale[:, None] * joint * scale).max()
            assert least < largest <= 2 + 1e-6
