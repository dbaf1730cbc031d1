"""Penalties on activity: their gradient under every method, and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.methods import (
    ActivityPenalty,
    ExpectationPropagation,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.methods.penalties import PenaltyCollector

STEPS, Y = 6, torch.tensor([0, 1, 2])
PENALTIES = {"activity": ActivityPenalty(0.1, weight=3.0), "squares": lambda spikes: spikes.mean((0, 1)).square().sum()}


def network(hidden: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(4, 6), LIF(0.7, 0.8, surrogate="arctangent")]
    for _ in range(hidden - 1):
        layers += [nn.Linear(6, 6), LIF(0.7, 0.8)]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def inputs(constant: bool = False) -> Tensor:
    x = 3 * torch.rand(1 if constant else STEPS, 3, 4, dtype=torch.float64)
    return x.expand(STEPS, -1, -1).contiguous()


def gradients(method, net: nn.Module, x: Tensor, penalties=PENALTIES) -> list[Tensor]:
    net = copy.deepcopy(net)
    method.set_penalties(net, penalties)
    method.penalized_step(net, x, Y).objective.backward()
    return [parameter.grad for parameter in net.parameters()]


def spikes_by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LIF with decay 0.7 and threshold 0.8 under plain autograd; the surrogate is the derivative of the arctangent."""
    potential, spikes = torch.zeros((), dtype=x.dtype), []
    for step in x:
        potential = 0.7 * potential + step @ weight.T + bias
        distance = potential - 0.8
        smooth = torch.atan(math.pi * distance) / math.pi
        spikes.append((distance > 0).to(x.dtype) + smooth - smooth.detach())
        potential = potential - 0.8 * spikes[-1]
    return torch.stack(spikes)


def test_surrogate_gradients_of_loss_and_penalties_are_those_of_a_loop_by_hand():
    net, x = network(), inputs()
    parameters = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    spikes = spikes_by_hand(x, *parameters[:2])
    loss = nn.functional.cross_entropy((spikes @ parameters[2].T + parameters[3]).mean(0), Y)
    rates = spikes.mean((0, 1))
    total = loss + 3.0 * ((rates - 0.1) ** 2).mean() + (rates**2).sum()
    expected = torch.autograd.grad(total, parameters)
    for got, right in zip(gradients(SurrogateGradient(), net, x), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)
    without = gradients(SurrogateGradient(), net, x, {})
    assert not torch.allclose(without[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize("hidden", [1, 3])
def test_rate_gradients_at_one_time_step_equal_backpropagation_through_time(hidden):
    net, x = network(hidden), inputs()[:1]
    rate, surrogate = (gradients(method, net, x) for method in (RateBackprop(), SurrogateGradient()))
    for got, expected in zip(rate, surrogate, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_rate_gradients_of_one_hidden_layer_with_constant_input_equal_backpropagation_through_time():
    net, x = network(), inputs(constant=True)
    rate, surrogate = (gradients(method, net, x) for method in (RateBackprop(), SurrogateGradient()))
    for got, expected in zip(rate, surrogate, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(gradients(RateBackprop(), net, x, {})[0], rate[0], rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"streaming": True}, {"window": "step"}], ids=str)
def test_the_value_is_that_of_the_spikes_in_every_form_of_the_rate_pass(options):
    net, x = network(2), inputs()
    with PenaltyCollector(net, PENALTIES) as collector:
        run(net, x)
    expected = collector.values()
    method = RateBackprop(**options)
    method.set_penalties(net, PENALTIES)
    metrics = method.penalized_step(net, x, Y).metrics
    for name, value in expected.items():
        torch.testing.assert_close(metrics[f"penalty/{name}"], value.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "method", [NoisySpikes(), SpikingBayes(train_size=10, kl_weight=0.0)], ids=lambda method: type(method).__name__
)
def test_a_method_with_noise_lowers_the_rate_by_the_penalty(method):
    torch.manual_seed(0)
    prepared = method.prepare(network()).double()
    method.set_penalties(prepared, {"silence": lambda spikes: 10 * spikes.mean()})
    optimizer = torch.optim.SGD(prepared.parameters(), 0.3)
    x, values = inputs(), []
    for _ in range(40):
        optimizer.zero_grad()
        step = method.penalized_step(prepared, x, Y)
        step.objective.backward()
        optimizer.step()
        values.append(step.metrics["penalty/silence"].item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (ExpectationPropagation(), "its updates are messages"),
        (TimeToFirstSpike(), r"TimeToFirstSpike\(activity_penalty="),
    ],
    ids=lambda value: type(value).__name__,
)
def test_methods_without_penalties_refuse_them_by_name(method, reason):
    prepared = method.prepare(nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match=rf"no `penalties` for {type(method).__name__}, but got activity.*{reason}"):
        method.set_penalties(prepared, PENALTIES)
    method.set_penalties(prepared, {})


def test_penalties_that_cannot_be_computed_are_refused():
    method = SurrogateGradient()
    with pytest.raises(ValueError, match="network with spiking layers for the `penalties` activity, squares"):
        method.set_penalties(nn.Linear(4, 3), PENALTIES)
    with pytest.raises(ValueError, match="penalty 'activity' to be a function of spikes"):
        method.set_penalties(network(), {"activity": 0.1})
    method.set_penalties(network(), {"vector": lambda spikes: spikes.mean(0)})
    with pytest.raises(ValueError, match="penalty 'vector' to return a scalar"):
        method.penalized_step(network(), inputs(), Y)


def test_a_hook_of_the_user_under_rate_backprop_is_pointed_to_the_penalties():
    net = network()
    net[1].register_forward_hook(lambda layer, args, output: None)
    method = RateBackprop()
    with pytest.warns(UserWarning, match=r"hooks on 1 see the spiking pass.*`SpikingModule\(penalties=\.\.\.\)`"):
        method.training_step(net, inputs(), Y)
