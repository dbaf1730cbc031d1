"""The gradient of firing rates against that of backpropagation through time, and state that the passes keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_snn.functional.dynamics import Dynamics, lif_step
from lightning_snn.functional.surrogate import Sigmoid, Surrogate
from lightning_snn.methods.rate import Commutes, Plan, RateRule, Tape, rate_phase, rate_run, register_rate_rule
from lightning_snn.methods.rate.drift import rate_drift
from lightning_snn.methods.rate.rules import rate_refusals
from lightning_snn.nn import LIF, LeakyIntegrator, MembraneResidual, RecurrentLIF, Sign, SynapticDelays, run

Runner = Callable[[nn.Module, Tensor], Tensor]
RESETS = [(reset, detach) for reset in ("subtract", "zero") for detach in (True, False)]


def lif(beta: float = 0.2, reset: str = "subtract", detach: bool = True, **options: object) -> LIF:
    return LIF(beta, 0.6, reset, detach, Sigmoid(), **options)


def deep(
    beta: float = 0.2, reset: str = "subtract", detach: bool = True, norm: bool = True, pool: str = "avg"
) -> nn.Module:
    """Two convolutions with a residual block, normalization and pooling, in float64."""
    torch.manual_seed(0)

    def normalized(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm else nn.Identity()

    block = nn.Sequential(lif(beta, reset, detach), nn.Conv2d(6, 6, 3, padding=1), normalized(6))
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=not norm),
        normalized(6),
        MembraneResidual(block),
        lif(beta, reset, detach),
        nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        normalized(8),
        lif(beta, reset, detach),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).double()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=1.5 / layer.weight[0].numel() ** 0.5)
    return network


def shallow(neuron: nn.Module | None = None, norm: bool = False) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(0)
    normalized = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(
        nn.Linear(5, 12), *normalized, lif(0.7) if neuron is None else neuron, nn.Linear(12, 3)
    ).double()


def images(steps: int, constant: bool = True, shape: tuple[int, ...] = (6, 2, 8, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if constant:
        return torch.randn(shape, dtype=torch.float64, generator=generator).expand(steps, *shape)
    return torch.randn(steps, *shape, dtype=torch.float64, generator=generator)


def cross_entropy(outputs: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mean(0), torch.arange(outputs.shape[1]) % 3)


@dataclass
class Gradients:
    outputs: Tensor
    by_name: dict[str, Tensor]
    buffers: dict[str, Tensor]

    @property
    def whole(self) -> Tensor:
        return torch.cat([gradient.flatten() for gradient in self.by_name.values()])


def gradients(
    runner: Runner, network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] = cross_entropy
) -> Gradients:
    """Outputs, gradients and buffers of a step on a copy of a network."""
    network = copy.deepcopy(network)
    outputs = runner(network, x)
    loss(outputs).backward()
    return Gradients(
        outputs.detach(),
        {name: parameter.grad for name, parameter in network.named_parameters()},
        dict(network.named_buffers()),
    )


def relative_error(found: Gradients, expected: Gradients) -> float:
    return float((found.whole - expected.whole).norm() / expected.whole.norm())


def cosine(found: Gradients, expected: Gradients) -> float:
    return float(F.cosine_similarity(found.whole, expected.whole, dim=0))


@dataclass(frozen=True)
class ConstantSlope(Surrogate):
    """A surrogate derivative of 1/2 everywhere: the linear regime."""

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.fill_(0.5)


@pytest.mark.parametrize("streaming", [False, True])
def test_spikes_and_running_statistics_are_those_of_a_plain_run(streaming: bool):
    # streaming has statistics of every step of its own: without normalization only
    network = deep(norm=not streaming)
    x = images(5, constant=False)
    found = gradients(lambda network, x: rate_run(network, x, streaming=streaming), network, x)
    plain = gradients(run, network, x)
    assert torch.equal(found.outputs, plain.outputs)
    assert found.buffers.keys() == plain.buffers.keys()
    for name, buffer in plain.buffers.items():
        assert torch.equal(found.buffers[name], buffer)
    assert plain.outputs.std() > 0


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize(("reset", "detach"), RESETS)
def test_rate_gradient_equals_bptt_at_one_time_step(reset: str, detach: bool, pool: str):
    network, x = deep(0.9, reset, detach, pool=pool), images(1)
    assert relative_error(gradients(rate_run, network, x), gradients(run, network, x)) < 1e-12


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("reset", "detach"), RESETS)
def test_rate_gradient_equals_bptt_with_one_hidden_layer_and_constant_input(
    reset: str, detach: bool, norm: bool, steps: int
):
    network, x = shallow(lif(0.7, reset, detach), norm), images(steps, shape=(6, 5))
    assert relative_error(gradients(rate_run, network, x), gradients(run, network, x)) < 1e-12


def test_rate_gradient_equals_bptt_without_leak_memory_on_constant_input_at_any_depth():
    network, x = deep(0.0), images(6)
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    assert relative_error(found, expected) < 1e-12
    # with memory it does not
    assert relative_error(gradients(rate_run, deep(0.5), x), gradients(run, deep(0.5), x)) > 1e-3


def test_rate_gradient_equals_bptt_in_the_linear_regime_on_any_input():
    def network(norm: bool) -> nn.Module:
        made = deep(0.0, norm=norm)
        for layer in made.modules():
            if isinstance(layer, LIF):
                layer.surrogate = ConstantSlope()
        return made

    x = images(5, constant=False)
    assert relative_error(gradients(rate_run, network(False), x), gradients(run, network(False), x)) < 1e-12
    # batch normalization is not linear in its batch
    assert relative_error(gradients(rate_run, network(True), x), gradients(run, network(True), x)) > 1e-2


def test_readout_gradient_always_equals_bptt():
    network, x = deep(0.9), images(6, constant=False)
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    for name in ("9.weight", "9.bias"):
        torch.testing.assert_close(found.by_name[name], expected.by_name[name], rtol=1e-12, atol=1e-14)
    assert relative_error(found, expected) > 1e-2


@pytest.mark.parametrize("channels", [None, 12])
@pytest.mark.parametrize(("reset", "detach"), RESETS)
def test_decays_and_thresholds_learn_as_with_bptt_from_one_hidden_layer_and_constant_input(
    reset: str, detach: bool, channels: int | None
):
    neuron = lif(0.7, reset, detach, learn_beta=True, learn_threshold=True, channels=channels)
    network, x = shallow(neuron), images(6, shape=(6, 5))
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    for name, gradient in expected.by_name.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found.by_name[name], gradient, rtol=1e-11, atol=1e-14)


def test_a_frozen_decay_gets_no_gradient_and_a_learned_threshold_does():
    neuron = lif(0.7, learn_beta=True, learn_threshold=True)
    neuron.beta_logit.requires_grad_(False)
    network, x = shallow(neuron), images(6, shape=(6, 5))
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    assert found.by_name["1.beta_logit"] is None
    torch.testing.assert_close(
        found.by_name["1.threshold_log"], expected.by_name["1.threshold_log"], rtol=1e-11, atol=0
    )


@pytest.mark.parametrize(("reset", "detach"), RESETS)
@pytest.mark.parametrize("window", [1, 3])
def test_streaming_gives_the_gradient_of_all_steps_at_once_without_normalization(reset: str, detach: bool, window: int):
    network, x = deep(0.6, reset, detach, norm=False, pool="max"), images(6, constant=False)
    found = gradients(lambda network, x: rate_run(network, x, window, streaming=True), network, x)
    assert relative_error(found, gradients(lambda network, x: rate_run(network, x, window), network, x)) < 1e-12


def test_rate_gradient_is_that_of_an_ann_made_of_the_records():
    """The rate pass written out with autograd alone: statistics of spikes in value and of rates in gradient."""
    network, x = deep(0.5, "zero", False), images(4, constant=False)
    found = gradients(rate_run, network, x)
    reference = copy.deepcopy(network)
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, _: inputs.__setitem__(layer, args[0].detach().unflatten(0, (4, -1)))
        )
        for layer in reference.modules()
        if isinstance(layer, (LIF, nn.BatchNorm2d))
    ]
    with torch.no_grad():
        run(reference, x)
    for hook in hooks:
        hook.remove()

    def rates_of(layer: LIF, mean: Tensor) -> Tensor:
        shift = torch.zeros_like(mean, requires_grad=True)
        state, spikes = None, []
        for current in inputs[layer]:
            spike, state = lif_step(current + shift, state, layer.beta, layer.threshold, layer.dynamics)
            spikes.append(spike)
        rate = torch.stack(spikes).mean(0)
        (eligibility,) = torch.autograd.grad(rate.sum(), shift)
        return rate.detach() + eligibility * (mean - mean.detach())

    def normalized(layer: nn.BatchNorm2d, mean: Tensor) -> Tensor:
        over = (0, 2, 3)
        spiking = inputs[layer].flatten(0, 1)
        mu = mean.mean(over, keepdim=True)
        mu = spiking.mean(over, keepdim=True) + mu - mu.detach()
        spread = (mean - mu).square().mean(over, keepdim=True)
        variance = spiking.var(over, correction=0, keepdim=True) + spread - spread.detach()
        scaled = (mean - mu) / (variance + layer.eps).sqrt()
        return scaled * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    def ann(layer: nn.Module, mean: Tensor) -> Tensor:
        if isinstance(layer, nn.Sequential):
            for part in layer:
                mean = ann(part, mean)
            return mean
        if isinstance(layer, MembraneResidual):
            return mean + ann(layer.branch, mean)
        if isinstance(layer, LIF):
            return rates_of(layer, mean)
        return normalized(layer, mean) if isinstance(layer, nn.BatchNorm2d) else layer(mean)

    outputs = ann(reference, x.mean(0))
    F.cross_entropy(outputs, torch.arange(6) % 3).backward()
    torch.testing.assert_close(outputs, found.outputs.mean(0), rtol=1e-12, atol=1e-12)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found.by_name[name], parameter.grad, rtol=1e-11, atol=1e-13)


def test_two_hidden_layers_with_leak_memory_are_close_to_bptt_and_not_equal():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 40), lif(0.5), nn.Linear(40, 40), lif(0.5), nn.Linear(40, 3)).double()
    x = images(8, shape=(64, 5))
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    assert relative_error(found, expected) > 1e-3
    assert cosine(found, expected) > 0.97


def test_on_input_that_changes_at_random_the_gradient_is_clearly_another():
    network, x = shallow(lif(0.5)), images(8, constant=False, shape=(32, 5))
    found, expected = (gradients(runner, network, x).by_name["0.weight"] for runner in (rate_run, run))
    assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) < 0.98


def test_memory_for_the_backward_pass_does_not_depend_on_the_number_of_steps(memory):
    def saved(runner: Runner, steps: int) -> int:
        network = deep().float()
        x = images(steps).float()
        return memory.saved_bytes(lambda: cross_entropy(runner(network, x)), network.parameters())

    assert saved(rate_run, 3) == saved(rate_run, 12)
    # windows each keep their own
    assert saved(lambda network, x: rate_run(network, x, 3), 12) > 2.5 * saved(rate_run, 12)
    assert saved(run, 12) > 11 * saved(rate_run, 12)


def test_peak_memory_when_streaming_grows_by_a_steps_outputs_alone(memory):
    def peak(steps: int, streaming: bool) -> int:
        network = deep().float()
        x = images(1, shape=(32, 2, 8, 8)).float().expand(steps, -1, -1, -1, -1)
        return memory.peak_bytes(lambda: rate_run(network, x, streaming=streaming))

    # but for what a step returns, and 1 / sigma of its three normalizations
    outputs, statistics = 32 * 3, 6 + 6 + 8
    assert peak(32, True) - peak(4, True) <= 28 * 4 * (outputs + statistics)
    assert peak(32, False) > 2 * peak(4, False)


@pytest.mark.parametrize("norm", [False, True])
def test_rates_are_means_of_spikes_in_every_module(norm: bool):
    network = deep(norm=norm, pool="max").float()
    drift = rate_drift(network, images(6, constant=False).float())
    assert set(drift) >= {"0", "2.branch.0", "4", "9"}
    assert max(drift.values()) < 1e-5


def test_drift_names_the_module_with_an_operation_that_no_rule_covers():
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.linear(x))

    torch.manual_seed(0)
    network = nn.Sequential(Rectified(), nn.Linear(5, 12), LIF(0.5, 0.3), nn.Linear(12, 3))
    drift = rate_drift(network, images(6, constant=False, shape=(6, 5)).float())
    assert drift["0"] > 1e-2
    assert drift["0.linear"] < 1e-5
    assert drift["2"] == drift["3"] == 0.0 or max(drift["2"], drift["3"]) < 1e-5  # neurons stop it


def test_a_tape_is_replayed_once_and_only_when_full():
    network, x = shallow(), images(3, shape=(6, 5))
    tape = Tape(network, Plan(3))
    with pytest.raises(RuntimeError, match="holds 0 of 3 steps"):
        tape.replay(x[:1])
    tape.collect(x)
    outputs = tape.replay(x[:1])
    with pytest.raises(RuntimeError, match="was replayed before"):
        tape.replay(x[:1])
    outputs.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        outputs.sum().backward()


def test_another_path_in_the_rate_pass_is_an_error():
    class Fickle(nn.Module):
        def __init__(self, order: list[list[int]]) -> None:
            super().__init__()
            self.neurons = nn.ModuleList([lif(), lif(), lif()])
            self.order = iter(order)

        def forward(self, x: Tensor) -> Tensor:
            for index in next(self.order):
                x = self.neurons[index](x)
            return x

    x = images(2, shape=(6, 5))
    with pytest.raises(RuntimeError, match="same order in every pass, but call 1 is of LIF"):
        rate_run(Fickle([[0, 1], [0, 2]]), x)
    with pytest.raises(RuntimeError, match="left out LIF at call 1"):
        rate_run(Fickle([[0, 1], [0]]), x)
    with pytest.raises(RuntimeError, match="call 1 is of LIF and was of none"):
        rate_run(Fickle([[0], [0, 1]]), x, streaming=True)


def test_an_error_in_a_pass_leaves_the_network_as_it_was():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    network = nn.Sequential(nn.Linear(5, 4), lif(), Fails())
    with pytest.raises(ArithmeticError):
        rate_run(network, images(2, shape=(6, 5)).float())
    assert all("forward" not in module.__dict__ for module in network.modules())
    assert torch.is_grad_enabled()
    assert rate_phase() is None


def test_without_autograd_it_is_a_plain_run():
    network, x = deep(), images(4)
    with torch.no_grad():
        assert torch.equal(rate_run(copy.deepcopy(network), x), run(copy.deepcopy(network), x))
    outputs = rate_run(network.eval(), x)
    assert torch.equal(outputs, run(network, x))
    assert outputs.requires_grad


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("streaming", [False, True])
def test_windows_leave_the_spikes_as_they_are(window: int, streaming: bool):
    network, x = deep(0.7, norm=False), images(6, constant=False)
    found = gradients(lambda network, x: rate_run(network, x, window, streaming), network, x)
    assert torch.equal(found.outputs, gradients(run, network, x).outputs)


def test_windows_of_one_step_give_the_gradient_with_memory_cut_between_steps():
    network, x = deep(0.7, norm=False), images(4, constant=False)

    def cut(network: nn.Module, x: Tensor) -> Tensor:
        for layer in network.modules():
            if isinstance(layer, LIF):
                layer.forward = _cut_forward(layer)
        return run(network, x)

    assert relative_error(gradients(lambda n, x: rate_run(n, x, 4), network, x), gradients(cut, network, x)) < 1e-12
    assert relative_error(gradients(rate_run, network, x), gradients(cut, network, x)) > 1e-2


def _cut_forward(layer: LIF) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        state, spikes = None, []
        for current in x.unflatten(0, (4, -1)):
            spike, state = layer.step(current, None if state is None else state.detach())
            spikes.append(spike)
        return torch.cat(spikes)

    return forward


def test_recurrence_and_delays_in_windows_of_one_step_take_the_past_as_given():
    torch.manual_seed(0)
    network = nn.Sequential(
        SynapticDelays((0, 2)),
        nn.Linear(10, 8),
        RecurrentLIF(8, 0.6, 0.4, learn_beta=True),
        nn.Linear(8, 3),
        LeakyIntegrator(0.5),
    ).double()
    x = images(5, constant=False, shape=(6, 5))

    def cut(network: nn.Module, x: Tensor) -> Tensor:
        delays, linear, neurons, readout, integrator = network
        past, state, membrane, outputs = None, None, None, []
        for current in x:
            late, past = delays.step(current, past)
            state = None if state is None else tree_map(Tensor.detach, state)
            spikes, state = neurons.step(linear(late), state)
            membrane, _ = integrator.step(readout(spikes), None if membrane is None else membrane.detach())
            outputs.append(membrane)
        return torch.stack(outputs)

    expected = gradients(cut, network, x)
    for streaming in (False, True):
        found = gradients(lambda network, x, s=streaming: rate_run(network, x, 5, s), network, x)
        torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-12, atol=1e-12)
        for name, gradient in expected.by_name.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(found.by_name[name], gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_leaky_integrator_is_exact_on_constant_current_and_a_mean_readout(streaming: bool):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(5, 3), LeakyIntegrator(0.8, learn_beta=True, channels=3)).double()
    x = images(7, shape=(6, 5))
    found = gradients(lambda network, x: rate_run(network, x, streaming=streaming), linear, x)
    expected = gradients(run, linear, x)
    torch.testing.assert_close(found.whole, expected.whole, rtol=1e-12, atol=1e-14)


def test_a_neuron_of_ones_own_with_a_step_needs_no_rule():
    class Synaptic(nn.Module):
        """A LIF neuron behind a leaking synaptic current."""

        def __init__(self) -> None:
            super().__init__()
            self.decay = nn.Parameter(torch.tensor(0.4))

        def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            current, membrane = (torch.zeros_like(x), None) if state is None else state
            current = self.decay * current + x
            spikes, membrane = lif_step(current, membrane, 0.6, 0.5, Dynamics())
            return spikes, (current, membrane)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for current in x.unflatten(0, (6, -1)):
                spikes, state = self.step(current, state)
                outputs.append(spikes)
            return torch.cat(outputs)

    network, x = shallow(Synaptic()), images(6, shape=(6, 5))
    assert rate_refusals(network, False) == []
    found, expected = gradients(rate_run, network, x), gradients(run, network, x)
    assert torch.equal(found.outputs, expected.outputs)
    assert relative_error(found, expected) < 1e-12
    assert float(expected.by_name["1.decay"]) != 0


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 1)},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    ],
)
@pytest.mark.parametrize("dims", [1, 2])
def test_max_pooling_routes_by_wins_what_bptt_sums_under_equal_errors(geometry: dict, dims: int):
    if dims == 1:
        geometry = {name: size[1] if isinstance(size, tuple) else size for name, size in geometry.items()}
    pool = (nn.MaxPool1d if dims == 1 else nn.MaxPool2d)(**geometry)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(5, 2, 3, *(9, 10)[-dims:], generator=generator) < 0.4).double()  # full of ties
    weight = torch.randn(pool(x[0]).shape, dtype=torch.float64, generator=generator)

    def gradient(runner: Runner) -> Tensor:
        leaf = x.clone().requires_grad_()
        (runner(pool, leaf).mean(0) * weight).sum().backward()
        return leaf.grad.mean(0)

    torch.testing.assert_close(gradient(rate_run), gradient(run), rtol=1e-12, atol=1e-14)


def test_dropout_has_one_mask_for_all_steps_and_both_passes():
    dropout = nn.Dropout(0.5)
    x = torch.ones(4, 2, 50, dtype=torch.float64, requires_grad=True)
    for streaming in (False, True):
        outputs = rate_run(dropout, x, streaming=streaming)
        assert set(outputs.unique().tolist()) == {0.0, 2.0}
        assert all(torch.equal(step, outputs[0]) for step in outputs)
        (gradient,) = torch.autograd.grad(outputs.sum(), x)
        torch.testing.assert_close(gradient, outputs.detach(), rtol=1e-12, atol=0)
    assert torch.equal(rate_run(dropout.eval(), x), x)


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.ReLU(inplace=True), Sign()])
def test_an_elementwise_function_has_the_mean_of_its_values_and_derivatives(layer: nn.Module):
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(runner: Runner) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        outputs = runner(layer, leaf * 1)
        (outputs.mean(0) * weight).sum().backward()
        return outputs.detach(), leaf.grad.mean(0)

    for found, expected in zip(gradient(rate_run), gradient(run), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_streaming_moves_the_running_statistics_of_a_norm_as_far_as_all_steps_at_once():
    norm = nn.BatchNorm1d(3, momentum=0.1).double()
    x = 2 + 3 * images(10, constant=False, shape=(64, 3))
    at_once, streamed = copy.deepcopy(norm), copy.deepcopy(norm)
    rate_run(at_once, x)
    outputs = rate_run(streamed, x, streaming=True)
    torch.testing.assert_close(streamed.running_mean, at_once.running_mean, rtol=0.1, atol=0)
    torch.testing.assert_close(streamed.running_var, at_once.running_var, rtol=0.1, atol=0)
    assert streamed.num_batches_tracked == at_once.num_batches_tracked == 1
    expected = torch.stack([F.batch_norm(step, None, None, training=True) for step in x])
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    assert rate_drift(norm, x, window=2, streaming=True)["BatchNorm1d"] < 1e-12


def test_hooks_can_distinguish_spikes_from_rates():
    seen = []
    network = shallow()
    network[1].register_forward_hook(lambda *_: seen.append(rate_phase()))
    rate_run(network, images(3, shape=(6, 5)))
    run(network, images(3, shape=(6, 5)))
    assert seen == ["collect", "replay", None]


def test_a_loss_of_every_step_is_taken():
    network, x = shallow(), images(4, shape=(6, 5))

    def every_step(outputs: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(output, torch.arange(6) % 3) for output in outputs]).mean()

    found, expected = gradients(rate_run, network, x, every_step), gradients(run, network, x, every_step)
    assert 0.8 < cosine(found, expected) < 0.9999


def test_the_scale_multiplies_the_gradient_alone():
    network, x = deep(), images(4)
    found = gradients(lambda network, x: rate_run(network, x, scale=0.25), network, x)
    natural = gradients(rate_run, network, x)
    assert torch.equal(found.outputs, natural.outputs)
    torch.testing.assert_close(found.whole, natural.whole / 4, rtol=1e-12, atol=1e-15)


def test_rates_are_kept_in_float32_under_autocast():
    network = deep().float()
    x = images(4).float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = rate_run(network, x)
        cross_entropy(outputs.float()).backward()
    assert outputs.dtype == torch.bfloat16
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_the_refused_are_named_with_the_reason():
    network = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), RecurrentLIF(4), nn.Sequential(nn.PReLU(4)))
    refused = rate_refusals(network, one_step_windows=False)
    assert [refusal.name for refusal in refused] == ["1", "2", "3.0"]
    assert "LayerNorm (no rate rule" in str(refused[0])
    assert "neurons that receive each other's spikes" in refused[1].reason
    assert [refusal.name for refusal in rate_refusals(network, one_step_windows=True)] == ["1", "3.0"]


def test_a_neuron_whose_forward_is_its_own_is_refused():
    class Doubled(LIF):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert "a forward of its own" in rate_refusals(nn.Sequential(Doubled()), False)[0].reason


def test_a_users_rule_covers_its_type_and_subclasses_that_compute_the_same():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LayerNorm(5)  # would be refused

        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    class Named(Halved):
        pass

    class Quartered(Halved):
        def forward(self, x: Tensor) -> Tensor:
            return x / 4

    assert rate_refusals(Named(), False) != []
    register_rate_rule(Halved, Commutes)
    assert rate_refusals(nn.Sequential(Named()), False) == []
    assert [refusal.name for refusal in rate_refusals(nn.Sequential(Quartered()), False)] == ["0.inner"]
    network, x = nn.Sequential(Named(), shallow()).double(), images(5, shape=(6, 5))
    found = gradients(lambda network, x: rate_run(network, x), network[1], x / 2)
    torch.testing.assert_close(rate_run(network, x).detach(), found.outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "rule", "named"), [(LIF, LIF, "rule"), ("LIF", RateRule, "kind"), (int, RateRule, "kind")]
)
def test_what_is_no_module_type_or_rule_is_refused(kind: object, rule: object, named: str):
    with pytest.raises(TypeError, match=f"Expected argument `{named}`"):
        register_rate_rule(kind, rule)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.rand(6, 4, 5), {"window": 4}, "`window` to divide the number of time steps 6, but got 4"),
        (torch.rand(6, 4, 5), {"window": 0}, "`window`"),
        (torch.rand(6), {}, r"`x` to be of shape \[T, B, ...\]"),
    ],
)
def test_bad_input_is_named(x: Tensor, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        rate_run(shallow().float(), x, **options)


def test_a_network_of_several_outputs_is_refused():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ValueError, match="returns one tensor"):
        rate_run(Two(), torch.rand(3, 2, 5))
