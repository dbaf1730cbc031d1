"""Spiking layers: the same spikes as other libraries, learned decays and thresholds, streaming, Gaussian input."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import snntorch
import snntorch.surrogate
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_snn.functional import ArcTangent, FastSigmoid, Sigmoid, Smooth, Surrogate, noisy_lif
from lightning_snn.functional.estimators import estimator_named
from lightning_snn.functional.surrogate import SURROGATES
from lightning_snn.nn import (
    IF,
    LIF,
    LeakyIntegrator,
    Moments,
    Neuron,
    RecurrentLIF,
    folded,
    membrane,
    posterior_noise,
    run,
)
from lightning_snn.nn.noise import SpikeNoise
from tests.nn.neurons.cases import current
from tests.nn.neurons.loops import SURROGATES as LOOP_SURROGATES
from tests.nn.neurons.loops import assert_equal, gradients, lif_loop

SETTINGS = 50


def setting(index: int) -> tuple[float, float, Tensor]:
    """Decay, threshold and input `[T, B, N]` of one random setting."""
    generator = torch.Generator().manual_seed(index)
    beta, threshold, offset = torch.rand(3, generator=generator).tolist()
    return 0.05 + 0.9 * beta, 0.3 + threshold, torch.randn(20, 4, 8, generator=generator) + offset


def spikes_and_gradient(network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of a fixed random function of them."""
    x = x.clone().requires_grad_()
    spikes = network(x)
    cotangent = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1))
    return spikes.detach(), torch.autograd.grad(spikes, x, cotangent)[0]


def snntorch_loop(beta: float, threshold: float, reset: str, surrogate):
    layer = snntorch.Leaky(beta=beta, threshold=threshold, reset_mechanism=reset, spike_grad=surrogate)

    def call(x: Tensor) -> Tensor:
        potential, spikes = layer.reset_mem(), []
        for given in x:
            spike, potential = layer(given, potential)
            spikes.append(spike)
        return torch.stack(spikes)

    return call


# surrogates of snntorch and of SpikingJelly, ours, and the height of theirs, which ours leave out; settings take turns
SNNTORCH = [
    (snntorch.surrogate.atan(alpha=2), ArcTangent(), 1.0),
    (snntorch.surrogate.atan(alpha=4), ArcTangent(1 / (2 * math.pi)), 2.0),
    (snntorch.surrogate.fast_sigmoid(slope=5), FastSigmoid(1 / 5), 1.0),
    (snntorch.surrogate.sigmoid(slope=4), Sigmoid(), 1.0),
]
SPIKINGJELLY = [
    ("ATan", 2.0, ArcTangent(), 1.0),
    ("ATan", 4.0, ArcTangent(1 / (2 * math.pi)), 2.0),
    ("Sigmoid", 4.0, Sigmoid(), 1.0),
    ("Sigmoid", 8.0, Sigmoid(1 / 8), 2.0),
]


@dataclass(frozen=True)
class Scaled(Surrogate):
    """A surrogate of another height."""

    surrogate: Surrogate
    height: float

    def derivative_(self, distance: Tensor) -> Tensor:
        return self.surrogate.derivative_(distance).mul_(self.height)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_spikes_and_gradients_are_those_of_snntorch(reset):
    mismatches = 0
    for index in range(SETTINGS):
        beta, threshold, x = setting(index)
        theirs, ours, height = SNNTORCH[index % len(SNNTORCH)]
        # snntorch never differentiates its reset
        options = {"detach_reset": True, "order": "leak_then_reset", "surrogate": Scaled(ours, height)}
        layer = LIF(beta, threshold, reset, **options)
        spikes, gradient = spikes_and_gradient(lambda x: run(layer, x), x)  # noqa: B023
        expected, reference = spikes_and_gradient(snntorch_loop(beta, threshold, reset, theirs), x)
        mismatches += int((spikes != expected).sum())
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)
    assert mismatches == 0


def test_the_other_order_or_reset_gives_other_spikes_than_snntorch():
    for options in ({"order": "reset_then_leak"}, {"order": "leak_then_reset", "reset": "zero"}):
        mismatches = 0
        for index in range(SETTINGS):
            beta, threshold, x = setting(index)
            expected = snntorch_loop(beta, threshold, "subtract", snntorch.surrogate.atan())(x)
            mismatches += int((run(LIF(beta, threshold, **options), x) != expected).sum())
        assert mismatches > 1000


@pytest.mark.parametrize(("reset", "v_reset"), [("subtract", None), ("zero", 0.0)])
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
def test_spikes_and_gradients_are_those_of_spikingjelly(reset, v_reset, detach):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron, surrogate

    mismatches = 0
    for index in range(SETTINGS):
        beta, threshold, x = setting(index)
        name, alpha, ours, height = SPIKINGJELLY[index % len(SPIKINGJELLY)]
        theirs = getattr(surrogate, name)(alpha=alpha)
        node = neuron.LIFNode(1 / (1 - beta), False, threshold, v_reset, theirs, detach, step_mode="m")
        layer = LIF(beta, threshold, reset, detach_reset=detach, surrogate=Scaled(ours, height))
        spikes, gradient = spikes_and_gradient(lambda x: run(layer, x), x)  # noqa: B023
        expected, reference = spikes_and_gradient(node, x)
        mismatches += int((spikes != expected).sum())
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4 * reference.abs().max().item())
    assert mismatches == 0


def test_the_other_order_gives_other_spikes_than_spikingjelly():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron

    mismatches = 0
    for index in range(SETTINGS):
        beta, threshold, x = setting(index)
        node = neuron.LIFNode(1 / (1 - beta), False, threshold, None, step_mode="m")
        mismatches += int((run(LIF(beta, threshold, order="leak_then_reset"), x) != node(x)).sum())
    assert mismatches > 1000


@pytest.mark.parametrize(("channels", "shape"), [(None, ()), (4, (4,))], ids=["layer", "channel"])
def test_decay_and_threshold_are_learned_as_logit_and_logarithm(channels, shape):
    layer = LIF(0.9, 1.5, learn_beta=True, learn_threshold=True, channels=channels)
    assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == {
        "beta_logit": shape,
        "threshold_log": shape,
    }
    torch.testing.assert_close(layer.beta, torch.full(shape, 0.9))
    torch.testing.assert_close(layer.threshold, torch.full(shape, 1.5))
    before = layer.beta, layer.threshold
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    for _ in range(5):
        optimizer.zero_grad()
        run(layer, torch.randn(9, 3, 4) + 0.5).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
        optimizer.step()
    assert ((layer.beta > 0) & (layer.beta < before[0])).all()
    assert (layer.threshold > before[1]).all()


@pytest.mark.parametrize("channels", [None, 4])
def test_gradients_of_decay_and_threshold_are_exact_for_a_smooth_spike(channels):
    layer = LIF(0.8, learn_beta=True, learn_threshold=True, channels=channels, surrogate=Smooth()).double()
    x = torch.randn(5, 2, 4, dtype=torch.float64)

    def outputs(beta_logit: Tensor, threshold_log: Tensor) -> Tensor:
        return run_with(layer, {"beta_logit": beta_logit, "threshold_log": threshold_log}, x)

    assert torch.autograd.gradcheck(outputs, (layer.beta_logit, layer.threshold_log))


def run_with(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    with folded(len(x)):
        return torch.func.functional_call(layer, parameters, x.flatten(0, 1))


def test_values_that_are_not_learned_are_no_parameters():
    assert list(LIF(0.9, 1.5).state_dict()) == []
    layer = LIF([0.5, 0.9], 1.5, channels=2)
    assert not list(layer.parameters())
    assert layer.state_dict()["beta_channels"].tolist() == pytest.approx([0.5, 0.9])
    assert layer.state_dict()["threshold_channels"].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("shape", [(6, 2, 3), (6, 2, 3, 4, 5)], ids=["features", "images"])
def test_channels_are_dimension_one_of_the_input(shape):
    betas, x = [0.2, 0.6, 0.95], torch.randn(shape) + 0.5
    spikes = run(LIF(betas), x)
    for channel, beta in enumerate(betas):
        assert torch.equal(spikes[:, :, channel], run(LIF(beta), x[:, :, channel]))


def test_a_number_of_channels_that_differs_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected an input with 3 channels in dimension 1, but got the shape \(2, 4\)"
    ):
        run(LIF([0.1, 0.2, 0.3]), torch.randn(5, 2, 4))


def test_a_recurrent_layer_hears_its_last_spikes():
    layer = RecurrentLIF(2, beta=0.0)
    layer.weight.data = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # neuron 1 receives the spikes of neuron 0
    x = torch.zeros(4, 1, 2)
    x[1, 0, 0] = 2.0
    assert run(layer, x)[:, 0].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


def test_a_recurrent_layer_without_recurrent_weights_is_a_plain_one():
    layer, x = RecurrentLIF(4), torch.randn(12, 3, 4)
    assert not torch.equal(run(layer, x), run(LIF(), x))
    nn.init.zeros_(layer.weight)
    assert torch.equal(run(layer, x), run(LIF(), x))


def test_moments_drive_noisy_neurons():
    mean, variance = torch.randn(6, 3, 4), torch.rand(6, 3, 4)
    layer = LIF(0.7, 0.8, "zero")
    torch.manual_seed(1)
    with posterior_noise(0.5), folded(6):
        spikes = layer(Moments(mean.flatten(0, 1), variance.flatten(0, 1))).unflatten(0, (6, 3))
    torch.manual_seed(1)
    assert torch.equal(spikes, noisy_lif(mean, variance, 0.7, 0.8, layer.dynamics, 0.5)[0])


def test_moments_outside_posterior_noise_are_refused():
    with pytest.raises(RuntimeError, match="LIF received a Gaussian current outside `posterior_noise`"), folded(2):
        LIF()(Moments(torch.zeros(4, 3), torch.ones(4, 3)))


@pytest.mark.parametrize("channels", [None, 4])
def test_an_integrator_sums_moments_as_those_of_independent_steps(channels):
    layer = LeakyIntegrator(0.7, learn_beta=channels is not None, channels=channels)
    draws, steps = 20_000, 3
    mean, variance = torch.randn(steps, 1, 4), torch.rand(steps, 1, 4) + 0.1
    with folded(steps):
        moments = layer(Moments(mean.flatten(0, 1), variance.flatten(0, 1)))
    currents = mean + variance.sqrt() * torch.randn(steps, draws, 4)
    sampled = run(layer, currents).detach()
    expected_mean, expected_variance = moments.expectation.detach(), moments.variance.detach()
    assert ((sampled.mean(1) - expected_mean).abs() < 5 * (expected_variance / draws).sqrt()).all()
    assert ((sampled.var(1) / expected_variance - 1).abs() < 5 * math.sqrt(2 / draws)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(beta=1.5), "argument `beta` to be a number from 0 to 1, but got 1.5"),
        (lambda: LIF(beta=[0.5, -0.1]), "argument `beta` to be a number from 0 to 1, but got -0.1"),
        (lambda: LIF(beta=math.nan), "argument `beta` to be a number from 0 to 1, but got nan"),
        (lambda: LIF(beta=[[0.5]]), r"argument `beta` to be a number or one per channel, but got the shape \(1, 1\)"),
        (
            lambda: LIF(beta=[0.5, 0.6], channels=3),
            r"argument `beta` to be a number or 3 numbers, but got the shape \(2,\)",
        ),
        (lambda: LIF(beta="0.9"), "argument `beta` to be a number or one per channel, but got '0.9'"),
        (
            lambda: LIF(beta=1.0, learn_beta=True),
            "argument `beta` to be a number between 0 and 1, both excluded, but got 1.0",
        ),
        (
            lambda: LIF(beta=0.0, learn_beta=True),
            "argument `beta` to be a number between 0 and 1, both excluded, but got 0.0",
        ),
        (lambda: LIF(threshold=0.0), "argument `threshold` to be a finite number larger than 0, but got 0.0"),
        (lambda: LIF(threshold=[1.0, -1.0]), "argument `threshold` to be a finite number larger than 0, but got -1.0"),
        (lambda: LIF(reset="none"), "argument `reset` to be one of 'subtract', 'zero', but got 'none'"),
        (
            lambda: LIF(order="late"),
            "argument `order` to be one of 'reset_then_leak', 'leak_then_reset', but got 'late'",
        ),
        (lambda: LIF(surrogate="relu"), "argument `surrogate` to be a Surrogate or one of .* but got 'relu'"),
        (lambda: LIF(channels=0), "argument `channels` to be an integer of at least 1, but got 0"),
        (lambda: RecurrentLIF(0), "argument `features` to be an integer of at least 1, but got 0"),
        (lambda: LeakyIntegrator(beta=2.0), "argument `beta` to be a number from 0 to 1, but got 2.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_the_range_of_the_decay_are_allowed(beta):
    assert LIF(beta).beta == beta
    assert run(LIF(beta), torch.full((3, 1, 1), 0.6)).flatten().tolist() == ([0, 0, 0] if beta == 0 else [0, 1, 0])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (LIF(), "LIF(beta=0.9, threshold=1, reset=subtract, surrogate=ArcTangent(width=0.3183098861837907))"),
        (
            LIF([0.5, 0.6], 0.8, "zero", True, "sigmoid", learn_threshold=True, order="leak_then_reset"),
            "LIF(beta=[2 channels], threshold=0.8 (learned), reset=zero, surrogate=Sigmoid(width=0.25), "
            "detach_reset=True, order=leak_then_reset)",
        ),
        (LeakyIntegrator(0.5, learn_beta=True), "LeakyIntegrator(beta=0.5 (learned))"),
        (
            RecurrentLIF(3, surrogate="triangular"),
            "RecurrentLIF(3, beta=0.9, threshold=1, reset=subtract, surrogate=Triangular(width=1.0))",
        ),
    ],
)
def test_the_repr_tells_what_the_layer_does(layer, text):
    assert repr(layer) == text


# LIF by its equations, and its fused forms

KINDS = {
    "numbers": {"beta": 0.8, "threshold": 0.9},
    "learned": {"beta": 0.8, "threshold": 0.9, "learn_beta": True, "learn_threshold": True},
    "channels": {"beta": [0.5, 0.6, 0.7, 0.9], "threshold": [0.8, 0.9, 1.0, 1.2]},
    "learned_channels": {"beta": 0.8, "threshold": 0.9, "learn_beta": True, "learn_threshold": True, "channels": 4},
    "learned_decay": {"beta": [0.5, 0.6, 0.7, 0.9], "threshold": 0.9, "learn_beta": True},
    "learned_threshold": {"beta": 0.8, "threshold": [0.8, 0.9, 1.0, 1.2], "learn_threshold": True},
}
CONTRACT = list(
    itertools.product(["subtract", "zero"], [False, True], ["reset_then_leak", "leak_then_reset"], SURROGATES)
)


@pytest.mark.parametrize(("reset", "detach", "order", "surrogate"), CONTRACT)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_scan_is_that_of_the_equations(reset, detach, order, surrogate, kind):
    layer = LIF(**KINDS[kind], reset=reset, detach_reset=detach, order=order, surrogate=surrogate)
    narrow = current(dtype=torch.float32)
    one, other = layer.scan(narrow), Neuron.scan(layer, narrow)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))
    layer.double()
    x = current().requires_grad_()
    fused, expected = layer.scan(x), Neuron.scan(layer, x)
    assert type(fused[1]) is type(expected[1])
    assert 0.1 < fused[0].mean() < 0.9
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(fused), tree_leaves(expected), strict=True))
    inputs = [x, *layer.parameters()]
    outputs = [(spikes, membrane(state)) for spikes, state in (fused, expected)]
    # and that of a loop which shares no code with either
    beta, threshold = layer.value("beta"), layer.value("threshold")
    loop = lif_loop(x, beta, threshold, reset, detach, order, LOOP_SURROGATES[surrogate])
    assert torch.equal(loop.spikes, fused[0])
    reference = gradients([loop.spikes, loop.state[0]], inputs)
    for each in outputs:
        assert_equal(gradients(each, inputs), reference)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["numbers", "learned", "learned_channels"])
def test_the_generic_noisy_scan_is_the_fused_one(reset, detach, lam, kind):
    layer = LIF(**KINDS[kind], reset=reset, detach_reset=detach).double()
    mean = current().requires_grad_()
    variance = (0.1 + current(seed=1).square()).requires_grad_()
    inputs = [mean, variance, *layer.parameters()]
    found = []
    for scan in (LIF.noisy_scan, Neuron.noisy_scan):
        noise = SpikeNoise(estimator_named(lam), "step", torch.Generator().manual_seed(4))
        spikes, z = scan(layer, mean, variance, noise)
        found.append((spikes, z, gradients([spikes, z], inputs)))
    (fused, z, reference), (spikes, standardized, got) = found
    assert 0.1 < fused.mean() < 0.9
    assert torch.equal(spikes, fused)
    assert_equal([standardized], [z])
    assert_equal(got, reference)


def test_the_generic_noisy_scan_finds_the_gain_that_is_not_declared():
    class Undeclared(LIF):
        charge = LIF.charge

    mean, variance = current().requires_grad_(), (0.1 + current(seed=1).square()).requires_grad_()
    found = []
    for layer in (LIF(0.8), Undeclared(0.8)):
        noise = SpikeNoise(estimator_named(0.5), "step", torch.Generator().manual_seed(4))
        spikes, z = layer.noisy_scan(mean, variance, noise)
        found.append((spikes, gradients([spikes, z], [mean, variance])))
    assert Undeclared().gain is None
    assert torch.equal(found[1][0], found[0][0])
    assert_equal(found[1][1], found[0][1])


@pytest.mark.parametrize("order", ["reset_then_leak", "leak_then_reset"])
def test_noise_modes_are_those_that_the_reset_and_the_order_have(order):
    modes = ("step",) if order == "leak_then_reset" else ("moment", "step", "trace")
    assert LIF(order=order).noise_modes == modes
    assert set(LIF(order=order, reset="zero").noise_modes) == set(modes) - {"trace"}


def test_an_if_neuron_is_a_lif_neuron_without_a_leak():
    x = current()
    assert torch.equal(IF(0.9, "zero").scan(x)[0], LIF(1.0, 0.9, "zero").scan(x)[0])
    assert not torch.equal(IF(0.9, "zero").scan(x)[0], LIF(0.9, 0.9, "zero").scan(x)[0])
    assert IF.scan is LIF.scan
    assert IF().gain == 1.0
    assert repr(IF(0.5)) == "IF(beta=1, threshold=0.5, reset=subtract, surrogate=ArcTangent(width=0.3183098861837907))"
    assert [name for name, _ in IF(learn_threshold=True, channels=4).named_parameters()] == ["threshold_log"]


@pytest.mark.parametrize("detach", [False, True])
def test_if_neurons_are_those_of_spikingjelly(detach):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    for index in range(10):
        _, threshold, x = setting(index)
        node = neuron.IFNode(threshold, None, detach_reset=detach, step_mode="m")
        assert torch.equal(run(IF(threshold, detach_reset=detach), x), node(x))
