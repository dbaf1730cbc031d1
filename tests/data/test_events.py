from __future__ import annotations

import numpy as np
import pytest

from lightning_snn.data import Events, cut_by_count, cut_by_duration, frame_events
from lightning_snn.data.events import checked_events


def random_events(count: int, length: int, seed: int = 0) -> Events:
    """Events on a sensor of 6 rows and 8 columns, out of order."""
    generator = np.random.default_rng(seed)
    x, y, p = (generator.integers(0, stop, count) for stop in (8, 6, 2))
    return Events(x, y, p, generator.integers(0, length, count) + 10_000)


def rows(events: Events) -> list[tuple[int, ...]]:
    return sorted(zip(*(column.tolist() for column in events), strict=True))


@pytest.mark.parametrize(("duration", "stride"), [(100, None), (100, 100), (70, None), (100, 50), (30, 100), (7, 11)])
def test_clips_of_a_duration_equal_a_loop_over_events(duration: int, stride: int | None) -> None:
    events = random_events(2000, 1000)
    first, last = events.t.min(), events.t.max()
    clips = list(cut_by_duration(events, duration, stride=stride))
    step = stride or duration
    expected = [start for start in range(first, last + 2, step) if start + duration <= last + 1]
    assert len(clips) == len(expected) > 3
    for clip, start in zip(clips, expected, strict=True):
        inside = events.select((events.t >= start) & (events.t < start + duration))
        assert rows(clip._replace(t=clip.t + start)) == rows(inside)
        assert (np.diff(clip.t) >= 0).all()


def test_clips_of_a_recording_that_they_divide_hold_every_event_once() -> None:
    events = random_events(500, 400)
    clips = list(cut_by_duration(events, 100, start=10_000, stop=10_400))
    assert len(clips) == 4
    assert sum(len(clip.t) for clip in clips) == 500
    frames = [frame_events(*clip, time_steps=5, sensor_size=(6, 8), start=0, duration=100) for clip in clips]
    whole = frame_events(*events, time_steps=20, sensor_size=(6, 8), start=10_000, duration=400)
    assert np.array_equal(np.concatenate(frames), whole)


def test_the_rest_of_a_recording_is_left_out_or_kept() -> None:
    t = np.array([0, 99, 100, 240, 249])
    events = Events(*(np.zeros(5, np.int64) for _ in range(3)), t)
    assert [clip.t.tolist() for clip in cut_by_duration(events, 100)] == [[0, 99], [0]]
    kept = [clip.t.tolist() for clip in cut_by_duration(events, 100, keep_rest=True)]
    assert kept == [[0, 99], [0], [40, 49]]
    assert [clip.t.tolist() for clip in cut_by_duration(events, 125)] == [[0, 99, 100], [115, 124]]
    assert [clip.t.tolist() for clip in cut_by_duration(events, 1000, keep_rest=True)] == [t.tolist()]
    before = list(cut_by_duration(events, 100, stop=230, keep_rest=True))
    assert [clip.t.tolist() for clip in before] == [[0, 99], [0], []]


def test_a_clip_in_which_nothing_happened_is_empty_and_can_be_framed() -> None:
    events = Events(*(np.zeros(2, np.int64) for _ in range(3)), np.array([0, 299]))
    first, second, third = cut_by_duration(events, 100)
    assert [len(clip.t) for clip in (first, second, third)] == [1, 0, 1]
    assert frame_events(*second, time_steps=2, sensor_size=(1, 1), start=0, duration=100).sum() == 0


def test_times_in_seconds_lose_no_clip_to_rounding() -> None:
    for count in range(1, 60):
        t = np.arange(count) / 10 + 0.05
        events = Events(*(np.zeros(count, np.int64) for _ in range(3)), t)
        clips = list(cut_by_duration(events, 0.1, start=0.0, stop=count * 0.1))
        assert [len(clip.t) for clip in clips] == [1] * count
        assert len(list(cut_by_duration(events, 0.1, start=0.0, stop=count * 0.1, keep_rest=True))) == count


def test_negative_and_unsigned_times_are_cut_like_others() -> None:
    zeros = np.zeros(4, np.int64)
    t = np.array([0, 60, 130, 199])
    expected = [[0, 60], [30, 99]]
    for times in (t - 5000, t.astype(np.uint32), t.astype(np.uint64) + 2**40, t + 1_600_000_000_000_000):
        assert [w.t.tolist() for w in cut_by_duration(Events(zeros, zeros, zeros, times), 100)] == expected


@pytest.mark.parametrize(("count", "stride"), [(10, None), (10, 10), (7, None), (10, 3), (3, 10)])
def test_clips_of_a_count_equal_a_loop_over_events(count: int, stride: int | None) -> None:
    events = random_events(100, 10_000)
    ordered = events.select(np.argsort(events.t, kind="stable"))
    clips = list(cut_by_count(events, count, stride=stride))
    starts = range(0, 100 - count + 1, stride or count)
    assert len(clips) == len(starts)
    for clip, start in zip(clips, starts, strict=True):
        assert np.array_equal(clip.x, ordered.x[start : start + count])
        assert np.array_equal(clip.t, ordered.t[start : start + count] - ordered.t[start])
    if stride is None and 100 % count:
        kept = list(cut_by_count(events, count, keep_rest=True))
        assert sum(len(clip.t) for clip in kept) == 100


ONE = Events(*(np.zeros(1, np.int64) for _ in range(4)))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda: cut_by_duration(ONE, 0), "`duration`.*larger than 0"),
        (
            lambda: cut_by_duration(ONE, 5),
            "`duration` to be at most the 1 of the recording, but got 5. Pass",
        ),
        (lambda: cut_by_duration(ONE, 1, stride=-1), "`stride`"),
        (lambda: cut_by_duration(ONE, 1, start=8), "`start` and `stop` to enclose a time, but got 8 to 1"),
        (lambda: cut_by_count(ONE, 0), "`count`"),
        (lambda: cut_by_count(ONE, 2), "`count` to be at most the 1 events of the recording, but got 2"),
        (lambda: cut_by_count(ONE, 1, stride=0), "`stride`"),
        (lambda: cut_by_count(ONE.select(slice(0)), 1), "to hold at least one event, but it is empty"),
        (lambda: cut_by_duration(ONE._replace(t=np.zeros(2)), 1), r"same length, but got shapes \(1,\)"),
        (lambda: cut_by_duration(ONE._replace(t=np.array([np.nan])), 1), "to be finite numbers"),
        (lambda: cut_by_duration(ONE._replace(t=np.array(["0"])), 1), "to be finite numbers"),
    ],
)
def test_a_wrong_cut_is_refused_at_once(cut, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut()


def test_events_slightly_out_of_order_are_sorted_and_a_restarted_clock_is_refused() -> None:
    zeros = np.zeros(4, np.int64)
    events = Events(np.arange(4), zeros, zeros, np.array([5, 1_000_005, 900_000, 1_000_004]))
    assert checked_events(events, "a.file").x.tolist() == [0, 2, 3, 1]
    tied = Events(np.arange(4), zeros, zeros, np.array([7, 5, 5, 7]))
    assert checked_events(tied, "a.file").x.tolist() == [1, 2, 0, 3]
    in_order = Events(np.arange(4), zeros, zeros, np.arange(4))
    assert checked_events(in_order, "a.file").x is in_order.x
    with pytest.raises(ValueError, match="a.file .*at event 2 the time falls back by 2000000 us to 0 us"):
        checked_events(Events(zeros, zeros, zeros, np.array([5, 2_000_000, 0, 1])), "a.file")
