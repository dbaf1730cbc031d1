"""Frames from events: the number of events in each cell of a (time, polarity, row, column) grid."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from lightning_snn.checks import check_integer, check_positive


def count_events(
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    t: np.ndarray,
    *,
    time_steps: int,
    sensor_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    start: float | None = None,
    duration: float | None = None,
) -> np.ndarray:
    """Count the events in each cell; every event falls into exactly one.

    Event ``(x, y, p, t)`` falls into frame ``floor((t - start) * time_steps / duration)``, channel ``p``, row
    ``y // (H_sensor / H)`` and column ``x // (W_sensor / W)``.

    Args:
        x: columns, shape ``(N,)``, integers in ``[0, W_sensor)``.
        y: rows, shape ``(N,)``, integers in ``[0, H_sensor)``.
        p: polarities, shape ``(N,)``: 0 or False for a decrease of light (OFF), 1 or True for an increase (ON).
        t: times, shape ``(N,)``, integers or floats in any unit and order.
        time_steps: number of frames, equal in time.
        sensor_size: rows and columns of the sensor.
        size: rows and columns of a frame, divisors of the sensor's; None keeps the sensor's.
        start: start time of the first frame, in the unit of ``t``; None takes the time of the first event.
        duration: time covered by all frames together; None ends them with the last event.

    Returns:
        Counts, int64, shape ``(time_steps, 2, H, W)``; channel 0 is OFF, channel 1 is ON.

    Raises:
        ValueError: if an argument is out of range, an event lies outside the sensor or the covered time, or ``start``
            or ``duration`` is None and there are no events.
    """
    check_integer("time_steps", time_steps)
    height, width = sensor_size if size is None else size
    check_divides("size", height, sensor_size[0], "rows of the sensor")
    check_divides("size", width, sensor_size[1], "columns of the sensor")
    if not x.shape == y.shape == p.shape == t.shape == (len(t),):
        raise ValueError(
            "Expected arguments `x`, `y`, `p` and `t` to have the same length, but got shapes "
            f"{x.shape}, {y.shape}, {p.shape} and {t.shape}"
        )
    cell = _frame_index(t, time_steps, start, duration)
    for name, value, stop, cells in (
        ("p", p, 2, 2),
        ("y", y, sensor_size[0], height),
        ("x", x, sensor_size[1], width),
    ):
        if value.dtype.kind not in "biu":
            raise ValueError(f"Expected argument `{name}` to hold integers, but got {value.dtype}")
        if len(value) and (value.min() < 0 or value.max() >= stop):
            raise ValueError(
                f"Expected argument `{name}` to lie in [0, {stop}), but got values from {value.min()} to {value.max()}"
            )
        cell *= cells
        cell += value.astype(np.int64) // (stop // cells)
    counts = np.bincount(cell, minlength=time_steps * 2 * height * width)
    return counts.reshape(time_steps, 2, height, width)


def check_divides(name: str, value: int, total: int, unit: str) -> None:
    """Raise a ValueError unless ``value`` is a positive divisor of ``total``, a number of ``unit``."""
    check_integer(name, value)
    if total % value:
        raise ValueError(f"Expected argument `{name}` to divide the {total} {unit}, but got {value}")


def frame_events(
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    t: np.ndarray,
    *,
    time_steps: int,
    sensor_size: tuple[int, int],
    size: tuple[int, int] | None = None,
    start: float | None = None,
    duration: float | None = None,
) -> np.ndarray:
    """Count the events in each cell as uint8; a cell with more than 255 events is set to 255.

    Arguments and errors are those of :func:`count_events`, which returns the exact numbers.

    Returns:
        Counts, uint8, shape ``(time_steps, 2, H, W)``; channel 0 is OFF, channel 1 is ON.

    Example:
        >>> x, y, p, t = (np.array(values) for values in ([0, 3, 3], [1, 1, 0], [1, 0, 0], [0, 50, 99]))
        >>> frames = frame_events(x, y, p, t, time_steps=2, sensor_size=(2, 4), start=0, duration=100)
        >>> frames.shape, frames[1, 0].tolist()
        ((2, 2, 2, 4), [[0, 0, 0, 1], [0, 0, 0, 1]])
    """
    counts = count_events(
        x, y, p, t, time_steps=time_steps, sensor_size=sensor_size, size=size, start=start, duration=duration
    )
    frames: np.ndarray = np.minimum(counts, 255).astype(np.uint8)
    return frames


def count_spikes(
    times: np.ndarray, units: np.ndarray, of_units: int, channels: int, time_steps: int, duration: float
) -> np.ndarray:
    """Count spikes in bin ``floor(t time_steps / duration)`` and channel ``unit // (of_units / channels)``.

    Args:
        times: spike times in seconds from the start, shape ``(N,)``; spikes at ``duration`` or later are left out.
        units: unit of each spike, integers in ``[0, of_units)``, shape ``(N,)``.
        of_units: number of units.
        channels: number of channels, a divisor of it.
        time_steps: number of bins of equal duration.
        duration: time covered by all bins in seconds.

    Returns:
        Counts, uint8, shape ``(time_steps, channels)``; a cell with more than 255 spikes is set to 255.

    Raises:
        ValueError: as :func:`count_events`.

    Example:
        >>> count_spikes(np.array([0.1, 0.6, 0.7, 1.2]), np.array([0, 1, 3, 2]), 4, 2, time_steps=2, duration=1.0)
        array([[1, 0],
               [1, 1]], dtype=uint8)
    """
    covered = times < duration
    # units are the columns of a sensor with one row and one polarity
    row = np.zeros(np.count_nonzero(covered), np.int64)
    counts = frame_events(
        units[covered],
        row,
        row,
        times[covered],
        time_steps=time_steps,
        sensor_size=(1, of_units),
        size=(1, channels),
        start=0,
        duration=duration,
    )
    return counts[:, 0, 0]


def _frame_index(t: np.ndarray, time_steps: int, start: float | None, duration: float | None) -> np.ndarray:
    """Return the frame of each event, int64; integer times and bounds give exact bins."""
    if duration is not None:
        check_positive("duration", duration)
    if len(t) == 0:
        if start is None or duration is None:
            raise ValueError("Expected arguments `start` and `duration` to be given if there are no events")
        return np.zeros(0, np.int64)
    first, last = t.min().item(), t.max().item()
    start = first if start is None else start
    exact = t.dtype.kind in "iu" and isinstance(start, Integral) and isinstance(duration, Integral | None)
    elapsed = t.astype(np.int64 if exact else np.float64) - start
    if duration is None:
        # the frames end just after the last event: one tick later if times are integers
        duration = last - start + 1 if exact else max(np.nextafter(last - start, np.inf), np.finfo(np.float64).tiny)
    if first < start or not elapsed.max() < duration:
        raise ValueError(
            f"Expected argument `t` to lie in [{start}, {start + duration}), but got times from {first} to {last}"
        )
    if exact:
        return elapsed * time_steps // int(duration)
    # rounding can move a time just before the end onto the end
    return np.minimum((elapsed * time_steps / duration).astype(np.int64), time_steps - 1)
