"""Learning and prediction by expectation propagation: tasks, closed form against draws, and refused arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.nn import Complement
from tests.methods.ep.task import Steps, dense, digits


def accuracy(steps: Steps, x: Tensor, y: Tensor) -> float:
    return (steps.method.predict(steps.network, x[None]).mean.argmax(1) == y).double().mean().item()


def learned(
    sizes: tuple[int, ...] = (24, 6, 3), samples: int = 240, size: int = 60, passes: int = 2, **options
) -> Steps:
    x, y = digits(samples)
    steps = Steps(dense(*sizes), **options)
    for _ in range(passes):
        steps.take(x, y, torch.arange(samples).split(size), samples)
    return steps


TASKS = {
    "gaussian": {},
    "heaviside": {"activation": "heaviside", "output_activation": "probit"},
    "sigmoid": {"activation": "sigmoid"},
    "sign": {"weights": "sign"},
    "sign, then gaussian": {"weights": ["sign", "gaussian"]},
    "categorical": {"weights": "categorical"},
    "own levels": {"weights": "categorical", "levels": (-2.0, -0.5, 0.5, 2.0)},
    "hard signs": {"weights": "sign", "deployment": "hard"},
    "hard levels": {"weights": "categorical", "deployment": "hard"},
    "average": {"memory": "average"},
}


@pytest.mark.parametrize("name", TASKS)
def test_it_learns_noisy_patterns(name):
    assert accuracy(learned(**TASKS[name]), *digits(300, seed=1)) > 0.9


def test_weights_that_cannot_inhibit_learn_from_inputs_with_their_complement():
    x, y = digits(240)
    steps = Steps(nn.Sequential(Complement(), dense(48, 3)), weights="binary", amplitude=0.5)
    for _ in range(2):
        steps.take(x, y, torch.arange(240).split(60), 240)
    by_hand = Steps(dense(48, 3), weights="binary", amplitude=0.5)
    for _ in range(2):
        by_hand.take(torch.cat([x, 1 - x], 1), y, torch.arange(240).split(60), 240)
    assert torch.equal(steps.layers[0].precision_mean, by_hand.layers[0].precision_mean)
    mean, _ = steps.layers[0].moments()
    assert ((mean[:, :-1] >= 0) & (mean[:, :-1] <= 0.5)).all()
    x, y = digits(300, seed=1)
    assert accuracy(steps, x, y) > 0.9


@pytest.mark.parametrize("weights", ["sign", "categorical"])
def test_the_bias_of_discrete_weights_is_free_to_learn_what_is_common(weights):
    steps = Steps(dense(24, 3), weights=weights)
    x, y = torch.zeros(100, 24).double(), torch.zeros(100, dtype=torch.int64)
    steps.take(x, y, torch.arange(100).split(50))
    mean, _ = steps.layers[0].moments()
    assert mean[0, -1] > 1.5
    assert (mean[1:, -1] < -1.5).all()
    torch.testing.assert_close(mean[:, :-1], torch.zeros(3, 24).double())  # inputs carry no information


def test_learned_noise_is_that_of_the_data():
    generator = torch.Generator().manual_seed(0)
    x, _ = digits(1200)
    weights = torch.randn(24, 1, generator=generator, dtype=torch.float64)
    for noise in (0.3, 1.0):
        y = x @ weights + noise * torch.randn(1200, 1, generator=generator, dtype=torch.float64)
        steps = Steps(dense(24, 1), regression=True, learn_noise=True, prior_variance=1.0)
        for _ in range(5):
            steps.take(x, y, torch.arange(1200).split(300), 1200)
        assert steps.network[-1].noise_variance.item() == pytest.approx(noise**2, rel=0.15)
        torch.testing.assert_close(
            steps.layers[0].moments()[0][0, :-1], weights[:, 0], rtol=0, atol=6 * noise / math.sqrt(1200 / 4)
        )


def test_a_regression_has_the_variance_of_its_parts():
    x, _ = digits(200)
    y = x[:, :4].sum(1, keepdim=True)
    for sizes, names in (((24, 1), {"epistemic", "noise"}), ((24, 6, 1), {"epistemic", "spikes", "noise"})):
        steps = Steps(dense(*sizes), regression=True, noise_variance=0.05)
        steps.take(x, y, torch.arange(200).split(50))
        prediction = steps.method.predict(steps.network, x[None])
        assert prediction.variance is not None
        assert prediction.variance_parts is not None
        torch.testing.assert_close(sum(prediction.variance_parts.values()), prediction.variance)
        assert {name for name, part in prediction.variance_parts.items() if part.min() > 0} == names
        assert (prediction.variance_parts["noise"] == 0.05).all()
        assert prediction.spike_probabilities is None
        assert not prediction.categorical


@pytest.mark.parametrize("sizes", [(24, 1), (24, 6, 1)])
def test_a_target_of_another_shape_is_refused_before_anything_moves(sizes):
    x, _ = digits(20)
    steps = Steps(dense(*sizes), regression=True)
    before = steps.layers[0].precision.detach().clone()
    with pytest.raises(ValueError, match=r"shape \(20, 1\), but got \(20,\)"):
        steps.take(x, torch.randn(20), [torch.arange(20)])
    assert torch.equal(steps.layers[0].precision, before)


def test_labels_are_integers_one_per_sample():
    x, y = digits(20)
    gradients = []
    for dtype in (torch.int64, torch.uint8):
        steps = Steps(dense(24, 3))
        steps.ask(x, y.to(dtype))
        gradients.append(steps.layers[0].precision_mean.grad)
    assert torch.equal(*gradients)
    for wrong, found in ((y.double(), "torch.float64 of shape .20,."), (y[:, None], "torch.int64 of shape .20, 1.")):
        with pytest.raises(ValueError, match=f"integer label per sample.*{found}"):
            Steps(dense(24, 3)).ask(x, wrong)


def test_inputs_without_an_axis_of_time_are_refused():
    x, y = digits(20)
    steps = Steps(dense(24, 3))
    with pytest.raises(ValueError, match=r"shape \(time, batch, ...\).*but got \(20, 24\) and \(20,\)"):
        steps.method.training_step(steps.network, x, y)


def test_class_probabilities_are_those_of_exactly_one_spike():
    steps = learned()
    prediction = steps.method.predict(steps.network, digits(20, seed=1)[0][None])
    p = prediction.spike_probabilities
    assert p is not None
    one = torch.stack([p[:, k] * (1 - p).prod(1) / (1 - p[:, k]) for k in range(3)], 1)
    torch.testing.assert_close(prediction.mean, one / one.sum(1, keepdim=True))
    assert prediction.samples is None
    assert prediction.variance_parts is not None
    assert set(prediction.variance_parts) == {"epistemic", "spikes"}


@pytest.mark.parametrize(("activation", "draws"), [("probit", 400), ("sigmoid", 100)])
def test_draws_approach_the_closed_form(activation, draws):
    steps = learned(samples=60, passes=1, activation=activation)
    x, _ = digits(40, seed=1)
    closed = steps.method.predict(steps.network, x[None])
    apart = []
    for samples in (2, draws):
        steps.method.samples = samples
        drawn = steps.method.predict(steps.network, x[None])
        assert drawn.samples.shape == (samples, 40, 3)
        apart.append((drawn.spike_probabilities - closed.spike_probabilities).abs().mean())
    assert apart[1] < 0.6 / draws**0.5 < apart[0]


def test_draws_of_a_regression_have_the_moments_of_the_closed_form():
    x, _ = digits(100)
    steps = Steps(dense(24, 6, 1), regression=True)
    steps.take(x, x[:, :4].sum(1, keepdim=True), torch.arange(100).split(50))
    closed = steps.method.predict(steps.network, x[None, :10])
    steps.method.samples = 1500
    drawn = steps.method.predict(steps.network, x[None, :10])
    assert ((drawn.mean - closed.mean).abs() < 5 * (closed.variance / 1500).sqrt()).all()
    torch.testing.assert_close(drawn.variance, closed.variance, rtol=0.2, atol=0)


def test_hard_weights_predict_with_the_most_probable_levels():
    soft, hard = (learned(weights="sign", deployment=way) for way in ("soft", "hard"))
    for one, other in zip(soft.layers, hard.layers, strict=True):
        assert torch.equal(one.precision_mean, other.precision_mean)  # they learn alike
        assert set(other.moments()[0][:, :-1].unique().tolist()) == {-1.0, 1.0}
    assert soft.layers[0].moments()[0][:, :-1].abs().min() < 0.9
    x, _ = digits(30, seed=1)
    certain = hard.method.predict(hard.network, x[None])
    assert not torch.allclose(certain.mean, soft.method.predict(soft.network, x[None]).mean)


@pytest.mark.parametrize("samples", [0, 3])
def test_anytime_predictions_are_predictions_of_prefixes(samples):
    steps = learned(passes=1)
    steps.method.samples = samples
    x = (torch.rand(5, 7, 24) < 0.4).float()
    torch.manual_seed(1)
    found = steps.method.predict_anytime(steps.network, x)
    assert found.mean.shape == found.spike_probabilities.shape == (5, 7, 3)
    if samples:
        assert found.samples.shape == (3, 5, 7, 3)
        torch.testing.assert_close(found.samples.mean(0), found.mean)
        return
    for step in range(5):
        expected = steps.method.predict(steps.network, x[: step + 1])
        torch.testing.assert_close(found.mean[step], expected.mean)
        torch.testing.assert_close(found.spike_probabilities[step], expected.spike_probabilities)
        for name, part in expected.variance_parts.items():
            torch.testing.assert_close(found.variance_parts[name][step], part)
    assert not torch.allclose(found.mean[0], found.mean[-1])


def test_steps_of_time_are_read_as_rates():
    x = (torch.rand(8, 30, 24) < 0.4).double()
    y = torch.arange(30) % 3
    spikes, rates = (Steps(dense(24, 6, 3)) for _ in range(2))
    spikes.optimizer.zero_grad()
    spikes.method.training_step(spikes.network, x, y).objective.backward()
    rates.ask(x.mean(0), y)
    for one, other in zip(spikes.network.parameters(), rates.network.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


BAD = {
    "weights": ["float", ["gaussian", "float"]],
    "activation": ["relu"],
    "output_activation": ["relu"],
    "prior_variance": [0.0, -1.0, [1.0, 0.0]],
    "prior_split": [-0.1, 1.0, [0.5, 1.5]],
    "amplitude": [0.0, [1.0, -1.0]],
    "levels": [(1.0,), (0.0, 0.0), (1.0, -1.0), (0.0, float("inf")), "ab"],
    "iterations": [0, 1.5],
    "solver_iterations": [0],
    "damping": [0.0, 1.1],
    "step_size": [0.0, 2.0],
    "memory": ["all"],
    "noise_variance": [0.0],
    "deployment": ["medium"],
    "samples": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_arguments_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ExpectationPropagation(**{name: value})


@pytest.mark.parametrize("name", ["weights", "prior_variance", "prior_split", "amplitude"])
def test_lists_of_another_length_than_the_weight_layers_are_refused(name):
    value = {"weights": ["sign"] * 3, "prior_split": [0.5] * 3}.get(name, [1.0] * 3)
    with pytest.raises(ValueError, match=f"`{name}` to be one for all layers or 2, one per weight layer"):
        SpikingModule(dense(24, 6, 3), ExpectationPropagation(**{name: value}), num_classes=3)


def test_draws_of_outputs_without_noise_are_refused():
    for options in ({"activation": "heaviside"}, {"output_activation": "heaviside"}):
        with pytest.raises(ValueError, match="`samples` to be 0 for outputs without noise"):
            ExpectationPropagation(samples=2, **options)
    ExpectationPropagation(samples=2, activation="heaviside", output_activation="probit")


def test_priors_are_as_wide_as_stated_and_have_the_stated_share_of_their_variance_in_their_means():
    variances, splits = [2.0, 5.0], [0.3, 0.5]
    steps = Steps(dense(200, 100, 50), prior_variance=variances, prior_split=splits)
    for layer, variance, split in zip(steps.layers, variances, splits, strict=True):
        mean, spread = layer.moments()
        torch.testing.assert_close(spread, torch.full_like(spread, (1 - split) * variance))
        assert mean.var().item() == pytest.approx(split * variance, rel=0.1)


@pytest.mark.parametrize(("size", "least"), [("784-10", 0.87), ("784-100-10", 0.90)])
def test_one_pass_over_real_digits_is_enough(shared_data, size, least):
    with np.load(shared_data / "mnist.npz") as file:
        x, y, new, labels = (torch.from_numpy(file[name]) for name in ("x_train", "y_train", "x_test", "y_test"))
    x, new = ((images.flatten(1) > 127).float() for images in (x[:10_000], new))
    layers = [nn.Linear(784, 10)] if size == "784-10" else [nn.Linear(784, 100), LIF(), nn.Linear(100, 10)]
    samples, batch, options = (
        (5000, 500, {"iterations": 5, "damping": 1.0, "solver_iterations": 10})
        if size == "784-10"
        else (10_000, 100, {"iterations": 3, "damping": 0.7})
    )
    steps = Steps(nn.Sequential(*layers), **options)
    steps.take(x[:samples], y[:samples].long(), torch.arange(samples).split(batch), samples)
    assert accuracy(steps, new, labels.long()) > least
