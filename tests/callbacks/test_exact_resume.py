"""A resumed run ends as the uninterrupted one, bit for bit: weights, optimizer, schedules and generators."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.connectors import signal_connector
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lightning_snn import SpikingModule
from lightning_snn.callbacks import ExactResume
from lightning_snn.cli.checkpoints import LastCheckpoint
from tests.contract.table import MethodRow, every_method
from tests.support.resuming import (
    BATCH,
    CLASSES,
    STEPS_OF_AN_EPOCH,
    Copies,
    Fixed,
    Run,
    noisy,
    same,
)


@every_method
def test_every_method_resumes_exactly(row: MethodRow, tmp_path: Path) -> None:
    def build() -> SpikingModule:
        return SpikingModule(row.network(), row.make(), num_classes=CLASSES, learning_rate=row.learning_rate)

    run = Run(tmp_path, build)
    if getattr(row.make(), "memory", None) == "per_batch":
        run.data = lambda: (Fixed(batch_size=BATCH, fixed_batches=True),)
    whole = run.whole()
    for step in STEPS_OF_AN_EPOCH:
        assert same(run.resumed(step), whole), step


def test_without_it_the_resumed_run_is_another_one(tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, callbacks=tuple)
    whole = run.whole()
    for step in STEPS_OF_AN_EPOCH:
        assert not same(run.resumed(step), whole), step


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.3)


SCHEDULES = {
    "by step": "cosine",
    "by epoch": partial(StepLR, step_size=1, gamma=0.5),
    "plateau": plateau,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "limit_train_batches": {"limit_train_batches": 3},
    "limit_train_batches, a share": {"limit_train_batches": 0.75},
    "val_check_interval": {"val_check_interval": 2},
    "val_check_interval of steps": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "max_steps": {"max_epochs": -1, "max_steps": 11},
    "accumulate_grad_batches": {"accumulate_grad_batches": 2, "max_epochs": 6},
    "reload_dataloaders_every_n_epochs": {"reload_dataloaders_every_n_epochs": 1},
    "gradient_clip_val": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(schedule, id=name, marks=() if name == "by step" else pytest.mark.slow)
        for name, schedule in SCHEDULES.items()
    ],
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_resumes_exactly_with(options: dict[str, Any], schedule: Any, tmp_path: Path) -> None:
    if schedule is plateau and options.get("limit_val_batches") == 0:
        pytest.skip("a plateau of validation metrics needs a validation")
    if schedule is plateau and options.get("check_val_every_n_epoch") == 2:
        schedule = {"scheduler": plateau, "monitor": "train/loss_epoch"}
    run = Run(tmp_path, partial(noisy, lr_scheduler=schedule), **options)
    whole = run.whole()
    first = 4 if "limit_train_batches" in options else 5
    for step in (first, first + 1, 2 * first - 2):
        assert same(run.resumed(step), whole), step


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"max_epochs": -1, "max_steps": 11}], ids=["max_epochs", "max_steps"])
def test_the_last_checkpoint_resumes_exactly(schedule: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        partial(noisy, lr_scheduler=schedule),
        callbacks=lambda: (LastCheckpoint(tmp_path / "last.ckpt"),),
        **options,
    )
    whole = run.whole(Copies(tmp_path))
    for checkpoint in (tmp_path / "epoch 0.ckpt", tmp_path / "epoch 1.ckpt", 6):
        assert same(run.resumed(checkpoint), whole), checkpoint


class Epochs(pl.Callback):
    """The starts and ends of epochs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen.append(("start", trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen.append(("end", trainer.current_epoch, trainer.global_step))


@pytest.mark.parametrize("validation", [{}, {"limit_val_batches": 0}], ids=["validation", "none"])
@pytest.mark.parametrize("steps", [{}, {"max_epochs": -1, "max_steps": 11}], ids=["max_epochs", "max_steps"])
def test_every_epoch_starts_and_ends_once(steps: dict[str, Any], validation: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, **steps, **validation)
    whole = Epochs()
    expected = run.whole(Copies(tmp_path), whole)
    for checkpoint, missing in ((tmp_path / "epoch 0.ckpt", 2), (tmp_path / "epoch 1.ckpt", 4), (6, 3), (8, 3), (4, 1)):
        resumed = Epochs()
        assert same(run.resumed(checkpoint, resumed), expected), checkpoint
        assert resumed.seen == whole.seen[missing:], checkpoint


def test_the_checkpoint_of_the_start_resumes_exactly(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise InterruptedError

    def last() -> tuple[pl.Callback, ...]:
        return (LastCheckpoint(tmp_path / "last.ckpt"),)

    whole = Run(tmp_path, noisy, callbacks=last).whole()
    with pytest.raises(InterruptedError):
        Run(tmp_path, noisy, callbacks=lambda: (Stop(), *last())).whole()
    assert same(Run(tmp_path, noisy, callbacks=last).resumed(tmp_path / "last.ckpt"), whole)


@pytest.mark.parametrize("interval", [1.0, 2])
def test_a_checkpoint_of_a_validation_resumes_exactly(interval: float, tmp_path: Path) -> None:
    def callbacks() -> tuple[pl.Callback, ...]:
        best = ModelCheckpoint(tmp_path / "best", "{epoch}-{step}", "val/nll", save_top_k=-1, every_n_epochs=1)
        return ExactResume(), best

    build = partial(noisy, lr_scheduler=plateau)
    run = Run(tmp_path, build, callbacks=callbacks, val_check_interval=interval)
    whole = run.whole()
    found = sorted((tmp_path / "best").glob("*.ckpt"))
    assert len(found) == (3 if interval == 1 else 6)
    for path in found[:-1]:
        assert same(run.resumed(path), whole), path.name


class Averages(pl.Callback):
    """The average of the training loss over each epoch, and its value for monitors."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        self.found[trainer.current_epoch] = [float(metrics[name]) for name in ("train/loss", "train/loss_epoch")]


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_val_batches": 0}])
def test_averages_over_a_resumed_epoch_are_those_of_the_whole_epoch(options: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, **options)
    whole = Averages()
    run.whole(whole)
    for step in (5, 6, 7, 8):
        resumed = Averages()
        run.resumed(step, resumed)
        assert resumed.found == {epoch: whole.found[epoch] for epoch in (1, 2)}, step


def test_gradients_that_are_being_accumulated_are_resumed(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"batch {trainer.fit_loop.total_batch_idx + 1}.ckpt")

    run = Run(tmp_path, noisy, accumulate_grad_batches=3, max_epochs=2)
    whole = run.whole(Save())
    for batch in (1, 2, 3, 5):
        assert same(run.resumed(tmp_path / f"batch {batch}.ckpt"), whole), batch
    file = tmp_path / "batch 2.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["exact_resume"][0]["gradients"] = {}
    torch.save(checkpoint, file)
    assert not same(run.resumed(file), whole)


CALLBACKS: dict[str, tuple[Callable[[], pl.Callback], dict[str, Any]]] = {
    "moving average": (lambda: EMAWeightAveraging(decay=0.5), {}),
    "weight averaging": (lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1), {"max_epochs": 4}),
    "accumulation by epoch": (lambda: GradientAccumulationScheduler({0: 1, 1: 2}), {"max_epochs": 4}),
    "early stopping": (lambda: EarlyStopping("val/nll", patience=0), {"max_epochs": 6}),
}


@pytest.mark.parametrize(("other", "options"), CALLBACKS.values(), ids=CALLBACKS)
def test_it_resumes_exactly_with_callbacks_of_lightning(
    other: Callable[[], pl.Callback], options: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path, noisy, callbacks=lambda: (ExactResume(), other()), **options)
    whole = run.whole()
    for step in (4, 5, 6):
        assert same(run.resumed(step), whole), step


def test_a_tuner_leaves_a_run_as_it_is_and_is_refused_in_a_resumed_one(tmp_path: Path) -> None:
    def runs(*more: pl.Callback) -> Run:
        def callbacks() -> tuple[pl.Callback, ...]:
            return *more, LearningRateFinder(num_training_steps=4, update_attr=False)

        return Run(tmp_path / str(len(more)), noisy, callbacks=callbacks, default_root_dir=tmp_path)

    exact = runs(ExactResume())
    assert same(exact.whole(), runs().whole())
    with pytest.raises(ValueError, match="Expected no tuner such as LearningRateFinder in a run that resumes"):
        exact.resumed(6)
    assert not list(tmp_path.glob(".lr_find*"))


def test_two_of_them_share_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, callbacks=lambda: (ExactResume(), ExactResume()))
    whole = run.whole()
    assert same(run.resumed(6), whole)


def test_a_resumed_run_can_be_interrupted_and_resumed_again(tmp_path: Path) -> None:
    run = Run(tmp_path, partial(noisy, lr_scheduler="cosine"))
    whole = run.whole()
    for first, second in ((3, 4), (4, 5), (4, 8), (6, 7), (7, 8), (8, 9)):
        folder = tmp_path / f"from {first} to {second}"
        again = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        assert same(run.resumed(first, again), whole), first
        assert same(run.resumed(folder / f"step={second}.ckpt"), whole), (first, second)


@pytest.mark.parametrize(
    ("callbacks", "step", "message"),
    [(tuple, 6, "the checkpoint was written without this callback")],
)
def test_what_is_not_exact_is_said(callbacks: Any, step: int, message: str, tmp_path: Path) -> None:
    Run(tmp_path, noisy, callbacks=callbacks).whole()
    with pytest.warns(UserWarning, match=f"ExactResume: the resumed run is not exact, because {message}"):
        Run(tmp_path, noisy).resumed(step)


def test_a_checkpoint_of_another_number_of_processes_is_not_exact(tmp_path: Path) -> None:
    run = Run(tmp_path, noisy)
    run.whole()
    checkpoint = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    checkpoint["exact_resume"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="written by 2 processes, and this run has 1"):
        run.resumed(tmp_path / "two.ckpt")


def test_a_checkpoint_of_a_failed_batch_is_not_exact(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    run = Run(tmp_path, noisy)
    whole = run.whole(Fail())
    with pytest.warns(UserWarning, match="written within a batch"):
        assert not same(run.resumed(tmp_path / "within.ckpt"), whole)


def test_sigterm_writes_a_checkpoint_that_resumes_exactly(tmp_path: Path) -> None:
    class Terminate(pl.Callback):
        """Receive SIGTERM within a batch."""

        def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                signal.raise_signal(signal.SIGTERM)

    def last() -> tuple[pl.Callback, ...]:
        return (LastCheckpoint(tmp_path / "last.ckpt"),)

    run = Run(tmp_path, noisy, callbacks=last)
    whole = run.whole()
    with pytest.raises(SIGTERMException):
        run.whole(Terminate())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    assert same(run.resumed(tmp_path / "last.ckpt"), whole)


def test_a_requeue_is_written_at_the_end_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signal(pl.Callback):
        """Send the signal of SLURM within the sixth batch, or within a validation."""

        def __init__(self, at: str) -> None:
            self.at = at

        def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
            if self.at == "batch" and trainer.global_step == 5:
                signal.raise_signal(signal.SIGUSR1)

        def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if self.at == "validation" and trainer.global_step == 8 and batch_idx == 1:
                signal.raise_signal(signal.SIGUSR1)

    calls: list[list[str]] = []
    monkeypatch.setattr(signal_connector, "call", lambda command: calls.append(command) or 0)
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for index, at in enumerate(("batch", "validation")):
        run = Run(tmp_path / at, noisy, default_root_dir=tmp_path / at, plugins=[SLURMEnvironment()])
        whole = run.whole(Signal(at))
        assert calls == [["scontrol", "requeue", "7"]] * (index + 1)
        assert same(run.resumed(tmp_path / at / "hpc_ckpt_1.ckpt"), whole)
