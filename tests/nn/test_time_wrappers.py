"""`OverTime` and `PerStep`: equal to a loop by hand, without state between calls."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import snntorch
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import NoisySpikes, RateBackprop, SpikingBayes
from lightning_snn.nn import OverTime, PerStep
from lightning_snn.nn.observation import observe

X = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loop(step: Callable[[Tensor, object], tuple[Tensor, object]], x: Tensor) -> Tensor:
    state, outputs = None, []
    for each in x:
        output, state = step(each, state)
        outputs.append(output)
    return torch.stack(outputs)


def of_leaky(layer: snntorch.Leaky) -> Callable[[Tensor, object], tuple[Tensor, object]]:
    def step(x: Tensor, state: object) -> tuple[Tensor, object]:
        return layer(x, torch.zeros_like(x) if state is None else state)

    return step


CELLS = {
    "gru cell": (nn.GRUCell(4, 4), lambda cell: lambda x, h: (cell(x, h),) * 2),
    "lstm cell": (nn.LSTMCell(4, 4), lambda cell: lambda x, h: (lambda new: (new[0], new))(cell(x, h))),
    "leaky with explicit state": (snntorch.Leaky(0.9), of_leaky),
    "leaky that keeps its state": (
        snntorch.Leaky(0.9, init_hidden=True),
        lambda layer: of_leaky(snntorch.Leaky(0.9).double()),
    ),
    "recurrent leaky with explicit state": (
        snntorch.RLeaky(0.9, V=0.3, all_to_all=False),
        lambda layer: (
            lambda x, h: (lambda new: (new[0], new))(layer(x, *(h or (torch.zeros_like(x), torch.zeros_like(x)))))
        ),
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_per_step_equals_a_loop_by_hand_in_outputs_and_gradients(name):
    cell, step_of = CELLS[name]
    cell = copy.deepcopy(cell).double()
    found = []
    for outputs in (
        lambda x: run(PerStep(cell), x),
        lambda x: loop(step_of(cell), x),
    ):
        x = (3 * X).requires_grad_()
        result = outputs(x)
        found.append((result.detach(), *torch.autograd.grad(result.square().sum(), x)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert found[0][1].abs().max() > 0


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_over_time_equals_the_module_on_the_sequence(batch_first):
    gru = nn.GRU(4, 4, batch_first=batch_first).double()
    expected = gru(X.transpose(0, 1))[0].transpose(0, 1) if batch_first else gru(X)[0]
    assert torch.equal(run(OverTime(gru), X), expected)


def test_attention_over_time_does_not_mix_samples():
    layer = OverTime(nn.MultiheadAttention(4, 2)).double()
    whole = run(layer, X)
    torch.testing.assert_close(whole, layer.module(X, X, X)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(layer, X[:, :1])[:, 0], whole[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer", [PerStep(snntorch.Leaky(0.9, init_hidden=True)), PerStep(snntorch.Leaky(0.9))], ids=["kept", "explicit"]
)
def test_nothing_leaks_from_one_call_to_the_next(layer):
    network = nn.Sequential(nn.Linear(4, 4), copy.deepcopy(layer), nn.Linear(4, 2))
    x = X.float()
    first = run(network, x)
    first.sum().backward()
    assert torch.equal(run(network, x), first)
    run(network, x).sum().backward()  # a state with its graph would be used a second time
    copy.deepcopy(network)


def test_layers_of_spikingjelly_run_in_both_step_modes():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    single = neuron.LIFNode(tau=2.0, decay_input=False)
    several = neuron.LIFNode(tau=2.0, decay_input=False, step_mode="m")
    x = 3 * X.float()
    found = [run(PerStep(single), x), run(OverTime(several), x), run(PerStep(single), x)]
    ours = run(LIF(0.5, reset="zero"), x)
    assert all(torch.equal(spikes, ours) for spikes in found)
    assert 0 < ours.mean() < 1
    with pytest.raises(ValueError, match=r'LIFNode, which takes one step per call\. Use PerStep, or step_mode="m"'):
        OverTime(single)
    with pytest.raises(ValueError, match=r"LIFNode, which takes all steps per call\. Use OverTime"):
        PerStep(several)


def test_a_step_and_a_reset_of_ones_own_are_used():
    class Counter(nn.Module):
        count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    layer = PerStep(Counter(), reset=lambda module: setattr(module, "count", 0))
    for _ in range(2):
        assert run(layer, torch.ones(3, 1, 1)).flatten().tolist() == [1, 2, 3]

    def step(module: nn.Module, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x if state is None else x + state
        return module(total), total

    assert run(PerStep(nn.Identity(), step=step), torch.ones(3, 1, 1)).flatten().tolist() == [1, 2, 3]


def test_observers_see_the_steps_of_a_wrapped_layer():
    network = nn.Sequential(nn.Linear(4, 4), PerStep(snntorch.Leaky(0.9, init_hidden=True))).double()
    shapes: list[torch.Size] = []
    with observe(network, lambda call: shapes.append(call.spikes.shape)):
        run(network, X)
    assert shapes == [(1, 3, 4)] * 6


def test_a_wrapped_layer_trains_under_methods_that_know_nothing_of_it():
    y = torch.tensor([0, 1, 2])
    for method in (None, NoisySpikes(noise_mode="step")):
        network = nn.Sequential(nn.Linear(4, 8), LIF(), OverTime(nn.GRU(8, 6)), nn.Linear(6, 3)).double()
        module = SpikingModule(network, method, num_classes=3)
        module.method.training_step(module.network, X, y).objective.backward()
        assert all(parameter.grad is not None for parameter in module.network.parameters())


@pytest.mark.parametrize("method", [RateBackprop(), SpikingBayes()], ids=lambda method: type(method).__name__)
def test_methods_that_cannot_train_it_refuse_it_by_name(method):
    network = nn.Sequential(nn.Linear(4, 8), LIF(), OverTime(nn.GRU(8, 6)), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"but got 2(: OverTime|\.module: GRU) \("):
        method.prepare(network)


@pytest.mark.parametrize("wrapper", [OverTime, PerStep])
def test_layers_of_this_library_need_no_wrapper(wrapper):
    with pytest.raises(ValueError, match=r"no layer that handles time inside `run`, but got 1: LIF\. Leave it outside"):
        wrapper(nn.Sequential(nn.Linear(4, 4), LIF()))


def test_an_output_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"to return \[T, B, \.\.\.\] with T, B = \(6, 3\), but got the shape"):
        run(OverTime(nn.Flatten(0, 1)), X)
