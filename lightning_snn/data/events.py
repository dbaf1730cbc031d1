"""Recordings of an event camera as arrays of events: checks, and cuts of long ones into clips."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lightning_snn.checks import check_integer, check_positive

LARGEST_STEP_BACK = 1_000_000
"""microseconds that a time may lie before an earlier event of a file: more is a restarted clock"""

SLACK = 1e-9
"""share of a clip by which rounding may move a bound"""


class Events(NamedTuple):
    """Events of a recording; the fields have the shape ``(N,)``.

    Attributes:
        x: columns, integers from 0 at the left.
        y: rows, integers from 0 at the top.
        p: polarities: 0 for a decrease of light (OFF), 1 for an increase (ON).
        t: times, in microseconds if a reader returned them.
    """

    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    t: np.ndarray

    def select(self, index: np.ndarray | slice) -> Events:
        """Return the events of an index, a mask or a slice.

        Example:
            >>> events = Events(*(np.arange(5) for _ in range(4)))
            >>> events.select(events.t >= 3).x
            array([3, 4])
        """
        return Events(self.x[index], self.y[index], self.p[index], self.t[index])


def checked_events(events: Events, path: str | os.PathLike[str], sensor_size: tuple[int, int] | None = None) -> Events:
    """Return the events that a file holds, sorted by time, or raise an error that names the file.

    Recorders write events slightly out of order, which sorting mends. Times that fall back by more than a second are
    those of a clock that was restarted: clips of both parts would be mixed.

    Args:
        events: events in the order of the file, times in microseconds.
        path: the file.
        sensor_size: rows and columns of the sensor; None leaves the positions unchecked.

    Returns:
        The events; the same arrays if their times are sorted.

    Raises:
        ValueError: if there are no events, one lies outside of the sensor or before time 0, or the clock was restarted.
    """
    if len(events.t) == 0:
        raise ValueError(f"Expected {path} to hold at least one event, but it is empty")
    if sensor_size is not None:
        rows, columns = sensor_size
        for name, values, stop in (("x", events.x, columns), ("y", events.y, rows)):
            if values.min() < 0 or values.max() >= stop:
                raise ValueError(
                    f"Expected the events of {path} to lie on the sensor of {rows} rows and {columns} columns, but got "
                    f"{name} from {values.min()} to {values.max()}"
                )
    if events.t.min() < 0:
        raise ValueError(f"Expected {path} to hold times from 0 on, but got {events.t.min()} us")
    behind = np.maximum.accumulate(events.t) - events.t
    if behind.max() > LARGEST_STEP_BACK:
        index = int(np.argmax(behind > LARGEST_STEP_BACK))
        raise ValueError(
            f"Expected {path} to hold times that increase, but at event {index} the time falls back by "
            f"{behind[index]} us to {events.t[index]} us, as if the clock was restarted. Split the recording there."
        )
    return events.select(np.argsort(events.t, kind="stable")) if behind.any() else events


def cut_by_duration(
    events: Events,
    duration: float,
    *,
    stride: float | None = None,
    start: float | None = None,
    stop: float | None = None,
    keep_rest: bool = False,
) -> Iterator[Events]:
    """Cut a recording into clips of equal duration.

    Clip ``i`` holds the events with ``start + i stride <= t < start + i stride + duration``. Its times count from its
    own start, so ``frame_events(*clip, start=0, duration=duration, ...)`` frames it. A clip in which nothing
    happened is empty; that keeps the numbers of clips and labels equal.

    Args:
        events: the recording, in any order: an :class:`Events` or its four arrays.
        duration: of a clip, in the unit of the times, larger than 0.
        stride: from the start of one clip to that of the next; None is ``duration``, so that clips do not overlap.
        start: start of the first clip; None is the time of the first event.
        stop: end of the recording; None is just after the last event (one unit later if times are integers).
        keep_rest: also yield the clips that end after ``stop``; otherwise the rest of a recording that the clips do
            not divide is left out.

    Yields:
        The clips in order.

    Raises:
        ValueError: if an argument is out of range, or the recording is empty or shorter than one clip while
            ``keep_rest`` is False.

    Example:
        >>> t = np.array([0, 30, 120, 250, 310])
        >>> events = Events(np.arange(5), np.zeros(5, int), np.ones(5, int), t)
        >>> [clip.t.tolist() for clip in cut_by_duration(events, 100)]
        [[0, 30], [20], [50]]
        >>> first = next(cut_by_duration(events, 100))
        >>> lightning_snn.data.frame_events(*first, time_steps=2, sensor_size=(1, 5), start=0, duration=100).shape
        (2, 2, 1, 5)
    """
    events = _sorted(events)
    check_positive("duration", duration)
    stride = duration if stride is None else stride
    check_positive("stride", stride)
    first = events.t[0].item() if start is None else start
    end = events.t[-1].item() if stop is None else stop
    if stop is None:
        end = end + 1 if isinstance(end, int) else np.nextafter(end, np.inf)
    span = end - first
    if span <= 0:
        raise ValueError(f"Expected arguments `start` and `stop` to enclose a time, but got {first:g} to {end:g}")
    if span < duration and not keep_rest:
        raise ValueError(
            f"Expected argument `duration` to be at most the {span:g} of the recording, but got {duration:g}. Pass "
            "`keep_rest=True` to keep a clip that ends after the recording"
        )
    # exact for integers; the slack keeps rounding from losing a clip of floats
    if all(isinstance(value, int) for value in (first, end, duration, stride)):
        count = -int(-span // stride) if keep_rest else int((span - duration) // stride) + 1
    else:
        count = math.ceil(span / stride - SLACK) if keep_rest else math.floor((span - duration) / stride + SLACK) + 1
    starts = [first + index * stride for index in range(max(count, 1))]
    return _clips(events, [(begin, min(begin + duration, end)) for begin in starts])


def _clips(events: Events, bounds: list[tuple[float, float]]) -> Iterator[Events]:
    for begin, end in bounds:
        low, high = np.searchsorted(events.t, [begin, end])
        clip = events.select(slice(low, high))
        yield clip._replace(t=clip.t - begin)


def cut_by_count(events: Events, count: int, *, stride: int | None = None, keep_rest: bool = False) -> Iterator[Events]:
    """Cut a recording into clips of equally many events, which last as long as it takes to collect them.

    The times of a clip count from its first event, so ``frame_events(*clip, ...)`` frames it.

    Args:
        events: the recording, in any order: an :class:`Events` or its four arrays.
        count: events of a clip, at least 1.
        stride: events from the start of one clip to that of the next; None is ``count``.
        keep_rest: also yield a last clip of fewer events.

    Yields:
        The clips in order.

    Raises:
        ValueError: if an argument is out of range, or the recording is empty or holds fewer events than one clip
            while ``keep_rest`` is False.

    Example:
        >>> events = Events(*(np.arange(10, 15) for _ in range(4)))
        >>> [clip.t.tolist() for clip in cut_by_count(events, 2, keep_rest=True)]
        [[0, 1], [0, 1], [0]]
    """
    events = _sorted(events)
    check_integer("count", count)
    stride = count if stride is None else stride
    check_integer("stride", stride)
    total = len(events.t)
    if total < count and not keep_rest:
        raise ValueError(
            f"Expected argument `count` to be at most the {total} events of the recording, but got {count}. Pass "
            "`keep_rest=True` to keep a clip of fewer events"
        )
    starts = range(0, total if keep_rest else total - count + 1, stride)
    clips = (events.select(slice(start, start + count)) for start in starts)
    return (clip._replace(t=clip.t - clip.t[0]) for clip in clips)


def _sorted(events: Events) -> Events:
    """Return the events as arrays, sorted by time."""
    arrays = [np.asarray(values) for values in events]
    if len(arrays) != 4 or any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        raise ValueError(
            "Expected argument `events` to be four arrays x, y, p and t of the same length, but got shapes "
            f"{', '.join(str(array.shape) for array in arrays)}"
        )
    events = Events(*arrays)
    if len(events.t) == 0:
        raise ValueError("Expected argument `events` to hold at least one event, but it is empty")
    if events.t.dtype.kind not in "iuf" or not np.isfinite(events.t).all():
        raise ValueError(f"Expected the times of argument `events` to be finite numbers, but got {events.t.dtype}")
    if events.t.dtype.kind == "u":
        events = events._replace(t=events.t.astype(np.int64))
    return events.select(np.argsort(events.t, kind="stable")) if (np.diff(events.t) < 0).any() else events
