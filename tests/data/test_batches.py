from __future__ import annotations

import copy
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, SpikingModule
from lightning_snn.data import FrameDataModule, pad_sequences, time_first
from lightning_snn.data.batches import LoadedBatch, collate
from tests.support.training import trainer

REMEDY = r"Pass the data module to the trainer, .*`x, y = data_module.on_after_batch_transfer\(batch, 0\)`"


def small_data(**options) -> FrameDataModule:
    frames = np.random.default_rng(0).integers(0, 5, (24, 6, 2, 4, 4), dtype=np.uint8)
    data = FrameDataModule.from_arrays(frames, np.arange(24) % 3, batch_size=6, **options)
    data.setup()
    return data


def small_module() -> SpikingModule:
    return SpikingModule(nn.Sequential(nn.Flatten(), nn.Linear(32, 3), LIF()), num_classes=3)


@pytest.mark.parametrize(
    "read",
    [
        lambda batch: tuple(batch),
        lambda batch: batch[0],
        lambda batch: nn.Linear(4, 2)(*batch),
    ],
)
def test_a_loaded_batch_refuses_to_be_unpacked_and_says_what_to_call(read) -> None:
    batch = next(iter(small_data().val_dataloader()))
    with pytest.raises(TypeError, match=rf"torch.uint8 of shape \(\d, 6, 2, 4, 4\), batch first. {REMEDY}"):
        read(batch)
    with pytest.raises(AttributeError, match=REMEDY):
        batch.shape  # noqa: B018


def test_a_loader_without_its_data_module_is_an_error_that_names_the_data_module() -> None:
    data, module = small_data(), small_module()
    for run in (
        lambda: trainer().fit(module, data.train_dataloader()),
        lambda: trainer().validate(module, data.val_dataloader(), verbose=False),
        lambda: trainer().test(module, data.test_dataloader(), verbose=False),
        lambda: trainer().predict(module, data.predict_dataloader()),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError), match="Pass the data module"):
            run()
    trainer().fit(module, data)


def test_a_prediction_of_a_loaded_batch_is_an_error_that_names_the_data_module() -> None:
    data, module = small_data(), small_module()
    batch = next(iter(data.test_dataloader()))
    with pytest.raises((TypeError, ValueError, AttributeError), match="Pass the data module"):
        module.method.predict(module.network, batch)
    x, y = data.on_after_batch_transfer(batch, 0)
    assert module.method.predict(module.network, x).mean.shape == (len(y), 3)


def test_a_loaded_batch_moves_copies_and_pickles() -> None:
    batch = collate([(torch.arange(6, dtype=torch.uint8).view(3, 2), 1, 17)])
    moved = pl.LightningModule().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.frames.device.type == moved.labels.device.type == "meta"
    assert batch.frames.device.type == "cpu"
    for again in (copy.copy(batch), copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(again.frames, batch.frames)
        assert torch.equal(again.labels, batch.labels)
    assert [each.indices for each in (batch, moved, again)] == [(17,)] * 3
    assert collate([(torch.zeros(3, 2), 1)]).indices == ()


@pytest.mark.parametrize(("device", "blocks"), [("cpu", True), ("cuda:1", False), ("mps", True)])
def test_copies_to_an_accelerator_do_not_block(device: str, blocks: bool) -> None:
    class Recorder:
        def to(self, device: torch.device, **options: bool) -> dict[str, bool]:
            return options

    moved = pl.LightningModule().transfer_batch_to_device(
        LoadedBatch(Recorder(), Recorder()),
        torch.device(device),
        0,  # type: ignore[arg-type]
    )
    assert moved.frames == moved.labels == {"non_blocking": not blocks}


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 4, 4), (5, 2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int16, np.float16, np.float32, np.float64])
def test_samples_of_any_rank_and_type_are_stacked_time_first(shape: tuple[int, ...], dtype: type) -> None:
    source = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(dtype)
    for samples in (
        [(array, label) for array, label in zip(source, [2, 0, 1, 1], strict=True)],
        [(torch.from_numpy(array), torch.tensor(label)) for array, label in zip(source, [2, 0, 1, 1], strict=True)],
        [[array, np.int8(label)] for array, label in zip(source, [2, 0, 1, 1], strict=True)],
    ):
        x, y = time_first(samples)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert np.array_equal(x.numpy(), np.swapaxes(source, 0, 1).astype(np.float32))
        assert (y.dtype, y.tolist()) == (torch.int64, [2, 0, 1, 1])


def test_targets_of_a_regression_stay_floats() -> None:
    _, y = time_first([(np.zeros((3, 2)), np.array([0.5, 1.5])), (np.zeros((3, 2)), np.array([2.5, 3.5]))])
    assert (y.dtype, y.tolist()) == (torch.float32, [[0.5, 1.5], [2.5, 3.5]])


def test_a_loader_of_ones_own_trains_with_it() -> None:
    samples = TensorDataset(torch.rand(12, 5, 32), torch.arange(12) % 3)
    loader = DataLoader(samples, batch_size=4, collate_fn=time_first)
    trainer().fit(small_module(), loader)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([np.zeros((3, 2))], r"each sample of the data set to be a pair \(x, y\), but got a ndarray of 3"),
        ([(np.zeros((3, 2)), 0, 3)], "a pair .*but got a tuple of 3"),
        ([7], "a pair .*but got a 7"),
        ([(1.0, 0)], r"to be of shape \(T, ...\), time first, but got a number"),
        ([(np.zeros((3, 2)), 0), (np.zeros((4, 2)), 0)], r"the inputs of a batch .*\(3, 2\) and \(4, 2\). .*=pad_seq"),
        ([(np.zeros((3, 2)), [0]), (np.zeros((3, 2)), [0, 1])], r"the targets of a batch .*\(1,\) and \(2,\)"),
    ],
)
def test_what_is_no_batch_is_refused(samples: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_first(samples)


PER_STEP = {"targets_per_step": True}
SEQUENCES = [(np.full((3, 4, 2), 2, np.uint8), 1), (torch.ones(5, 4, 2), 0)]


@pytest.mark.parametrize("trailing", [(), (4,), (2, 3, 3)])
def test_sequences_of_any_rank_are_padded_with_zeros_behind_their_ends(trailing):
    samples = [(torch.rand(length, *trailing), 0) for length in (4, 1, 6)]
    x, y, lengths = pad_sequences(samples)
    assert x.shape == (6, 3, *trailing)
    assert lengths.tolist() == [4, 1, 6]
    assert y.dtype == lengths.dtype == torch.int64
    for index, (sequence, _) in enumerate(samples):
        assert torch.equal(x[: len(sequence), index], sequence)
        assert not x[len(sequence) :, index].any()


def test_padding_goes_to_a_number_of_steps_and_to_batch_first():
    x, y, lengths = pad_sequences(SEQUENCES, batch_first=True, time_steps=8)
    assert x.shape == (2, 8, 4, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x[:, :, 0, 0].sum(1), torch.tensor([6.0, 5.0]))
    assert y.tolist() == [1, 0]
    assert lengths.tolist() == [3, 5]


def test_targets_of_each_step_are_padded_too():
    _, y, _ = pad_sequences([(torch.ones(2, 4), torch.ones(2, 1)), (torch.ones(3, 4), torch.ones(3, 1))], **PER_STEP)
    assert y.shape == (3, 2, 1)
    assert y.sum((0, 2)).tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"one target for each of the \[2\] steps of the samples, but got \[3\]"):
        pad_sequences([(torch.ones(2, 4), torch.ones(3, 1))], **PER_STEP)


UNFIT = {
    "other features": ([(torch.ones(2, 4), 0), (torch.ones(2, 5), 0)], {}, r"lengths, .* \(4,\) and \(5,\)"),
    "other targets": ([(torch.ones(2, 4), [1, 0]), (torch.ones(3, 4), [1])], {}, "the targets of a batch to have the"),
    "no step": ([(torch.ones(0, 4), 0)], {}, "at least one time step"),
    "too long": (SEQUENCES, {"time_steps": 4}, "`time_steps` to be at least the largest length 5 .* got 4"),
    "no pair": ([torch.ones(2, 4)], {}, r"to be a pair \(x, y\)"),
    "a number": ([(1.0, 0)], {}, r"of shape \(T, \.\.\.\), time first, but got a number"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_sequences_that_do_not_fit_are_refused(name):
    samples, options, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        pad_sequences(samples, **options)


def test_data_modules_give_the_length_of_each_recording_when_asked():
    frames = np.zeros((6, 5, 3), np.uint8)
    for index in range(6):
        frames[index, :index, index % 3] = 1
    sets = {"val": (frames, [0] * 6), "test": (frames, [0] * 6)}
    data = FrameDataModule.from_arrays(frames, np.arange(6) % 2, **sets, lengths=True)
    data.setup()
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch[0].shape == (5, 6, 3)
    assert batch[2].tolist() == [1, 1, 2, 3, 4, 5]
    plain = FrameDataModule.from_arrays(frames, np.arange(6) % 2, **sets)
    plain.setup()
    assert len(plain.on_after_batch_transfer(next(iter(plain.val_dataloader())), 0)) == 2
