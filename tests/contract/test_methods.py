"""The promises made of every method."""

from __future__ import annotations

import copy
import inspect

import torch

from lightning_snn.methods import Progress
from tests.contract.by_hand import build, predict
from tests.contract.table import METHODS
from tests.support.event_order import CLASSES, loader, order_of_events
from tests.support.training import trainer

TABLE = METHODS
SAMPLES = 64
X, Y = order_of_events(SAMPLES // 2)


def test_it_learns_the_order_of_two_events(row):
    """Accuracy on new samples is above 0.9, where inputs summed over time say nothing about the class."""
    module = build(row)
    trainer(max_epochs=row.epochs).fit(module, loader(*order_of_events(64)))
    x, y = order_of_events(64, seed=1)
    accuracy = (predict(module, x).mean.argmax(1) == y).double().mean()
    assert accuracy > 0.9


def test_a_linear_readout_of_time_summed_input_does_not_know_the_order():
    features, y = X.sum(0), Y
    design = torch.cat([features, torch.ones(len(y), 1)], 1)
    solution = torch.linalg.lstsq(design, (2 * y - 1).float()[:, None]).solution
    assert solution.abs().max() < 1e-4
    first, second = (features[y == label].sort(0).values for label in (0, 1))
    torch.testing.assert_close(first, second)


def test_the_objective_is_a_finite_scalar_and_the_rest_is_detached(row):
    """The objective has a gradient, loss and output have none, and the output is `[B, C]`."""
    module = build(row)
    module.method.progress = Progress(0.5, SAMPLES)
    step = module.method.training_step(module.network, X, Y)
    assert step.objective.shape == step.loss.shape == ()
    assert step.objective.isfinite()
    assert step.loss.isfinite()
    assert not step.loss.requires_grad
    assert not step.output.requires_grad
    assert step.output.shape == (SAMPLES, CLASSES)


def test_the_gradient_is_finite_and_reaches_every_trainable_parameter(row):
    """Every trainable parameter has a finite gradient that is not 0."""
    module = build(row)
    module.method.progress = Progress(0.5, SAMPLES)
    module.method.training_step(module.network, X, Y).objective.backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.requires_grad}
    assert gradients
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if gradient.abs().max() == 0] == []


def test_predictions_are_probabilities(row):
    """Mean and samples are at least 0 and sum to 1."""
    prediction = predict(build(row), X)
    every = [prediction.mean, *(() if prediction.samples is None else prediction.samples)]
    for probabilities in every:
        assert probabilities.shape == (SAMPLES, CLASSES)
        assert (probabilities >= 0).all()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(SAMPLES))


def test_the_same_batch_twice_gives_the_same_prediction_and_changes_nothing(row):
    """With the same seed two predictions are equal, and the state dict is as before."""
    module = build(row)
    before = copy.deepcopy(module.state_dict())
    one, other = predict(module, X), predict(module, X)
    assert torch.equal(one.mean, other.mean)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_prepare_leaves_the_network_that_it_was_given_as_it_is(row):
    """Weights and layers of the given network are as before."""
    network, method = row.network(), row.make()
    state, text = copy.deepcopy(network.state_dict()), repr(network)
    method.prepare(network)
    assert repr(network) == text
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(row):
    """Predictions of five samples are the same next to other samples, up to rounding in float64."""
    module, other = build(row).double(), X.double()
    other[:, 5:] = torch.rand_like(other[:, 5:])
    expected = predict(module, X.double()).mean
    torch.testing.assert_close(predict(module, other).mean[:5], expected[:5], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(predict(module, other).mean[5:], expected[5:])


def test_a_prediction_does_not_depend_on_the_size_of_the_batch(row):
    """Predictions of five samples are the same without the others, up to rounding in float64."""
    module, x = build(row).double(), X.double()
    torch.testing.assert_close(predict(module, x[:, :5]).mean, predict(module, x).mean[:5], rtol=1e-12, atol=1e-12)


def test_the_repr_names_the_method_and_the_numbers_it_was_built_with(row):
    """The repr is one line with the name and every number among the arguments."""
    method = row.make()
    assert repr(method).startswith(f"{type(method).__name__}(")
    assert "\n" not in repr(method)
    options = inspect.signature(type(method)).parameters.values()
    numbers = [option.name for option in options if type(option.default) in (int, float)]
    assert [name for name in numbers if f"{name}=" not in repr(method)] == []


def test_it_has_working_defaults_and_a_citation(row):
    """The method is built without arguments, and has a BibTeX entry with a title."""
    method = type(row.make())()
    assert method.citation.startswith("@")
    assert "title" in method.citation
