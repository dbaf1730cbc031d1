"""CIFAR10-DVS and N-Caltech101: every layout gives the same events, splits, frames, and what is wrong with files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_snn.data import CIFAR10DVS, NCaltech101
from lightning_snn.data.event_folders import EventFolders
from tests.support.aedat import (
    AEDAT2_LINES,
    Columns,
    aedat2_records,
    aedat4_events,
    aedat4_file,
    aedat4_stream,
    dvs128_address,
)

COUNT = 10


def events_of(label: int, number: int, sides: tuple[int, int] = (128, 128)) -> Columns:
    """Events of a recording: columns, rows, polarities and times, none in the middle third of its time."""
    generator = np.random.default_rng([label, number])
    count = 60 + 3 * number
    t = np.sort(np.concatenate([generator.integers(0, 900, count // 3), generator.integers(1800, 2700, count)]))
    p = generator.integers(0, 2, len(t))
    return generator.integers(0, sides[1], len(t)), generator.integers(0, sides[0], len(t)), p, 1000 + t


def aedat(events: Columns, path: Path) -> None:
    rows = zip(*(column.tolist() for column in events), strict=True)
    path.write_bytes(AEDAT2_LINES + aedat2_records([(dvs128_address(x, y, p), t) for x, y, p, t in rows]))


def aedat4(events: Columns, path: Path) -> None:
    path.write_bytes(aedat4_file([(0, aedat4_events(events))], [aedat4_stream(0, "EVTS", (128, 128))]))


def spikingjelly(events: Columns, path: Path) -> None:
    """As SpikingJelly converts the raw addresses, which count from the lower right: ``127 - y, 127 - x``."""
    x, y, p, t = events
    raw_x, raw_y = 127 - x, 127 - y
    np.savez(path, t=t, x=127 - raw_y, y=127 - raw_x, p=p)


def mat(events: Columns, path: Path, spare: int = 0) -> None:
    """As ``dat2mat.m`` does: ``127 - x`` and y of the raw addresses, 1 for ON and -1 for OFF."""
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed").savemat
    x, y, p, t = events
    savemat(path, {"out1": np.stack([t, *[t] * spare, x, 127 - y, 2 * p - 1], 1).astype(float)})


def mat_of_six_columns(events: Columns, path: Path) -> None:
    mat(events, path, 2)


LAYOUTS = {
    "aedat": (aedat, "", ".aedat"),
    "aedat4": (aedat4, "CIFAR10DVS", ".aedat4"),
    "npz": (spikingjelly, "events_np", ".npz"),
    "mat": (mat, "", ".mat"),
    "mat, six columns": (mat_of_six_columns, "", ".mat"),
}


def write(root: Path, layout: str = "aedat", count: int = COUNT) -> Path:
    writer, place, suffix = LAYOUTS[layout]
    for label, name in enumerate(CIFAR10DVS.class_names):
        folder = root / place / name
        folder.mkdir(parents=True)
        for number in range(count):
            writer(events_of(label, number), folder / f"cifar10_{name}_{number}{suffix}")
    return root


def module(root: Path, kind: type[EventFolders] = CIFAR10DVS, **options: object) -> EventFolders:
    data = kind(str(root), cache_dir=str(root / "cache"), **{"time_steps": 3, "shrink": 4, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def expected_frames(events: Columns, index: np.ndarray) -> np.ndarray:
    frames = np.zeros((3, 2, 32, 32), np.int64)
    for x, y, p, step in zip(*events[:3], index, strict=True):
        frames[step, p, y // 4, x // 4] += 1
    return frames


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_upright_frames(layout: str, tmp_path: Path):
    data = module(write(tmp_path, layout, 3), test_fraction=0.3, val_fraction=0.5)
    for part in (data.train_set, data.val_set, data.test_set):
        assert len(part) == 10
    for label in range(10):
        frames, found = data.test_set[label]
        events = events_of(label, 2)
        assert found == label
        index = np.arange(len(events[0])) * 3 // len(events[0])
        assert np.array_equal(frames.numpy(), expected_frames(events, index))


def test_frames_have_the_same_number_of_events_or_the_same_duration(tmp_path: Path):
    root = write(tmp_path)
    by_number, by_duration = (module(root, frames=frames) for frames in ("number", "duration"))
    counts = by_number.test_set[0][0].sum((1, 2, 3))
    assert counts.max() - counts.min() <= 1
    frames, _ = by_duration.test_set[0]
    events = events_of(0, 9)
    t = events[3] - events[3][0]
    assert np.array_equal(frames.numpy(), expected_frames(events, t * 3 // (t[-1] + 1)))
    assert frames[1].sum() < counts[1] / 4  # hardly anything happens in the middle


def test_the_last_recordings_of_each_class_by_number_are_the_test_set(tmp_path: Path):
    data = module(write(tmp_path, count=12), test_fraction=0.25, val_fraction=0.2)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [70, 20, 30]
    # 9, 10 and 11 of each dozen: not in the order of letters, in which 2 follows 11
    assert sorted(data.test_set.indices) == [12 * label + number for label in range(10) for number in (9, 10, 11)]
    assert data.test_set[2][0].sum() == len(events_of(0, 11)[0])
    assert not {*data.train_set.indices, *data.val_set.indices} & {*data.test_set.indices}
    assert sorted(int(label) for _, label in data.val_set) == sorted([*range(10)] * 2)
    other = module(tmp_path, test_fraction=0.25, val_fraction=0.2, seed=1)
    assert other.test_set.indices == data.test_set.indices
    assert other.val_set.indices != data.val_set.indices


def test_frames_are_read_from_the_cache_until_a_file_or_an_option_changes(tmp_path: Path):
    root = write(tmp_path, count=3)
    before = module(root, test_fraction=0.3).test_set[0][0]
    path = root / "airplane" / "cifar10_airplane_2.aedat"
    times = path.stat()
    aedat(events_of(5, 5), path)
    after = module(root, test_fraction=0.3).test_set[0][0]
    assert times.st_mtime_ns != path.stat().st_mtime_ns
    assert not torch.equal(before, after)
    assert len(list((root / "cache" / "cifar10dvs").iterdir())) == 2
    module(root, test_fraction=0.4)
    assert len(list((root / "cache" / "cifar10dvs").iterdir())) == 2
    module(root, time_steps=5, test_fraction=0.3)
    assert len(list((root / "cache" / "cifar10dvs").iterdir())) == 3


@pytest.mark.parametrize("place", ["", "Caltech101"])
def test_recordings_of_n_caltech101_are_read(place: str, tmp_path: Path):
    for label, name in enumerate(("BACKGROUND_Google", "accordion", "yin_yang")):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        for number in range(1, 4):
            x, y, p, t = events_of(label, number, (180, 240))
            rows = np.stack([x, y, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF], 1)
            (folder / f"image_{number:04d}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    data = module(tmp_path, NCaltech101, test_fraction=0.3, val_fraction=0.5, shrink=6)
    assert data.class_names == ("BACKGROUND_Google", "accordion", "yin_yang")
    assert (data.num_classes, data.frame_shape) == (3, (2, 30, 40))
    x, y, p, _ = events_of(2, 3, (180, 240))
    frames, label = data.test_set[2]
    assert label == 2
    cells = np.zeros((2, 30, 40), np.int64)
    np.add.at(cells, (p, y // 6, x // 6), 1)
    assert np.array_equal(frames.sum(0).numpy(), cells)


@pytest.mark.parametrize(
    ("layout", "file", "damage", "message"),
    [
        ("aedat", "bird/cifar10_bird_1.aedat", lambda path: path.write_bytes(path.read_bytes()[:-3]), "cifar10_bird_1"),
        (
            "aedat4",
            "CIFAR10DVS/cat/cifar10_cat_0.aedat4",
            lambda path: path.write_bytes(b"junk"),
            "cifar10_cat_0.aedat4",
        ),
        (
            "npz",
            "events_np/dog/cifar10_dog_2.npz",
            lambda path: path.write_bytes(b""),
            "dog_2.npz to be a file with the",
        ),
        (
            "npz",
            "events_np/dog/cifar10_dog_2.npz",
            lambda path: np.savez(path, t=[1], x=[1], y=[1]),
            "but it holds t, x, y",
        ),
        (
            "npz",
            "events_np/dog/cifar10_dog_2.npz",
            lambda path: np.savez(path, t=[1, 2], x=[1, 2], y=[1, 2], p=[0.5, 1]),
            "to hold one number per event",
        ),
        (
            "npz",
            "events_np/dog/cifar10_dog_2.npz",
            lambda path: np.savez(path, t=[1, 2], x=[1, 128], y=[1, 2], p=[0, 1]),
            "dog_2.npz to lie on the sensor of 128 rows and 128 columns",
        ),
        ("mat", "ship/cifar10_ship_0.mat", lambda path: path.write_bytes(b"junk" * 50), "ship_0.mat to be a .mat file"),
    ],
)
def test_a_damaged_recording_is_named(layout, file, damage, message, tmp_path: Path):
    if layout == "mat":
        pytest.importorskip("scipy", reason="scipy is not installed")
    write(tmp_path, layout, 3)
    damage(tmp_path / file)
    with pytest.raises(ValueError, match=message):
        module(tmp_path)


def test_folders_that_do_not_fit_are_named(tmp_path: Path):
    kinds = r"\(.aedat, .aedat4, .npz, .mat\)"
    with pytest.raises(
        FileNotFoundError, match=f"`root` to hold one folder of recordings {kinds} per class.*holds none"
    ):
        CIFAR10DVS(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"`root` to hold one folder of recordings {kinds}.*is no folder"):
        CIFAR10DVS(str(tmp_path / "nothing"))
    write(tmp_path, count=3)
    (tmp_path / "frog" / "cifar10_frog_0.aedat").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"frog to hold recordings {kinds}, at least one for each set, but it hol"
    ):
        module(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 0}, "`time_steps` to be an integer of at least 1, but got 0"),
        ({"frames": "count"}, "`frames` to be one of 'number', 'duration', but got 'count'"),
        ({"shrink": 5}, "`shrink` to divide the 128 rows of the sensor, but got 5"),
        ({"test_fraction": 1.0}, "`test_fraction`"),
        ({"val_fraction": 0.0}, "`val_fraction`"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CIFAR10DVS("nothing", **options)
