"""Residual blocks without normalization, and noise of a fixed size."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.methods.bayes import BayesConv2d, BayesLinear
from lightning_snn.nn import LIF, GaussianNoise, MembraneResidual, Moments, Sign, posterior_noise


class Constant(nn.Module):
    """A branch that returns the same activation for any input."""

    def __init__(self, value) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def activation(*shape: int) -> Moments:
    return Moments(torch.randn(shape), torch.rand(shape) + 0.1)


def test_means_and_variances_add():
    x, increment = activation(3, 4), activation(3, 4)
    y = MembraneResidual(Constant(increment))(x)
    assert torch.equal(y.expectation, x.expectation + increment.expectation)
    assert torch.equal(y.variance, x.variance + increment.variance)


def test_a_known_stream_takes_the_variance_of_its_increment():
    x, increment = torch.randn(3, 4), activation(3, 4)
    for y in (MembraneResidual(Constant(increment))(x), MembraneResidual(Constant(x))(increment)):
        assert torch.equal(y.expectation, x + increment.expectation)
        assert torch.equal(y.variance, increment.variance)


def test_without_noise_the_block_is_the_plain_sum():
    branch, shortcut = nn.Sequential(Sign(), nn.Linear(4, 6)), nn.Linear(4, 6, bias=False)
    x = torch.randn(3, 4)
    assert torch.equal(MembraneResidual(branch, shortcut)(x), shortcut(x) + branch(x))
    assert torch.equal(MembraneResidual(branch[0])(x), x + Sign()(x))


def test_the_neurons_of_the_branch_receive_the_stream_with_its_noise():
    seen = []
    block = MembraneResidual(nn.Sequential(Sign(), BayesLinear(4, 4)))
    x = activation(500, 4)
    with posterior_noise(1.0, observe=lambda layer, t: seen.append((layer, t))):
        y = block(x)
    assert seen[0][0] is block.branch[0]
    torch.testing.assert_close(seen[0][1], x.expectation / (x.variance + 1e-8).sqrt())
    # signs are squared to 1: every row gains the same variance
    gained = block.branch[1].variances()[0].sum(1) + block.branch[1].variances()[1]
    torch.testing.assert_close(y.variance - x.variance, gained.expand(500, 4))


def test_a_strided_shortcut_carries_mean_and_variance():
    shortcut = nn.Sequential(nn.AvgPool2d(2), BayesConv2d(2, 3, 1))
    block = MembraneResidual(nn.Sequential(LIF(), BayesConv2d(2, 3, 3, 2, 1)), shortcut)
    with posterior_noise():
        y = run(block, torch.randn(2, 3, 2, 4, 4))
        assert isinstance(y, Moments)
        stream = activation(5, 2, 4, 4)
        carried = shortcut(stream)
    assert y.shape == (2, 3, 3, 2, 2)
    pooled_variance = stream.variance.unflatten(2, (2, 2)).unflatten(4, (2, 2)).sum((3, 5)) / 16
    pooled_mean = stream.expectation.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    weight, (variance, bias_variance) = shortcut[1].weight, shortcut[1].variances()
    expected = (
        torch.einsum("bchw,oc->bohw", pooled_variance, (weight.square() + variance).flatten(1))
        + torch.einsum("bchw,oc->bohw", pooled_mean.square(), variance.flatten(1))
        + bias_variance.view(-1, 1, 1)
    )
    torch.testing.assert_close(carried.variance, expected)


def test_signal_to_noise_does_not_depend_on_the_depth():
    """Mean and variance both grow linearly, so t stays of the order of 1 / kappa; the plain chain keeps it too,
    but without the input in it."""
    kappa, width = 0.5, 256
    stream = nn.Sequential(
        BayesLinear(width, width, kappa=kappa),
        *(MembraneResidual(nn.Sequential(Sign(), BayesLinear(width, width, kappa=kappa))) for _ in range(20)),
        Sign(),
    )
    deviations = []
    with torch.no_grad(), posterior_noise(1.0, observe=lambda layer, t: deviations.append(t.std().item())):
        stream(torch.randn(20, width))
    assert len(deviations) == 21
    assert min(deviations) > 0.7 / kappa
    assert max(deviations) < 1.3 / kappa


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_the_input_survives_twenty_layers_with_shortcuts_and_is_lost_without(residual):
    width, runs = 128, 400
    blocks = [nn.Sequential(Sign(), BayesLinear(width, width)) for _ in range(20)]
    network = nn.Sequential(*(MembraneResidual(block) if residual else block for block in blocks), Sign())
    x = torch.randn(1, width).expand(runs, -1)
    with posterior_noise():
        agreement = torch.corrcoef(torch.stack([network(x).mean(0), network(x).mean(0)]))[0, 1]
    assert agreement > 0.7 if residual else agreement.abs() < 4 / width**0.5


def test_gaussian_noise_gives_a_current_its_variance_within_posterior_noise_alone():
    layer, x, moments = GaussianNoise(0.3), torch.randn(3, 4), activation(3, 4)
    assert layer(x) is x
    with posterior_noise(None):
        assert layer(x) is x
    with posterior_noise():
        known, noisy = layer(x), layer(moments)
    assert torch.equal(known.expectation, x)
    torch.testing.assert_close(known.variance, torch.full((3, 4), 0.09))
    assert torch.equal(noisy.expectation, moments.expectation)
    torch.testing.assert_close(noisy.variance, moments.variance + 0.09)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gaussian_noise_follows_the_dtype_and_gradients_pass(dtype):
    x = torch.randn(5, 3, 4).to(dtype).requires_grad_()
    with posterior_noise(1.0):
        spikes = run(nn.Sequential(GaussianNoise(0.5), LIF(0.8)), x)
    assert spikes.dtype == dtype
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert gradient.abs().max() > 0


@torch.no_grad()
def test_spikes_fire_with_the_probability_of_the_noise():
    draws = 40_000
    with posterior_noise():
        spikes = run(nn.Sequential(GaussianNoise(0.5), LIF(0.8)), torch.full((1, draws, 1), 0.7))
    rate = torch.special.ndtr(torch.tensor((0.7 - 1) / 0.5)).item()
    assert abs(spikes.mean().item() - rate) < 4.5 * math.sqrt(0.25 / draws)


def test_blocks_and_noise_can_be_copied_and_have_a_repr():
    assert repr(GaussianNoise(0.25)) == "GaussianNoise(std=0.25)"
    assert isinstance(copy.deepcopy(MembraneResidual(Sign())).shortcut, nn.Identity)
    for std in (0.0, -1, math.inf):
        with pytest.raises(ValueError, match="Expected argument `std` to be a finite number larger than 0"):
            GaussianNoise(std)
