from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_snn.data.base import FrameDataset
from lightning_snn.data.nmnist import NMNIST, read_nmnist


def record(x: int, y: int, p: int, t: int) -> bytes:
    return bytes([x, y, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF])


def write_recording(path: Path, seed: int, events: int = 50) -> int:
    """Write a recording and return its number of events."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.sort(generator.integers(0, 315_000, events)).tolist()
    path.write_bytes(
        b"".join(record(*generator.integers(0, 34, 2).tolist(), int(generator.integers(0, 2)), t) for t in times)
    )
    return events


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("Train", 5), ("Test", 2)):
        for digit in range(10):
            for index in range(count):
                write_recording(tmp_path / "set" / split / str(digit) / f"{index:05d}.bin", seed=100 * digit + index)
    return tmp_path / "set"


def module(root: Path, **arguments) -> NMNIST:
    return NMNIST(str(root), cache_dir=str(root.parent / "cache"), **arguments)


def all_frames(subset) -> torch.Tensor:
    return torch.stack([x for x, _ in subset])


def test_the_five_bytes_of_an_event_are_decoded(tmp_path: Path) -> None:
    events = [(0, 33, 1, 0), (33, 0, 0, 255), (1, 2, 1, 256), (3, 4, 0, 65_536), (5, 6, 1, 0x7FFFFF)]
    (tmp_path / "a.bin").write_bytes(b"".join(record(*event) for event in events))
    x, y, p, t = read_nmnist(tmp_path / "a.bin")
    assert list(zip(x.tolist(), y.tolist(), p.tolist(), t.tolist(), strict=True)) == events


def test_a_clock_overflow_moves_later_events_and_is_no_event(tmp_path: Path) -> None:
    data = record(1, 1, 0, 5) + record(0, 240, 0, 0) + record(2, 2, 1, 6) + record(0, 240, 0, 0) + record(3, 3, 0, 7)
    (tmp_path / "a.bin").write_bytes(data)
    x, _, p, t = read_nmnist(tmp_path / "a.bin")
    assert x.tolist() == [1, 2, 3]
    assert p.tolist() == [0, 1, 0]
    assert t.tolist() == [5, 6 + 8192, 7 + 16384]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.bin to hold events of 5 bytes, at least one, but it is 0 bytes long"),
        (record(1, 1, 0, 5) + b"\x01", "a.bin to hold events of 5 bytes, at least one, but it is 6 bytes long"),
        (record(34, 1, 0, 5), "a.bin to lie on the sensor of 34 rows and 34 columns, but got x from 34 to 34"),
        (record(3, 200, 0, 5), "a.bin .*y from 200 to 200"),
        (record(1, 1, 0, 2_000_000) + record(1, 1, 0, 5), "a.bin to hold times that increase, but at event 1 .*clock"),
        (record(0, 240, 0, 0), "a.bin to hold at least one event, but it holds clock overflows only"),
    ],
)
def test_a_damaged_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_nmnist(tmp_path / "a.bin")


def test_a_damaged_file_in_the_tree_stops_setup_and_leaves_no_cache(root: Path) -> None:
    (root / "Train" / "7" / "00002.bin").write_bytes(b"\x00" * 7)
    with pytest.raises(ValueError, match=r"Train/7/00002.bin to hold events of 5 bytes"):
        module(root).setup()
    assert list((root.parent / "cache" / "nmnist").iterdir()) == []


def test_the_sets_are_disjoint_complete_and_balanced(root: Path) -> None:
    data = module(root, val_fraction=0.2, time_steps=3)
    data.prepare_data()
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [40, 10, 20]
    assert sorted(y.item() for _, y in data.val_set) == list(range(10))
    train, val = set(data.train_set.indices), set(data.val_set.indices)
    assert not train & val
    assert train | val == set(range(50))
    for part in (data.train_set, data.val_set, data.test_set):
        assert (all_frames(part).sum((1, 2, 3, 4)) == 50).all()


def test_frames_show_the_recording(root: Path) -> None:
    write_recording(root / "Test" / "0" / "00000.bin", seed=7, events=300)
    x, y, p, t = read_nmnist(root / "Test" / "0" / "00000.bin")
    data = module(root, time_steps=3, size=17)
    data.setup()
    assert isinstance(data.test_set, FrameDataset)
    frames, label = data.test_set[0]
    expected = np.zeros((3, 2, 17, 17), np.int64)
    np.add.at(expected, (t // 105_000, p, y // 2, x // 2), 1)
    assert label == 0
    assert np.array_equal(frames.numpy(), expected)
    batch, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch.shape == (3, 20, *data.frame_shape) == (data.time_steps, 20, 2, 17, 17)
    assert labels.tolist() == sorted([*range(10), *range(10)])


def test_events_after_the_duration_are_left_out(root: Path) -> None:
    data = module(root, duration=100.0, time_steps=4)
    data.setup()
    expected = [(read_nmnist(path)[3] < 100_000).sum() for path in sorted((root / "Test").glob("*/*.bin"))]
    assert all_frames(data.test_set).sum((1, 2, 3, 4)).tolist() == expected
    assert sum(expected) < 20 * 50


def test_a_duration_before_the_first_event_is_refused(root: Path) -> None:
    (root / "Train" / "4" / "00000.bin").write_bytes(record(1, 1, 0, 450_000))
    with pytest.raises(ValueError, match=r"`duration` to cover events of .*4/00000.bin, .* 400 ms .* at 450 ms"):
        module(root, duration=400.0).setup()


def test_a_split_depends_on_the_seed_alone(root: Path) -> None:
    held_out = []
    for seed in (0, 0, 1):
        data = module(root, seed=seed)
        data.setup()
        held_out.append(list(data.val_set.indices))
    assert held_out[0] == held_out[1] != held_out[2]


def test_the_cache_follows_the_parameters_and_the_files(root: Path) -> None:
    cache = root.parent / "cache" / "nmnist"
    module(root).setup()
    written = {path: (path / "frames.npy").stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 2
    module(root, seed=5, val_fraction=0.4, max_count=3, batch_size=2).setup()
    assert {path: (path / "frames.npy").stat().st_mtime_ns for path in cache.iterdir()} == written
    module(root, time_steps=6).setup()
    module(root, size=17).setup()
    module(root, duration=200.0).setup()
    assert len(list(cache.iterdir())) == 8
    write_recording(root / "Test" / "3" / "00001.bin", seed=999, events=60)
    data = module(root)
    data.setup()
    assert len(list(cache.iterdir())) == 9
    assert data.test_set[7][0].sum() == 60


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("root", "`root` to be a folder that holds N-MNIST .*is not a folder"),
        ("Train", "`root` to be a folder that holds N-MNIST .*has no folder Train"),
        ("Train/4", "Train/4 to hold N-MNIST recordings .*but got none"),
        ("Test", "Test/0 to hold N-MNIST recordings"),
    ],
)
def test_a_missing_folder_is_named(damage: str, message: str, root: Path) -> None:
    shutil.rmtree(root if damage == "root" else root / damage)
    with pytest.raises(FileNotFoundError, match=message):
        module(root).setup()


def test_the_parent_of_the_set_is_accepted(root: Path) -> None:
    root.rename(root.parent / "NMNIST")
    data = module(root.parent)
    data.setup()
    assert len(data.test_set) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_steps", 0),
        ("size", 16),
        ("size", 68),
        ("duration", 0.0),
        ("val_fraction", 1.0),
        ("max_shift", 35),
        ("batch_size", 0),
    ],
)
def test_an_argument_out_of_range_is_named(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}` .*but got {value}"):
        module(tmp_path, **{name: value})


def test_real_recordings_keep_every_event(shared_data: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, shared_data / "unpack_nmnist.py", tmp_path / "real"], check=True)
    data = NMNIST(str(tmp_path / "real"), duration=340.0, size=17, cache_dir=str(tmp_path / "cache"))
    data.setup()
    packed = np.load(shared_data / "nmnist_events_small.npz")
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [900, 100, 100]
    order = np.lexsort((packed["test_source_id"], packed["test_labels"]))
    assert torch.equal(data.test_set.labels, torch.from_numpy(packed["test_labels"][order].astype(np.int64)))
    frames = torch.as_tensor(np.array(data.test_set.frames))
    assert frames.sum((1, 2, 3, 4)).tolist() == np.diff(packed["test_offsets"])[order].tolist()
    assert data.train_set.dataset.frames.sum(dtype=np.int64) == len(packed["train_t"])
    assert frames[:, :, 1].sum() == packed["test_p"].sum()
