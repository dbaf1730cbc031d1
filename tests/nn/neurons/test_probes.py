"""Probes measure what a neuron declares, on a copy in float64, and leave the neuron as it is."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods import NoisySpikes, RateBackprop, SpikingBayes
from lightning_snn.nn import LIF, AdaptiveLIF, Neuron, Recurrent
from lightning_snn.nn.neurons import elementwise_refusal, gain_refusal, one_step_refusal
from tests.nn.neurons.cases import FEATURES, NEURONS, Quadratic

MIXED = "its neurons receive each other's current within a step"
FED_BACK = "its neurons receive each other's spikes: declare `independent = False`"


class Plain(Neuron):
    """A leak and a reset; the cases below differ from it in one equation."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + x

    def firing_threshold(self, state: Tensor) -> float:
        return 1.0

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes


class Clamped(Plain):
    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return (0.8 * state + x).clamp(max=0.5)


class Inhibited(Plain):
    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + x - 0.3 * x.mean(1, keepdim=True)


class InhibitedThreshold(Plain):
    """Neurons that see each other's potential in their threshold."""

    def firing_threshold(self, state: Tensor) -> Tensor:
        return 1.0 + 0.3 * state.mean(1, keepdim=True)


class InhibitedReset(Plain):
    """Neurons that receive each other's spikes of the same step in their reset, so one step later."""

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes - 0.3 * spikes.mean(1, keepdim=True)


class DeclaredReset(InhibitedReset):
    independent = False


class Late(Plain):
    def initial_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), torch.zeros_like(x)

    def charge(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return 0.8 * state[0] + state[1], x

    def after_spikes(self, state: tuple[Tensor, Tensor], spikes: Tensor) -> tuple[Tensor, Tensor]:
        return state[0] - spikes, state[1]


class Declared(Plain):
    gain = 0.5

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + 0.25 * x


class NoForwardMode(Plain):
    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - _Straight.apply(spikes)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("name", NEURONS)
def test_every_shipped_gain_is_confirmed(name):
    layer = NEURONS[name]()
    assert gain_refusal(layer) is None


@pytest.mark.parametrize("name", [name for name in NEURONS if not name.startswith("recurrent")])
def test_every_independent_neuron_is_confirmed_to_be_elementwise(name):
    assert elementwise_refusal(NEURONS[name]()) is None


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Plain(), None),
        (Inhibited(), MIXED),
        (InhibitedThreshold(), MIXED),
        (InhibitedReset(), FED_BACK),
        (DeclaredReset(), None),  # which a method asks for, and within a step it is elementwise
        (Recurrent(LIF(), FEATURES), None),
        (NoForwardMode(), "its step has no forward-mode derivative: use .* or define a `jvp`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_steps_that_mix_neurons_are_refused(layer, reason):
    found = elementwise_refusal(layer)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.fullmatch(reason, found)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Plain(), None),
        (InhibitedReset(), None),  # at rest nobody has spiked, and later the current of the step is the neuron's own
        (Inhibited(), MIXED),
        (Late(), "its membrane does not depend on the current of the same step"),
        (
            Clamped(),
            "in some states its membrane does not depend on the current of the same step; to keep neurons silent, "
            "raise `firing_threshold`",
        ),
        (Declared(), "declares gain = 0.5, but its membrane moves by 0.25 per unit of current"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gains_that_noise_cannot_use_are_refused(layer, reason):
    assert gain_refusal(layer) == reason


@pytest.mark.parametrize("make", [lambda: AdaptiveLIF([0.5, 0.6, 0.7]), lambda: Recurrent(AdaptiveLIF(), 5), Quadratic])
def test_a_probe_leaves_the_neuron_and_the_random_numbers_as_they_are(make):
    layer = make()
    state, generator = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    elementwise_refusal(layer)
    gain_refusal(layer)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())


class Image(Plain):
    """A neuron that takes images only."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("images only")
        return 0.8 * state + 2 * x


def test_shapes_are_tried_until_the_neuron_accepts_one():
    assert gain_refusal(Image()) is None
    wrong = Image()
    wrong.gain = 1.0
    assert gain_refusal(wrong) == "declares gain = 1.0, but its membrane moves by 2 per unit of current"


def test_any_layer_with_a_step_can_be_probed():
    class Filter(nn.Module):
        def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            state = x if state is None else 0.5 * state + x
            return state, state

    class Sum(Filter):
        def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().step(x.sum(1, keepdim=True).expand_as(x), state)

    assert elementwise_refusal(Filter()) is None
    assert elementwise_refusal(Sum()) == MIXED


def test_a_constant_of_nan_is_named_as_such():
    layer = LIF([0.5, 0.6, 0.7], learn_beta=True)
    assert elementwise_refusal(layer) is None
    with torch.no_grad():
        layer.beta_logit[1] = torch.nan
    unknown = "its derivative is NaN: look at its constants and parameters"
    assert elementwise_refusal(layer) == unknown

    class UnknownGain(Plain):
        def charge(self, x: Tensor, state: Tensor) -> Tensor:
            return 0.8 * state + torch.nan * x

    assert elementwise_refusal(UnknownGain()) == gain_refusal(UnknownGain()) == unknown
    threshold = LIF([0.5, 0.6, 0.7], [1.0, 1.0, 1.0], learn_threshold=True)
    assert one_step_refusal(threshold, (3,)) is None
    with torch.no_grad():
        threshold.threshold_log[1] = torch.nan
    assert (
        one_step_refusal(threshold, (3,)) == "at rest its distance to the threshold is not its current plus a constant"
    )


class PlainFunction(torch.autograd.Function):
    """A spike without a forward-mode derivative."""

    @staticmethod
    def forward(ctx, distance: Tensor) -> Tensor:
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class OwnSpikeInCharge(Neuron):
    def charge(self, x, state):
        return 0.9 * state + x - PlainFunction.apply(state - 1)

    def firing_threshold(self, state):
        return 1.0

    def after_spikes(self, state, spikes):
        return state


@pytest.mark.parametrize("method", [RateBackprop(), SpikingBayes(noise_mode="step"), NoisySpikes(noise_mode="step")])
def test_a_spike_that_is_a_plain_autograd_function_is_named_with_the_public_one(method):
    network = nn.Sequential(nn.Linear(4, 4), OwnSpikeInCharge())
    with pytest.raises(ValueError, match=r"1: OwnSpikeInCharge \(its \w+ has no for.*lightning_snn\.functional\.spike"):
        method.prepare(network)
