"""Surrogate gradients, and the defaults that every method inherits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_snn import LIF, run
from lightning_snn.methods import Classification, Method, Regression, SurrogateGradient


def small() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    network = nn.Sequential(nn.Linear(3, 5), LIF(0.8), nn.Linear(5, 4)).double()
    return network, torch.randn(6, 8, 3, dtype=torch.float64), torch.randint(4, (8,))


def test_the_objective_is_the_loss_of_the_mean_output():
    network, x, y = small()
    step = SurrogateGradient().training_step(network, x, y)
    expected = F.cross_entropy(run(network, x).mean(0), y)
    torch.testing.assert_close(step.objective, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(step.loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.output, run(network, x).mean(0).detach(), rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_the_network_unrolled_step_by_step():
    network, x, y = small()
    objective = SurrogateGradient().training_step(network, x, y).objective
    state, outputs = None, []
    for current in x:
        spikes, state = network[1].step(network[0](current), state)
        outputs.append(network[2](spikes))
    expected = F.cross_entropy(torch.stack(outputs).mean(0), y)
    gradients = torch.autograd.grad(objective, list(network.parameters()))
    for got, reference in zip(gradients, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-14)


def test_the_task_decides_readout_and_loss():
    network, x, _ = small()
    method, target = SurrogateGradient(), torch.randn(8, 4, dtype=torch.float64)
    method.task = Regression("last")
    step = method.training_step(network, x, target)
    torch.testing.assert_close(step.loss, F.mse_loss(run(network, x)[-1], target).detach())
    torch.testing.assert_close(method.predict(network, x).mean, run(network, x)[-1])


def test_the_prediction_is_the_softmax_of_the_readout():
    network, x, _ = small()
    torch.testing.assert_close(SurrogateGradient().predict(network, x).mean, run(network, x).mean(0).softmax(-1))


def test_a_method_takes_the_network_as_it_is_and_leaves_the_optimizer_open_by_default():
    network, _, _ = small()
    method = SurrogateGradient()
    assert method.prepare(network) is network
    assert method.configure_optimizer(network) is None
    assert isinstance(method.task, Classification)


def test_a_method_without_a_training_step_names_what_is_missing():
    class Unfinished(Method):
        pass

    network, x, y = small()
    with pytest.raises(NotImplementedError, match="Unfinished defines no training_step"):
        Unfinished().training_step(network, x, y)
