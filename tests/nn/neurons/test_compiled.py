"""Neurons whose step is compiled, against the loop over their equations."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.nn import AdaptiveLIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF, compile_steps
from tests.nn.neurons.test_observers import Izhikevich

NEURONS = {
    "adaptive": AdaptiveLIF,
    "adaptive_learned": lambda: AdaptiveLIF(
        0.8, learn_beta=True, learn_threshold=True, learn_rho=True, learn_strength=True, channels=5
    ),
    "synaptic": SynapticLIF,
    "synaptic_leak_then_reset": lambda: SynapticLIF(0.5, order="leak_then_reset"),
    "recurrent": lambda: Recurrent(AdaptiveLIF(), 5),
    "izhikevich": Izhikevich,
}


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """Compile by a backend that only counts the graphs; Inductor takes minutes for all neurons."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        found.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    return found


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), NEURONS[name](), nn.Linear(5, 3))


def outputs_and_gradients(made: nn.Module, x: Tensor) -> list[Tensor]:
    outputs = run(made, x)
    return [outputs, *torch.autograd.grad(outputs.square().sum(), list(made.parameters()))]


@pytest.mark.parametrize("name", NEURONS)
def test_compiled_steps_give_the_spikes_and_gradients_of_the_loop_for_any_number_of_steps(name, graphs):
    loop = network(name)
    compiled = copy.deepcopy(loop)
    assert compile_steps(compiled) == ["1"]
    for steps in (4, 5, 7, 16):
        x = 2 * torch.rand(steps, 3, 4, generator=torch.Generator().manual_seed(steps))
        for got, expected in zip(outputs_and_gradients(compiled, x), outputs_and_gradients(loop, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    # the step from rest, whose state needs no gradient, and the others
    assert len(graphs) == 2
    assert run(compiled, x).detach().any()


def test_only_neurons_that_loop_over_their_equations_are_compiled(graphs):
    made = nn.Sequential(LIF(), RecurrentLIF(3), Recurrent(SynapticLIF(), 3))
    assert compile_steps(made) == ["2"]
    assert compile_steps(made, enabled=False) == ["2"]
    run(made, torch.rand(3, 2, 3))
    assert graphs == []


def test_the_setting_is_copied_and_pickled_and_is_in_no_state_dict(graphs):
    made = network("adaptive")
    compile_steps(made)
    run(made, torch.rand(3, 2, 4))
    for each in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), SpikingModule(made, num_classes=3).network):
        assert each[1].compiles_steps
    assert made.state_dict().keys() == network("adaptive").state_dict().keys()


def test_copies_with_other_constants_are_compiled_anew(graphs):
    made = network("adaptive")
    compile_steps(made)
    other = copy.deepcopy(made)
    other[1] = AdaptiveLIF(0.2, threshold=0.3)
    compile_steps(other)
    x = 2 * torch.rand(6, 3, 4)
    found = [run(each, x) for each in (made, other)]
    compile_steps(other, enabled=False)
    torch.testing.assert_close(found[1], run(other, x), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


class Branching(Neuron):
    """A neuron whose equations look at values, which no compiler can follow."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return state + x if x.sum() > 0 else state

    def firing_threshold(self, state: Tensor) -> float:
        return 1.0

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes


def test_equations_that_cannot_be_compiled_are_an_error_and_not_slow(graphs):
    made = Branching()
    compile_steps(made)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run(made, torch.rand(3, 2, 4))


def test_within_a_compiled_network_and_transforms_the_setting_has_no_effect(graphs):
    made = network("synaptic")
    compile_steps(made)
    x = torch.rand(3, 2, 4)
    expected = run(made, x)
    graphs.clear()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(made, x), expected)
    assert torch.func.vmap(lambda step: run(made, step))(x[None]).shape == (1, *expected.shape)
    assert graphs == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NEURONS)
def test_code_of_the_default_compiler_gives_the_spikes_and_gradients_of_the_loop(name):
    torch._dynamo.reset()
    loop = network(name)
    compiled = copy.deepcopy(loop)
    compile_steps(compiled)
    x = 2 * torch.rand(6, 3, 4)
    for got, expected in zip(outputs_and_gradients(compiled, x), outputs_and_gradients(loop, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
