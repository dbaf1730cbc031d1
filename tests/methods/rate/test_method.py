"""Rate-based backpropagation as a method: refusals, objective and warnings."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import Classification, Method, RateBackprop, Regression, SurrogateGradient
from lightning_snn.methods.bayes import BayesLinear
from lightning_snn.methods.rate import rate_run
from lightning_snn.networks import EventConvNet
from lightning_snn.nn import LeakyIntegrator, RecurrentLIF
from tests.support.training import time_first, trainer

STEPS, BATCH = 6, 8


def small(*readout: nn.Module) -> nn.Module:
    """Two hidden layers, where rates and time give different gradients."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 16), LIF(0.5, 0.6), nn.Linear(16, 16), LIF(0.5, 0.6), nn.Linear(16, 3)]
    return nn.Sequential(*layers, *readout).double()


def batch(steps: int = STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, BATCH, 5, dtype=torch.float64, generator=generator), torch.arange(BATCH) % 3


def gradient(method: Method, network: nn.Module, steps: int = STEPS) -> Tensor:
    """Of a training step on a copy of the network, as a vector."""
    network = copy.deepcopy(network)
    method.training_step(network, *batch(steps)).objective.backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def with_readout(readout: Any) -> RateBackprop:
    method = RateBackprop()
    method.set_task(Classification(readout))
    return method


def test_recurrence_is_refused_by_name_unless_every_step_is_a_window():
    network = nn.Sequential(nn.Linear(5, 4), nn.Sequential(RecurrentLIF(4)), nn.Linear(4, 3))
    for window in (1, 2):
        reason = 'neurons that receive each other\'s spikes, which only window="step" can represent'
        with pytest.raises(ValueError, match=rf"but got 1\.0: RecurrentLIF \({reason}\)"):
            RateBackprop(window).prepare(network)
    assert RateBackprop("step").prepare(network) is network


def test_modules_without_a_rule_are_all_refused_by_name():
    network = nn.Sequential(BayesLinear(5, 4), LIF(), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"0: BayesLinear \(no rate rule.*\); 2\.1: LayerNorm \(no rate rule") as error:
        RateBackprop().prepare(network)
    assert "register_rate_rule" in str(error.value)
    assert "3: Linear" not in str(error.value)


def test_readouts_of_a_moment_are_refused():
    network = small()
    for readout in ("last", "max"):
        refused = rf"`task` to be one that RateBackprop can learn, but got .*readout='{readout}'\): .*Use readout="
        with pytest.raises(ValueError, match=refused):
            with_readout(readout)
        with pytest.raises(ValueError, match=refused):
            SpikingModule(network, RateBackprop(), num_classes=3, readout=readout)
    for readout in ("mean", "sum", lambda outputs: outputs[1:].mean(0)):
        assert with_readout(readout).prepare(network) is network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "argument `window` to be an integer of at least 1, but got 0"),
        ({"window": "steps"}, "argument `window` to be an integer of at least 1, but got 'steps'"),
        ({"grad_scale": "1/T"}, "argument `grad_scale` to be one of 'natural', 'paper', but got '1/T'"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RateBackprop(**options)


def test_objective_and_loss_are_the_loss_of_the_spiking_outputs():
    network, (x, y) = small(), batch()
    step = RateBackprop().training_step(network, x, y)
    outputs = run(network, x)
    assert torch.equal(step.output, outputs.mean(0).detach())
    assert torch.equal(step.objective, step.loss)
    torch.testing.assert_close(step.loss, F.cross_entropy(outputs.mean(0), y).detach(), rtol=1e-14, atol=0)
    assert step.objective.requires_grad
    assert not step.loss.requires_grad
    assert not step.output.requires_grad


def test_the_gradient_is_that_of_rate_run_with_the_method_s_options():
    network, (x, y) = small(), batch()
    found = {}
    for window, streaming in ((1, False), (3, False), (3, True), ("step", False)):
        reference = copy.deepcopy(network)
        outputs = rate_run(reference, x, STEPS if window == "step" else window, streaming)
        F.cross_entropy(outputs.mean(0), y).backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
        found[window, streaming] = gradient(RateBackprop(window, streaming), network)
        assert torch.equal(found[window, streaming], expected)
    assert not torch.allclose(found[1, False], found[3, False], rtol=1e-3)
    assert not torch.allclose(found[1, False], found["step", False], rtol=1e-3)
    assert not torch.allclose(found[1, False], gradient(SurrogateGradient(), network), rtol=1e-3)


@pytest.mark.parametrize("steps", [2, 6])
def test_the_scale_of_the_paper_is_the_natural_one_over_the_number_of_steps(steps: int):
    network = small()
    natural, paper = (gradient(RateBackprop(grad_scale=scale), network, steps) for scale in ("natural", "paper"))
    torch.testing.assert_close(paper, natural / steps, rtol=1e-12, atol=0)


def test_one_time_step_is_backpropagation_through_time_and_costs_no_second_pass():
    network = small()
    calls = []
    network[0].register_forward_hook(lambda *_: calls.append(1))
    for window in (1, "step"):
        found = gradient(RateBackprop(window, grad_scale="paper"), network, 1)
        assert torch.equal(found, gradient(SurrogateGradient(), network, 1))
    assert len(calls) == 4
    gradient(RateBackprop(check_drift=False), network, 2)
    assert len(calls) == 6


def test_a_window_that_does_not_divide_the_time_steps_is_refused():
    network, (x, y) = small(), batch()
    with pytest.raises(ValueError, match="argument `window` to divide the number of time steps 6, but got 4"):
        RateBackprop(window=4).training_step(network, x, y)


class Rectified(nn.Module):
    """An operation without a rate rule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


def test_drift_is_warned_of_on_the_first_step_alone_and_by_name():
    layers = nn.Linear(5, 5), LIF(0.5, 0.1), nn.Sequential(Rectified(), LIF(0.5, 0.1)), nn.Linear(5, 3)
    network, (x, y) = nn.Sequential(*layers).double(), batch()
    method = RateBackprop()
    assert method.prepare(network) is network
    with pytest.warns(UserWarning, match=r"no rule for an operation in these modules, .*: 2\.0\. Make the operation"):
        method.training_step(network, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.training_step(network, x, y)
        RateBackprop(check_drift=False).training_step(network, x, y)
        # no warning without such an operation
        RateBackprop().training_step(small(), x, y)


def test_the_drift_check_changes_no_gradient():
    network = small()
    checked, unchecked = (gradient(RateBackprop(check_drift=check), network) for check in (True, False))
    assert torch.equal(checked, unchecked)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_a_regression_is_trained():
    network = small(LeakyIntegrator(0.8, learn_beta=True)).double()
    x, _ = batch()
    target = torch.randn(BATCH, 3, dtype=torch.float64)
    method = RateBackprop()
    method.task = Regression()
    step = method.training_step(network, x, target)
    torch.testing.assert_close(step.loss, F.mse_loss(run(network, x).mean(0), target).detach(), rtol=1e-14, atol=0)
    step.objective.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_predictions_are_those_of_the_spiking_network():
    network, (x, _) = small(), batch()
    with torch.no_grad():
        expected = run(network, x).mean(0).softmax(-1)
        torch.testing.assert_close(RateBackprop().predict(network, x).mean, expected, rtol=1e-12, atol=0)


def test_the_network_of_the_main_job_is_trained_untouched_in_windows_of_one_step():
    torch.manual_seed(0)
    network = EventConvNet((2, 12, 12), 2, channels=(4, 6), hidden=16)
    names = list(network.state_dict())
    # events that move to the left or to the right: their sum over time is the same
    x = torch.zeros(STEPS, BATCH, 2, 12, 12)
    y = torch.arange(BATCH) % 2
    for t in range(STEPS):
        x[t, y == 0, :, 2:10, 2 * t] = x[t, y == 1, :, 2:10, 2 * (STEPS - 1 - t)] = 1
    assert torch.equal(x[:, y == 0].sum(0), x[:, y == 1].sum(0))
    method = RateBackprop("step")
    network = method.prepare(network)
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        step = method.training_step(network, x, y)
        step.objective.backward()
        optimizer.step()
        losses.append(float(step.loss))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1, losses
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert list(network.state_dict()) == names
    with pytest.raises(ValueError, match=r"but got \d: RecurrentLIF \(neurons that receive each other's spikes[^;]*$"):
        RateBackprop().prepare(network)


def fit(method: Method, **options: Any) -> SpikingModule:
    x, y = batch()
    module = SpikingModule(
        small(), method, num_classes=3, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.5)
    )
    fitting = trainer(max_epochs=-1, max_steps=2, precision="64-true", **options)
    samples = TensorDataset(x.transpose(0, 1), y)
    fitting.fit(module, DataLoader(samples, BATCH // options.get("accumulate_grad_batches", 1), collate_fn=time_first))
    assert fitting.global_step == 2
    return module


def test_a_stock_trainer_takes_the_steps_that_are_taken_by_hand():
    module, network, (x, y) = fit(RateBackprop(2)), small(), batch()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(rate_run(network, x, 2).mean(0), y).backward()
        optimizer.step()
    for found, expected in zip(module.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_accumulated_gradients_of_parts_of_a_batch_are_those_of_the_whole():
    whole, parts = fit(RateBackprop()), fit(RateBackprop(), accumulate_grad_batches=2)
    for found, expected in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    by_time = fit(SurrogateGradient())
    assert not torch.allclose(by_time.network[0].weight, whole.network[0].weight, rtol=1e-4)


@pytest.mark.parametrize("window", [4, 7])
def test_windows_that_do_not_divide_the_time_steps_are_refused_with_those_that_do(window):
    method = RateBackprop(window=window)
    with pytest.raises(ValueError, match=rf"divide the number of time steps 6, but got {window}\. Choose.* 1, 2, 3, 6"):
        method.check_time_steps(6)
    network = method.prepare(nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="divide the number of time steps 6"):
        method.training_step(network, torch.rand(6, 2, 4), torch.tensor([0, 1]))
    for allowed in (2, 3, "step"):
        RateBackprop(window=allowed).check_time_steps(6)
