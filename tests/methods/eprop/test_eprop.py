"""E-prop: its equations, its exact cases, feedback, streaming, and the networks that it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.functional import ArcTangent
from lightning_snn.methods import ActivityPenalty, Classification, EProp, Regression
from lightning_snn.methods.eprop import Chain, EligibilityRun
from lightning_snn.networks import RecurrentNet, ResidualMLP
from lightning_snn.nn import (
    AdaptiveLIF,
    LeakyIntegrator,
    MembraneResidual,
    Neuron,
    OverTime,
    Recurrent,
    RecurrentLIF,
    SynapticDelays,
    SynapticLIF,
)
from tests.contract.strangers import STRANGERS
from tests.contract.table import LAYERS, neuron_network
from tests.support.event_order import loader, order_of_events
from tests.support.online import assert_options_are_compared, assert_trained_or_refused
from tests.support.training import trainer

STEPS, BATCH, CLASSES, HIDDEN = 6, 4, 3, 6
METHODS = (EProp(), EProp("random"), EProp(streaming=True))
OPTIONS = ("feedback", "streaming")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
Y = torch.arange(BATCH) % CLASSES
H = ArcTangent().derivative
both_modes = pytest.mark.parametrize("streaming", [True, False])


def network(*hidden: nn.Module, tail: Sequence[nn.Module] = ()) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index, neurons in enumerate(hidden):
        layers += [nn.Linear(HIDDEN if index else 5, HIDDEN), neurons]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES), *tail).double()


def inputs(steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, BATCH, 5, dtype=torch.float64, generator=generator)


def prepared(method: EProp, net: nn.Module, seed: int = 2) -> EProp:
    torch.manual_seed(seed)
    method.prepare(net)
    return method


def gradients(method: EProp, net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a training step on a copy of the network, those of trained feedback weights under "B"."""
    net = copy.deepcopy(net)
    prepared(method, net).training_step(net, x, Y).objective.backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    trained = [each for each in method.feedback_weights if each.requires_grad]
    return found | {f"B{index}": each.grad for index, each in enumerate(trained)}


def through_time(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net = copy.deepcopy(net)
    torch.stack([F.cross_entropy(output, Y) for output in run(net, x)]).mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> set[str]:
    return {name for name in expected if not torch.allclose(found[name], expected[name], rtol=1e-2, atol=1e-6)}


def error_of(output: Tensor) -> Tensor:
    """The error of the mean over time and samples of cross-entropy."""
    return (output.softmax(1) - F.one_hot(Y, CLASSES)) / (BATCH * STEPS)


def by_hand(
    net: nn.Sequential,
    x: Tensor,
    feedback: Tensor | None = None,
    beta: float = 0.8,
    theta: float = 0.5,
    rho: float = 0.9,
    strength: float = 0.0,
    kappa: float = 0.0,
) -> dict[str, Tensor]:
    """The equations of the paper, for recurrent neurons with adaptive thresholds (strength 0: LIF) and leaky outputs.

    Eligibility vectors are kept for each sample, neuron and presynaptic signal: inputs, ones, and the last spikes.
    """
    weight, bias, of_output, output_bias = (
        each.detach() for each in (net[0].weight, net[0].bias, net[2].weight, net[2].bias)
    )
    recurrent = net[1].weight.detach()
    zeros = torch.zeros(BATCH, HIDDEN, dtype=x.dtype)
    potential, adaptation, last, slope = zeros, zeros, zeros, zeros
    vectors = torch.zeros(BATCH, HIDDEN, 5 + 1 + HIDDEN, dtype=x.dtype)
    adaptive, filtered = torch.zeros_like(vectors), torch.zeros_like(vectors)
    spikes_filtered, ones, output = zeros, 0.0, torch.zeros(BATCH, CLASSES, dtype=x.dtype)
    synapses, of_weight, of_bias = 0.0, 0.0, 0.0
    for current in x:
        before = torch.cat([current, torch.ones(BATCH, 1, dtype=x.dtype), last], 1)
        adaptive = slope[..., None] * vectors + (rho - slope * strength)[..., None] * adaptive
        vectors = beta * vectors + before[:, None]
        potential = beta * potential + current @ weight.T + bias + last @ recurrent.T
        distance = potential - theta - strength * adaptation
        slope = H(distance)
        last = (distance > 0).to(x.dtype)
        potential, adaptation = potential - theta * last, rho * adaptation + last
        filtered = kappa * filtered + slope[..., None] * (vectors - strength * adaptive)
        spikes_filtered, ones = kappa * spikes_filtered + last, kappa * ones + 1
        output = kappa * output + last @ of_output.T + output_bias
        error = error_of(output)
        signal = error @ (of_output if feedback is None else feedback)
        synapses = synapses + torch.einsum("bn,bnp->np", signal, filtered)
        of_weight, of_bias = of_weight + error.T @ spikes_filtered, of_bias + ones * error.sum(0)
    of_inputs, of_ones, of_spikes = synapses.split([5, 1, HIDDEN], 1)
    prefix = "1.weight"
    return {
        "0.weight": of_inputs, "0.bias": of_ones[:, 0], prefix: of_spikes, "2.weight": of_weight, "2.bias": of_bias,
    }  # fmt: skip


def lif(**options: Any) -> LIF:
    return LIF(0.8, 0.5, detach_reset=True, **options)


RECURRENT: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {
    "recurrent_lif": (lambda: RecurrentLIF(HIDDEN, 0.8, 0.5, detach_reset=True), {}),
    "recurrent_around_lif": (lambda: Recurrent(lif(), HIDDEN), {}),
    "recurrent_around_adaptive_lif": (
        lambda: Recurrent(AdaptiveLIF(0.8, 0.5, rho=0.9, strength=0.3, detach_reset=True), HIDDEN),
        {"strength": 0.3},
    ),
}


@both_modes
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("kappa", [0.0, 0.7])
@pytest.mark.parametrize("feedback", ["symmetric", "random", "adaptive"])
def test_the_gradient_is_that_of_the_equations_by_hand(streaming: bool, name: str, kappa: float, feedback: Any):
    make, options = RECURRENT[name]
    net, x = network(make(), tail=[LeakyIntegrator(kappa)] if kappa else []), inputs()
    method = EProp(feedback, streaming)
    found = gradients(method, net, x)
    weights = method.feedback_weights[0].detach() if feedback != "symmetric" else None
    expected = by_hand(net, x, weights, kappa=kappa, **options)
    assert_equal({name: found[name] for name in expected}, expected)
    if feedback == "adaptive":
        torch.testing.assert_close(found["B0"], expected["2.weight"], **EXACT)
    # controls: other feedback, another decay of the adaptation
    other = by_hand(
        net, x, None if weights is not None else torch.randn(CLASSES, HIDDEN).double(), kappa=kappa, **options
    )
    assert differing(found, other) == {"0.weight", "0.bias", "1.weight"}
    if options:
        assert differing(found, by_hand(net, x, weights, kappa=kappa, strength=0.3, rho=0.8))


class DetachedRecurrence(nn.Module):
    """Recurrent neurons by plain autograd with their last spikes detached, and nothing else."""

    def __init__(self, layer: Any, beta: float, theta: float, strength: float) -> None:
        super().__init__()
        self.weight, self.options = layer.weight, (beta, theta, strength)

    def forward(self, x: Tensor) -> Tensor:
        beta, theta, strength = self.options
        potential, adaptation, last, found = 0.0, 0.0, None, []
        for current in x.unflatten(0, (-1, BATCH)):
            current = current if last is None else current + last.detach() @ self.weight.T
            potential = beta * potential + current
            distance = potential - theta - strength * adaptation
            smooth = ArcTangent().primitive(distance)
            last = (distance > 0).to(x.dtype) + smooth - smooth.detach()
            potential, adaptation = potential - theta * last, 0.9 * adaptation + last
            found.append(last)
        return torch.cat(found)


@both_modes
@pytest.mark.parametrize("kappa", [0.0, 0.7])
def test_symmetric_feedback_is_autograd_with_detached_recurrent_spikes(streaming: bool, kappa: float):
    for layer, strength in (
        (RecurrentLIF(HIDDEN, 0.8, 0.5), 0.0),
        (Recurrent(AdaptiveLIF(0.8, 0.5, rho=0.9, strength=0.3), HIDDEN), 0.3),
    ):
        net, x = network(layer, tail=[LeakyIntegrator(kappa)] if kappa else []), inputs()
        detached = copy.deepcopy(net)
        detached[1] = DetachedRecurrence(detached[1], 0.8, 0.5, strength)
        found = gradients(EProp(streaming=streaming), net, x)
        assert_equal(found, through_time(detached, x))
        whole = through_time(net, x)
        assert differing(found, whole) == {"0.weight", "0.bias", "1.weight"}
        assert max((found[name] - whole[name]).abs().max() for name in whole) > 3e-3


ALONE: dict[str, Callable[[], nn.Module]] = {
    "lif": lambda: LIF(0.8, 0.5),
    "lif_zero": lambda: LIF(0.8, 0.5, reset="zero"),
    "lif_pending": lambda: LIF([0.5, 0.6, 0.7, 0.8, 0.9, 0.95], 0.5, order="leak_then_reset"),
    "adaptive": lambda: AdaptiveLIF(0.8, 0.5, rho=0.9),
    "synaptic": lambda: SynapticLIF(0.5, 0.8, 0.5),
}


@both_modes
@pytest.mark.parametrize("name", ALONE)
def test_one_hidden_layer_without_recurrence_is_backpropagation_through_time(streaming: bool, name: str):
    for tail in ((), (LeakyIntegrator(0.7),)):
        net, x = network(ALONE[name](), tail=tail), inputs()
        assert_equal(gradients(EProp(streaming=streaming), net, x), through_time(net, x))
        found = gradients(EProp("random", streaming), net, x)
        assert differing(found, through_time(net, x)) == {"0.weight", "0.bias"}


def test_learned_constants_and_convolutions_are_backpropagation_through_time_too():
    torch.manual_seed(0)
    neurons = LIF(0.8, 0.1, learn_beta=True, learn_threshold=True, channels=4)
    tail = (nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8, CLASSES), LeakyIntegrator(0.7, learn_beta=True))
    net = nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 2), neurons, *tail).double()
    assert_equal(gradients(EProp(), net, inputs()), through_time(net, inputs()))


@both_modes
def test_hidden_layers_learn_by_errors_that_are_broadcast_to_each(streaming: bool):
    net, x = network(lif(), RecurrentLIF(HIDDEN, 0.8, 0.5), RecurrentLIF(HIDDEN, 0.6, 0.5)), inputs()
    method = EProp("random", streaming)
    found = gradients(method, net, x)
    with torch.no_grad():
        errors = torch.stack([error_of(output) for output in run(net, x)])
    rows = x
    for index, (place, weights) in enumerate(zip((0, 2, 4), method.feedback_weights, strict=True)):
        part = nn.Sequential(*copy.deepcopy(net[place : place + 2]))
        if index:
            part[1] = DetachedRecurrence(part[1], (0.8, 0.6)[index - 1], 0.5, 0.0)
        part.zero_grad()
        spikes = run(part, rows)
        (spikes * (errors @ weights.detach())).sum().backward()
        expected = {f"{place + int(name[0])}{name[1:]}": each.grad for name, each in part.named_parameters()}
        assert_equal({name: found[name] for name in expected}, expected)
        rows = spikes.detach()
    torch.testing.assert_close(run(net, x), net[6](rows), **EXACT)
    assert [tuple(weights.shape) for weights in method.feedback_weights] == 3 * [(CLASSES, HIDDEN)]
    assert all(not weights.requires_grad for weights in method.feedback_weights)


def test_streaming_is_all_at_once_behind_layers_that_prepare_inputs():
    torch.manual_seed(0)
    before = (SynapticDelays((0, 2)), nn.Flatten(), nn.Linear(10, HIDDEN))
    net = nn.Sequential(
        *before, RecurrentLIF(HIDDEN, 0.8, 0.5), nn.Linear(HIDDEN, CLASSES), LeakyIntegrator(0.7)
    ).double()
    for feedback in ("symmetric", "random", "adaptive"):
        whole, streamed = (gradients(EProp(feedback, streaming), net, inputs()) for streaming in (False, True))
        assert_equal(streamed, whole)
        one, other = (
            prepared(EProp(feedback, streaming), net).training_step(net, inputs(), Y) for streaming in (False, True)
        )
        for got, expected in ((one.objective, other.objective), (one.loss, other.loss), (one.output, other.output)):
            torch.testing.assert_close(got, expected, **EXACT)


def test_layers_without_a_bias_and_frozen_weights_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, HIDDEN, bias=False), RecurrentLIF(HIDDEN, 0.8, 0.5), nn.Linear(HIDDEN, CLASSES, bias=False)
    )
    net = net.double()
    net[1].weight.requires_grad_(False)
    whole, streamed = (gradients(EProp(streaming=streaming), net, inputs()) for streaming in (False, True))
    assert whole.pop("1.weight") is streamed.pop("1.weight") is None
    assert_equal(streamed, whole)


def test_adaptive_feedback_moves_as_the_readout_does_and_meets_it_under_weight_decay():
    net, x = network(RecurrentLIF(HIDDEN, 0.8, 0.5)), inputs()
    method = prepared(EProp("adaptive"), net)
    optimizer = torch.optim.SGD([*net.parameters(), *method.parameters()], 0.1, weight_decay=0.5)
    distance = method.feedback_weights[0].detach() - net[2].weight.detach()
    for _ in range(20):
        optimizer.zero_grad()
        method.training_step(net, x, Y).objective.backward()
        optimizer.step()
    torch.testing.assert_close(
        method.feedback_weights[0].detach() - net[2].weight.detach(), distance * 0.95**20, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("feedback", ["random", "adaptive"])
def test_feedback_weights_are_in_checkpoints_and_trained_only_if_adaptive(feedback: Any, tmp_path):
    x, y = order_of_events(8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), RecurrentLIF(4, 0.8, 0.05), nn.Linear(4, 2))
    module = SpikingModule(net, EProp(feedback), num_classes=2)
    before = module.method.feedback_weights[0].detach().clone()
    fitting = trainer(max_epochs=2)
    fitting.fit(module, loader(x, y))
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    assert torch.equal(module.method.feedback_weights[0], before) == (feedback == "random")
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "one.ckpt", network=net, method=EProp(feedback))
    assert torch.equal(loaded.method.feedback_weights[0], module.method.feedback_weights[0])


@pytest.mark.parametrize(("short", "long"), [(4, 12), pytest.param(16, 512, marks=pytest.mark.slow)])
def test_memory_when_streaming_grows_by_the_outputs_of_a_step_alone(memory, short: int, long: int):
    net = network(Recurrent(AdaptiveLIF(0.8, 0.5), HIDDEN), tail=[LeakyIntegrator(0.7)])

    def peak_and_kept(time_steps: int, streaming: bool = True) -> tuple[int, int]:
        x, method = inputs(1).expand(time_steps, -1, -1), EProp(streaming=streaming)
        return memory.peak_and_kept_bytes(lambda: method.training_step(net, x, Y))

    (peak, kept), (longer_peak, longer_kept) = peak_and_kept(short), peak_and_kept(long)
    assert longer_kept == kept
    assert longer_peak - peak == (long - short) * BATCH * CLASSES * 8
    whole, longer_whole = (peak_and_kept(steps, streaming=False)[1] for steps in (4, 16))
    assert longer_whole > 3 * whole


@both_modes
def test_readouts_tasks_and_the_logged_loss(streaming: bool):
    net, x = network(RecurrentLIF(HIDDEN, 0.8, 0.5)), inputs()
    outputs = run(net, x).detach()
    for readout, losses in (
        ("mean", [F.cross_entropy(output, Y) for output in outputs]),
        ("sum", [F.cross_entropy(STEPS * output, Y) for output in outputs]),
        ("last", [F.cross_entropy(outputs[-1], Y)]),
        (lambda outputs: outputs[3:].mean(0), [F.cross_entropy(output, Y) for output in outputs]),
    ):
        method = EProp(streaming=streaming)
        method.task = Classification(readout)
        step = method.training_step(method.prepare(net), x, Y)
        torch.testing.assert_close(step.objective.detach(), torch.stack(losses).mean(), **EXACT)
        torch.testing.assert_close(step.output, method.task.read(outputs), **EXACT)
        torch.testing.assert_close(step.loss, F.cross_entropy(method.task.read(outputs), Y), **EXACT)
    target = torch.randn(BATCH, CLASSES, dtype=torch.float64)
    method = EProp(streaming=streaming)
    method.task = Regression()
    objective = method.training_step(net, x, target).objective.detach()
    torch.testing.assert_close(
        objective, torch.stack([F.mse_loss(output, target) for output in outputs]).mean(), **EXACT
    )


def test_penalties_act_on_the_spikes_of_each_layer_alone_and_are_refused_when_streaming():
    net, x = network(lif(), lif()), inputs()
    method = prepared(EProp("random"), net)
    method.set_penalties(net, {"squares": lambda spikes: spikes.square().mean()})
    method.penalized_step(net, x, Y).objective.backward()
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    plain = gradients(EProp("random"), net, x)
    net.zero_grad()
    first = run(net[:2], x)
    (first.square().mean() + run(net[2:4], first.detach()).square().mean()).backward()
    for name, parameter in net[:4].named_parameters():
        torch.testing.assert_close(found[name], plain[name] + parameter.grad, **EXACT)
    with pytest.raises(ValueError, match="no `penalties` for EProp, but got rate: with streaming=True"):
        SpikingModule(net, EProp("random", True), CLASSES, penalties={"rate": ActivityPenalty(0.1)})


@pytest.mark.parametrize("row", [row for row in LAYERS if isinstance(row.make(), Neuron)], ids=lambda row: row.name)
@both_modes
def test_every_neuron_is_trained_or_refused_by_name(row, streaming: bool):
    """Explicit traces are those of weights; a noisy posterior needs its own method."""
    net, method = neuron_network(row.make), EProp(streaming=streaming)
    layer, kind = net[1], type(net[1]).__name__
    reason = None
    if row.name == "bayes_recurrent_lif":
        reason = "neurons that receive each other's spikes in a way that e-prop does not know"
    elif streaming and "learned" in row.name:
        reason = r"its (neuron\.)?(alpha_logit|beta_logit|threshold_log) has no eligibility trace: use streaming=False"
    if reason is not None:
        with pytest.raises(ValueError, match=rf"a network that EProp can train, but got 1: {kind} \({reason}"):
            method.prepare(net)
        return
    assert layer is method.prepare(net)[1]
    method.training_step(net, *order_of_events(8)).objective.backward()
    gradients = {name: each.grad for name, each in net.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or gradient.abs().max() == 0] == []


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), *middle, LIF(), nn.Linear(6, CLASSES))


DEFINED_FOR = "e-prop needs an nn.Sequential: hidden neurons, then one nn.Linear as readout"


STREAMING, RANDOM = {"streaming": True}, {"feedback": "random"}
REFUSED: tuple[tuple[Callable[[], nn.Module], dict[str, Any], str], ...] = (
    (lambda: chain(LIF(), nn.Linear(6, 6)), {}, '1: LIF .of several hidden layers, .*: use feedback="random"'),
    (lambda: chain(LIF(), nn.Linear(6, 6)), {"feedback": "adaptive"}, "1: LIF .of several hidden layers"),
    (lambda: chain(nn.BatchNorm1d(6)), {}, "1: BatchNorm1d .its statistics are those of a batch"),
    (lambda: chain(nn.LeakyReLU(), LeakyIntegrator()), {}, "2: LeakyIntegrator .a state between weights and neurons"),
    (lambda: chain(OverTime(nn.GRU(6, 6))), {}, "1: OverTime .its module takes whole sequences"),
    (lambda: chain(nn.GRU(6, 6)), {}, "1: GRU .it may take rows for time steps"),
    (
        lambda: chain(MembraneResidual(nn.Sequential(LIF(), nn.Linear(6, 6)))),
        {},
        "1: MembraneResidual .neurons within a module",
    ),
    (lambda: nn.Sequential(nn.Linear(5, CLASSES), LIF()), {}, f"the network: Sequential .{DEFINED_FOR}"),
    (lambda: nn.Sequential(nn.Linear(5, CLASSES)), {}, f"the network: Sequential .{DEFINED_FOR}"),
    (lambda: nn.Sequential(*chain(), nn.Linear(3, 3)), {}, f"the network: Sequential .{DEFINED_FOR}"),
    (lambda: nn.Sequential(*chain(), nn.ReLU()), {}, f"the network: Sequential .{DEFINED_FOR}"),
    (lambda: ResidualMLP(5, CLASSES), {}, "ResidualMLP|neurons within a module"),
    (
        lambda: nn.Sequential(nn.Linear(5, 6), LIF(), nn.AvgPool1d(2), nn.Linear(3, 3)),
        RANDOM,
        '2: AvgPool1d .it changes spikes before the readout: use feedback="symmetric"',
    ),
    (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), *chain()[1:]),
        STREAMING,
        "2: LIF .no nn.Linear before it, whose",
    ),
    (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), LIF(), nn.Linear(6, 6), LIF(), nn.Linear(6, 3)),
        RANDOM,
        "2: LIF .no nn.Linear before it, which tells",
    ),
    (lambda: nn.Sequential(*chain()[:2], nn.Dropout(), *chain()[2:]), STREAMING, "2: Dropout .it changes spikes"),
    (
        lambda: nn.Sequential(*chain(), LeakyIntegrator(0.9, True)),
        STREAMING,
        "3: LeakyIntegrator .its decay is learned",
    ),
    (lambda: nn.Sequential(nn.Linear(5, 5), *chain()), STREAMING, "0: Linear .its weights have no eligibility"),
    (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), *chain()[1:]),
        STREAMING,
        "0: ParametrizedLinear .it is not a plain nn.Linear",
    ),
    (
        lambda: nn.Sequential(*chain()[:2], nn.LazyLinear(3)),
        RANDOM,
        "2: LazyLinear .its parameters are not initialized",
    ),
    (lambda: RecurrentNet(5, CLASSES, hidden=(6, 6)), {**RANDOM, **STREAMING}, "its beta_logit has no eligibility"),
)


@pytest.mark.parametrize(("make", "options", "reason"), REFUSED)
def test_networks_are_refused_by_name(make: Callable[[], nn.Module], options: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=f"a network that EProp can train, but got .*{reason}"):
        EProp(**options).prepare(make())


def test_the_recurrent_network_of_the_recipes_is_trained_by_random_feedback():
    torch.manual_seed(0)
    net = RecurrentNet(5, CLASSES, hidden=(6, 6)).double()
    method = prepared(EProp("random"), net)
    method.training_step(net, 3 * inputs(20), Y).objective.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
    with pytest.raises(ValueError, match="several hidden layers"):
        EProp().prepare(net)
    one = RecurrentNet(5, CLASSES, hidden=(6,)).double()
    assert EProp().prepare(one) is one


def test_bad_arguments_readouts_and_calls_are_refused():
    net, x = network(RecurrentLIF(HIDDEN)), inputs()
    with pytest.raises(ValueError, match="argument `feedback` to be one of 'symmetric', 'random', 'adaptive'"):
        EProp("none")
    with pytest.raises(ValueError, match=r"`task` to be one that EProp can learn, but got .*readout='max'"):
        EProp().set_task(Classification("max"))
    with pytest.raises(RuntimeError, match="a network that EProp has prepared"):
        EProp("random").training_step(net, x, Y)
    compiled = copy.deepcopy(net)
    compiled.compile(backend="eager")
    with pytest.raises(
        ValueError, match="it is compiled, but EProp replaces the calls of its layers: train it without"
    ):
        EProp().training_step(compiled, x, Y)
    with pytest.raises(ValueError, match="inputs .B, N. of Linear for EProp.streaming=True., but got .4, 2, 5."):
        EProp(streaming=True).training_step(net, torch.stack([x, x], 2), Y)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(ValueError, match="no autocast to float16 for EProp.streaming=True"),
    ):
        EProp(streaming=True).training_step(net.float(), x.float(), Y)


def test_bfloat16_autocast_accumulates_traces_in_float32():
    net, x = network(RecurrentLIF(HIDDEN, 0.8, 0.5)).float(), inputs().float()
    method = EProp(streaming=True)
    with torch.autocast("cpu", torch.bfloat16):
        step = method.training_step(method.prepare(net), x, Y)
        running = EligibilityRun(Chain.of(net))
        running.advance(x[0])
    step.objective.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())
    assert {each.trace.dtype for each in running._traces.values()} == {torch.float32}


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.name)
def test_neurons_of_the_user_are_trained_by_their_equations_or_refused_by_name(stranger):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), stranger.make(), nn.Linear(6, CLASSES))
    for method in METHODS:
        refused = stranger.name != "own_equations"
        assert_trained_or_refused(method, net, inputs().float(), Y, refused)


def test_a_checkpoint_names_the_options_that_differ():
    assert_options_are_compared(METHODS, OPTIONS)
