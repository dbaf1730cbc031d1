"""The non-Bayesian baseline: noise of a fixed size before the neurons, and nothing else."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_snn import LIF, run
from lightning_snn.methods import NoisySpikes, Progress
from lightning_snn.methods.bayes import BayesianLayer
from lightning_snn.networks import ResidualMLP
from lightning_snn.nn import GaussianNoise, MembraneResidual, RecurrentLIF, Sign, posterior_noise
from tests.support.event_order import order_of_events, small_network

X, Y = order_of_events(8)


def noises(network: nn.Module) -> list[float]:
    return [module.std for module in network.modules() if isinstance(module, GaussianNoise)]


def mixed_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 6),
        nn.Sequential(LIF(0.8)),
        nn.Linear(6, 6),
        MembraneResidual(nn.Sequential(Sign(), nn.Linear(6, 6))),
        RecurrentLIF(6, 0.7, learn_beta=True),
        nn.Linear(6, 2),
    )


def test_the_noise_grows_with_the_root_of_the_depth():
    prepared = NoisySpikes(0.4).prepare(ResidualMLP(2, 2, depth=5, width=4))
    assert noises(prepared) == pytest.approx([0.4 * math.sqrt(depth) for depth in (1, 2, 3, 4, 5)])
    assert noises(NoisySpikes(0.4, "constant").prepare(ResidualMLP(2, 2, depth=5, width=4))) == [0.4] * 5


def test_noise_stands_before_every_layer_of_neurons_and_nothing_else_changes():
    network = mixed_network()
    prepared = NoisySpikes(0.4).prepare(network)
    assert len(noises(prepared)) == 3
    neurons = (LIF, Sign)
    for module in prepared.modules():
        for name, child in module._modules.items():
            if isinstance(child, neurons):
                assert type(module) is nn.Sequential
                assert isinstance(module[int(name) - 1], GaussianNoise)
    assert not any(isinstance(module, BayesianLayer) for module in prepared.modules())
    assert [value.shape for value in prepared.parameters()] == [value.shape for value in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(prepared.parameters(), network.parameters(), strict=True))


def test_without_noise_the_network_computes_what_it_did():
    network = mixed_network()
    prepared = NoisySpikes().prepare(network)
    assert torch.equal(run(prepared, X), run(network, X))
    prediction = NoisySpikes().predict(prepared, X)
    assert torch.equal(prediction.mean, run(network, X).mean(0).softmax(-1))
    assert prediction.samples is None


def test_a_layer_of_neurons_that_stands_twice_has_one_depth_and_stays_one_layer():
    lif = LIF(0.8, learn_beta=True)
    prepared = NoisySpikes(0.5).prepare(
        nn.Sequential(nn.Linear(2, 2), lif, nn.Linear(2, 2), lif, nn.Linear(2, 2), LIF())
    )
    assert noises(prepared) == pytest.approx([0.5, 0.5, 0.5 * math.sqrt(2)])
    assert prepared[1][1] is prepared[3][1]


def test_the_objective_is_the_loss_of_a_noisy_run():
    method = NoisySpikes(0.5, lam=1.0)
    prepared = method.prepare(mixed_network())
    torch.manual_seed(1)
    step = method.training_step(prepared, X, Y)
    torch.manual_seed(1)
    with posterior_noise(1.0):
        expected = F.cross_entropy(run(prepared, X).mean(0), Y)
    assert torch.equal(step.objective, expected)
    assert torch.equal(step.loss, expected.detach())
    assert not step.metrics
    gradients = torch.autograd.grad(step.objective, list(prepared.parameters()))
    for got, reference in zip(gradients, torch.autograd.grad(expected, list(prepared.parameters())), strict=True):
        assert torch.equal(got, reference)
        assert got.abs().max() > 0


def test_more_noise_is_more_uncertain():
    uncertainty = []
    for std in (0.05, 1.0):
        torch.manual_seed(0)
        method = NoisySpikes(std, samples=32)
        uncertainty.append(method.predict(method.prepare(small_network()), X).mutual_information.mean())
    assert uncertainty[1] > 2 * uncertainty[0] > 0


def test_the_noise_acts_in_units_of_the_input_current():
    """P(spike) = Phi((current - threshold) / std) at the first step."""
    method, draws = NoisySpikes(0.5), 40_000
    prepared = method.prepare(nn.Sequential(nn.Identity(), LIF(0.9)))
    spikes = method.noisy_output(prepared, torch.full((1, draws, 1), 0.7))
    rate = torch.special.ndtr(torch.tensor((0.7 - 1) / 0.5)).item()
    assert abs(spikes.mean().item() - rate) < 4.5 * math.sqrt(0.25 / draws)


def test_the_training_size_is_not_used():
    method = NoisySpikes()
    method.progress = Progress(0.0, None)
    assert method.training_step(method.prepare(small_network()), X, Y).objective.isfinite()


def test_it_can_be_copied_and_has_a_repr():
    method = NoisySpikes(0.3, "constant", noise_mode="step", samples=2)
    assert repr(copy.deepcopy(method)) == (
        "NoisySpikes(std=0.3, profile=constant, lam=1, noise_mode=step, samples=2, sample_memory=512)"
    )


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), LIF()], ids=repr)
def test_a_network_without_neurons_inside_is_refused(network):
    with pytest.raises(ValueError, match="network with neurons or Sign layers inside for NoisySpikes, but got none"):
        NoisySpikes().prepare(network)


def test_neurons_of_the_other_order_are_refused_by_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(LIF(order="leak_then_reset")), LIF())
    with pytest.raises(ValueError, match=r'got 1\.0: LIF \(fires by noise in mode "step" only: noise_mode="step"\)$'):
        NoisySpikes().prepare(network)
    assert isinstance(NoisySpikes(noise_mode="step").prepare(network), nn.Module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "argument `std` to be a finite number larger than 0, but got 0.0"),
        ({"profile": "linear"}, "argument `profile` to be one of 'constant', 'sqrt_depth', but got 'linear'"),
        ({"noise_mode": "trace"}, "argument `noise_mode` to be one of 'moment', 'step', but got 'trace'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        NoisySpikes(**options)
