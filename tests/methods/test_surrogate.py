"""Surrogate gradients, and the defaults that every method inherits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import ActivityPenalty, Classification, Method, Regression, SurrogateGradient
from lightning_snn.nn import AdaptiveLIF, LeakyIntegrator, OverTime, RecurrentLIF, SynapticDelays
from tests.support.examples import SmallData
from tests.support.training import trainer


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


def deep() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 5), AdaptiveLIF(0.9, learn_beta=True), nn.Linear(5, 6), SynapticDelays((0, 3)), nn.Linear(12, 5),
        RecurrentLIF(5), nn.Linear(5, 4), LeakyIntegrator(0.8),
    )  # fmt: skip
    return network.double(), 2 * torch.randn(12, 8, 3, dtype=torch.float64), torch.randint(4, (8,))


def gradients(method: Method, network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(method.penalized_step(network, x, y).objective, list(network.parameters())))


@pytest.mark.parametrize("steps", [1, 4, 5, 12, 20])
def test_checkpointing_keeps_the_gradient(steps):
    network, x, y = deep()
    expected = gradients(SurrogateGradient(), network, x, y)
    for got, right in zip(gradients(SurrogateGradient(checkpoint=steps), network, x, y), expected, strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)


def truncated_by_hand(network: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Run every layer by its `step` and detach all states after every `steps` steps."""
    states: dict[int, Any] = {}
    outputs = []
    for t, step in enumerate(x):
        if t % steps == 0:
            states = {index: tree_map(torch.Tensor.detach, state) for index, state in states.items()}
        for index, layer in enumerate(network):
            if hasattr(layer, "step"):
                step, states[index] = layer.step(step, states.get(index))
            else:
                step = layer(step)
        outputs.append(step)
    loss = F.cross_entropy(torch.stack(outputs).mean(0), y)
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize(("truncate", "checkpoint"), [(4, None), (6, 2), (12, None)])
def test_truncation_cuts_the_gradient_between_pieces(truncate, checkpoint):
    network, x, y = deep()
    found = gradients(SurrogateGradient(checkpoint, truncate), network, x, y)
    for got, right in zip(found, truncated_by_hand(network, x, y, truncate), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)
    whole = gradients(SurrogateGradient(), network, x, y)
    assert (truncate == 12) == all(torch.allclose(got, right) for got, right in zip(found, whole, strict=True))


def test_penalties_are_those_of_the_whole_sequence():
    network, x, y = deep()
    found = []
    for method in (SurrogateGradient(), SurrogateGradient(checkpoint=5)):
        method.set_penalties(network, {"rate": ActivityPenalty(0.9, weight=3.0)})
        found.append(gradients(method, network, x, y))
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-13)
    without = gradients(SurrogateGradient(), network, x, y)
    assert not torch.allclose(found[0][0], without[0], rtol=1e-3)


@pytest.mark.parametrize("checkpoint", [None, 10])
def test_checkpointing_keeps_no_current_and_no_spike_for_the_backward_pass(checkpoint):
    network, _, y = deep()
    kept: list[StorageWeakRef] = []

    def collect(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        kept.extend(StorageWeakRef(each.untyped_storage()) for each in (*inputs, output))

    for layer in network[1:-1]:
        layer.register_forward_hook(collect)
    step = SurrogateGradient(checkpoint).training_step(network, torch.randn(100, 8, 3, dtype=torch.float64), y)
    alive = {each for each in kept if not each.expired()}
    assert step.objective.requires_grad
    assert bool(alive) == (checkpoint is None)


def test_checkpointing_needs_less_than_a_quarter_of_the_memory_of_a_long_sequence(memory):
    network = nn.Sequential(nn.Linear(32, 64), LIF(), nn.Linear(64, 64), AdaptiveLIF(), nn.Linear(64, 3))
    x, y = torch.rand(256, 16, 32), torch.zeros(16, dtype=torch.long)

    def peak(method: Method) -> int:
        return memory.peak_bytes(lambda: method.training_step(network, x, y).objective.backward())

    assert peak(SurrogateGradient(checkpoint=16)) < peak(SurrogateGradient()) / 4


def test_a_network_that_cannot_be_cut_in_pieces_is_refused_before_training():
    for layer, reason in (
        (nn.BatchNorm1d(3), "statistics are those of a whole"),
        (OverTime(nn.GRU(3, 3)), "whole seq"),
    ):
        with pytest.raises(ValueError, match=rf"SurrogateGradient\(checkpoint=4\) can train, but got 0: .*{reason}"):
            SurrogateGradient(checkpoint=4).prepare(nn.Sequential(layer, LIF()))


@pytest.mark.parametrize("name", ["checkpoint", "truncate"])
def test_pieces_have_at_least_one_step(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        SurrogateGradient(**{name: 0})
    with pytest.raises(ValueError, match="`truncate` to be a multiple of `checkpoint`, 4, but got 6"):
        SurrogateGradient(checkpoint=4, truncate=6)


@pytest.mark.parametrize("options", [{"checkpoint": 3}, {"truncate": 3}], ids=str)
def test_a_trainer_fits_in_pieces(options):
    torch.manual_seed(0)
    module = SpikingModule(nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3)), SurrogateGradient(**options), 3)
    before = module.network[0].weight.clone()
    trainer(max_epochs=2).fit(module, SmallData())
    assert not torch.equal(module.network[0].weight, before)
