"""Consequences of the three equations of a neuron: scans, chunks, potentials, dtypes, and refusals by name."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_snn.functional import Smooth
from lightning_snn.methods import NoisySpikes, RateBackprop
from lightning_snn.nn import LIF, AdaptiveLIF, LeakyIntegrator, Neuron, Recurrent, SynapticDelays, membrane, run
from lightning_snn.nn.neurons import EQUATIONS
from lightning_snn.nn.stateful import StatefulLayer, over_channels
from tests.nn.neurons.cases import FEATURES, NEURONS, Quadratic, current
from tests.nn.neurons.loops import assert_equal, gradients, lif_loop

neurons = pytest.mark.parametrize("name", NEURONS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def made(name: str, dtype: torch.dtype = torch.float64) -> Neuron:
    """A neuron whose parameters are wide enough for its input."""
    return NEURONS[name]().to(torch.promote_types(dtype, torch.float32))


def recorded(layer: Neuron, x: Tensor) -> tuple[Tensor, Tensor]:
    """Membrane potentials and spikes as `Neuron.scan` computes them."""
    potentials, charge = [], layer.charge

    def recording(x: Tensor, state: object) -> object:
        charged = charge(x, state)
        potentials.append(membrane(charged).detach())
        return charged

    layer.charge = recording
    try:
        spikes = Neuron.scan(layer, x)[0]
    finally:
        del layer.charge
    return torch.stack(potentials), spikes


@neurons
def test_every_neuron_of_the_table_spikes_now_and_then(name):
    assert 0.05 < made(name).scan(current())[0].mean() < 0.9


@neurons
@DTYPES
def test_potentials_are_those_recorded_during_the_scan_and_exceed_the_threshold_where_it_spikes(name, dtype):
    layer, x = made(name, dtype), current(100, 3, dtype)
    spikes = layer.scan(x)[0]
    potentials, threshold = layer.potentials(x, spikes)
    expected, fired = recorded(layer, x)
    assert potentials.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(spikes, fired)
    assert torch.equal(potentials, expected)
    assert torch.equal(potentials > threshold, spikes.bool())
    assert not potentials.requires_grad


@neurons
def test_potentials_follow_the_spikes_and_the_state_that_they_are_given(name):
    layer, x = made(name), current()
    spikes, _ = layer.scan(x)
    whole, _ = layer.potentials(x, spikes)
    state = layer.scan(x[:10])[1]
    later, _ = layer.potentials(x[10:], spikes[10:], state)
    assert torch.equal(later, whole[10:])
    silent, _ = layer.potentials(x, torch.zeros_like(x))
    first = int(spikes.flatten(1).any(1).nonzero()[0])
    assert torch.equal(silent[: first + 1], whole[: first + 1])
    assert not torch.equal(silent, whole)


@neurons
def test_step_by_step_is_the_scan(name):
    layer, x = made(name), current().requires_grad_()
    state, outputs = None, []
    for step in x:
        spikes, state = layer.step(step, state)
        outputs.append(spikes)
    expected, last = layer.scan(x)
    assert torch.equal(torch.stack(outputs), expected)
    assert all(torch.equal(one, other) for one, other in zip(tree_leaves(state), tree_leaves(last), strict=True))
    inputs = [x, *layer.parameters()]
    assert_equal(gradients(torch.stack(outputs), inputs), gradients(expected, inputs))


LAYERS = {
    **NEURONS,
    "integrator": lambda: LeakyIntegrator(0.8),
    "integrator_learned": lambda: LeakyIntegrator(0.8, learn_beta=True, channels=FEATURES),
    "delays": lambda: SynapticDelays((0, 1, 3)),
    "delays_longer_than_a_chunk": lambda: SynapticDelays((2, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", [(10, 15), (1, 1, 23), (5, 5, 5, 5, 5)], ids=str)
def test_a_scan_in_chunks_is_the_scan_of_the_whole_sequence(name, lengths):
    layer, x = LAYERS[name]().double(), current().requires_grad_()
    state, outputs = None, []
    for chunk in x.split(lengths):
        output, state = layer.scan(chunk, state)
        outputs.append(output)
    whole, last = layer.scan(x)
    assert torch.equal(torch.cat(outputs), whole)
    leaves, expected = tree_leaves(state), tree_leaves(last)
    assert len(leaves) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(leaves, expected, strict=True))
    parameters = list(layer.parameters())
    reference = gradients(whole, [x, *parameters])
    assert_equal(gradients(torch.cat(outputs), [x, *parameters]), reference)
    # a state without its graph cuts the gradient, so equality is not for want of memory
    head, state = layer.scan(x[: lengths[0]])
    rest = layer.scan(x[lengths[0] :], tree_map(torch.Tensor.detach, state))[0]
    cut = gradients(torch.cat([head, rest]), [x])[0]
    assert (cut - reference[0]).abs().max() > 1e-6


def test_the_state_is_never_left_on_the_layer():
    for make in LAYERS.values():
        layer = make().double()
        before = dict(vars(layer))
        layer.scan(current())
        layer.step(current()[0])
        assert vars(layer) == before
        assert isinstance(layer, StatefulLayer)


@neurons
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_spikes_have_the_dtype_of_the_current_and_states_are_float32_or_wider(name, dtype):
    layer, x = made(name, dtype), current(dtype=dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    for spikes, state in (layer.scan(x), layer.step(x[0]), Neuron.scan(layer, x)):
        assert spikes.dtype == dtype
        assert {leaf.dtype for leaf in tree_leaves(state)} == {wide}
    assert torch.equal(layer.scan(x)[0].to(wide), layer.scan(x.to(wide))[0])
    layer.scan(x)[0].float().sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.abs().max() > 0


@neurons
def test_autocast_changes_nothing(name):
    layer, x = made(name, torch.float32), current(dtype=torch.float32).requires_grad_()

    def outcome() -> list[Tensor]:
        spikes, state = layer.scan(x)
        generic, other = Neuron.scan(layer, x)
        stepped, after = layer.step(x[0])
        return [spikes, generic, layer.potentials(x, spikes)[0], stepped, *tree_leaves((state, other, after))]

    expected = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome()
    inputs = [x, *layer.parameters()]
    found += gradients(found[:2], inputs)
    expected += gradients(expected[:2], inputs)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@neurons
def test_a_current_that_is_not_floating_is_refused(name):
    layer, x = made(name), torch.ones(3, 2, FEATURES, dtype=torch.int64)
    for call in (layer.scan, lambda x: layer.step(x[0]), lambda x: Neuron.scan(layer, x)):
        with pytest.raises(ValueError, match="Expected argument `x` to be of a floating dtype, but got torch.int64"):
            call(x)


@pytest.mark.parametrize("shape", [(6, 2, FEATURES), (6, 2, FEATURES, 3, 2)], ids=["features", "images"])
def test_values_per_channel_act_on_dimension_one(shape):
    values = torch.tensor([0.4, 0.6, 0.8, 0.9], dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64) + 0.5
    layer = AdaptiveLIF(values.tolist(), values.tolist(), values.tolist(), values.tolist()).double()
    for channel, value in enumerate(values.float().double().tolist()):
        alone = AdaptiveLIF(value, value, value, value).scan(x[:, :, channel])[0]
        assert torch.equal(layer.scan(x)[0][:, :, channel], alone)


# gradients of a differentiable spike


@pytest.mark.parametrize(
    "name", [name for name, make in NEURONS.items() if not name.startswith("recurrent_lif") and make() is not None]
)
def test_gradients_are_exact_for_a_smooth_spike(name):
    layer = made(name)
    for part in layer.modules():
        if isinstance(part, Neuron):
            part.surrogate = Smooth()
    x = current(5, 2).requires_grad_()
    names = [parameter for parameter, _ in layer.named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(
            Generic(layer), {f"layer.{key}": value for key, value in zip(names, parameters, strict=True)}, (x,)
        )

    assert torch.autograd.gradcheck(outputs, (x, *layer.parameters()), check_forward_ad=True)


class Generic(nn.Module):
    """The scan that follows from the equations, as a forward pass."""

    def __init__(self, layer: Neuron) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        spikes, state = Neuron.scan(self.layer, x)
        return spikes, *tree_leaves(state)


# what a class does not define along with its equations


class OwnThreshold(LIF):
    def firing_threshold(self, state: Tensor) -> Tensor:
        return 1.0 + 0.5 * torch.tanh(membrane(state))


class OwnCharge(LIF):
    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return super().charge(2 * x, state)


class OwnReset(LIF):
    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return membrane(state) - 0.5 * spikes


class OwnRest(LIF):
    def initial_state(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)


class Doubling:
    """A class that is no neuron and changes one into another."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return super().charge(2 * x, state)


class Mixed(Doubling, LIF):
    pass


class Inherits(OwnCharge):
    pass


class Deep(OwnCharge):
    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return membrane(state) * (1 - 0.5 * spikes)


OWN = [OwnThreshold, OwnCharge, OwnReset, OwnRest, Mixed, Inherits, Deep]


def by_hand(layer: LIF, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, potentials and thresholds of the classes above, written out."""
    kind, u = type(layer), torch.full_like(x[0], 0.5 if isinstance(layer, OwnRest) else 0.0)
    found = []
    for given in x:
        v = layer.beta * u + (2 * given if isinstance(layer, (OwnCharge, Mixed)) else given)
        threshold = 1.0 + 0.5 * torch.tanh(v) if kind is OwnThreshold else torch.ones_like(v)
        spikes = (v > threshold).to(v)
        u = {OwnReset: v - 0.5 * spikes, Deep: v * (1 - 0.5 * spikes)}.get(kind, v - spikes)
        found.append((spikes, v, threshold))
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


@pytest.mark.parametrize("kind", OWN)
def test_a_subclass_with_an_equation_of_its_own_is_scanned_and_observed_by_it(kind):
    from lightning_snn.nn.observation import observe

    layer, x, calls = kind(0.8), current(60), []
    spikes, potentials, thresholds = by_hand(layer, x)
    assert not torch.equal(spikes, LIF(0.8).scan(x)[0])
    with observe(layer, lambda call: calls.append((call.spikes, call.membrane(), call.threshold)), membranes=True):
        assert torch.equal(run(layer, x), spikes)
    assert torch.equal(layer.scan(x)[0], spikes)
    (fired, seen, threshold) = calls[0]
    assert_equal([seen], [potentials])
    torch.testing.assert_close(threshold + torch.zeros_like(seen), thresholds)
    assert torch.equal(seen > threshold, fired.bool())


@pytest.mark.parametrize("kind", OWN)
def test_a_subclass_with_an_equation_of_its_own_has_no_facts_of_its_base_class(kind):
    layer = kind(0.8)
    for name in ("scan", "step", "potentials", "noisy_scan"):
        assert getattr(kind, name) is getattr(Neuron, name)
    assert layer.gain is None
    assert layer.noise_modes == ("step",)


def test_a_class_keeps_what_it_defines_along_with_its_equations_and_a_plain_subclass_inherits_all():
    class Faster(LIF):
        gain = 2.0
        noise_modes = ()

        def charge(self, x: Tensor, state: Tensor) -> Tensor:
            return super().charge(2 * x, state)

        def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return LIF.scan(self, 2 * x, state)

    class Plain(LIF):
        options = "its own"

    x = current()
    assert Faster().gain == 2.0
    assert Faster().noise_modes == ()
    assert torch.equal(Faster().scan(x)[0], Neuron.scan(Faster(), x)[0])
    assert Faster.potentials is Neuron.potentials
    assert Plain.scan is LIF.scan
    assert Plain().gain == 1.0
    assert Plain().noise_modes == LIF().noise_modes


@pytest.mark.parametrize("mode", ["moment", "trace"])
def test_a_subclass_with_an_equation_of_its_own_refuses_the_noise_modes_of_its_base_class(mode):
    from lightning_snn.functional.estimators import estimator_named
    from lightning_snn.nn.noise import SpikeNoise

    x = current()
    with pytest.raises(
        ValueError, match=f"Expected neurons that (know|support) noise mode '{mode}', but OwnCharge fires by noise"
    ):
        OwnCharge().noisy_scan(x, x.square(), SpikeNoise(estimator_named(1.0), mode))


# refusals


@pytest.mark.parametrize("missing", EQUATIONS[1:])
def test_a_neuron_without_an_equation_is_refused_when_it_is_built(missing):
    equations = {name: vars(Quadratic)[name] for name in EQUATIONS[1:] if name != missing}
    kind = type("Partial", (Neuron,), equations)
    message = f"Partial defines no {missing}: a neuron defines charge, firing_threshold and after_spikes"
    with pytest.raises(TypeError, match=message):
        kind()


class Pair(NamedTuple):
    one: Tensor
    other: Tensor


RESTS = {
    "a shape": (lambda x: x.new_zeros(1), r"got \(1,\) and torch.float64"),
    "a dtype": (lambda x: torch.zeros_like(x, dtype=torch.float32), r"got \(2, 3\) and torch.float32"),
    "a part of another shape": (lambda x: Pair(torch.zeros_like(x), x.new_zeros(3)), r"got \(3,\) and torch.float64"),
    "a number": (lambda x: 0.0, "got 0.0"),
    "a part that is a number": (lambda x: Pair(torch.zeros_like(x), 0), "got 0"),
}


@pytest.mark.parametrize("case", RESTS)
def test_a_state_of_rest_of_another_shape_or_dtype_is_refused(case):
    rest, got = RESTS[case]

    class Odd(LIF):
        def initial_state(self, x: Tensor) -> object:
            return rest(x)

    expected = r"Expected Odd.initial_state to return tensors of the shape \(2, 3\) and dtype torch.float64, but "
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    for call in (lambda: Odd().scan(x), lambda: Odd().step(x[0]), lambda: Odd().potentials(x, x)):
        with pytest.raises(ValueError, match=expected + got):
            call()


class WrongGain(Quadratic):
    def charge(self, x: Tensor, state: object) -> object:
        return Quadratic.charge(self, 2 * x, state)

    gain = 0.8


class Late(Quadratic):
    """The membrane potential receives the current one step late."""

    def charge(self, x: Tensor, state: object) -> object:
        v, memory = state
        return type(state)(0.7 * v + memory, x)

    def after_spikes(self, state: object, spikes: Tensor) -> object:
        return state


class Inhibited(LIF):
    """Neurons that receive each other's current within a step."""

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return super().charge(x - 0.2 * x.mean(1, keepdim=True), state)


def network(layer: Neuron) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WrongGain, r"declares gain = 0.8, but its membrane moves by 1.6 per unit of current"),
        (Late, "its membrane does not depend on the current of the same step"),
        (Inhibited, "its neurons receive each other's current within a step"),
    ],
)
def test_a_neuron_that_noise_cannot_represent_is_refused_by_name(kind, reason):
    message = rf"Expected a network that NoisySpikes can train, but got 1: {kind.__name__} \({reason}\)"
    with pytest.raises(ValueError, match=message):
        NoisySpikes(noise_mode="step").prepare(network(kind()))


def test_a_noise_mode_that_a_neuron_does_not_know_is_refused_with_the_remedy():
    message = r'but got 1: AdaptiveLIF \(fires by noise in mode "step" only: noise_mode="step"\)'
    with pytest.raises(ValueError, match=message):
        NoisySpikes().prepare(network(AdaptiveLIF()))
    NoisySpikes(noise_mode="step").prepare(network(AdaptiveLIF()))


def test_rates_refuse_lateral_inhibition_recurrence_and_matrices_by_name():
    class Matrix(LIF):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def charge(self, x: Tensor, state: Tensor) -> Tensor:
            return super().charge(x * self.weight.diagonal(), state)

    for layer, reason in (
        (Inhibited(), "its neurons receive each other's current within a step"),
        (Recurrent(LIF(), 3), 'neurons that receive each other\'s spikes, which only window="step" can represent'),
        (Matrix(), "parameter weight is neither a number nor one per channel"),
    ):
        message = rf"Expected a network that RateBackprop can train, but got 1: {type(layer).__name__} \({reason}\)"
        with pytest.raises(ValueError, match=message):
            RateBackprop().prepare(network(layer))


def test_a_number_of_channels_that_differs_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected an input with 3 channels in dimension 1, but got the shape \(2, 4\)"
    ):
        AdaptiveLIF([0.1, 0.2, 0.3]).scan(current(5, 2))
    assert over_channels(torch.ones(3), torch.ones(2, 3, 4, 4)).shape == (3, 1, 1)


def test_the_first_tensor_of_a_nested_state_is_the_membrane():
    state = Pair(Pair(torch.ones(2), torch.zeros(2)), torch.zeros(2))
    assert torch.equal(membrane(state), torch.ones(2))
    assert membrane(state.one.one) is state.one.one


def test_the_loop_of_a_plain_lif_is_that_of_the_contract():
    layer, x = LIF(0.8), current().requires_grad_()
    loop = lif_loop(x, 0.8, 1.0)
    spikes, _ = Neuron.scan(layer, x)
    assert torch.equal(spikes, loop.spikes)
    assert_equal(gradients(spikes, [x]), gradients(loop.spikes, [x]))


def test_mistakes_of_a_neuron_of_ones_own_are_named():
    class Forgetful(LIF):
        def after_spikes(self, state, spikes):
            super().after_spikes(state, spikes)

    class Hasty(LIF):
        def __init__(self) -> None:
            self.declare("alpha", 0.5)

    for call in (lambda: Forgetful().step(torch.ones(1, 2)), lambda: Forgetful().scan(torch.ones(3, 1, 2))):
        with pytest.raises(TypeError, match="Forgetful.after_spikes to return the state, but got None"):
            call()
    with pytest.raises(KeyError, match="LIF declares no value 'alpha'; declared: beta, threshold"):
        LIF().value("alpha")
    with pytest.raises(RuntimeError, match=r"Call super\(\).__init__\(\) of Hasty before `declare`"):
        Hasty()
