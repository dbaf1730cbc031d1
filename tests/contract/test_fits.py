"""The promises about training a module of every method, copying it, saving it, and going on."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import SpikingModule
from lightning_snn.methods import Progress
from tests.contract.by_hand import build, predict
from tests.contract.table import METHOD_RUNS
from tests.support.event_order import loader, order_of_events
from tests.support.training import trainer

TABLE = METHOD_RUNS
SAMPLES = 64
X, Y = order_of_events(SAMPLES // 2)


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


def test_it_runs_with_fast_dev_run(row, tmp_path):
    """`fast_dev_run=True` trains and tests without writing a file."""
    module = build(row)
    running = trainer(fast_dev_run=True, default_root_dir=tmp_path)
    running.fit(module, loader(X, Y), loader(X, Y))
    running.test(module, loader(X, Y), verbose=False)
    assert list(tmp_path.iterdir()) == []
