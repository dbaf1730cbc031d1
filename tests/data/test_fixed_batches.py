"""Batches of the same samples in every epoch, in one process and in several."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_snn import data
from lightning_snn.data import FixedBatches, FrameDataModule
from tests.support.processes import on_two_processes
from tests.support.training import trainer


class Numbers(FrameDataModule):
    """23 samples whose labels are their indices."""

    num_classes = 2

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        frames = torch.zeros(23, 1, 1, 1, 1)
        every = TensorDataset(frames, torch.arange(23))
        return every, every, every


class Recorder(pl.LightningModule):
    """Keeps the labels of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.epochs: list[list[list[int]]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.epochs[-1].append(batch[1].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def partition(batches: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(batch) for batch in batches}


def epochs(sampler: FixedBatches, number: int = 4) -> list[list[list[int]]]:
    found = []
    for epoch in range(number):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_every_epoch_has_the_same_batches_in_another_order():
    found = epochs(FixedBatches(range(60), 10))
    assert [len(batch) for batch in found[0]] == [10] * 6
    assert sorted(index for batch in found[0] for index in batch) == list(range(60))
    assert all(partition(epoch) == partition(found[0]) for epoch in found)
    assert len({tuple(map(tuple, epoch)) for epoch in found}) == 4


def test_batches_are_shuffled_samples_and_keyed_by_the_seed():
    one, same, other = (FixedBatches(range(60), 10, seed) for seed in (0, 0, 1))
    assert epochs(one) == epochs(same)
    assert partition(list(one)) != partition(list(other))
    assert (0, 1, 2, 3, 4, 5, 6, 7, 8, 9) not in partition([sorted(batch) for batch in one])


@pytest.mark.parametrize(("samples", "size", "expected"), [(23, 5, [5, 5, 5, 4, 4]), (3, 10, [3]), (10, 1, [1] * 10)])
def test_no_sample_is_left_out_and_sizes_differ_by_one_at_most(samples, size, expected):
    sampler = FixedBatches(range(samples), size)
    assert sorted(map(len, sampler), reverse=True) == expected
    assert len(sampler) == len(expected)
    assert sorted(index for batch in sampler for index in batch) == list(range(samples))


def test_it_is_the_batch_sampler_of_a_loader_of_one_s_own():
    dataset = TensorDataset(torch.arange(12))
    model = Recorder()
    loader = DataLoader(
        dataset, batch_sampler=FixedBatches(dataset, 4), collate_fn=lambda samples: (None, stacked(samples))
    )
    trainer(max_epochs=3).fit(model, loader)
    assert all(partition(epoch) == partition(model.epochs[0]) for epoch in model.epochs)
    assert len({tuple(map(tuple, epoch)) for epoch in model.epochs}) > 1, "the trainer reaches set_epoch"


def stacked(samples: list[tuple[Tensor]]) -> Tensor:
    return torch.stack([sample[0] for sample in samples])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_module_keeps_its_batches_and_a_resumed_run_their_order(workers, tmp_path):
    module = partial(Numbers, batch_size=5, fixed_batches=True, num_workers=workers)
    whole = Recorder()
    trainer(max_epochs=3).fit(whole, module())
    assert all(partition(epoch) == partition(whole.epochs[0]) for epoch in whole.epochs)
    assert len({tuple(map(tuple, epoch)) for epoch in whole.epochs}) == 3

    begun = trainer(max_epochs=1)
    begun.fit(Recorder(), module())
    begun.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Recorder()
    torch.manual_seed(123)
    trainer(max_epochs=3).fit(resumed, module(), ckpt_path=tmp_path / "one.ckpt")
    assert resumed.epochs == whole.epochs[1:]


def test_without_fixed_batches_samples_are_shuffled():
    model = Recorder()
    trainer(max_epochs=2).fit(model, Numbers(batch_size=5))
    assert partition([sorted(batch) for batch in model.epochs[0]]) != partition([sorted(b) for b in model.epochs[1]])


def test_a_loader_of_fixed_batches_reports_the_number_of_samples():
    module = Numbers(batch_size=5, fixed_batches=True)
    module.setup()
    loader = module.train_dataloader()
    assert (len(loader.dataset), len(loader)) == (23, 5)


def test_every_data_module_of_the_command_line_takes_fixed_batches():
    from lightning_snn.cli.choices import GROUPS  # not above: processes that start would import it

    kinds = GROUPS["data"].classes()
    assert {"MNIST", "CIFAR10", "NMNIST", "Gestures"} <= set(kinds)
    for kind in kinds.values():
        parser = ArgumentParser()
        parser.add_class_arguments(kind, "data")
        assert parser.get_defaults().data.fixed_batches is False
    assert data.Gestures(fixed_batches=True).fixed_batches
    assert data.MNIST("mnist.npz", fixed_batches=True).fixed_batches
    assert data.CIFAR10("cifar.npz", fixed_batches=True).fixed_batches
    assert data.NMNIST("nmnist", fixed_batches=True).fixed_batches


def test_a_sampler_that_lightning_puts_in_place_is_refused():
    with pytest.raises(ValueError, match="use `limit_train_batches` instead"):
        trainer(overfit_batches=2, max_epochs=1).fit(Recorder(), Numbers(batch_size=5, fixed_batches=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be an integer of at least 1, but got 0"),
        ({"seed": -1}, "`seed` to be an integer of at least 0, but got -1"),
        ({"data_source": []}, "`data_source` to hold at least 1 samples"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FixedBatches(**{"data_source": range(9), "batch_size": 3, **arguments})


def shares(rank: int) -> list[list[list[int]]]:
    return epochs(FixedBatches(range(23), 5))


def test_two_processes_have_batches_of_their_own_and_as_many(tmp_path: Path):
    first, second = on_two_processes(shares, tmp_path)
    for own in (first, second):
        assert all(partition(epoch) == partition(own[0]) for epoch in own)
        assert all(len(epoch) == 3 for epoch in own)
        assert len({tuple(map(tuple, epoch)) for epoch in own}) > 1
    indices = [index for own in (first, second) for batch in own[0] for index in batch]
    assert sorted(indices) == list(range(23))
    assert all(len(batch) <= 5 for own in (first, second) for batch in own[0])


class Writer(Recorder):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        torch.save(self.epochs, self.folder / f"{self.global_rank}.pt")


@pytest.mark.slow  # two processes start
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_a_trainer_of_two_processes_leaves_each_its_batches(tmp_path: Path):
    fitting = trainer(max_epochs=3, devices=2, strategy="ddp_spawn")
    fitting.fit(Writer(tmp_path), Numbers(batch_size=5, fixed_batches=True))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for own in (first, second):
        assert all(partition(epoch) == partition(own[0]) for epoch in own)
        assert len({tuple(map(tuple, epoch)) for epoch in own}) > 1
    assert sorted(index for own in (first, second) for batch in own[0] for index in batch) == list(range(23))
