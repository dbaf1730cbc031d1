"""Online training through time: its equations, its exact cases, streaming, and the networks that it refuses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import CheckpointError, checkpoint

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.convert import SnntorchLIF
from lightning_snn.functional import ArcTangent
from lightning_snn.functional.traced import Kernel, input_traces, traced_map
from lightning_snn.methods import (
    ActivityPenalty,
    Classification,
    Method,
    OnlineThroughTime,
    Regression,
    SurrogateGradient,
    register_stateless_layer,
)
from lightning_snn.networks import MLP, ResidualConvNet
from lightning_snn.nn import (
    IF,
    AdaptiveLIF,
    LeakyIntegrator,
    Neuron,
    OverTime,
    Recurrent,
    RecurrentLIF,
    SynapticDelays,
    SynapticLIF,
)
from tests.contract.strangers import STRANGERS
from tests.contract.table import LAYERS, neuron_network
from tests.support.event_order import order_of_events
from tests.support.online import assert_options_are_compared, assert_trained_or_refused

STEPS, BATCH, CLASSES = 9, 4, 3
METHODS = tuple(OnlineThroughTime(**each) for each in ({}, {"trace": False}, {"steps": 3}, {"streaming": True}))
OPTIONS = ("trace", "steps", "streaming")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
Y = torch.arange(BATCH) % CLASSES


def lif(beta: float = 0.8, **options: Any) -> LIF:
    return LIF(beta, 0.5, **({"detach_reset": True} | options))


def network(*hidden: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index, neurons in enumerate(hidden):
        layers += [nn.Linear(6 if index else 5, 6), neurons]
    return nn.Sequential(*layers, nn.Linear(6, CLASSES)).double()


def inputs(*shape: int, steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, BATCH, *(shape or (5,)), dtype=torch.float64, generator=generator)


def gradients(method: Method, net: nn.Module, x: Tensor, y: Tensor = Y, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of the objective of a training step on a copy of the network."""
    net = copy.deepcopy(net)
    torch.manual_seed(seed)
    method.training_step(method.prepare(net), x, y).objective.backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def through_time(net: nn.Module, x: Tensor, y: Tensor = Y) -> dict[str, Tensor]:
    """Gradients of the mean over time of the losses, by backpropagation through time."""
    net = copy.deepcopy(net)
    torch.stack([F.cross_entropy(output, y) for output in run(net, x)]).mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    return {name for name in expected if not torch.allclose(found[name], expected[name], rtol=1e-2, atol=1e-6)}


def by_hand(net: nn.Sequential, x: Tensor, trace: bool, beta: float = 0.8, theta: float = 0.5) -> dict[str, Tensor]:
    """The equations of OTTT and SLTT for two hidden layers of LIF neurons that subtract the threshold."""
    weights = [net[index].weight.detach() for index in (0, 2, 4)]
    biases = [net[index].bias.detach() for index in (0, 2, 4)]
    decay, h = beta if trace else 0.0, ArcTangent().derivative
    potentials = [torch.zeros(BATCH, 6, dtype=x.dtype) for _ in range(2)]
    traces = [torch.zeros(BATCH, width, dtype=x.dtype) for width in (5, 6)]
    ones = 0.0
    found = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    for current in x:
        signals, slopes = [current], []
        for layer in range(2):
            traces[layer] = decay * traces[layer] + signals[-1]
            v = beta * potentials[layer] + signals[-1] @ weights[layer].T + biases[layer]
            spikes = (v > theta).to(x.dtype)
            potentials[layer] = v - theta * spikes
            signals.append(spikes)
            slopes.append(h(v - theta))
        ones = decay * ones + 1
        output = signals[-1] @ weights[2].T + biases[2]
        error = (output.softmax(1) - F.one_hot(Y, CLASSES)) / (BATCH * len(x))
        found["4.weight"] += error.T @ signals[-1]
        found["4.bias"] += error.sum(0)
        for layer in (1, 0):
            error = (error @ weights[layer + 1]) * slopes[layer]
            found[f"{2 * layer}.weight"] += error.T @ traces[layer]
            found[f"{2 * layer}.bias"] += ones * error.sum(0)
    return found


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_the_gradient_is_that_of_the_equations_by_hand(trace: bool, streaming: bool):
    net, x = network(lif(), lif()), inputs()
    found = gradients(OnlineThroughTime(trace, streaming=streaming), net, x)
    assert_equal(found, by_hand(net, x, trace))
    assert differing(found, by_hand(net, x, not trace)) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("order", ["reset_then_leak", "leak_then_reset"])
def test_with_one_hidden_layer_and_a_detached_reset_traces_are_backpropagation_through_time(streaming: bool, order):
    method, x = OnlineThroughTime(streaming=streaming), inputs()
    one = network(lif(order=order))
    assert_equal(gradients(method, one, x), through_time(one, x))
    # controls: a second hidden layer, a reset with a gradient, a reset to zero, and no traces
    two = network(lif(order=order), lif(order=order))
    assert differing(gradients(method, two, x), through_time(two, x)) == {"0.weight", "0.bias"}
    for other in (lif(order=order, detach_reset=False), lif(reset="zero")):
        net = network(other)
        assert differing(gradients(method, net, x), through_time(net, x)) == {"0.weight", "0.bias"}
    assert differing(gradients(OnlineThroughTime(trace=False), one, x), through_time(one, x)) == {"0.weight", "0.bias"}


def test_a_convolution_before_one_hidden_layer_is_backpropagation_through_time_too():
    torch.manual_seed(0)
    for before, shape in (
        (nn.Conv2d(2, 4, 3, padding=1), (2, 6, 6)),
        (nn.Conv2d(2, 4, 3, stride=2, dilation=2, groups=2), (2, 6, 6)),
        (nn.Conv2d(2, 4, (2, 3), padding="same", padding_mode="circular"), (2, 6, 6)),
        (nn.Conv2d(2, 4, (2, 3), padding="same", bias=False), (2, 6, 6)),
        (nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), (2, 3, 3)),
        (nn.Conv1d(2, 4, 3), (2, 8)),
        (nn.Conv3d(2, 4, 2), (2, 3, 3, 3)),
        (nn.Linear(3, 4), (2, 3)),
    ):
        pool = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(2))
        width = 4 * 2 if not isinstance(before, nn.Linear) else 2 * 2
        net = nn.Sequential(
            before, pool, LIF(0.8, 0.1, detach_reset=True), nn.Flatten(), nn.Linear(width, CLASSES)
        ).double()
        x = inputs(*shape)
        assert torch.equal(OnlineThroughTime().training_step(net, x, Y).output, run(net, x).mean(0).detach())
        assert_equal(gradients(OnlineThroughTime(), net, x), through_time(net, x))
        assert_equal(gradients(OnlineThroughTime(streaming=True), net, x), through_time(net, x))
        assert "0.weight" in differing(gradients(OnlineThroughTime(trace=False), net, x), through_time(net, x))


def test_a_learned_decay_is_that_of_the_traces():
    learned, fixed = network(LIF(0.8, 0.5, detach_reset=True, learn_beta=True)), network(lif())
    for streaming in (True, False):
        method = OnlineThroughTime(streaming=streaming)
        found = gradients(method, learned, inputs())
        expected = gradients(method, fixed, inputs())
        for name in expected:  # the logit is float32
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
        assert found["1.beta_logit"].abs() > 0


class Detached(nn.Module):
    """A layer whose state is a constant of the next step, by plain autograd."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        state, found = None, []
        for step in x.unflatten(0, (-1, BATCH)):
            output, state = self.layer.step(step, state)
            state = torch.utils._pytree.tree_map(Tensor.detach, state)
            found.append(output)
        return torch.cat(found)


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "lif": lambda: LIF(0.8, 0.5),
    "learned": lambda: LIF(0.8, 0.5, reset="zero", learn_beta=True, learn_threshold=True, channels=6),
    "adaptive": lambda: AdaptiveLIF(0.8, 0.5, rho=0.9),
    "synaptic": lambda: SynapticLIF(0.5, 0.8, 0.5),
    "recurrent_lif": lambda: RecurrentLIF(6, 0.8, 0.5),
    "recurrent": lambda: Recurrent(AdaptiveLIF(0.8, 0.5), 6),
    "integrator": lambda: LeakyIntegrator(0.8),
}


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("streaming", [True, False])
def test_without_traces_it_is_autograd_with_detached_membranes(name: str, streaming: bool):
    net, x = network(NEURONS[name](), NEURONS[name]()), inputs()
    detached = copy.deepcopy(net)
    for index in (1, 3):
        detached[index] = Detached(detached[index])
    expected = {name.replace(".layer", ""): grad for name, grad in through_time(detached, x).items()}
    found = gradients(OnlineThroughTime(trace=False, streaming=streaming), net, x)
    assert_equal(found, expected)
    assert {"0.weight", "2.weight"} <= differing(found, through_time(net, x))


def test_recurrent_weights_learn_from_traces_of_the_last_spikes():
    for neurons, name in ((RecurrentLIF(6, 0.8, 0.5, detach_reset=True), "1"), (Recurrent(lif(), 6), "1")):
        net, x = network(neurons), inputs()
        weight = net[1].weight.detach()
        expected = torch.zeros_like(weight)
        potential, last, trace = (torch.zeros(BATCH, 6, dtype=x.dtype) for _ in range(3))
        for current in x:
            trace = 0.8 * trace + last
            v = 0.8 * potential + net[0](current).detach() + last @ weight.T
            last = (v > 0.5).to(x.dtype)
            potential = v - 0.5 * last
            error = (net[2](last).detach().softmax(1) - F.one_hot(Y, CLASSES)) / (BATCH * STEPS)
            expected += ((error @ net[2].weight.detach()) * ArcTangent().derivative(v - 0.5)).T @ trace
        for streaming in (True, False):
            found = gradients(OnlineThroughTime(streaming=streaming), net, x)
            torch.testing.assert_close(found[f"{name}.weight"], expected, **EXACT)
        assert f"{name}.weight" in differing(gradients(OnlineThroughTime(trace=False), net, x), found)


@pytest.mark.parametrize("trace", [True, False])
def test_one_time_step_is_backpropagation(trace: bool):
    net, x = network(LIF(0.8, 0.5), LIF(0.8, 0.5)), inputs(steps=1)
    for streaming in (True, False):
        assert_equal(gradients(OnlineThroughTime(trace, streaming=streaming), net, x), through_time(net, x))


def normalized() -> nn.Module:
    """A convolutional network with batch normalization, dropout and delays."""
    torch.manual_seed(0)
    return nn.Sequential(
        SynapticDelays((0, 1)),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        lif(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 6),
        RecurrentLIF(6, 0.9, 0.5),
        nn.Linear(6, CLASSES),
        LeakyIntegrator(0.7),
    ).double()


def test_streaming_is_all_at_once():
    residual = ResidualConvNet((2, 4, 4), CLASSES, channels=(4, 4), neuron=lif).double()
    recurrent = network(Recurrent(AdaptiveLIF(0.7, 0.5), 6), SynapticLIF(0.5, 0.8, 0.5))
    for net, shape, traces in (
        (normalized(), (2, 4, 4), (True, False)),
        (residual, (2, 4, 4), (True, False)),
        (recurrent, (5,), (False,)),
    ):
        for dropout in (layer for layer in net.modules() if isinstance(layer, nn.Dropout)):
            dropout.p = 0.0  # masks are drawn in another order
        for trace in traces:
            whole, streamed = (OnlineThroughTime(trace, streaming=streaming) for streaming in (False, True))
            assert_equal(gradients(streamed, net, inputs(*shape)), gradients(whole, net, inputs(*shape)))
            steps = [copy.deepcopy(method).training_step(copy.deepcopy(net), inputs(*shape), Y)
                     for method in (whole, streamed)]  # fmt: skip
            for one, other in zip(*((step.objective, step.loss, step.output) for step in steps), strict=True):
                torch.testing.assert_close(one, other, **EXACT)


def test_batch_normalization_uses_the_statistics_of_single_steps():
    net, x = normalized(), inputs(2, 4, 4)
    norm = net[2]
    expected, plain = copy.deepcopy(norm), copy.deepcopy(norm)
    currents = run(net[:2], x).detach()
    for step in currents:
        expected(step)
    plain(currents.flatten(0, 1))
    OnlineThroughTime().training_step(net, x, Y)
    torch.testing.assert_close(norm.running_mean, expected.running_mean, **EXACT)
    torch.testing.assert_close(norm.running_var, expected.running_var, **EXACT)
    assert norm.num_batches_tracked == STEPS
    assert not torch.allclose(norm.running_mean, plain.running_mean, rtol=1e-3)


@pytest.mark.parametrize("streaming", [True, False])
def test_the_mean_over_all_choices_of_steps_is_the_gradient_of_all(streaming: bool, monkeypatch):
    net, x = network(lif(), lif()), inputs(steps=4)
    method = OnlineThroughTime(steps=2, streaming=streaming)
    found = []
    for drawn in itertools.combinations(range(4), 2):
        monkeypatch.setattr(torch, "randperm", lambda count, drawn=drawn: torch.tensor([*drawn[::-1], *range(2)]))
        found.append(gradients(method, net, x))
    mean = {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}
    assert_equal(mean, gradients(OnlineThroughTime(), net, x))
    assert differing(found[0], mean)


def test_steps_are_drawn_anew_for_each_batch_by_the_generator_and_never_without_steps():
    net, x = network(lif()), inputs()
    drawn = OnlineThroughTime(steps=3)
    torch.manual_seed(0)
    first, second = (drawn.training_step(net, x, Y).objective for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(drawn.training_step(net, x, Y).objective, first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    OnlineThroughTime().training_step(net, x, Y)
    assert torch.equal(torch.get_rng_state(), before)
    steps = [OnlineThroughTime(steps=3, streaming=streaming) for streaming in (True, False)]
    assert_equal(*(gradients(method, net, x, seed=3) for method in steps))


def test_steps_without_a_loss_keep_nothing_for_the_backward_pass(memory):
    net = network(lif(), lif())

    def saved(steps: int | None, time_steps: int = 16) -> int:
        x = inputs(steps=time_steps)
        method = OnlineThroughTime(steps=steps)
        return memory.saved_bytes(lambda: method.training_step(net, x, Y).objective, net.parameters())

    assert saved(4) == saved(4, 64)
    assert saved(4) < 0.3 * saved(16)


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize(("short", "long"), [(4, 12), pytest.param(16, 512, marks=pytest.mark.slow)])
def test_memory_when_streaming_grows_by_the_outputs_of_a_step_alone(memory, trace: bool, short: int, long: int):
    net = network(lif(), RecurrentLIF(6, 0.8, 0.5))

    def peak_and_kept(time_steps: int, streaming: bool = True) -> tuple[int, int]:
        x, method = inputs(steps=1).expand(time_steps, -1, -1), OnlineThroughTime(trace, streaming=streaming)
        return memory.peak_and_kept_bytes(lambda: method.training_step(net, x, Y))

    outputs = BATCH * CLASSES * 8
    (peak, kept), (longer_peak, longer_kept) = peak_and_kept(short), peak_and_kept(long)
    assert longer_kept == kept
    assert longer_peak - peak == (long - short) * outputs
    whole, longer_whole = (peak_and_kept(steps, streaming=False)[1] for steps in (4, 16))
    assert longer_whole > 3 * whole


def test_the_loss_is_that_of_the_readout_and_the_objective_that_of_single_steps():
    net, x = network(lif()), inputs()
    outputs = run(net, x).detach()
    expected = {
        "mean": [F.cross_entropy(output, Y) for output in outputs],
        "sum": [F.cross_entropy(STEPS * output, Y) for output in outputs],
        "last": [F.cross_entropy(outputs[-1], Y)],
    }
    expected["custom"] = expected["mean"]
    reads = {"custom": lambda outputs: outputs[2:].mean(0)}
    for name, losses in expected.items():
        for streaming in (True, False):
            method = OnlineThroughTime(streaming=streaming)
            method.task = Classification(reads.get(name, name))
            step = method.training_step(method.prepare(net), x, Y)
            torch.testing.assert_close(step.objective.detach(), torch.stack(losses).mean(), **EXACT)
            assert torch.equal(step.output, method.task.read(outputs))
            assert torch.equal(step.loss, F.cross_entropy(step.output, Y))
            assert step.objective.requires_grad
            assert not step.loss.requires_grad


def test_a_regression_is_trained():
    net, x, target = network(lif()), inputs(), torch.randn(BATCH, CLASSES, dtype=torch.float64)
    method = OnlineThroughTime()
    method.task = Regression()
    step = method.training_step(net, x, target)
    expected = torch.stack([F.mse_loss(output, target) for output in run(net, x)]).mean()
    torch.testing.assert_close(step.objective, expected, **EXACT)


def test_penalties_have_the_gradient_through_space_and_are_refused_when_streaming():
    net, x = network(lif(), lif()), inputs()
    penalty = {"squares": lambda spikes: spikes.square().mean()}
    method = OnlineThroughTime(trace=False)
    method.set_penalties(net, penalty)
    method.penalized_step(net, x, Y).objective.backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    detached = nn.Sequential(net[0], Detached(net[1]), net[2], Detached(net[3]), net[4])
    detached.zero_grad()
    first = run(detached[:2], x)
    second = run(detached[2:4], first)
    losses = torch.stack([F.cross_entropy(output, Y) for output in net[4](second)])
    (losses.mean() + first.square().mean() + second.square().mean()).backward()
    assert_equal(found, {name: parameter.grad for name, parameter in net.named_parameters()})
    with pytest.raises(ValueError, match="no `penalties` for OnlineThroughTime, but got rate: with streaming=True"):
        SpikingModule(net, OnlineThroughTime(streaming=True), CLASSES, penalties={"rate": ActivityPenalty(0.1)})


@pytest.mark.parametrize("row", [row for row in LAYERS if isinstance(row.make(), Neuron)], ids=lambda row: row.name)
@pytest.mark.parametrize("trace", [True, False])
def test_every_neuron_is_trained_or_refused_by_name(row, trace: bool):
    """Traces need one decay of the membrane per layer; a noisy posterior needs its own method."""
    net = neuron_network(row.make)
    method = OnlineThroughTime(trace)
    layer = net[1]
    membrane = getattr(layer, "neuron", layer)
    per_channel = isinstance(membrane.value("beta"), Tensor)
    reason = None
    if isinstance(layer, (SynapticLIF, SnntorchLIF)) or row.name == "bayes_recurrent_lif":
        reason = "no decay of the membrane potential alone, .*trace=False"
    elif per_channel:
        reason = "one decay per channel, .*trace=False"
    if trace and reason is not None:
        kind = type(layer).__name__
        with pytest.raises(ValueError, match=rf"OnlineThroughTime can train, but got 1: {kind} \({reason}"):
            method.prepare(net)
        return
    x, y = order_of_events(8)
    step = method.training_step(method.prepare(net), x, y)
    step.objective.backward()
    trained = {name: each.grad for name, each in net.named_parameters() if each.requires_grad}
    silent = [name for name, gradient in trained.items() if gradient is None or gradient.abs().max() == 0]
    # the decay of the adaptation acts one step later
    assert silent == [name for name in trained if name.endswith("rho_logit")]


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


register_stateless_layer(Weighted)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Scale(), "1: Scale .neither a Neuron nor a layer known to be stateless: see `register_stateless_layer`"),
        (OverTime(nn.GRU(6, 6)), "1: OverTime .its module takes whole sequences: train it by SurrogateGradient"),
        (nn.GRU(6, 6), "1: GRU .it may take rows for time steps"),
        (torch.compile(nn.Linear(6, 6)), "1: OptimizedModule .it is compiled, but OnlineThroughTime replaces"),
        (Weighted(), "1: Weighted .no trace of the inputs of its weights: use trace=False"),
        (SynapticLIF(), "1: SynapticLIF .no decay of the membrane potential alone"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_layers_are_refused_by_name(layer: nn.Module, reason: str):
    net = nn.Sequential(nn.Linear(5, 6), layer, LIF(), nn.Linear(6, CLASSES))
    with pytest.raises(ValueError, match=f"a network that OnlineThroughTime can train, but got {reason}"):
        OnlineThroughTime().prepare(net)
    if "trace=False" in reason or "alone" in reason:
        assert OnlineThroughTime(trace=False).prepare(net) is net


class Crossed(nn.Module):
    """A network that registers its layers in another order than it calls them."""

    def __init__(self, first: nn.Module, second: nn.Module, readout_first: bool = True) -> None:
        super().__init__()
        if not readout_first:
            self.first, self.second = first, second
        self.readout = nn.Linear(6, CLASSES)
        self.before, self.first = nn.Linear(5, 6), first
        self.between, self.second = nn.Linear(6, 6), second

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.second(self.between(self.first(self.before(x)))))


def test_a_network_whose_order_is_not_that_of_its_calls_is_refused_and_trained_without_traces():
    net, x = Crossed(lif(), lif()).double(), inputs()
    for readout_first, message in (
        (True, "readout has the trace of first, but no membrane followed it"),
        (False, "before has the trace of no membrane, but first followed it"),
    ):
        with pytest.raises(RuntimeError, match=f"registered in the order in which they are called, since {message}"):
            gradients(OnlineThroughTime(), Crossed(lif(), lif(), readout_first).double(), x)
    assert all(each.abs().max() > 0 for each in gradients(OnlineThroughTime(trace=False), net, x).values())
    with pytest.raises(ValueError, match="but got the network: Crossed .layers of several decays"):
        OnlineThroughTime().prepare(Crossed(lif(), lif(0.7)))
    different = network(lif(0.9), lif(0.3))
    assert differing(gradients(OnlineThroughTime(), different, x), gradients(OnlineThroughTime(False), different, x))


def test_a_network_compiled_after_prepare_is_refused():
    net = network(lif())
    method = OnlineThroughTime()
    method.prepare(net)
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="Sequential .it is compiled, but .*train it without `torch.compile`"):
        method.training_step(net, inputs(), Y)


@pytest.mark.parametrize("streaming", [True, False])
def test_computed_weights_are_trained(streaming: bool):
    net = network(lif())
    parametrizations.weight_norm(net[0])
    assert_equal(gradients(OnlineThroughTime(streaming=streaming), net, inputs()), through_time(net, inputs()))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block, self.readout, self.reentrant = (
            nn.Sequential(nn.Linear(5, 6), lif()),
            nn.Linear(6, CLASSES),
            reentrant,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(checkpoint(self.block, x, use_reentrant=self.reentrant))


def test_activation_checkpointing_is_an_error():
    x = inputs().requires_grad_()
    with pytest.raises(RuntimeError, match="no activation checkpointing around Linear with OnlineThroughTime"):
        gradients(OnlineThroughTime(), Checkpointed(True).double(), x)
    with pytest.raises(CheckpointError):
        gradients(OnlineThroughTime(), Checkpointed(False).double(), x)


@pytest.mark.parametrize("steps", [0, 2.0])
def test_bad_arguments_are_refused(steps):
    with pytest.raises(ValueError, match="argument `steps` to be an integer of at least 1"):
        OnlineThroughTime(steps=steps)
    with pytest.raises(ValueError, match="`steps` to be at most the number of time steps 6, but got 7"):
        OnlineThroughTime(steps=7).training_step(network(lif()), inputs(steps=6), Y)
    with pytest.raises(ValueError, match=r'readout=\'max\'\): .*Use readout="mean", "sum", "last" or'):
        OnlineThroughTime().set_task(Classification("max"))
    with pytest.raises(ValueError, match=r"readout='last'\): .*OnlineThroughTime\(steps=...\) draws the steps"):
        OnlineThroughTime(steps=2).set_task(Classification("last"))


def test_float16_autocast_is_refused_when_streaming():
    net, x = network(lif()).float(), inputs().float()
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(ValueError, match="no autocast to float16 for OnlineThroughTime.streaming=True"):
            OnlineThroughTime(streaming=True).training_step(net, x, Y)
        assert OnlineThroughTime().training_step(net, x, Y).objective.isfinite()


def test_steps_without_a_gradient_leave_no_casts_of_weights_to_autocast():
    net, x = network(lif(), lif()).float(), inputs().float()
    for method in (OnlineThroughTime(steps=2), OnlineThroughTime(steps=2, streaming=True), OnlineThroughTime()):
        with torch.autocast("cpu", torch.bfloat16):
            step = method.training_step(net, x, Y)
            again = run(net, x).mean()
        for objective in (step.objective, again):
            found = torch.autograd.grad(objective, list(net.parameters()))
            assert all(gradient.abs().max() > 0 for gradient in found)


def test_predictions_are_those_of_the_spiking_network():
    net, x = network(lif()), inputs()
    torch.testing.assert_close(OnlineThroughTime().predict(net, x).mean, run(net, x).mean(0).softmax(-1), **EXACT)


def test_a_network_keeps_its_layers_and_its_forwards():
    net = MLP(5, CLASSES, hidden=(6,)).double()
    names = list(net.state_dict())
    method = OnlineThroughTime()
    assert method.prepare(net) is net
    method.training_step(net, inputs(), Y).objective.backward()
    assert list(net.state_dict()) == names
    assert all("forward" not in vars(layer) for layer in net.modules())


def test_traced_maps_have_the_values_of_their_layers_and_gradients_of_inputs():
    layer, x = nn.Conv2d(2, 4, 3, stride=2).double(), inputs(2, 6, 6).requires_grad_()
    kernel = Kernel(layer.stride, layer.padding, layer.dilation)
    traces, ones, _ = input_traces(x.detach(), 0.5)
    rows = x.flatten(0, 1)
    found = traced_map(rows, traces.flatten(0, 1), ones, layer.weight, layer.bias, kernel)
    assert torch.equal(found, layer(rows))
    got, expected = (torch.autograd.grad(each.square().sum(), x)[0] for each in (found, layer(rows)))
    torch.testing.assert_close(got, expected, **EXACT)


def test_it_runs_as_a_method_of_a_module_and_differs_from_surrogate_gradients():
    x, y = order_of_events(8)
    found = []
    for method in (OnlineThroughTime(), SurrogateGradient()):
        torch.manual_seed(0)
        module = SpikingModule(nn.Sequential(nn.Linear(2, 8), IF(0.5), nn.Linear(8, 2)), method, num_classes=2)
        module.training_step((x, y), 0).backward()
        found.append(module.network[0].weight.grad)
    assert not torch.allclose(*found, rtol=1e-3)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.name)
def test_neurons_of_the_user_are_trained_by_their_equations_or_refused_by_name(stranger):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), stranger.make(), nn.Linear(6, CLASSES))
    for method in METHODS:
        refused = stranger.name != "own_equations" or getattr(method, "trace", False)
        assert_trained_or_refused(method, net, inputs().float(), Y, refused)


def test_a_checkpoint_names_the_options_that_differ():
    assert_options_are_compared(METHODS, OPTIONS)
