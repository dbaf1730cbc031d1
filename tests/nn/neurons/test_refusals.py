"""Layers and neurons that compute something else than their type says are refused by name, never converted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_snn.functional import Triangular
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    TimeToFirstSpike,
)
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn import IF, LIF, AdaptiveLIF, DetachedLIF, Neuron, Recurrent, RecurrentLIF
from lightning_snn.nn.neurons.probes import elementwise_refusal, gain_refusal, one_step_refusal
from lightning_snn.nn.stateful import over_channels

METHODS: dict[str, Callable[[], Method]] = {
    "rate": RateBackprop,
    "bayes": lambda: SpikingBayes(noise_mode="step"),
    "noisy": lambda: NoisySpikes(noise_mode="step"),
    "ttfs": lambda: TimeToFirstSpike(input_range=(0.0, 1.1)),
    "ep": ExpectationPropagation,
}


class Integrating(Neuron):
    """The equations that the neurons of these tests change."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + x

    def firing_threshold(self, state: Tensor) -> float:
        return 1.0

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes


def network(first: nn.Module | None = None, neuron: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4) if first is None else first, LIF() if neuron is None else neuron, nn.Linear(4, 3)
    )


def doubled(layer: nn.Module) -> nn.Module:
    """Set a forward on the instance that doubles the input."""
    plain = layer.forward
    layer.forward = lambda x: plain(2 * x)
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


class Tripled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


def parametrized(layer: nn.Module, name: str = "weight", by: nn.Module | None = None) -> nn.Module:
    parametrize.register_parametrization(layer, name, Tripled() if by is None else by)
    return layer


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    layer.weight = layer.weight.detach()  # as after a run without gradients: a graph cannot be copied
    return layer


COMPUTED = "its weight is computed from other parameters"
FORWARD = "a forward of its own"
HOOKS = "it has forward hooks, which would be lost"
COMPILED = "it is compiled( already: call `torch.compile` after `prepare`|, but RateBackprop replaces the calls)"
UNKNOWN = "only Sequential, Linear"
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "parametrized": (lambda: parametrized(nn.Linear(4, 4)), dict.fromkeys(("bayes", "ttfs", "ep"), COMPUTED)),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        dict.fromkeys(("bayes", "ttfs", "ep"), COMPUTED),
    ),
    "pruned": (lambda: pruned(nn.Linear(4, 4)), dict.fromkeys(("bayes", "ttfs", "ep"), COMPUTED)),
    "lazy": (lambda: nn.LazyLinear(4), dict.fromkeys(("bayes", "ttfs", "ep"), "its parameters are not initialized")),
    "hooked": (lambda: hooked(nn.Linear(4, 4)), dict.fromkeys(("bayes", "ttfs", "ep"), HOOKS)),
    "instance": (lambda: doubled(nn.Linear(4, 4)), {**dict.fromkeys(METHODS, FORWARD), "ep": UNKNOWN}),
    "compiled": (
        lambda: torch.compile(nn.Linear(4, 4), backend="eager"),
        dict.fromkeys(METHODS, COMPILED),
    ),
}
NEURONS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "instance": (lambda: doubled(LIF()), dict.fromkeys(METHODS, FORWARD)),
    "hooked": (lambda: hooked(LIF()), dict.fromkeys(("ttfs", "ep"), HOOKS)),
    "compiled": (lambda: torch.compile(LIF(), backend="eager"), LAYERS["compiled"][1]),
}


def assert_refused(made: nn.Module, name: str, method: str, reason: str | None) -> None:
    if reason is None:
        METHODS[method]().prepare(made)
        return
    with pytest.raises(ValueError, match=rf"but got {name}: \w+ \({reason}"):
        METHODS[method]().prepare(made)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_a_method_would_misread_is_refused(layer, method):
    make, refused = LAYERS[layer]
    assert_refused(network(make()), "0", method, refused.get(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_neurons_that_a_method_would_misread_are_refused(neuron, method):
    make, refused = NEURONS[neuron]
    assert_refused(network(neuron=make()), "1", method, refused.get(method))


class Same(nn.Linear):
    """A subclass that computes the same."""


class SameLIF(LIF):
    """A subclass that computes the same."""


class WithActivation(nn.Linear):
    """A linear layer with a layer inside and a forward of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


def test_ttfs_converts_subclasses_that_compute_the_same_and_names_the_others():
    x = torch.rand(2, 3, 4)
    for neuron in (LIF, SameLIF, IF, DetachedLIF):
        assert METHODS["ttfs"]().prepare(network(Same(4, 4), neuron())) is not None
    made = network(Same(4, 4))
    plain = network()
    plain.load_state_dict(made.state_dict())
    first, second = (METHODS["ttfs"]().prepare(each)(x.flatten(0, 1)) for each in (made, plain))
    assert torch.equal(first, second)
    assert_refused(network(WithActivation()), "0", "ttfs", FORWARD)
    assert_refused(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), AdaptiveLIF()), "2", "ttfs", "no first spike time")


class Doubling:
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class MixedIn(Doubling, LIF):
    """A forward of a class that is no module."""


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_of_a_mixin_is_refused(method):
    assert_refused(network(neuron=MixedIn()), "1", method, FORWARD)
    with pytest.raises(ValueError, match="MixedIn with a forward of its own"):
        Recurrent(MixedIn(), 4)
    with pytest.raises(ValueError, match="LIF with a forward of its own"):
        Recurrent(doubled(LIF()), 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["LIFNode", "ParametricLIFNode", "Leaky", "RLeaky", "Synaptic", "SLSTM"])
def test_neurons_of_other_libraries_are_refused_by_their_own_name(kind, method):
    if kind.endswith("Node"):
        made = getattr(pytest.importorskip("spikingjelly.activation_based.neuron"), kind)()
    else:
        snntorch = pytest.importorskip("snntorch")
        options = {"RLeaky": {"linear_features": 4}, "SLSTM": {}}.get(kind, {})
        values = {"RLeaky": (0.9,), "Leaky": (0.9,), "Synaptic": (0.9, 0.8), "SLSTM": (4, 4)}[kind]
        made = getattr(snntorch, kind)(*values, init_hidden=True, **options)
    assert_refused(network(neuron=made), "1", method, ".+")


class ShapeOfOne(Integrating):
    def initial_state(self, x: Tensor) -> Tensor:
        return torch.zeros(1, dtype=x.dtype)


class AlwaysHalf(Integrating):
    def initial_state(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=torch.float16)


class Elsewhere(Integrating):
    def initial_state(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x, device="meta")


class WithNumber(Integrating):
    def initial_state(self, x: Tensor) -> tuple[Tensor, float]:
        return torch.zeros_like(x), 1.0


@pytest.mark.parametrize("method", ["rate", "bayes", "noisy", "ep"])
@pytest.mark.parametrize("kind", [ShapeOfOne, AlwaysHalf, Elsewhere, WithNumber])
def test_a_wrong_initial_state_is_refused_by_prepare_and_by_the_first_scan(kind, method):
    message = f"Expected {kind.__name__}.initial_state to return tensors of the shape"
    assert_refused(network(neuron=kind()), "1", method, message)
    for call in (kind().scan, lambda x: kind().step(x[0])):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(3, 2, 4))
    if kind is Elsewhere:
        with pytest.raises(ValueError, match="on cpu, but got .* on meta"):
            kind().scan(torch.zeros(3, 2, 4))


def test_message_passing_names_neurons_of_another_number_of_channels():
    reason = "it cannot run on the 4 channels that it receives: Expected an input with 7 channels"
    for neuron in (LIF(channels=7, learn_beta=True), AdaptiveLIF(channels=7)):
        assert_refused(network(neuron=neuron), "1", "ep", reason)
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3), LIF(channels=7, learn_beta=True), nn.Flatten(), nn.Linear(4, 3))
    assert_refused(convolution, "1", "ep", reason)
    assert one_step_refusal(LIF(channels=4, learn_beta=True), (4, 1, 1)) is None


class GainPerChannel(Integrating):
    gain = torch.tensor([1.0, 2.0, 0.5])

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + over_channels(torch.tensor([1.0, 2.0, 0.5], dtype=x.dtype), x) * x


class OnImages(GainPerChannel):
    """Neurons that take images only."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("no image")
        return super().charge(x, state)


class WrongGain(OnImages):
    gain = torch.tensor([1.0, 2.0, 1.0])


def test_a_gain_per_channel_is_compared_channel_by_channel():
    OnImages.gain = GainPerChannel.gain  # a fact is not inherited past an equation
    assert gain_refusal(OnImages()) is None
    assert "declares gain" in str(gain_refusal(WrongGain()))


class Mixing(Integrating):
    """Weak connections in units in which all derivatives are small."""

    def __init__(self) -> None:
        super().__init__(Triangular(1e3))
        self.register_buffer("lateral", 1e-3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes @ self.lateral


def test_connections_are_found_in_any_units():
    assert elementwise_refusal(Mixing()) == "its neurons receive each other's spikes: declare `independent = False`"


@pytest.mark.parametrize("recurrent", [lambda: RecurrentLIF(4), lambda: Recurrent(AdaptiveLIF(), 4)])
def test_rates_train_parametrized_weights(recurrent):
    torch.manual_seed(0)
    made = network(parametrized(nn.Linear(4, 4)), parametrized(recurrent()))
    x = 3 * torch.rand(5, 6, 4)
    METHODS["rate"]().prepare(network(parametrized(nn.Linear(4, 4))))
    method = RateBackprop(window="step")
    method.training_step(method.prepare(made), x, torch.arange(6) % 3).objective.backward()
    for layer in (0, 1):
        assert made[layer].parametrizations.weight.original.grad.abs().max() > 0


def test_learned_decays_can_be_parametrized():
    made, plain = LIF(0.8, learn_beta=True).double(), LIF(0.8, learn_beta=True).double()
    parametrized(made, "beta_logit")
    plain.beta_logit.data.mul_(3)
    x = torch.rand(6, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(made.scan(x)[0], plain.scan(x)[0])
    gradients = []
    for layer in (made, plain):
        (parameter,) = layer.parameters()
        spikes = rate_run(nn.Sequential(layer), x)
        gradients.append(torch.autograd.grad(spikes.sum(), parameter)[0])
    torch.testing.assert_close(gradients[0], 3 * gradients[1])
    assert gradients[1].abs() > 0


class OfModules(Neuron):
    """Neurons whose equations are those of modules inside, one of them with weights."""

    independent = False

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"membrane": LIF(0.8), "lateral": nn.Linear(4, 4)})

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return self.parts["membrane"].charge(x, state)

    def firing_threshold(self, state: Tensor) -> float | Tensor:
        return self.parts["membrane"].firing_threshold(state)

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return self.parts["membrane"].after_spikes(state, spikes) - 0.1 * self.parts["lateral"](spikes)


@pytest.mark.parametrize("method", [NoisySpikes(noise_mode="step"), SpikingBayes(noise_mode="step", kl_weight=0.0)])
def test_modules_within_neurons_are_left_as_they_are(method):
    torch.manual_seed(0)
    made = method.prepare(network(neuron=OfModules()))
    (neuron,) = (layer for layer in made.modules() if isinstance(layer, OfModules))
    assert [type(part) for part in neuron.parts.values()] == [LIF, nn.Linear]
    x = 3 * torch.rand(6, 5, 4)
    method.training_step(made, x, torch.arange(5) % 3).objective.backward()
    assert neuron.parts["lateral"].weight.grad.abs().max() > 0
