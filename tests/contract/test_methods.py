"""The promises made of every method."""

from __future__ import annotations

import copy
import inspect

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import SpikingModule
from lightning_snn.methods import Prediction, Progress
from tests.contract.by_hand import build
from tests.contract.table import METHODS
from tests.support.event_order import CLASSES, loader, order_of_events
from tests.support.training import trainer

TABLE = METHODS
SAMPLES = 64
X, Y = order_of_events(SAMPLES // 2)


def predict(module: SpikingModule, x: Tensor, seed: int = 0) -> Prediction:
    torch.manual_seed(seed)
    with torch.no_grad():
        return module.eval().method.predict(module.network, x)


class Steps:
    """Training by hand, one batch at a time, with seeded noise."""

    def __init__(self, module: SpikingModule) -> None:
        self.module, self.optimizer = module, module.configure_optimizers()

    def take(self, number: int, start: int = 0) -> None:
        module = self.module.train()
        for index in range(start, start + number):
            torch.manual_seed(index)
            module.method.progress = Progress(0.5, SAMPLES)
            batch = slice(16 * (index % 4), 16 * (index % 4) + 16)
            self.optimizer.zero_grad()
            module.method.training_step(module.network, X[:, batch], Y[batch]).objective.backward()
            self.optimizer.step()


class SeedSteps(pl.Callback):
    """The noise of a step depends on its number only; checkpoints of Lightning do not hold the generator."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        torch.manual_seed(trainer.global_step)


def parameters(module: SpikingModule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


def test_a_copy_made_after_a_step_trains_on_like_the_original(row):
    """A deep copy gives the same further weights, bit for bit, and does not move with the original."""
    original = Steps(build(row))
    original.take(2)
    copied = copy.deepcopy(original)
    at_copy = parameters(copied.module)
    original.take(2, start=2)
    assert equal(parameters(copied.module), at_copy)
    assert not equal(parameters(original.module), at_copy)
    copied.take(2, start=2)
    assert equal(parameters(copied.module), parameters(original.module))


def test_a_module_can_be_copied_after_fit_and_fitted_again(row):
    """A fit of the copy changes its weights and not those of the original."""
    module = build(row)
    trainer(max_steps=1).fit(module, loader(X, Y))
    copied = copy.deepcopy(module)
    before = parameters(module)
    trainer(max_steps=1).fit(copied, loader(X, Y))
    assert equal(parameters(module), before)
    assert not equal(parameters(copied), before)


def test_a_state_dict_gives_the_same_predictions_in_a_new_module(row):
    """Predictions with the loaded weights are equal, bit for bit, and were not before."""
    trained = Steps(build(row))
    trained.take(4)
    new = build(row, seed=1)
    expected = predict(trained.module, X).mean
    assert not torch.equal(predict(new, X).mean, expected)
    new.load_state_dict(trained.module.state_dict())
    assert torch.equal(predict(new, X).mean, expected)


def test_a_checkpoint_loads_with_weights_only(row, tmp_path):
    """`weights_only=True` loads a checkpoint, and predictions are equal, bit for bit."""
    module = build(row)
    fitting = trainer(max_epochs=1)
    fitting.fit(module, loader(X, Y))
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    loaded = SpikingModule.load_from_checkpoint(
        tmp_path / "one.ckpt", network=row.network(), method=row.make(), weights_only=True
    )
    assert torch.equal(predict(loaded, X).mean, predict(module, X).mean)


def test_a_resumed_run_is_the_uninterrupted_run(row, tmp_path):
    """Resumed after two epochs, a run ends its third with the weights of the uninterrupted one, bit for bit."""

    def fit(epochs: int, checkpoint=None, seed: int = 0) -> tuple[pl.Trainer, SpikingModule]:
        module = build(row, seed)
        fitting = trainer(SeedSteps(), max_epochs=epochs)
        fitting.fit(module, loader(X, Y, 16), ckpt_path=checkpoint)
        return fitting, module

    _, uninterrupted = fit(3)
    half, interrupted = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(3, tmp_path / "half.ckpt", seed=1)
    assert not equal(parameters(interrupted), parameters(uninterrupted))
    assert equal(parameters(resumed), parameters(uninterrupted))


def test_two_models_in_a_process_do_not_affect_each_other(row):
    """Weights are, bit for bit, those of training alone while another module trains and predicts in between."""
    alone = Steps(build(row))
    alone.take(4)
    together, other = Steps(build(row)), Steps(build(row, seed=1))
    for index in range(4):
        together.take(1, start=index)
        other.take(1, start=3 - index)
        predict(other.module, X[:, :5])
    assert equal(parameters(together.module), parameters(alone.module))


def test_a_smaller_last_batch_is_trained_and_predicted(row):
    """21 samples in batches of 8 are 3 steps, and each sample is predicted once."""
    module, x, y = build(row), X[:, :21], Y[:21]
    fitting = trainer(max_epochs=1)
    fitting.fit(module, loader(x, y, 8), loader(x, y, 8))
    assert fitting.global_step == 3
    predictions = fitting.predict(module, loader(x, y, 8))
    assert [len(prediction.mean) for prediction in predictions] == [8, 8, 5]


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


def test_it_runs_with_fast_dev_run(row, tmp_path):
    """`fast_dev_run=True` trains and tests without writing a file."""
    module = build(row)
    running = trainer(fast_dev_run=True, default_root_dir=tmp_path)
    running.fit(module, loader(X, Y), loader(X, Y))
    running.test(module, loader(X, Y), verbose=False)
    assert list(tmp_path.iterdir()) == []


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
