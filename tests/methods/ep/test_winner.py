"""Outputs that compete: their training, predictions, options and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.functional.ep import Potential, winner_log_probabilities
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.methods.ep import SpikeOutput, output_moments
from tests.methods.ep.task import Steps, dense, digits


def test_a_trained_winner_predicts_and_its_samples_agree_with_the_closed_form():
    x, y = digits(60, 16)
    steps = Steps(dense(16, 6, 3), output_activation="winner")
    steps.take(x, y, torch.arange(60).split(30))
    found = steps.method.predict(steps.network, x[None])
    potential, _ = output_moments(steps.network.chain, x)
    expected = winner_log_probabilities(potential.mean, potential.variance).exp()
    torch.testing.assert_close(found.mean, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.spike_probabilities, expected, rtol=1e-12, atol=0)
    assert (found.mean.argmax(1) == y).double().mean() > 0.8
    steps.method.samples = 100
    torch.manual_seed(0)
    drawn = steps.method.predict(steps.network, x[None, :8])
    # hidden units are independent given their potentials in closed form only
    assert (drawn.mean - expected[:8]).abs().max() < 0.1
    torch.testing.assert_close(drawn.spike_probabilities, drawn.mean, rtol=1e-9, atol=0)


def test_messages_of_a_single_layer_converge_and_permuted_labels_leave_chance():
    x, y = digits(90, 16)
    steps = Steps(dense(16, 3), output_activation="winner", damping=0.7)
    steps.take(x, y, [torch.arange(90)] * 3)
    assert steps.method.convergence.problem() is None
    permuted = Steps(dense(16, 3), output_activation="winner", damping=0.7)
    shuffled = y[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    permuted.take(x, shuffled, [torch.arange(90)])
    test_x, test_y = digits(300, 16, seed=1)
    accuracy, chance = (
        (each.method.predict(each.network, test_x[None]).mean.argmax(1) == test_y).double().mean()
        for each in (steps, permuted)
    )
    assert accuracy > 0.8
    assert chance < 0.5


def test_less_noise_is_more_confident():
    u = torch.tensor([[1.0, 0.0, -0.5]])
    nothing = torch.zeros_like(u)
    confident, usual = (SpikeOutput("winner", noise)(u).exp() for noise in (0.1, 4 / math.pi))
    assert confident[0, 0] > usual[0, 0] + 0.1
    potential = Potential(u, nothing, nothing, u)
    torch.testing.assert_close(SpikeOutput("winner").read(potential).exp(), usual)


def test_options_survive_the_module_and_its_checkpoint():
    network = nn.Sequential(nn.Linear(6, 4), LIF(), nn.Linear(4, 3))
    module = SpikingModule(
        network, ExpectationPropagation(output_activation="winner", output_noise=0.25), num_classes=3
    )
    output = module.network[-1]
    assert isinstance(output, SpikeOutput)
    assert output.noise_variance == 0.25
    assert repr(output) == "SpikeOutput(winner, noise_variance=0.25)"
    assert "output_noise=0.25" in repr(module.method)
    other = SpikingModule(network, ExpectationPropagation(output_activation="winner", output_noise=0.25), num_classes=3)
    other.load_state_dict(module.state_dict())
    x = torch.rand(1, 5, 6)
    torch.testing.assert_close(
        other.method.predict(other.network, x).mean, module.method.predict(module.network, x).mean, rtol=0, atol=0
    )


def test_what_cannot_compete_is_refused():
    with pytest.raises(ValueError, match="`activation` to be one of 'heaviside'.+, but got 'winner'"):
        ExpectationPropagation(activation="winner")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`output_noise` to be a finite number larger than 0"):
        ExpectationPropagation(output_activation="winner", output_noise=0.0)
    with pytest.raises(ValueError, match="`output_noise` to be None for 'probit' outputs.+\"winner\""):
        ExpectationPropagation(output_noise=0.5)
    with pytest.raises(ValueError, match="its outputs compete for a class"):
        SpikingModule(nn.Linear(4, 1), ExpectationPropagation(output_activation="winner"), task="regression")
    u = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"one output per class.+\(2, 3, 4\)"):
        SpikeOutput("winner")(u)
