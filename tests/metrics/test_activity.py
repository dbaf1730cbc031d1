from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.methods import SpikingBayes
from lightning_snn.methods.bayes import BayesConv2d, BayesLinear
from lightning_snn.metrics import SynapticOperations, operations
from lightning_snn.metrics.activity import Activity, operations_per_sample, record_activity, synaptic_operations
from lightning_snn.networks import ResidualConvNet
from lightning_snn.nn import RecurrentLIF, posterior_noise, register_spiking_layer

CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0)),
    nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
    nn.Conv2d(2, 3, 4, padding="same"),
    nn.Conv2d(2, 3, 3, padding="same", dilation=2),
    nn.Conv2d(2, 3, 3, padding="valid", stride=3),
    nn.Conv2d(2, 3, 3, stride=4, padding=1),  # rows and columns at the rim that no kernel covers
    nn.Conv1d(2, 3, 3, stride=2, padding=1),
    nn.Conv3d(1, 2, (1, 2, 3), padding=(0, 1, 1)),
    BayesConv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
    BayesConv2d(2, 3, (1, 3), padding="same"),
]


def sparse(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)


def reached_outputs(layer: nn.Module, x: Tensor, zeros: bool = False) -> int:
    """Outputs that change with each nonzero input, found by differentiation, sample by sample."""
    generator = torch.Generator().manual_seed(2)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
        if zeros:
            parameter.data *= torch.rand(parameter.shape, generator=generator) < 0.6
    total = 0
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(
            lambda value: layer(value[None]).flatten(), sample, vectorize=True
        )
        total += int((jacobian != 0).sum(0)[sample != 0].sum())
    return total


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolution_operations_are_the_outputs_that_nonzero_inputs_reach(layer: nn.Module) -> None:
    axes = len(layer.kernel_size)
    x = sparse(2, layer.weight.shape[1] * layer.groups, *(6, 7, 5)[:axes])
    assert synaptic_operations(layer, x).item() == reached_outputs(layer, x) > 0


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layer", [nn.Linear(5, 7), *CONVOLUTIONS[:10]], ids=str)
def test_weights_of_zero_cost_nothing(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer)
    axes = layer.weight.dim() - 2
    x = sparse(8, 5) if axes == 0 else sparse(2, layer.weight.shape[1] * layer.groups, *(6, 7, 5)[:axes])
    counted = reached_outputs(layer, x, zeros=True)
    assert synaptic_operations(layer, x).item() == counted > 0
    assert synaptic_operations(layer, x) < reached_outputs(layer, x)


@pytest.mark.parametrize("layer", [nn.Linear(5, 7), BayesLinear(5, 3)], ids=str)
def test_linear_operations_are_the_outputs_that_nonzero_inputs_reach(layer: nn.Module) -> None:
    x = sparse(4, 5)
    assert synaptic_operations(layer, x).item() == reached_outputs(layer, x) > 0


def test_operations_do_not_depend_on_values_or_on_samples_being_batched() -> None:
    layer, x = nn.Conv2d(2, 3, 3, padding=1), sparse(3, 2, 5, 5)
    operations = synaptic_operations(layer, x)
    assert operations == synaptic_operations(layer, -7 * x)
    assert operations == sum(synaptic_operations(layer, sample) for sample in x)
    assert synaptic_operations(layer, torch.zeros_like(x)) == 0


def test_layers_that_are_no_connections_are_refused() -> None:
    with pytest.raises(TypeError, match="argument `layer` to be a connection, but got MaxPool2d"):
        synaptic_operations(nn.MaxPool2d(2), torch.ones(1, 1, 4, 4))


def test_padding_that_repeats_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match="padding_mode 'zeros', but got padding_mode='circular'"):
        synaptic_operations(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), torch.ones(1, 1, 4, 4))


def test_totals_of_a_network_are_those_of_its_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), LIF(), nn.Flatten(), nn.Linear(16, 6), LIF(0.5, threshold=0.1), nn.Linear(6, 2)
    )
    x = 5 * sparse(3, 5, 2, 6, 6)
    with record_activity(network, first_sample=True) as activity:
        run(network, x)
    first = run(network[:2], x)
    second = run(network[:5], x)
    assert first.sum() > 0
    assert second.sum() > 0
    assert {name: int(count) for name, count in activity.spikes.items()} == {
        "1": int(first.sum()),
        "4": int(second.sum()),
    }
    assert activity.neuron_steps == {"1": 3 * 5 * 16, "4": 3 * 5 * 6}
    total = (first.sum() + second.sum()).item() / (3 * 5 * 22)
    assert activity.spikes_per_neuron_per_step() == pytest.approx(total)
    assert activity.spike_rates()["4"] == pytest.approx(second.mean().item())
    operations = (
        synaptic_operations(network[0], x.flatten(0, 1)) + 6 * first.count_nonzero() + 2 * second.count_nonzero()
    )
    assert activity.samples == 5
    assert activity.synaptic_operations_per_sample() == pytest.approx(operations.item() / 5)
    torch.testing.assert_close(activity.first_sample()["1"], first[:, 0].flatten(1))
    torch.testing.assert_close(activity.first_sample()["4"], second[:, 0])


def test_recurrent_spikes_reach_the_whole_layer_but_for_those_of_the_last_step() -> None:
    network = nn.Sequential(nn.Linear(4, 6), RecurrentLIF(6))
    nn.init.constant_(network[0].weight, 0.5)
    x = 3 * sparse(5, 2, 4)
    with record_activity(network) as activity:
        spikes = run(network, x)
    assert spikes[-1].sum() > 0
    assert spikes[:-1].sum() > 0
    expected = 6 * x.count_nonzero() + 6 * spikes[:-1].count_nonzero()
    assert activity.synaptic_operations_per_sample() == expected.item() / 2
    assert activity.accumulates["1"] == activity.operations["1"]
    assert activity.dense["1"] == 5 * 2 * 36
    assert activity.uncounted == []


def test_noisy_and_deterministic_bayesian_layers_count_by_the_same_rule() -> None:
    network = nn.Sequential(BayesLinear(4, 6), LIF(), BayesLinear(6, 3))
    x = sparse(5, 2, 4)
    with record_activity(network) as activity, posterior_noise():
        run(network, x)
    assert int(activity.operations["0"]) == 6 * x.count_nonzero()
    assert int(activity.operations["2"]) == 3 * int(activity.spikes["1"]) > 0


def test_calls_and_contexts_add_up() -> None:
    network, x = nn.Sequential(nn.Linear(4, 6), LIF()), 5 * sparse(5, 3, 4)
    with record_activity(network) as once:
        run(network, x)
    total = Activity()
    for _ in range(2):
        with record_activity(network, total):
            run(network, x)
            run(network, x)
    assert total.samples == 4 * once.samples == 12
    assert int(total.spikes["1"]) == 4 * int(once.spikes["1"]) > 0
    assert total.spikes_per_neuron_per_step() == once.spikes_per_neuron_per_step()
    assert total.synaptic_operations_per_sample() == once.synaptic_operations_per_sample()


def test_no_hook_outlives_the_context_even_after_an_exception() -> None:
    network = nn.Sequential(nn.Linear(4, 6), LIF())
    with record_activity(network) as activity:
        assert any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="shape"), record_activity(network, activity):
        run(network, torch.ones(5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    run(network, sparse(5, 3, 4))
    assert activity.samples == 0


def test_nothing_recorded_gives_nan() -> None:
    assert math.isnan(Activity().spikes_per_neuron_per_step())
    assert math.isnan(Activity().synaptic_operations_per_sample())


def test_weight_matrices_that_are_not_counted_are_named() -> None:
    mirrored = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
    network = nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.BatchNorm2d(2), LIF(), mirrored, nn.Conv2d(2, 1, 1))
    with record_activity(network) as activity:
        run(network, sparse(3, 2, 1, 4, 4))
    assert activity.uncounted == ["0", "3"]
    assert set(activity.operations) == {"4"}


def test_layers_of_another_library_are_recorded_step_by_step() -> None:
    snntorch = pytest.importorskip("snntorch")
    linear, leaky = nn.Linear(4, 6), snntorch.Leaky(beta=0.8)
    network, x = nn.ModuleList([linear, leaky]), 5 * sparse(5, 3, 4)
    spikes, membrane = [], leaky.init_leaky()
    with record_activity(network, first_sample=True) as activity:
        for step in x:
            spike, membrane = leaky(linear(step), membrane)
            spikes.append(spike)
    assert activity.samples == 3
    assert int(activity.spikes["1"]) == torch.stack(spikes).sum() > 0
    assert activity.neuron_steps["1"] == 5 * 3 * 6
    assert activity.synaptic_operations_per_sample() == 6 * x.count_nonzero().item() / 3
    torch.testing.assert_close(activity.first_sample()["1"], torch.stack(spikes)[:, 0].detach())


def test_a_multi_step_layer_gives_all_its_steps_in_one_call() -> None:
    @register_spiking_layer
    class Threshold(nn.Module):
        step_mode = "m"

        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float()

    network, x = Threshold(), sparse(5, 3, 4)
    with record_activity(network, first_sample=True) as activity:
        network(x)
    torch.testing.assert_close(activity.first_sample()["Threshold"], (x[:, 0] > 0).float())
    assert activity.samples == 3


def test_the_noisy_samples_of_a_residual_network_are_counted():
    method = SpikingBayes(lam=1.0, samples=3)
    network = method.prepare(ResidualConvNet((2, 8, 8), 3, (2, 4), blocks=1))
    x = torch.randn(2, 5, 2, 8, 8)
    with record_activity(network) as activity:
        method.predict(network, x)
    stem, blocks = "0", [name for name, module in network.named_modules() if isinstance(module, BayesConv2d)]
    shortcut = next(name for name in blocks if "shortcut" in name)
    # before the first neurons all samples share one run; in each of them the shortcut receives 2 channels of 4x4 means
    assert activity.operations[stem] == synaptic_operations(network[0], x.flatten(0, 1))
    assert activity.operations[shortcut] == 3 * 2 * 5 * 2 * 4 * 4 * 4
    assert activity.neuron_steps["1.branch.0"] == 3 * 2 * 5 * 2 * 8 * 8


def test_time_steps_of_spikes_accumulate_and_all_others_multiply() -> None:
    layer = nn.Linear(3, 5)
    x = torch.tensor([[[1.0, -1, 0], [0, 1, 1]], [[1.0, 2, 0], [0, 0, 1]], [[0.0, 0, 0], [0, 0, 0]]])
    with record_activity(layer) as folded:
        run(layer, x)
    with record_activity(layer) as looped:
        for step in x:
            layer(step)
    for activity in (folded, looped):
        # 4 inputs of the first step; 3 of the second, one of which is a 2
        assert activity.accumulates["Linear"] == 4 * 5
        assert activity.operations["Linear"] == (4 + 3) * 5
        assert activity.dense["Linear"] == 3 * 2 * 3 * 5
        assert activity.rows["Linear"] == 3 * 2
        assert activity.dense_pass() == {"Linear": 15}
    with record_activity(layer) as whole:
        layer(x.flatten(0, 1))
    assert whole.accumulates["Linear"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_counts_are_exact_in_any_dtype(dtype: torch.dtype) -> None:
    layer, x = nn.Conv2d(1, 3, 3, padding=1).to(dtype), torch.ones(1100, 1, 2, 2, dtype=dtype)
    assert synaptic_operations(layer, x) == 1100 * 3 * 16


def test_a_layer_with_a_fractional_number_of_steps_is_counted_as_one_step() -> None:
    network, gate = nn.Sequential(nn.Linear(4, 4), LIF()), nn.Linear(4, 4)
    network.register_module("gate", gate)
    network.forward = lambda x: (gate(x[:2]).mean(0), network[1](network[0](x)))[1]
    with record_activity(network) as activity:
        run(network, torch.ones(5, 3, 4))
    assert activity.rows == {"0": 15, "gate": 2}


def test_large_inputs_are_counted_in_pieces() -> None:
    layer, x = nn.Conv2d(4, 2, 1), sparse(3, 2, 4, 200, 200)
    x[1] = x[1].ceil()
    with record_activity(layer) as activity:
        run(layer, x)
    assert x[0].numel() * 3 > operations._PIECE
    assert activity.operations["Conv2d"] == 2 * x.count_nonzero()
    assert activity.accumulates["Conv2d"] == 2 * x[1].count_nonzero() > 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_counting_works_in_every_mode_and_leaves_no_graph(mode: Any) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), LIF(), nn.Flatten(), nn.Linear(6, 2))
    with mode(), torch.autocast("cpu", torch.bfloat16), record_activity(network) as activity:
        run(network, sparse(3, 2, 2, 4))
    assert not any(count.requires_grad for count in activity.operations.values())
    assert activity.dense == {"0": 3 * 2 * 36, "3": 3 * 2 * 12}


def test_the_metric_sums_over_batches_and_equals_its_functional_form() -> None:
    network, metric = nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 2)), SynapticOperations()
    by_layer, total, samples = SynapticOperations("2"), torch.zeros(3, dtype=torch.double), 0
    for size in (1, 3):
        with record_activity(network) as activity:
            run(network, 5 * sparse(5, size, 4))
        metric.update(activity)
        by_layer.update(activity)
        found = operations_per_sample(activity)
        assert found.keys() == {"effective_acs", "effective_macs", "dense"}
        total += size * torch.stack(list(found.values()))
        samples += size
    assert (total > 0).all()
    torch.testing.assert_close(torch.stack(list(metric.compute().values())), total / samples)
    assert by_layer.compute()["dense"] == 5 * 12
    assert by_layer.compute()["effective_macs"] == 0
    with pytest.raises(ValueError, match="argument `layer` to be one of '0', '2', but got '1'"):
        operations_per_sample(activity, "1")
    assert math.isnan(operations_per_sample(Activity())["dense"])


def test_copies_that_took_the_hooks_with_them_are_not_counted() -> None:
    network, x = nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 2)), 5 * sparse(5, 3, 4)
    with record_activity(network) as activity:
        run(network, x)
        before = copy.deepcopy(activity)
        run(copy.deepcopy(network), x)
    assert activity == before
    assert activity.spikes["1"] > 0


class AllSteps(nn.Module):
    """Takes all time steps in a call, with a time axis."""

    step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


class OneStep(nn.Module):
    """Takes one time step a call."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


def checked_rows(activity: Activity, rows: int, inputs: int) -> None:
    """Of a `Linear(4, 5)` named 0 that was given ones."""
    assert activity.rows["0"] == rows
    assert int(activity.operations["0"]) == activity.dense["0"] == 20 * inputs
    assert activity.dense_pass()["0"] == 20 * inputs / rows


@pytest.fixture
def libraries() -> None:
    for layer in (AllSteps, OneStep):
        register_spiking_layer(layer)


# the neurons after a linear layer, and how both of them are called on a sequence of 3 steps and 2 samples
CALLS: dict[str, tuple[type[nn.Module], Callable[[nn.Sequential, Tensor], object]]] = {
    "folded": (LIF, run),
    "all steps": (AllSteps, lambda net, x: net(x)),
    "folded by hand": (AllSteps, lambda net, x: net[1](net[0](x.flatten(0, 1)).unflatten(0, (3, 2)))),
    "samples first": (AllSteps, lambda net, x: net[1](net[0](x.transpose(0, 1)).transpose(0, 1))),
    "step by step": (OneStep, lambda net, x: [net(step) for step in x]),
    "all currents first": (OneStep, lambda net, x: [net[1](step) for step in net[0](x)]),
    "all currents, samples first": (OneStep, lambda net, x: [net[1](i) for i in net[0](x.transpose(0, 1)).unbind(1)]),
}


@pytest.mark.parametrize("tokens", [(), (7,)], ids=["vectors", "tokens"])
@pytest.mark.parametrize("call", CALLS)
def test_all_rows_of_a_linear_layer_are_dense_operations(call: str, tokens: tuple[int, ...], libraries: None) -> None:
    neurons, forward = CALLS[call]
    network, total = nn.Sequential(nn.Linear(4, 5), neurons()), Activity()
    nn.init.ones_(network[0].weight)
    for runs in (1, 2):
        with record_activity(network, total):
            for _ in range(runs):
                forward(network, torch.ones(3, 2, *tokens, 4))
    checked_rows(total, 3 * 6, 3 * 6 * math.prod(tokens))


def test_a_linear_layer_after_the_mean_over_time_receives_one_step(libraries: None) -> None:
    network = nn.Sequential(nn.Linear(4, 5), AllSteps())
    nn.init.ones_(network[0].weight)
    with record_activity(network) as activity:
        network[0](network[1](torch.ones(3, 2, 7, 4)).mean(0))
    checked_rows(activity, 2, 14)


def test_a_state_space_layer_of_snntorch_takes_all_steps() -> None:
    snntorch = pytest.importorskip("snntorch")
    network = nn.Sequential(nn.Linear(4, 5), snntorch.StateLeaky(0.9, channels=5, output=False))
    x = torch.ones(3, 2, 4)
    x[2] = 2
    with record_activity(network) as activity:
        network(x)
    checked_rows(activity, 6, 6)
    # time comes first
    assert activity.accumulates["0"] == 4 * 20


def test_lazy_layers_may_get_their_parameters_while_they_are_counted() -> None:
    network = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), LIF())
    network.register_module("mirrored", nn.LazyConvTranspose1d(2, 3))
    network.register_module("unused", nn.LazyConvTranspose1d(2, 3))
    network.forward = lambda x: (network.mirrored(x[:, None]), network[2](network[1](network[0](x))))[1]
    with record_activity(network) as activity:
        run(network, torch.ones(3, 2, 4))
    assert activity.dense == {"0": 6 * 24}
    assert activity.uncounted == ["mirrored"]
