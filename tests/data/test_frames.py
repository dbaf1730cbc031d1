from __future__ import annotations

import numpy as np
import pytest

from lightning_snn.data.frames import count_events, frame_events

Events = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_events(count: int, sensor: tuple[int, int], length: int, seed: int = 0) -> Events:
    generator = np.random.default_rng(seed)
    x = generator.integers(0, sensor[1], count).astype(np.uint8)
    y = generator.integers(0, sensor[0], count).astype(np.uint8)
    return x, y, generator.integers(0, 2, count).astype(np.uint8), generator.integers(0, length, count)


def one_by_one(events: Events, time_steps: int, sensor: tuple[int, int], size: tuple[int, int], duration: int):
    counts = np.zeros((time_steps, 2, *size), np.int64)
    for x, y, p, t in zip(*(column.tolist() for column in events), strict=True):
        counts[t * time_steps // duration, p, y * size[0] // sensor[0], x * size[1] // sensor[1]] += 1
    return counts


@pytest.mark.parametrize("size", [(24, 36), (12, 12), (3, 4), (1, 1)])
@pytest.mark.parametrize("time_steps", [1, 7, 16])
def test_counts_equal_those_of_a_loop_over_events(size: tuple[int, int], time_steps: int) -> None:
    sensor, length = (24, 36), 1000
    events = random_events(5000, sensor, length)
    counts = count_events(*events, time_steps=time_steps, sensor_size=sensor, size=size, start=0, duration=length)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, one_by_one(events, time_steps, sensor, size, length))


@pytest.mark.parametrize("size", [None, (64, 64), (2, 2)])
def test_every_event_is_counted_once(size: tuple[int, int] | None) -> None:
    x, y, p, t = random_events(20_000, (128, 128), 6_000_000)
    for times in (t, t / 1000, (t / 1000).astype(np.float32), t + 10**12, t - 3_000_000):
        counts = count_events(x, y, p, times, time_steps=16, sensor_size=(128, 128), size=size)
        assert counts.sum() == 20_000
        assert counts[:, 1].sum() == p.sum()


def test_the_order_of_events_does_not_matter() -> None:
    events = random_events(1000, (8, 8), 100)
    shuffled = tuple(column[::-1] for column in events)
    first, second = (count_events(*e, time_steps=4, sensor_size=(8, 8)) for e in (events, shuffled))
    assert np.array_equal(first, second)


def test_an_event_on_a_bound_belongs_to_the_frame_that_begins_there() -> None:
    t = np.array([0, 9, 10, 19, 20, 29])
    zeros = np.zeros(6, np.int64)
    for times, duration in ((t, 30), (t.astype(float), 30.0)):
        counts = count_events(zeros, zeros, zeros, times, time_steps=3, sensor_size=(1, 1), start=0, duration=duration)
        assert counts[:, 0, 0, 0].tolist() == [2, 2, 2]


def test_without_a_duration_the_frames_end_with_the_last_event() -> None:
    zeros = np.zeros(4, np.int64)
    for t in (np.array([100, 101, 102, 103]), np.array([0.1, 0.2, 0.3, 0.4])):
        counts = count_events(zeros, zeros, zeros, t, time_steps=4, sensor_size=(1, 1))
        assert counts[0].sum() >= 1
        assert counts[-1].sum() >= 1
        assert counts.sum() == 4
    alone = np.zeros(1, np.int64)
    for t in (np.array([7]), np.array([7.5])):
        assert count_events(alone, alone, alone, t, time_steps=3, sensor_size=(1, 1)).sum() == 1


def test_frames_saturate_at_255_where_counts_do_not() -> None:
    for events, expected in ((254, 254), (255, 255), (256, 255), (100_000, 255)):
        zeros = np.zeros(events, np.int64)
        counts, frames = (
            f(zeros, zeros, zeros, zeros, time_steps=1, sensor_size=(1, 1)) for f in (count_events, frame_events)
        )
        assert counts[0, 0, 0, 0] == events
        assert frames.dtype == np.uint8
        assert frames[0, 0, 0, 0] == expected


def test_frames_equal_counts_below_saturation() -> None:
    events = random_events(3000, (8, 8), 100)
    options = {"time_steps": 5, "sensor_size": (8, 8), "size": (4, 4), "start": 0, "duration": 100}
    assert np.array_equal(frame_events(*events, **options), count_events(*events, **options))


def test_narrow_and_unsigned_and_boolean_types_do_not_overflow() -> None:
    x = np.array([0, 127], np.int8)
    p = np.array([False, True])
    for dtype in (np.int8, np.uint8, np.int16, np.uint64):
        counts = count_events(
            x.astype(dtype),
            x.astype(dtype),
            p,
            np.array([0, 1], np.uint64),
            time_steps=2,
            sensor_size=(128, 128),
            size=(1, 1),
        )
        assert counts.flatten().tolist() == [1, 0, 0, 1]


def test_no_events_give_empty_frames_over_a_given_time() -> None:
    none = np.zeros(0, np.int64)
    frames = frame_events(none, none, none, none, time_steps=2, sensor_size=(4, 4), start=0, duration=10)
    assert frames.shape == (2, 2, 4, 4)
    assert frames.sum() == 0
    with pytest.raises(ValueError, match="`start` and `duration` to be given if there are no events"):
        frame_events(none, none, none, none, time_steps=2, sensor_size=(4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.array([0, 8])}, r"`x` to lie in \[0, 8\), but got values from 0 to 8"),
        ({"y": np.array([-1, 0])}, r"`y` to lie in \[0, 8\), but got values from -1 to 0"),
        ({"p": np.array([-1, 1])}, r"`p` to lie in \[0, 2\), but got values from -1 to 1"),
        ({"x": np.array([0.5, 1])}, "`x` to hold integers, but got float64"),
        ({"t": np.array([0, 10])}, r"`t` to lie in \[0, 10\), but got times from 0 to 10"),
        ({"t": np.array([-1, 5])}, r"`t` to lie in \[0, 10\), but got times from -1 to 5"),
        ({"t": np.array([0.0, np.nan])}, r"`t` to lie in"),
        ({"t": np.array([0])}, "the same length, but got shapes"),
        ({"time_steps": 0}, "`time_steps` to be an integer of at least 1, but got 0"),
        ({"size": (4, 3)}, "`size` to divide the 8 columns of the sensor, but got 3"),
        ({"size": (16, 4)}, "`size` to divide the 8 rows of the sensor, but got 16"),
        ({"duration": 0}, "`duration`.*but got 0"),
        ({"duration": float("nan")}, "`duration`.*but got nan"),
    ],
)
def test_what_lies_outside_is_refused_by_name(change: dict, message: str) -> None:
    arguments = {name: np.array([0, 1]) for name in "xypt"}
    arguments |= {"time_steps": 2, "sensor_size": (8, 8), "start": 0, "duration": 10} | change
    with pytest.raises(ValueError, match=message):
        frame_events(**arguments)
