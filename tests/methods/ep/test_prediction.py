"""Predictions of weight distributions in one pass, against drawn weights and spikes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF
from lightning_snn.methods.ep import MessageNetwork, draw_output, output_moments
from tests.methods.ep.task import Steps, dense, digits, prepared

DRAWS = 20_000


def drawn_weights(network: MessageNetwork, index: int) -> Tensor:
    """Gaussian weights of a layer, `[DRAWS, O, I]`."""
    mean, variance = network.chain.blocks[index].layer.moments()
    return (mean + variance.sqrt() * torch.randn(DRAWS, *mean.shape, dtype=mean.dtype)).detach()


def with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def trained(activation: str, samples: int = 60) -> MessageNetwork:
    x, y = digits(samples, 10)
    steps = Steps(dense(10, 5, 3), activation=activation)
    steps.take(x, y, [torch.arange(samples)])
    return steps.network


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
def test_one_hidden_layer_has_the_moments_and_the_parts_of_drawn_networks(activation):
    """Exact but for the draws: units of one layer do not share weights."""
    network = trained(activation)
    x, _ = digits(2, 10, seed=1)
    found = output_moments(network.chain, x)
    first, second = drawn_weights(network, 0), drawn_weights(network, 1)
    for sample in range(2):
        u = with_bias(x[sample]).expand(DRAWS, 1, -1).matmul(first.mT)[:, 0]
        p = (u >= 0).double() if activation == "heaviside" else torch.special.ndtr(u / (8 / torch.pi) ** 0.5)
        given_weights = (second @ with_bias(p)[..., None])[..., 0]
        noisy = (second @ with_bias(torch.bernoulli(p))[..., None])[..., 0]
        error = 5 * noisy.std(0) / DRAWS**0.5
        assert ((found.potential.mean[sample] - noisy.mean(0)).abs() < error).all()
        torch.testing.assert_close(found.potential.variance[sample], noisy.var(0), rtol=0.06, atol=0)
        torch.testing.assert_close(found.epistemic[sample], given_weights.var(0), rtol=0.06, atol=0)
    if activation == "probit":
        assert (found.epistemic < 0.99 * found.potential.variance).all()


@pytest.mark.parametrize("weights", ["gaussian", "sign"])
def test_drawn_outputs_have_the_moments_of_the_closed_form(weights):
    draws = 2000
    network = prepared(dense(10, 5, 3), weights=weights)
    x, _ = digits(3, 10, seed=1)
    outputs = torch.stack([draw_output(network.chain, x) for _ in range(draws)])
    found = output_moments(network.chain, x).potential
    assert ((found.mean - outputs.mean(0)).abs() < 5 * outputs.std(0) / draws**0.5).all()
    torch.testing.assert_close(found.variance, outputs.var(0), rtol=0.2, atol=0)


def test_inputs_straight_to_the_output_have_no_noise_of_spikes():
    x, _ = digits(20)
    found = output_moments(prepared(dense(24, 3)).chain, x)
    assert torch.equal(found.epistemic, found.potential.variance)
    deep = output_moments(prepared(dense(24, 5, 3)).chain, x)
    assert (deep.epistemic < deep.potential.variance).all()


def certain(network: MessageNetwork) -> MessageNetwork:
    """The network with weights that are known, at their means of before."""
    with torch.no_grad():
        for block in network.chain.blocks:
            block.layer.precision_mean *= 1e14
            block.layer.precision *= 1e14
    return network


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_nothing_is_epistemic_where_weights_are_certain(activation):
    x, _ = digits(20)
    network = certain(prepared(dense(24, 6, 3), activation=activation))
    found = output_moments(network.chain, x)
    assert found.epistemic.max() < 1e-9
    noisy = found.potential.variance.min() > 1e-3
    assert noisy == (activation != "heaviside")


def test_hard_weights_without_bias_are_certain():
    x, _ = digits(20)
    network = prepared(dense(24, 6, 3, bias=False), weights="sign", deployment="hard")
    found = output_moments(network.chain, x)
    assert found.epistemic.max() < 1e-12
    assert found.potential.variance.min() > 1e-3


@pytest.mark.parametrize("sizes", [(24, 3), (24, 6, 3)])
def test_what_is_epistemic_falls_with_data_and_noise_of_spikes_remains(sizes):
    x, y = digits(1200)
    new, _ = digits(50, seed=1)
    parts = []
    for samples in (30, 300, 1200):
        steps = Steps(dense(*sizes))
        steps.take(x, y, torch.arange(samples).split(100))
        found = output_moments(steps.network.chain, new)
        parts.append((found.epistemic.mean(), (found.potential.variance - found.epistemic).mean()))
    epistemic, spikes = zip(*parts, strict=True)
    assert epistemic[0] > 2 * epistemic[1] > 4 * epistemic[2]
    if len(sizes) > 2:
        assert spikes[2] > epistemic[2]


def network_with(pooling: nn.Module, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 2), LIF(), pooling, nn.Flatten(), nn.Linear(hidden, 4), LIF(), nn.Linear(4, 2))


@pytest.mark.parametrize("pooling", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2, stride=1, padding=1)])
def test_parts_of_the_variance_stay_between_nothing_and_the_whole(pooling):
    hidden = 3 * pooling(torch.zeros(1, 1, 4, 4)).numel()
    x = (torch.rand(30, 1, 5, 5) < 0.4).double()
    for activation in ("heaviside", "probit"):
        network = prepared(network_with(pooling, hidden).double(), activation=activation)
        found = output_moments(network.chain, x)
        assert (found.epistemic > 0).all()
        assert (found.epistemic <= found.potential.variance * (1 + 1e-12)).all()
    assert output_moments(certain(network).chain, x).epistemic.max() < 1e-9
