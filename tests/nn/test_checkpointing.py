"""Activation checkpointing inside `run`: gradients are those without it, or it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from lightning_snn import LIF, run
from lightning_snn.methods import ActivityPenalty, Method, NoisySpikes, RateBackprop, SpikingBayes, SurrogateGradient
from lightning_snn.nn import AdaptiveLIF, GaussianNoise, Recurrent, RecurrentLIF, SynapticLIF, posterior_noise
from lightning_snn.nn.observation import observe

both_modes = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
of_fsdp = pytest.mark.parametrize("kind", CheckpointImpl, ids=lambda kind: kind.name.lower())


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


METHODS: dict[str, Callable[[], Method]] = {
    "surrogate_gradient": SurrogateGradient,
    "spiking_bayes_moment": lambda: SpikingBayes(train_size=10),
    "spiking_bayes_step": lambda: SpikingBayes(train_size=10, noise_mode="step"),
    "spiking_bayes_trace": lambda: SpikingBayes(train_size=10, noise_mode="trace"),
    "spiking_bayes_random_weight": lambda: SpikingBayes(train_size=10, estimator="gumbel_rao"),
    "noisy_spikes_moment": NoisySpikes,
    "noisy_spikes_step": lambda: NoisySpikes(noise_mode="step"),
}


def objective(method: Method, network: nn.Module) -> Tensor:
    torch.manual_seed(3)
    x = (2 * torch.rand(5, 3, 4, dtype=torch.float64)).requires_grad_()
    return method.penalized_step(network, x, torch.tensor([0, 1, 2])).objective


def gradients_of_method(method: Method, kind: CheckpointImpl | None, *layers: nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 6), *layers), nn.Linear(6, 3))
    network = method.prepare(copy.deepcopy(network).double())
    if kind is not None:
        network[0] = checkpoint_wrapper(network[0], kind)
    objective(method, network).backward()
    return [parameter.grad for parameter in network.parameters()]


@of_fsdp
@pytest.mark.parametrize("name", METHODS)
def test_objectives_have_the_gradients_without_the_wrapper_of_fsdp(name, kind):
    found, expected = (gradients_of_method(METHODS[name](), each, LIF()) for each in (kind, None))
    for got, right in zip(found, expected, strict=True):
        assert torch.equal(got, right)
    assert any(gradient.abs().max() > 0 for gradient in expected)


@of_fsdp
@pytest.mark.parametrize("name", ["surrogate_gradient", "spiking_bayes_step", "noisy_spikes_step"])
def test_objectives_of_neurons_by_equations_have_the_gradients_without_the_wrapper_of_fsdp(name, kind):
    layers = AdaptiveLIF(), nn.Linear(6, 6), Recurrent(SynapticLIF(), 6)
    found, expected = (gradients_of_method(METHODS[name](), each, *layers) for each in (kind, None))
    for got, right in zip(found, expected, strict=True):
        assert torch.equal(got, right)


@both_modes
@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("trace")])
def test_objectives_have_the_gradients_without_checkpointing(name, reentrant):
    found = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        method = METHODS[name]()
        network = method.prepare(Checkpointed(LIF()).double())
        network.reentrant = mode
        objective(method, network).backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for got, expected in zip(*found, strict=True):
        assert torch.equal(got, expected)
    assert any(gradient.abs().max() > 0 for gradient in found[0])


TERMS = {
    "penalties": SurrogateGradient,
    "snr": lambda: SpikingBayes(train_size=10, bias_weight=0.5),
    "synapse": lambda: SpikingBayes(train_size=10, bias_weight=0.5, bias_form="synapse"),
}


def gradients_of_terms(name: str, reentrant: bool | None) -> list[Tensor]:
    torch.manual_seed(0)
    method = TERMS[name]()
    network = method.prepare(Checkpointed(LIF(), nn.Linear(6, 6), LIF()).double())
    if name == "penalties":
        method.set_penalties(network, {"activity": ActivityPenalty(0.5)})
    network.reentrant = reentrant
    objective(method, network).backward()
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("name", TERMS)
def test_terms_on_spikes_inside_a_block_keep_their_gradient_or_refuse_the_mode_that_has_none(name):
    for got, expected in zip(gradients_of_terms(name, False), gradients_of_terms(name, None), strict=True):
        assert torch.equal(got, expected)
    term = "penalties" if name == "penalties" else "bias_weight"
    with pytest.raises(RuntimeError, match=rf"gradients enabled for `{term}`.*use_reentrant=False"):
        gradients_of_terms(name, True)


@both_modes
def test_noise_of_a_generator_which_cannot_be_drawn_again_is_refused_by_name(reentrant):
    network = Checkpointed(GaussianNoise(0.5), LIF())
    network.reentrant = reentrant
    x = torch.rand(5, 3, 4).requires_grad_()
    with posterior_noise(generator=torch.Generator().manual_seed(0)):
        outputs = run(network, x)
    with pytest.raises(RuntimeError, match="default generator with activation checkpointing"):
        outputs.sum().backward()


@of_fsdp
def test_rate_backprop_refuses_the_wrapper_of_fsdp_by_name(kind):
    with pytest.raises(RuntimeError, match="no activation checkpointing around LIF with RateBackprop"):
        gradients_of_method(RateBackprop(check_drift=False), kind, LIF())


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
