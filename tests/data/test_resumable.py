"""Runs that stop within an epoch and resume: batches, weights and schedules are those of the run that did not stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_snn import LIF, SpikingModule
from lightning_snn.data import FrameDataModule
from tests.support.slow import others_slow
from tests.support.training import trainer

SAMPLES, BATCH = 23, 3  # 8 batches per epoch


class Numbers(FrameDataModule):
    """Samples whose frames identify them."""

    num_classes = 2

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        generator = torch.Generator().manual_seed(0)
        frames = torch.rand(SAMPLES, 2, 4, generator=generator)
        every = TensorDataset(frames, torch.arange(SAMPLES) % 2)
        return every, every, every


class Recorder(pl.Callback):
    """Keeps the batches of training, and the learning rate of each."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch[0].flatten().tolist())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class SaveAfter(pl.Callback):
    """Writes a checkpoint after a batch, counted over all epochs."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


def one_cycle(module: SpikingModule) -> Callable[[Any], OneCycleLR]:
    """Return a scheduler factory that asks the Trainer for the steps of the run."""
    return lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=module.trainer.estimated_stepping_batches)


class OwnSchedule(SpikingModule):
    """A module whose schedule steps once per batch and needs the steps of the run."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [{"scheduler": one_cycle(self)(optimizer), "interval": "step"}]


def spiking(kind: type[SpikingModule] = SpikingModule, **options: Any) -> SpikingModule:
    torch.manual_seed(0)
    return kind(nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 2)), num_classes=2, **options)


def factory() -> SpikingModule:
    module = spiking()
    module.scheduler = one_cycle(module)
    return module


MODULES = {
    "no schedule": spiking,
    "cosine": partial(spiking, lr_scheduler="cosine"),
    "factory": factory,
    "own configure_optimizers": partial(spiking, OwnSchedule),
}


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "first epoch": ({}, {}, 3),
    "second epoch": ({}, {}, 13),
    "accumulated": ({}, {"accumulate_grad_batches": 2}, 12),
    "fixed batches": ({"fixed_batches": True}, {}, 11),
    "a worker": ({"num_workers": 1}, {}, 10),
    "max_steps": ({}, {"max_epochs": -1, "max_steps": 20}, 10),
    "limit": ({}, {"limit_train_batches": 5}, 8),
    "a share": ({"fixed_batches": True}, {"limit_train_batches": 0.5}, 6),
}
# in the test command all schedules of one run, and all runs with one schedule
FAST = {*itertools.product(MODULES, ["second epoch"]), *itertools.product(["cosine"], RUNS)}


@pytest.mark.parametrize(("module", "name"), others_slow(itertools.product(MODULES, RUNS), FAST))
def test_a_run_stopped_within_an_epoch_resumes_with_the_next_batch(tmp_path, module, name) -> None:
    make, (data, options, after) = MODULES[module], RUNS[name]
    options = {"max_epochs": 3, **options}
    whole, resumed = Recorder(), Recorder()
    first, second = make(), make()
    trainer(whole, SaveAfter(tmp_path / "some.ckpt", after), **options).fit(first, Numbers(batch_size=BATCH, **data))
    half = len(whole.batches) // 3 if "max_steps" not in options else 8
    assert whole.batches[:half] != whole.batches[half : 2 * half], "epochs are shuffled"
    trainer(resumed, **options).fit(second, Numbers(batch_size=BATCH, **data), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.batches == whole.batches[after:]
    assert resumed.rates == whole.rates[after:]
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)


class OtherModule(pl.LightningModule):
    """A module of another project, whose schedule needs the steps of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0].mean(0)), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [OneCycleLR(optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches)]


def test_our_data_keep_their_place_under_other_modules(tmp_path) -> None:
    whole, resumed = Recorder(), Recorder()
    trainer(whole, SaveAfter(tmp_path / "some.ckpt", 5), max_epochs=2).fit(OtherModule(), Numbers(batch_size=BATCH))
    trainer(resumed, max_epochs=2).fit(OtherModule(), Numbers(batch_size=BATCH), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.batches == whole.batches[5:]


class StatefulLoader:
    """A resumable loader of another library: positions count from the creation of an iterator, as torchdata's do."""

    def __init__(self) -> None:
        self.start = self.position = 0
        generator = torch.Generator().manual_seed(0)
        self.batches = list(DataLoader(torch.rand(SAMPLES, 2, 4, generator=generator), BATCH))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        indices, self.start = range(self.start, len(self)), 0

        def rest() -> Iterator[tuple[Tensor, Tensor]]:
            for index in indices:
                self.position = (index + 1) % len(self)
                x = self.batches[index].transpose(0, 1)
                yield x, torch.arange(x.shape[1]) % 2

        return rest()

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start = state_dict["position"]


@pytest.mark.parametrize("loaders", [StatefulLoader, lambda: {"a": StatefulLoader()}], ids=["one", "a dict"])
def test_a_resumable_loader_of_ones_own_keeps_its_place(tmp_path, loaders) -> None:
    class Unwrap(OwnSchedule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)

    class Indices(pl.Callback):
        def __init__(self) -> None:
            self.batches: list[list[float]] = []

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batches.append((batch["a"] if isinstance(batch, dict) else batch)[0].flatten().tolist())

    whole, resumed = Indices(), Indices()
    trainer(whole, SaveAfter(tmp_path / "some.ckpt", 3), max_epochs=2).fit(spiking(Unwrap), loaders())
    trainer(resumed, max_epochs=2).fit(spiking(Unwrap), loaders(), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.batches == whole.batches[3:]


def test_a_checkpoint_of_a_failed_batch_repeats_it(tmp_path) -> None:
    class Fail(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("out of memory")

    failed, resumed, whole = Recorder(), Recorder(), Recorder()
    trainer(whole).fit(spiking(), Numbers(batch_size=BATCH))
    saving = trainer(failed, Fail(), OnExceptionCheckpoint(tmp_path, "failed"), enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        saving.fit(spiking(), Numbers(batch_size=BATCH))
    trainer(resumed).fit(spiking(), Numbers(batch_size=BATCH), ckpt_path=tmp_path / "failed.ckpt")
    assert failed.batches == whole.batches[:5]
    assert resumed.batches == whole.batches[4:]


@pytest.mark.parametrize("options", [{"limit_train_batches": 3}, {"max_steps": 3}])
def test_an_epoch_that_was_cut_short_is_not_resumed(tmp_path, options) -> None:
    begun = trainer(**options)
    begun.fit(spiking(lr_scheduler="cosine"), Numbers(batch_size=BATCH))
    begun.save_checkpoint(tmp_path / "some.ckpt")
    resumed, whole = Recorder(), Recorder()
    trainer(whole, max_epochs=2).fit(spiking(), Numbers(batch_size=BATCH))
    trainer(resumed, max_epochs=2).fit(spiking(), Numbers(batch_size=BATCH), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.batches == whole.batches[8:]


def test_a_checkpoint_that_is_tested_gives_no_position_to_a_later_training(tmp_path) -> None:
    data, recorder, whole = Numbers(batch_size=BATCH), Recorder(), Recorder()
    trainer(whole, SaveAfter(tmp_path / "some.ckpt", 3)).fit(spiking(), Numbers(batch_size=BATCH))
    trainer().test(spiking(), data, ckpt_path=tmp_path / "some.ckpt", verbose=False)
    trainer(recorder).fit(spiking(lr_scheduler="cosine"), data)
    assert recorder.batches == whole.batches


@pytest.mark.parametrize("make", [spiking, partial(spiking, lr_scheduler="cosine")])
def test_a_position_among_other_batches_is_refused(tmp_path, make) -> None:
    trainer(SaveAfter(tmp_path / "some.ckpt", 3)).fit(make(), Numbers(batch_size=BATCH))
    with pytest.raises(ValueError, match="Expected 8 training batches per epoch.*but got 6. Resume with the same data"):
        trainer().fit(make(), Numbers(batch_size=4), ckpt_path=tmp_path / "some.ckpt")


def test_a_look_at_the_data_does_not_take_the_position(tmp_path) -> None:
    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.first = next(iter(trainer.train_dataloader))

    whole, resumed = Recorder(), Recorder()
    trainer(whole, SaveAfter(tmp_path / "some.ckpt", 3)).fit(spiking(), Numbers(batch_size=BATCH))
    trainer(Look(), resumed).fit(spiking(), Numbers(batch_size=BATCH), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.batches == whole.batches[3:]
