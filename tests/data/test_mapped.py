"""Memory-mapped arrays in worker processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lightning_snn.data import FrameDataModule, FrameDataset
from lightning_snn.data.mapped import mapped_array

FRAMES = np.random.default_rng(0).integers(0, 9, (50, 4, 30, 30), np.uint8)
LABELS = np.arange(50) % 3


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    np.save(tmp_path / "frames.npy", FRAMES)
    return np.load(tmp_path / "frames.npy", mmap_mode="r")


@pytest.mark.parametrize("part", [slice(None), slice(7, 20), slice(3, None)], ids=str)
def test_a_mapped_data_set_is_pickled_as_a_path(part: slice, mapped: np.memmap) -> None:
    dataset = FrameDataset(mapped[part], LABELS[part])
    content = pickle.dumps(dataset)
    assert len(content) < 2000 < FRAMES[part].nbytes
    for copied in (pickle.loads(content), copy.deepcopy(dataset)):
        assert isinstance(copied.frames, np.memmap)
        assert np.array_equal(copied.frames, FRAMES[part])
        assert torch.equal(copied.labels, dataset.labels)
        with pytest.raises(ValueError, match="read-only"):
            copied.frames[0] = 1


def test_a_raw_file_that_is_mapped_from_any_position_on_is_pickled_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 5003 + FRAMES.astype(">i2").tobytes())
    mapped = np.memmap(tmp_path / "raw", ">i2", "r+", 5003, FRAMES.shape)
    view = mapped[10:].reshape(-1, 4, 900).view(np.ndarray)
    found = mapped_array(view).open()
    assert np.array_equal(found, view)
    assert found.dtype == view.dtype


@pytest.mark.parametrize("kind", ["array", "tensor", "copied", "reversed", "changed in memory"])
def test_other_arrays_are_pickled_whole(kind: str, mapped: np.memmap) -> None:
    frames = {
        "array": FRAMES,
        "tensor": torch.from_numpy(FRAMES),
        "copied": mapped + 0,
        "reversed": mapped[::-1],
        "changed in memory": np.load(mapped.filename, mmap_mode="c"),
    }[kind]
    dataset = FrameDataset(frames, LABELS)
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) > FRAMES.nbytes
    assert np.array_equal(copied.frames, frames)
    assert torch.equal(copied[3][0], dataset[3][0])


def test_spawned_workers_read_the_same(mapped: np.memmap) -> None:
    dataset = Subset(FrameDataset(mapped, LABELS), list(range(10, 40)))
    loader = DataLoader(dataset, batch_size=15, num_workers=1, multiprocessing_context="spawn")
    frames = torch.cat([frames for frames, _ in loader])
    assert np.array_equal(frames.numpy(), FRAMES[10:40])


def test_a_data_module_of_mapped_arrays_is_pickled_as_a_path(mapped: np.memmap) -> None:
    data = FrameDataModule.from_arrays(mapped, LABELS, val_fraction=0.2, test_fraction=0.2)
    data.setup()
    assert len(pickle.dumps(data.train_set)) < 5000
