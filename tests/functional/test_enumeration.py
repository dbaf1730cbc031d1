"""Exact bias and variance: by hand on two units and on two layers, against sampling, and the statements of the
theory."""

from __future__ import annotations

import doctest
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional import enumeration
from lightning_snn.functional.enumeration import GradientStatistics, gradient_statistics
from lightning_snn.functional.estimators import (
    IWST,
    AnalyticalGumbelRao,
    Estimator,
    GumbelRao,
    GumbelStraightThrough,
    chi_squared,
    noisy_spikes,
)
from tests.support.estimators import NOISES, every_lambda, every_noise, probability

every_estimator = pytest.mark.parametrize(
    "estimator", [IWST(0.3), IWST(-1.0, "logistic"), AnalyticalGumbelRao(0.5), AnalyticalGumbelRao(noise="logistic")]
)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def linear(spike, inputs):
    x = spike(inputs["t"])
    return x @ torch.linspace(-1, 2, x.numel(), dtype=x.dtype)


def multilinear(spike, inputs):
    x = spike(inputs["t"])
    return x[0] * x[1] - 2 * x[1] * x[2] * x[3] + x[0]


def quadratic(spike, inputs):
    x = spike(inputs["t"])
    return (x @ torch.linspace(-1, 2, x.numel(), dtype=x.dtype) - 0.7) ** 2


@every_noise
@every_lambda
@pytest.mark.parametrize("program", [linear, multilinear])
def test_every_lambda_is_unbiased_for_multilinear_losses(program, lam, noise):
    assert gradient_statistics(program, {"t": double(5)}, lam, noise).relative_bias() < 1e-12


@every_noise
def test_only_lambda_zero_is_unbiased_for_quadratic_losses(noise):
    t = {"t": double(5)}
    assert gradient_statistics(quadratic, t, 0.0, noise).relative_bias() < 1e-12
    for lam in (1.0, 0.5, -1.0):
        assert gradient_statistics(quadratic, t, lam, noise).relative_bias() > 1e-2


@every_noise
def test_lambda_zero_is_biased_for_cubic_losses(noise):
    def cubic(spike, inputs):
        return linear(spike, inputs) ** 3

    assert gradient_statistics(cubic, {"t": double(5)}, 0.0, noise).relative_bias() > 1e-2


@every_noise
@every_lambda
def test_the_variance_for_a_linear_loss_is_the_chi_squared_distance(noise, lam):
    t = double(4)
    found = gradient_statistics(linear, {"t": t}, lam, noise)
    expected = found.truth["t"].square() * chi_squared(t, lam, noise)
    torch.testing.assert_close(found.variance["t"], expected, rtol=1e-10, atol=1e-14)


@every_noise
def test_an_analytical_gumbel_rao_weight_is_biased_for_linear_losses_unless_normalized(noise):
    t = {"t": double(3)}
    assert gradient_statistics(linear, t, AnalyticalGumbelRao(1.0, False, noise)).relative_bias() > 0.05
    assert gradient_statistics(linear, t, AnalyticalGumbelRao(1.0, True, noise)).relative_bias() < 1e-12


@every_estimator
def test_two_units_by_hand(estimator):
    t = torch.tensor([0.4, -1.1], dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return torch.exp(0.8 * x[0] - 0.5 * x[1]) + x[0] * x[1]

    fires = probability(t, estimator.noise)
    expected_loss = torch.zeros((), dtype=torch.float64)
    gradients, chances = [], []
    for bits in itertools.product((0.0, 1.0), repeat=2):
        x = torch.tensor(bits, dtype=torch.float64, requires_grad=True)
        chance = torch.where(x.detach() > 0, fires, 1 - fires).prod()
        (slope,) = torch.autograd.grad(loss(x), x)
        gradients.append(slope * estimator.weight(t.detach(), x.detach()))
        chances.append(chance.detach())
        expected_loss = expected_loss + chance * loss(x.detach())
    (truth,) = torch.autograd.grad(expected_loss, t)
    mean = sum(chance * gradient for chance, gradient in zip(chances, gradients, strict=True))
    variance = sum(chance * (gradient - mean) ** 2 for chance, gradient in zip(chances, gradients, strict=True))

    found = gradient_statistics(lambda spike, inputs: loss(spike(inputs["t"])), {"t": t}, estimator)
    for got, expected in ((found.truth, truth), (found.mean, mean), (found.variance, variance)):
        torch.testing.assert_close(got["t"], expected, rtol=1e-10, atol=1e-15)
    assert found.relative_bias() == pytest.approx(((mean - truth).norm() / truth.norm()).item(), rel=1e-9)
    assert found.relative_deviation() == pytest.approx((variance.sum().sqrt() / truth.norm()).item(), rel=1e-9)
    assert found.cosine() == pytest.approx(F.cosine_similarity(mean, truth, dim=0).item(), rel=1e-12)


def two_layers(spike, inputs):
    hidden = spike(inputs["data"] @ inputs["weight"])
    output = spike(hidden @ inputs["deep"] - 0.2)
    return F.cross_entropy(output @ inputs["readout"], torch.tensor(1))


def two_layer_inputs() -> dict[str, Tensor]:
    return {"data": double(3), "weight": double(3, 2), "deep": double(2, 3), "readout": double(3, 4)}


@every_estimator
def test_two_layers_by_hand(estimator):
    inputs = {name: tensor.requires_grad_() for name, tensor in two_layer_inputs().items()}
    names, tensors = list(inputs), list(inputs.values())

    def cross_entropy(output: Tensor) -> Tensor:
        return F.cross_entropy(output @ inputs["readout"], torch.tensor(1))

    def chance(t: Tensor, x: Tensor) -> Tensor:
        fires = probability(t, estimator.noise)
        return torch.where(x > 0, fires, 1 - fires).prod()

    expected_loss, gradients, chances = torch.zeros((), dtype=torch.float64), [], []
    for bits in itertools.product((0.0, 1.0), repeat=5):
        hidden, output = torch.tensor(bits, dtype=torch.float64).split([2, 3])
        first = inputs["data"] @ inputs["weight"]
        second = hidden @ inputs["deep"] - 0.2
        joint = chance(first, hidden) * chance(second, output)
        expected_loss = expected_loss + joint * cross_entropy(output)
        # the chain rule written out, layer by layer
        leaf = output.clone().requires_grad_()
        to_output, to_readout = torch.autograd.grad(cross_entropy(leaf), (leaf, inputs["readout"]))
        to_second = to_output * estimator.weight(second.detach(), output)
        to_first = (inputs["deep"] @ to_second) * estimator.weight(first.detach(), hidden)
        to_deep, to_weight = torch.outer(hidden, to_second), torch.outer(inputs["data"], to_first)
        gradients.append([(inputs["weight"] @ to_first).detach(), to_weight.detach(), to_deep, to_readout])
        chances.append(joint.detach())
    truth = torch.autograd.grad(expected_loss, tensors)

    found = gradient_statistics(two_layers, inputs, estimator)
    for index, name in enumerate(names):
        mine = [gradient[index] for gradient in gradients]
        mean = sum(c * gradient for c, gradient in zip(chances, mine, strict=True))
        variance = sum(c * (gradient - mean) ** 2 for c, gradient in zip(chances, mine, strict=True))
        torch.testing.assert_close(found.truth[name], truth[index], rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(found.mean[name], mean.detach(), rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(found.variance[name], variance.detach(), rtol=1e-10, atol=1e-15)
    assert found.relative_bias("readout") < 1e-12
    assert found.relative_bias("deep") > 1e-3
    assert found.probability == pytest.approx(1, abs=1e-12)


def test_sampling_agrees_with_enumeration():
    inputs, draws = two_layer_inputs(), 20_000
    found = gradient_statistics(two_layers, inputs, 0.5)
    weight = inputs["weight"].expand(draws, 3, 2).clone().requires_grad_()
    hidden = noisy_spikes(torch.einsum("i,nij->nj", inputs["data"], weight), IWST(0.5))
    output = noisy_spikes(hidden @ inputs["deep"] - 0.2, IWST(0.5))
    losses = F.cross_entropy(output @ inputs["readout"], torch.ones(draws, dtype=torch.long), reduction="sum")
    (gradients,) = torch.autograd.grad(losses, weight)
    error = (found.variance["weight"] / draws).sqrt()
    assert ((gradients.mean(0) - found.mean["weight"]).abs() < 5 * error).all()
    torch.testing.assert_close(gradients.var(0), found.variance["weight"], rtol=0.1, atol=0)


def test_the_totals_are_those_of_all_inputs_as_one_vector():
    found = gradient_statistics(two_layers, two_layer_inputs(), 1.0)

    def flat(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors.values()])

    truth, mean = flat(found.truth), flat(found.mean)
    assert found.relative_bias() == pytest.approx(((mean - truth).norm() / truth.norm()).item())
    assert found.relative_deviation() == pytest.approx((flat(found.variance).sum().sqrt() / truth.norm()).item())
    assert found.cosine() == pytest.approx((mean @ truth / mean.norm() / truth.norm()).item())
    assert found.relative_bias() != found.relative_bias("deep")


@pytest.mark.parametrize("states_at_once", [1, 7, 32, 100])
def test_the_result_does_not_depend_on_how_many_states_are_held(states_at_once):
    inputs = two_layer_inputs()
    expected = gradient_statistics(two_layers, inputs, 0.5)
    found = gradient_statistics(two_layers, inputs, 0.5, states_at_once=states_at_once)
    for name in inputs:
        for kind in ("truth", "mean", "variance"):
            torch.testing.assert_close(
                getattr(found, kind)[name], getattr(expected, kind)[name], rtol=1e-10, atol=1e-14
            )


def recurrent(detached: bool):
    def program(spike, inputs):
        membrane, count = 0.0, 0.0
        for current in inputs["current"]:
            membrane = 0.9 * membrane + current
            spikes = spike((membrane - 1.0) / 1.5)
            membrane = membrane - (spikes.detach() if detached else spikes)
            count = count + spikes
        return (count @ torch.tensor([1.0, -0.5], dtype=torch.float64) - 0.4) ** 2

    return program


def test_a_detached_reset_biases_the_gradient_of_a_lif_neuron():
    inputs = {"current": double(5, 2) * 0.25 + 0.5}
    attached, detached = (gradient_statistics(recurrent(flag), inputs, 0.0) for flag in (False, True))
    for name in inputs:
        torch.testing.assert_close(attached.truth[name], detached.truth[name], rtol=1e-12, atol=1e-15)
    assert attached.relative_bias() < 0.05
    assert detached.relative_bias() > 4 * attached.relative_bias()


def test_a_far_saturated_unit_leaves_everything_finite():
    inputs = {"t": torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], dtype=torch.float32)}
    for noise, lam in itertools.product(NOISES, (1.0, 0.5, 0.0)):
        found = gradient_statistics(quadratic, inputs, lam, noise)
        for tensors in (found.truth, found.mean, found.variance):
            assert tensors["t"].isfinite().all()


def test_inputs_are_left_as_they_are_and_results_carry_no_graph():
    inputs = {name: tensor.requires_grad_() for name, tensor in two_layer_inputs().items()}
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    found = gradient_statistics(two_layers, inputs)
    assert isinstance(found, GradientStatistics)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None
        assert not found.mean[name].requires_grad
        assert not found.truth[name].requires_grad


def test_the_examples_of_the_docstring_run():
    assert doctest.testmod(enumeration) == (0, 7)


def call(program=linear, inputs=None, estimator: float | str | Estimator = 0.5, **kwargs):
    return gradient_statistics(program, {"t": double(3)} if inputs is None else inputs, estimator, **kwargs)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: call(inputs={"t": double(21)}), "from 1 to 20 noisy units.*but got 21"),
        (lambda: call(lambda spike, inputs: inputs["t"].sum()), "from 1 to 20 noisy units.*but got 0"),
        (lambda: call(lambda spike, inputs: spike(inputs["t"])), r"a scalar loss, but got shape \(3,\)"),
        (lambda: call(estimator=GumbelRao()), "`estimator` to have weights that are not random, but got GumbelRao"),
        (lambda: call(estimator=GumbelStraightThrough()), "but got GumbelStraightThrough.* use AnalyticalGumbelRao"),
        (lambda: call(estimator="best"), "`estimator` to be a number.*but got 'best'"),
        (lambda: call(inputs={}), "`inputs` to hold tensors of a floating dtype"),
        (lambda: call(inputs={"t": torch.arange(3)}), "`inputs` to hold tensors of a floating dtype.*torch.int64"),
        (lambda: call(states_at_once=0), "`states_at_once` to be an integer of at least 1, but got 0"),
    ],
)
def test_what_cannot_be_enumerated_is_refused_by_name(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
