"""Activation checkpointing inside `run`: gradients are those without it, or it is refused."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_snn import LIF, run
from lightning_snn.methods import Method, NoisySpikes, RateBackprop, SpikingBayes, SurrogateGradient
from lightning_snn.nn import AdaptiveLIF, RecurrentLIF
from lightning_snn.nn.observation import observe

both_modes = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])


class Checkpointed(nn.Module):
    """A spiking block, which is checkpointed or not, and a readout."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block, self.readout = nn.Sequential(nn.Linear(4, 6), *layers), nn.Linear(6, 3)
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.readout(self.block(x))
        return self.readout(checkpoint(self.block, x, use_reentrant=self.reentrant))


def gradients(network: nn.Module, reentrant: bool | None, *inputs: Tensor) -> list[Tensor]:
    network = copy.deepcopy(network)
    network.reentrant = reentrant
    # reentrant checkpointing needs an input with a gradient
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.stack([run(network, x).square().sum() for x in leaves]).sum().backward()
    return [leaf.grad for leaf in (*network.parameters(), *leaves)]


@both_modes
def test_gradients_equal_those_without_checkpointing(reentrant):
    network = Checkpointed(LIF(), nn.Linear(6, 6), AdaptiveLIF(), RecurrentLIF(6)).double()
    x = 2 * torch.rand(5, 2, 4, dtype=torch.float64)
    for got, expected in zip(gradients(network, reentrant, x), gradients(network, None, x), strict=True):
        assert torch.equal(got, expected)


@both_modes
def test_two_runs_of_other_lengths_before_one_backward_pass_keep_their_time_steps(reentrant):
    network = Checkpointed(LIF()).double()
    inputs = 2 * torch.rand(4, 6, 4, dtype=torch.float64), 2 * torch.rand(6, 4, 4, dtype=torch.float64)
    expected = gradients(network, None, *inputs)
    for got, right in zip(gradients(network, reentrant, *inputs), expected, strict=True):
        assert torch.equal(got, right)
    # with the same rows read as the other number of steps, gradients would be others
    swapped = [x.transpose(0, 1).contiguous() for x in inputs]
    assert not torch.equal(gradients(network, None, *swapped)[0], expected[0])


@both_modes
def test_a_backward_pass_in_another_thread_knows_the_time_steps(reentrant):
    network = Checkpointed(LIF()).double()
    x = 2 * torch.rand(5, 2, 4, dtype=torch.float64)
    expected = gradients(network, None, x)
    network.reentrant = reentrant
    loss = run(network, x.requires_grad_()).square().sum()
    thread = Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert torch.equal(network.block[0].weight.grad, expected[0])


@both_modes
@pytest.mark.parametrize(
    "method",
    [SurrogateGradient(), NoisySpikes(), SpikingBayes(train_size=10)],
    ids=lambda method: type(method).__name__,
)
def test_objectives_have_the_gradients_without_checkpointing(method: Method, reentrant):
    found = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        network = method.prepare(Checkpointed(LIF()).double())
        network.reentrant = mode
        x = (2 * torch.rand(5, 3, 4, dtype=torch.float64)).requires_grad_()
        method.training_step(network, x, torch.tensor([0, 1, 2])).objective.backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert any(gradient.abs().max() > 0 for gradient in found[0])


@both_modes
def test_rate_backprop_refuses_it_by_name(reentrant):
    method = RateBackprop(check_drift=False)
    network = method.prepare(Checkpointed(LIF()))
    network.reentrant = reentrant
    step = method.training_step(network, torch.rand(5, 3, 4).requires_grad_(), torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="no activation checkpointing around LIF with RateBackprop"):
        step.objective.backward()


@both_modes
def test_observers_do_not_see_the_second_call(reentrant):
    network = Checkpointed(LIF())
    network.reentrant = reentrant
    calls: list[str] = []
    with observe(network, lambda call: calls.append(call.name)):
        run(network, torch.rand(5, 3, 4).requires_grad_()).sum().backward()
    assert calls == ["block.1"]


def test_outside_a_backward_pass_the_time_steps_stay_unknown():
    network = Checkpointed(LIF())
    network.reentrant = False
    run(network, torch.rand(5, 3, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="time steps is unknown"):
        network(torch.rand(15, 4))
