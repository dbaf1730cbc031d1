"""Neurons whose step is compiled, against the loop over their equations."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, Stream, run
from lightning_snn.functional.step_eligibility import forward_derivatives, step_rate
from lightning_snn.methods import Method, NoisySpikes, RateBackprop, SpikingBayes, SurrogateGradient
from lightning_snn.nn import AdaptiveLIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF, compile_steps
from lightning_snn.nn.neurons import firing
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
    "decay_learned": lambda: AdaptiveLIF(0.8, learn_beta=True, channels=5),
    "gain_unknown": lambda: GainUnknown(),
}


class GainUnknown(AdaptiveLIF):
    """A neuron that declares no gain, which the noisy scan finds."""

    def charge(self, x: Tensor, state: object) -> object:
        return super().charge(x, state)


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


@pytest.mark.parametrize("name", [name for name in NEURONS if name not in ("decay_learned", "gain_unknown")])
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


def step_of_method(made: nn.Module, method: Method, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    step = method.training_step(made, x, torch.arange(x.shape[1]) % 3)
    return [step.objective.detach(), *torch.autograd.grad(step.objective, list(made.parameters()))]


METHODS = {
    "rates": (RateBackprop, "decay_learned"),
    "rates_in_windows_and_streamed": (lambda: RateBackprop(window=2, streaming=True), "izhikevich"),
    "rates_of_one_step": (lambda: RateBackprop(window="step"), "recurrent"),
    "noise": (lambda: SpikingBayes(noise_mode="step", train_size=10), "decay_learned"),
    "noise_with_a_gain_that_is_found": (lambda: NoisySpikes(noise_mode="step"), "gain_unknown"),
    "recurrent_noise": (lambda: NoisySpikes(noise_mode="step"), "recurrent"),
}


_IN_TEST_COMMAND = ("rates", "noise")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _IN_TEST_COMMAND else pytest.mark.slow) for name in METHODS]
)
def test_compiled_steps_give_the_rates_and_noisy_spikes_of_the_loop_for_any_number_of_steps(name, graphs):
    make, neuron = METHODS[name]
    method = make()
    loop = method.prepare(network(neuron))
    compiled = copy.deepcopy(loop)
    compile_steps(compiled)
    for steps in (4, 16):
        x = 2 * torch.rand(steps, 3, 4, generator=torch.Generator().manual_seed(steps))
        for got, expected in zip(step_of_method(compiled, method, x), step_of_method(loop, method, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    # rates have one step, whatever T; noisy spikes that from rest, and the others
    assert len(graphs) == (1 if isinstance(method, RateBackprop) else 2)
    assert any(each.abs().max() > 0 for each in step_of_method(compiled, method, x)[1:])


def test_batches_of_other_sizes_are_compiled_anew_for_rates_until_there_are_many(graphs, monkeypatch):
    monkeypatch.setattr(firing, "_MOST_VARIANTS", 1)
    method, made = RateBackprop(check_drift=False), network("izhikevich")
    loop = copy.deepcopy(made)
    compile_steps(made)
    step_of_method(made, method, torch.rand(6, 3, 4))
    x = 2 * torch.rand(6, 5, 4)
    with pytest.warns(UserWarning, match="Izhikevich has compiled its step for 1 shapes and dtypes"):
        found = step_of_method(made, method, x)
    torch.testing.assert_close(found, step_of_method(loop, method, x), rtol=1e-6, atol=1e-6)
    assert len(graphs) == 1


@pytest.mark.slow
def test_a_training_with_validation_and_a_stream_stays_below_the_limit_of_the_compiler(graphs):
    loop = network("adaptive")
    compiled = copy.deepcopy(loop)
    compile_steps(compiled)
    for size in (6, 7, 1, 5):
        x = 2 * torch.rand(5, size, 4)
        outputs_and_gradients(compiled, x)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert torch.equal(run(compiled, x), run(loop, x))
                stream = Stream(compiled)
                assert torch.equal(torch.stack([stream(step) for step in x]), torch.stack([*map(Stream(loop), x)]))
    assert len(graphs) < 3 * 6


@pytest.mark.slow
def test_checkpointed_pieces_of_batches_of_many_sizes_stay_below_the_limit_of_the_compiler(graphs):
    loop = network("recurrent")
    compiled = copy.deepcopy(loop)
    compile_steps(compiled)
    for size in (3, 5, 4, 1, 3):
        for steps in (8, 9):
            x, y = 2 * torch.rand(steps, size, 4), torch.arange(size) % 3
            for options in ({"checkpoint": 3}, {"checkpoint": 2, "truncate": 4}):
                method = SurrogateGradient(**options)
                found, expected = (
                    torch.autograd.grad(method.training_step(made, x, y).objective, list(made.parameters()))
                    for made in (compiled, loop)
                )
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # more than the 8 that the compiler allows by default
    assert 8 < len(graphs) < 64


def test_derivatives_by_torch_func_are_those_of_dual_numbers():
    neuron = AdaptiveLIF(0.8, rho=0.7)

    def step(x: Tensor, state: object, scale: Tensor) -> tuple[Tensor, object]:
        return neuron.step(scale * x, state)

    x, scale = 2 * torch.rand(9, 3, 4, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64)
    outputs, state = step_rate(step, x, parameters=[scale])
    expected = state.record()
    # in two pieces, with a window of its own for the second
    first, state = step_rate(step, x[:4], parameters=[scale], differentiate=forward_derivatives)
    second, _ = step_rate(step, x[4:], state, [scale], forward_derivatives)
    assert torch.equal(torch.cat([first, second]), outputs)
    found = step_rate(step, x[4:], state, [scale], forward_derivatives)[1].record()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    window = state.next_window()
    found, expected = (step_rate(step, x[4:], window, [scale], by)[1].record() for by in (forward_derivatives, None))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.eligibility.abs().max() > 0


def test_only_neurons_that_loop_over_their_equations_are_compiled(graphs):
    made = nn.Sequential(LIF(), RecurrentLIF(3), Recurrent(SynapticLIF(), 3))
    assert compile_steps(made) == ["2"]
    # that of the rates of a recurrent neuron is the step of the neuron inside
    assert [each.compiles_steps for each in made.modules() if isinstance(each, Neuron)] == [False, False, True, True]
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rates", "noise"])
def test_code_of_the_default_compiler_gives_the_rates_and_noisy_spikes_of_the_loop(name):
    torch._dynamo.reset()
    make, neuron = METHODS[name]
    method = make()
    loop = method.prepare(network(neuron))
    compiled = copy.deepcopy(loop)
    compile_steps(compiled)
    x = 2 * torch.rand(6, 3, 4)
    for got, expected in zip(step_of_method(compiled, method, x), step_of_method(loop, method, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
