from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_snn.data.dvs_gesture import DVSGesture
from tests.support.aedat import AEDAT3_HEADER, aedat3_polarity

Events = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
TRAIN = ("user01_led", "user02_lab", "user03_led", "user03_natural")
TEST = ("user24_led",)
# Every name is recorded for these lengths, in seconds, in the gestures of these labels.
GESTURES = ((0, 1.0), (3, 3.2), (10, 1.6))


def random_events(seconds: float, seed: int, start: int = 0) -> Events:
    """Events in microseconds, the first and the last at the bounds."""
    generator = np.random.default_rng(seed)
    count = int(200 * seconds)
    t = np.sort(generator.integers(0, int(seconds * 1000), count)) * 1000 + start
    t[0], t[-1] = start, start + int(seconds * 1e6) - 1000
    x, y = generator.integers(0, 128, (2, count))
    return x, y, generator.integers(0, 2, count), t


def sources() -> dict[tuple[str, str, int], Events]:
    """For every (split, name, label) the events of the gesture, from time 0."""
    names = [("train", name) for name in TRAIN] + [("test", name) for name in TEST]
    return {
        (split, name, label): random_events(seconds, seed=100 * index + label)
        for index, (split, name) in enumerate(names)
        for label, seconds in GESTURES
    }


def write_tonic(root: Path, dtype: type = np.float64) -> Path:
    for (split, name, label), (x, y, p, t) in sources().items():
        path = root / "DVSGesture" / f"ibmGesture{split.capitalize()}" / name / f"{label}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack([x, y, p, t / 1000], 1).astype(dtype))
    return root


def write_spikingjelly(root: Path) -> Path:
    for (split, name, label), (x, y, p, t) in sources().items():
        path = root / "events_np" / split / str(label) / f"{name}_0.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, t=t + 5_000_000, x=x, y=y, p=p)
    return root


def write_original(root: Path) -> Path:
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    for split, names in (("train", TRAIN), ("test", TEST)):
        (folder / f"trials_to_{split}.txt").write_text("".join(f"{name}.aedat\n" for name in reversed(names)) + "\n")
        for name in names:
            data, lines, start = AEDAT3_HEADER, ["class,startTime_usec,endTime_usec"], 1_000_000
            for label, seconds in GESTURES:
                x, y, p, t = sources()[split, name, label]
                # Between gestures lie events that belong to none.
                data += aedat3_polarity((*random_events(0.05, 1)[:3], np.full(10, start - 5)))
                data += aedat3_polarity((x, y, p, t + start))
                lines.append(f"{label + 1},{start},{start + int(seconds * 1e6)}")
                start += int(seconds * 1e6) + 100_000
            (folder / f"{name}.aedat").write_bytes(data)
            (folder / f"{name}_labels.csv").write_text("\n".join(lines) + "\n")
    return root


WRITERS = {"tonic": write_tonic, "spikingjelly": write_spikingjelly, "original": write_original}


def module(root: Path, **arguments) -> DVSGesture:
    data = DVSGesture(str(root), cache_dir=str(root.parent / "cache"), **arguments)
    data.prepare_data()
    data.setup()
    return data


def contents(dataset) -> list[tuple[int, bytes]]:
    return sorted((int(label), frames.numpy().tobytes()) for frames, label in dataset)


@pytest.mark.parametrize("layout", WRITERS)
def test_the_sets_hold_the_clips_of_disjoint_subjects(layout: str, tmp_path: Path) -> None:
    data = module(WRITERS[layout](tmp_path / "set"), val_fraction=0.3)
    # Gestures of 1.0, 3.2 and 1.6 s give 1, 2 and 1 clips of 1.5 s; three of the four training names are of user 3.
    assert len(data.test_set) == 4
    assert len(data.train_set) + len(data.val_set) == 16
    assert not set(data.train_set.indices) & set(data.val_set.indices)
    events = {"train": contents(data.train_set), "val": contents(data.val_set), "test": contents(data.test_set)}
    for clips in events.values():
        labels = [label for label, _ in clips]
        assert labels == sorted([0, 3, 3, 10] * (len(clips) // 4))
    assert not set(events["train"]) & set(events["val"])


@pytest.mark.parametrize("seed", range(4))
def test_two_recordings_of_a_subject_stay_on_one_side(seed: int, tmp_path: Path) -> None:
    data = module(write_tonic(tmp_path / "set"), val_fraction=0.3, seed=seed)
    # Clips of a recording are consecutive and recordings sorted: user 3 has the last eight.
    sides = {("val" if index in data.val_set.indices else "train") for index in range(8, 16)}
    assert len(sides) == 1
    assert len(data.val_set) in (4, 8)


def test_the_layouts_give_the_same_samples(tmp_path: Path) -> None:
    found = {}
    # No gesture ends near the end of a clip, so that it does not matter whether a list or the last event ends it.
    for layout, write in WRITERS.items():
        data = module(write(tmp_path / layout), clip_duration=0.45, time_steps=5, size=16)
        found[layout] = [contents(data.train_set) + contents(data.val_set), contents(data.test_set)]
    for layout in ("spikingjelly", "original"):
        assert sorted(found[layout][0]) == sorted(found["tonic"][0])
        assert found[layout][1] == found["tonic"][1]


def test_a_clock_restarted_between_gestures_does_not_matter_and_within_one_is_refused(tmp_path: Path) -> None:
    write_original(tmp_path / "set")
    path = tmp_path / "set" / "DvsGesture" / "user24_led.aedat"
    packets = path.read_bytes().removeprefix(AEDAT3_HEADER)
    expected = contents(module(tmp_path / "set").test_set)
    x, y, p, _ = random_events(0.05, 1)
    before = aedat3_polarity((x, y, p, np.full(10, 900_000_000)))
    path.write_bytes(AEDAT3_HEADER + before + packets)
    assert contents(module(tmp_path / "set").test_set) == expected
    # the second gesture starts at 2.1 s and lasts 3.2 s
    late = aedat3_polarity((x, y, p, np.full(10, 5_200_000)))
    path.write_bytes(AEDAT3_HEADER + late + packets)
    with pytest.raises(ValueError, match="user24_led.aedat to hold times .* at event 10 the time falls"):
        module(tmp_path / "set")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_tonic_arrays_may_be_of_any_number_type(dtype: type, tmp_path: Path) -> None:
    whole = module(write_tonic(tmp_path / "set", dtype), clip_duration=None, time_steps=4, size=16)
    x, y, p, t = sources()["test", TEST[0], 3]
    expected = np.zeros((4, 2, 16, 16), np.int64)
    np.add.at(expected, ((t - t[0]) * 4 // (t[-1] - t[0] + 1), p, y // 8, x // 8), 1)
    frames = {int(label): frames for frames, label in whole.test_set}
    assert np.array_equal(frames[3].numpy(), expected)


def test_whole_gestures_keep_every_event_and_clips_leave_out_the_rest(tmp_path: Path) -> None:
    root = write_tonic(tmp_path / "set")
    whole = module(root, clip_duration=None)
    assert sorted((int(label), int(frames.sum())) for frames, label in whole.test_set) == [
        (0, 200),
        (3, 640),
        (10, 320),
    ]
    clips = module(root, clip_duration=1.5)
    t = sources()["test", TEST[0], 3][3]
    counts = sorted(int(frames.sum()) for frames, label in clips.test_set if label == 3)
    assert counts == sorted([(t < 1_500_000).sum(), ((t >= 1_500_000) & (t < 3_000_000)).sum()])
    short = next(frames for frames, label in clips.test_set if label == 0)
    assert short.sum() == 200
    assert short[11:].sum() == 0


def test_batches_have_the_declared_shape(tmp_path: Path) -> None:
    data = module(write_tonic(tmp_path / "set"), time_steps=6, size=64, max_count=2, batch_size=3)
    x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert x.shape == (6, 3, *data.frame_shape) == (6, 3, 2, 64, 64)
    assert set(x.unique().tolist()) <= {0, 0.5, 1}
    assert y.dtype == torch.int64


def test_batches_hold_the_length_of_each_clip_when_asked(tmp_path: Path) -> None:
    data = module(write_tonic(tmp_path / "set"), lengths=True, time_steps=15, clip_duration=1.5)
    x, y, lengths = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert len(x) == 15
    # frames of 0.1 s; the gesture of class 0 lasts 1 s, and the others fill their clips
    assert lengths[y == 0].tolist() == [10]
    assert lengths[y != 0].tolist() == [15, 15, 15]


def test_pairs_are_the_two_senses_of_rotation_of_one_arm() -> None:
    assert len(DVSGesture.class_names) == DVSGesture.num_classes == 11
    for one, other in DVSGesture.pairs:
        first, second = DVSGesture.class_names[one], DVSGesture.class_names[other]
        assert first.endswith("arm clockwise")
        assert second == first.replace("clockwise", "counter-clockwise")


def test_recordings_without_a_subject_are_kept_whole(tmp_path: Path) -> None:
    root = write_tonic(tmp_path / "set")
    for folder in (root / "DVSGesture" / "ibmGestureTrain").iterdir():
        folder.rename(folder.with_name(f"session-{folder.name}"))
    data = module(root, val_fraction=0.25)
    assert len(data.val_set) == 4
    first = data.val_set.indices[0]
    assert data.val_set.indices == list(range(first, first + 4))
    assert first % 4 == 0


def test_the_folder_of_the_set_itself_is_accepted(tmp_path: Path) -> None:
    write_tonic(tmp_path / "a")
    write_original(tmp_path / "b")
    assert len(module(tmp_path / "a" / "DVSGesture").test_set) == 4
    assert len(module(tmp_path / "b" / "DvsGesture").test_set) == 4


def test_the_cache_follows_the_parameters_and_the_files(tmp_path: Path) -> None:
    root = write_original(tmp_path / "set")
    cache = tmp_path / "cache" / "dvs_gesture"
    module(root)
    module(root, seed=1, val_fraction=0.5, batch_size=2, max_count=1)
    assert len(list(cache.iterdir())) == 2
    module(root, clip_duration=None)
    module(root, size=16)
    module(root, time_steps=4)
    assert len(list(cache.iterdir())) == 8
    labels = root / "DvsGesture" / "user24_led_labels.csv"
    labels.write_text(labels.read_text().replace("\n4,", "\n5,"))
    assert {int(label) for _, label in module(root).test_set} == {0, 4, 10}


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        (
            "tonic",
            "DVSGesture/ibmGestureTrain/user02_lab/3.npy",
            None,
            "user02_lab/3.npy to be an array of events, .*truncated or corrupt",
        ),
        ("tonic", "DVSGesture/ibmGestureTrain/user02_lab/11.npy", b"", "11.npy to be named after its class, 0 to 10"),
        ("tonic", "DVSGesture/ibmGestureTest/user24_led/a.npy", b"", "a.npy to be named after its class, 0 to 10"),
        ("spikingjelly", "events_np/train/3/user02_lab_0.npz", None, "user02_lab_0.npz to be .*truncated or corrupt"),
        ("original", "DvsGesture/user02_lab.aedat", None, "user02_lab.aedat to hold .*truncated"),
        ("original", "DvsGesture/user02_lab_labels.csv", b"class\n", "labels.csv to start with class,startTime_usec"),
        (
            "original",
            "DvsGesture/user02_lab_labels.csv",
            b"class,startTime_usec,endTime_usec\n12,1,2\n",
            "line 2 of .*labels.csv to hold a class from 1 to 11",
        ),
        (
            "original",
            "DvsGesture/user02_lab_labels.csv",
            b"class,startTime_usec,endTime_usec\n1,999999000,999999999\n",
            "user02_lab.aedat to hold events from 999999000",
        ),
        (
            "original",
            "DvsGesture/user02_lab_labels.csv",
            b"class,startTime_usec,endTime_usec\n",
            "at least one gesture",
        ),
        ("original", "DvsGesture/trials_to_test.txt", b"user01_led.aedat\n", "disjoint, but both name .*user01_led"),
        ("original", "DvsGesture/trials_to_test.txt", b"user99.aedat\n", "user99.aedat, because .* but it is missing"),
        ("original", "DvsGesture/trials_to_test.txt", b"", "trials_to_test.txt to list recordings, but it lists none"),
    ],
)
def test_a_damaged_file_is_named(layout: str, file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    """A content of None cuts the file's end off."""
    path = WRITERS[layout](tmp_path / "set") / file
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(tmp_path / "set")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (np.zeros((0, 4)), "to hold at least one event, but it is empty"),
        (np.zeros((5, 3)), r"shape \(N, 4\), .*but got float64 of shape \(5, 3\)"),
        (np.array([[0, 0, 0.5, 0]]), "to hold integers"),
        (np.array([[0, 0, 0, np.nan]]), "finite times"),
        (
            np.array([[128, 0, 0, 0]]),
            "user02_lab/3.npy to lie on the sensor .* x from 128 to 128",
        ),
        (np.array([[1, 0, -1, 0]]), r"user02_lab/3.npy to hold DVS128 events: .*`p` to lie in \[0, 2\)"),
        (np.array([[0, 0, 0, 5], [0, 0, 0, -1]]), "user02_lab/3.npy to hold times from 0 on, but got -1000 us"),
        (np.array([[0, 0, 0, 1500], [0, 0, 0, 400]]), "at event 1 the time falls back by 1100000 us to 400000 us"),
        (
            np.array([[0, 0, 0, 0], [0, 0, 0, 6_000_000]]),
            "to last at most 600 s, with times in ms, but got 6000 s",
        ),
    ],
)
def test_wrong_events_are_refused_with_their_file(events: np.ndarray, message: str, tmp_path: Path) -> None:
    root = write_tonic(tmp_path / "set")
    np.save(root / "DVSGesture" / "ibmGestureTrain" / "user02_lab" / "3.npy", events)
    with pytest.raises(ValueError, match=message):
        module(root)


@pytest.mark.parametrize(
    ("layout", "missing", "message"),
    [
        ("tonic", "DVSGesture/ibmGestureTest", "to hold test recordings, but got none"),
        ("tonic", "DVSGesture", "holds one of ibmGestureTrain, events_np/train, trials_to_train.txt .*none of them"),
        ("spikingjelly", "events_np/test", "to hold test recordings, but got none"),
        ("original", "DvsGesture/trials_to_test.txt", "trials_to_test.txt to list the test recordings"),
        ("original", "DvsGesture/user01_led_labels.csv", "user01_led_labels.csv, because .*it is missing"),
        ("original", "DvsGesture/user01_led.aedat", "user01_led.aedat, because .*it is missing"),
        ("original", "", "is not a folder"),
    ],
)
def test_what_is_missing_is_named(layout: str, missing: str, message: str, tmp_path: Path) -> None:
    path = WRITERS[layout](tmp_path / "set") / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        module(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "value"), [("time_steps", 0), ("size", 48), ("clip_duration", 0.0), ("val_fraction", 0.0), ("seed", -1)]
)
def test_an_argument_out_of_range_is_named(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Expected argument `{name}` .*but got {value}"):
        DVSGesture(str(tmp_path), **{name: value})
