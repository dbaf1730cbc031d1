"""Exact resuming with any loader, in the main process and in workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from lightning_snn import SpikingModule
from lightning_snn.callbacks import ExactResume
from lightning_snn.cli.checkpoints import LastCheckpoint
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import SpikingBayes
from tests.support.resuming import (
    BATCH,
    CLASSES,
    FIXED,
    SAMPLES,
    STEPS_OF_AN_EPOCH,
    Augmented,
    Copies,
    Fixed,
    Run,
    augmented,
    network,
    noisy,
    same,
    validation,
)
from tests.support.training import time_first


class Numbers(FrameDataModule):
    """A data module of the library, with a data set that draws random numbers."""

    num_classes = CLASSES

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        every = Augmented()
        return every, every, every

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + 0.1 * torch.rand_like(x), y


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches without a known number, some of them left out at random."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = Augmented()
        left_out = torch.rand(SAMPLES).tolist()
        for start in range(0, SAMPLES, BATCH):
            if left_out[start] < 0.8:
                yield time_first([samples[index] for index in range(start, min(start + BATCH, SAMPLES))])


class Unsteady(Stream):
    """A stream whose length depends on draws for each batch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in list(super().__iter__()) * 2:
            if torch.rand(()) < 0.5:
                yield batch


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
    """Without `ExactResume` the run is the same to the last bit, as long as it is not resumed."""
    run = Run(tmp_path, noisy, data)
    whole = run.whole()
    assert same(Run(tmp_path / "without", noisy, data, callbacks=tuple).whole(), whole)
    for step in (*STEPS_OF_AN_EPOCH, 4):
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
    assert same(Run(tmp_path / "without", noisy, data, callbacks=tuple).whole(), whole)
    for checkpoint in (5, 6, 8, tmp_path / "epoch 1.ckpt"):
        assert same(run.resumed(checkpoint), whole), checkpoint


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


def test_lightning_does_not_warn_of_a_loader_that_resumes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for callbacks, warnings in ((tuple, 1), (lambda: [ExactResume()], 0)):
        run = Run(tmp_path / str(warnings), noisy, callbacks=callbacks)
        run.whole()
        recwarn.clear()
        run.resumed(6)
        assert sum("dataloader is not resumable" in str(each.message) for each in recwarn) == warnings


def test_other_data_are_refused_within_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path, noisy)
    run.whole()
    run.data = lambda: (augmented(batch_size=4), validation())
    with pytest.raises(ValueError, match="Expected 4 training batches per epoch.*but got 6. Resume with the same data"):
        run.resumed(6)


def test_a_stream_that_cannot_be_repeated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, noisy, lambda: (DataLoader(Unsteady(), batch_size=None),))
    run.whole()
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(shape))  # as with unfavorable draws
    with pytest.raises(ValueError, match="batches that were trained on to be read again, but the loader ended after 0"):
        run.resumed(2)


def test_workers_that_keep_generators_are_named(tmp_path: Path) -> None:
    def data() -> tuple[Any, ...]:
        return (augmented(num_workers=1, persistent_workers=True),)

    with pytest.warns(UserWarning, match="is not exact; then set `persistent_workers=False`"):
        Run(tmp_path, noisy, data, max_epochs=1).whole()
