"""A resumed run ends as the uninterrupted one, bit for bit: weights, optimizer, schedules and generators."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.connectors import signal_connector
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import ExactResume
from lightning_snn.cli.checkpoints import LastCheckpoint
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import SpikingBayes
from tests.contract.table import METHODS, MethodRow
from tests.support.resuming import BATCH, CLASSES, FEATURES, SAMPLES, STEPS, Augmented, Run, augmented, same, validation
from tests.support.training import time_first

# of 12 in three epochs: the first step of an epoch, one in the middle, the last one, and the first of all
STEPS_OF_AN_EPOCH = (5, 6, 8, 1)
FIXED = TensorDataset(
    torch.linspace(0, 2, SAMPLES)[:, None, None].expand(-1, STEPS, FEATURES), torch.arange(SAMPLES) % CLASSES
)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 6), LIF(0.8), nn.Dropout(0.2), nn.Linear(6, CLASSES))


def noisy(**options: Any) -> SpikingModule:
    """Build a module whose training and predictions draw random numbers."""
    options = {"learning_rate": 0.05, **options}
    return SpikingModule(network(), SpikingBayes(samples=2, train_size=SAMPLES), num_classes=CLASSES, **options)


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_method_resumes_exactly(row: MethodRow, tmp_path: Path) -> None:
    def build() -> SpikingModule:
        return SpikingModule(row.network(), row.make(), num_classes=CLASSES, learning_rate=row.learning_rate)

    keeps_batches = getattr(row.make(), "memory", None) == "per_batch"
    run = (
        Run(tmp_path, build, lambda: (Fixed(batch_size=BATCH, fixed_batches=True),))
        if keeps_batches
        else Run(tmp_path, build)
    )
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


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_resumes_exactly_with(options: dict[str, Any], schedule: Any, tmp_path: Path) -> None:
    if schedule is plateau and options.get("limit_val_batches") == 0:
        pytest.skip("a plateau of validation metrics needs a validation")
    if schedule is plateau and options.get("check_val_every_n_epoch", 1) != 1:
        schedule = {"scheduler": plateau, "monitor": "train/loss"}
    if options.get("check_val_every_n_epoch", 1) is None and schedule == "cosine":
        options = {**options, "max_epochs": 3}
    run = Run(tmp_path, partial(noisy, lr_scheduler=schedule), **options)
    whole = run.whole()
    first = 4 if "limit_train_batches" in options else 5
    for step in (first, first + 1, 2 * first - 2):
        assert same(run.resumed(step), whole), step


class Numbers(FrameDataModule):
    """A data module of the library, with a data set that draws random numbers."""

    num_classes = CLASSES

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        every = Augmented()
        return every, every, every

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + 0.1 * torch.rand_like(x), y


class Fixed(FrameDataModule):
    """A data module of samples that draw no random numbers, in worker processes that persist."""

    num_classes = CLASSES

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        return FIXED, FIXED, FIXED


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches without a number, some of them left out at random."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = Augmented()
        for start in range(0, SAMPLES, BATCH):
            if torch.rand(()) < 0.8:
                yield time_first([samples[index] for index in range(start, min(start + BATCH, SAMPLES))])


class Batches:
    """Batches that no loader of PyTorch makes, in an order of their own."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = Augmented()
        for start in torch.randperm(4).tolist():
            yield time_first([samples[index] for index in range(start, SAMPLES, 4)])


def with_own_generators() -> DataLoader[Any]:
    return augmented(generator=torch.Generator().manual_seed(3))


class Drawn(Augmented):
    """Samples that draw from a generator of the data set."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + self.rng.random(), y


DATA: dict[str, Callable[[], tuple[Any, ...]]] = {
    "in order": lambda: (validation(),),
    "without validation": lambda: (augmented(),),
    "data module": lambda: (Numbers(batch_size=BATCH),),
    "data module, fixed batches": lambda: (Numbers(batch_size=BATCH, fixed_batches=True),),
    "loader with a generator": lambda: (with_own_generators(), validation()),
    "data set with a generator": lambda: (
        DataLoader(Drawn(), BATCH, shuffle=True, collate_fn=time_first),
        validation(),
    ),
    "weighted sampler": lambda: (
        augmented(shuffle=False, sampler=WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)),
        validation(),
    ),
    "stream": lambda: (DataLoader(Stream(), batch_size=None), validation()),
    "iterable of another kind": lambda: (Batches(), validation()),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_it_resumes_exactly_with_data(data: Callable[[], tuple[Any, ...]], tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, data)
    whole = run.whole()
    for step in STEPS_OF_AN_EPOCH:
        assert same(run.resumed(step), whole), step


WORKERS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "workers": lambda: (augmented(num_workers=2), validation(num_workers=1)),
    "data module": lambda: (Fixed(batch_size=BATCH, num_workers=1),),
    "workers that persist": lambda: (
        DataLoader(FIXED, BATCH, shuffle=True, collate_fn=time_first, num_workers=1, persistent_workers=True),
        DataLoader(FIXED, BATCH, collate_fn=time_first, num_workers=1, persistent_workers=True),
    ),
}


@pytest.mark.parametrize("data", WORKERS.values(), ids=WORKERS)
def test_it_resumes_exactly_with_worker_processes(data: Callable[[], tuple[Any, ...]], tmp_path: Path) -> None:
    run = Run(tmp_path, noisy, data)
    whole = run.whole(LastCheckpoint(tmp_path / "last.ckpt"), Copies(tmp_path))
    for checkpoint in (5, 6, 8, tmp_path / "epoch 1.ckpt"):
        assert same(run.resumed(checkpoint), whole), checkpoint


class Copies(pl.Callback):
    """Saves a checkpoint after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch {trainer.current_epoch}.ckpt")


class Paired(SpikingModule):
    """A module that trains on the batches of two loaders, of which the shorter one starts again within an epoch."""

    def read_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, dict):
            return super().read_batch(batch)
        (x, y), (other, _) = batch["a"], batch["b"]
        return x + other.mean(), y


def test_several_loaders_resume_exactly(tmp_path: Path) -> None:
    def loaders() -> tuple[Any, ...]:
        return {"a": augmented(), "b": augmented(batch_size=10)}, validation()

    def build() -> SpikingModule:
        return Paired(network(), SpikingBayes(samples=2, train_size=SAMPLES), num_classes=CLASSES)

    run = Run(tmp_path, build, loaders)
    whole = run.whole()
    for step in (5, 6, 7, 8, 1):
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


def test_training_is_the_same_to_the_last_bit_without_it(tmp_path: Path) -> None:
    for name, data in {**DATA, **WORKERS}.items():
        without = Run(tmp_path / f"{name} without", noisy, data, callbacks=tuple)
        assert same(Run(tmp_path / name, noisy, data).whole(), without.whole()), name


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


def test_lightning_does_not_warn_of_a_loader_that_resumes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for callbacks, warnings in ((tuple, 1), (lambda: [ExactResume()], 0)):
        run = Run(tmp_path / str(warnings), noisy, callbacks=callbacks)
        run.whole()
        recwarn.clear()
        run.resumed(6)
        assert sum("dataloader is not resumable" in str(each.message) for each in recwarn) == warnings


def test_sigterm_writes_a_checkpoint_that_resumes_exactly(tmp_path: Path) -> None:
    class Terminate(pl.Callback):
        """Receive SIGTERM in the midst of a batch."""

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


def test_other_data_are_refused_within_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path, noisy)
    run.whole()
    run.data = lambda: (augmented(batch_size=4), validation())
    with pytest.raises(ValueError, match="Expected 4 training batches per epoch.*but got 6. Resume with the same data"):
        run.resumed(6)


def test_workers_that_keep_generators_are_named(tmp_path: Path) -> None:
    def data() -> tuple[Any, ...]:
        return (augmented(num_workers=1, persistent_workers=True),)

    with pytest.warns(UserWarning, match="is not exact; then set `persistent_workers=False`"):
        Run(tmp_path, noisy, data, max_epochs=1).whole()


def test_a_requeue_is_written_at_the_end_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signal(pl.Callback):
        """Send the signal of SLURM in the midst of the sixth batch, or of a validation."""

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
