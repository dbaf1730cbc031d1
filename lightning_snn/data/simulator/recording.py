"""Recordings of one person who makes one gesture under one light, and the recordings of a whole split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_snn.checks import check_choice, check_integer, check_positive

from .body import CLASS_NAMES, Subject, draw_subject, move
from .scene import LIGHTS, UNSEEN_LIGHT, Light, render
from .sensor import Counts, make_sensor, simulate_sensor

SIMULATOR_VERSION = 2
"""Changes whenever the same arguments would give other events, so that caches are not reused."""

DIRECTION_PAIRS = ((3, 4), (5, 6))
"""Pairs of classes that differ only in the direction of motion."""

MIRRORED_CLASSES = (0, 2, 1, 6, 5, 4, 3, 7, 8, 9, 10)
"""Class of the mirror image of each class: right and left, clockwise and counter-clockwise are exchanged."""

SPLITS = ("train", "val", "test")
# largest time between two images, and time simulated before the recording starts, in seconds
LONGEST_STEP = 1 / 60
LEAD_TIME = 0.1
# of a frame, in seconds; with shorter ones the lead time alone would fill the memory
SHORTEST_FRAME = 1e-4

_sensor = lru_cache(make_sensor)


def simulate_counts(
    class_index: int,
    subject: Subject,
    light: Light,
    key: np.random.SeedSequence,
    size: int = 32,
    time_steps: int = 16,
    duration: float = 1.6,
) -> tuple[Counts, float]:
    """Simulate one gesture at the time resolution of the simulation, 1/60 s or finer.

    Pixel noise is sampled once per time step, so shorter frames than 1/60 s hold more noise events in total.

    Args:
        class_index: gesture, an index into ``CLASS_NAMES``.
        subject: the person.
        light: the light in the room.
        key: seed of all random numbers of this recording.
        size: height and width of the sensor in pixels.
        time_steps: number of frames; the number of time steps is a multiple of it.
        duration: length in seconds.

    Returns:
        Events in each time step, shape ``(S, 2, size, size)`` with polarity 0 OFF and 1 ON, where S is a multiple of
        ``time_steps``; and the length of a time step in seconds.

    Raises:
        ValueError: if ``class_index``, ``size``, ``time_steps`` or ``duration`` is out of range.
    """
    check_choice("class_index", class_index, range(len(CLASS_NAMES)))
    _check_shape(size, time_steps, duration)
    steps = time_steps * math.ceil(duration / time_steps / LONGEST_STEP - 1e-9)
    step = duration / steps
    lead = math.ceil(LEAD_TIME / step)
    time = (np.arange(-lead, steps, dtype=np.float64) + 0.5) * step
    motion_key, scene_key, sensor_key = (np.random.Generator(np.random.Philox(child)) for child in _children(key))
    motion = move(class_index, subject, time, motion_key)
    brightness = render(subject, motion, light, size, scene_key)
    # a pixel of half the width collects a quarter of the light
    noise = light.noise * size / 32
    counts = simulate_sensor(brightness, _sensor(size), step, light.bandwidth, noise, sensor_key)
    return counts[lead:], step


def simulate_frames(
    class_index: int,
    subject: Subject,
    light: Light,
    key: np.random.SeedSequence,
    size: int = 32,
    time_steps: int = 16,
    duration: float = 1.6,
) -> Counts:
    """Simulate one gesture as event counts in equal time bins; arguments as for :func:`simulate_counts`.

    Returns:
        Event counts, shape ``(time_steps, 2, size, size)``, polarity 0 OFF and 1 ON; counts saturate at 255.
    """
    counts, _ = simulate_counts(class_index, subject, light, key, size, time_steps, duration)
    frames: NDArray[np.uint16] = counts.reshape(time_steps, -1, 2, size, size).sum(axis=1, dtype=np.uint16)
    return np.minimum(frames, 255).astype(np.uint8)


def simulate_events(
    class_index: int,
    subject: Subject,
    light: Light,
    key: np.random.SeedSequence,
    size: int = 32,
    time_steps: int = 16,
    duration: float = 1.6,
) -> NDArray[np.void]:
    """Simulate one gesture as a stream of events; arguments as for :func:`simulate_counts`.

    The events of a pixel within one time step are spread evenly over it.

    Returns:
        Events ordered in time: a structured array with fields x, y (pixels), p (0 OFF, 1 ON) and t (microseconds from
        the start). Counting them in ``time_steps`` bins gives :func:`simulate_frames`, if no cell exceeds 255.
    """
    counts, step = simulate_counts(class_index, subject, light, key, size, time_steps, duration)
    when, polarity, y, x = np.nonzero(counts)
    repeats = counts[when, polarity, y, x].astype(np.int64)
    rank = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    within = (rank + 0.5) / np.repeat(repeats, repeats)
    microseconds = ((np.repeat(when, repeats) + within) * step * 1e6).astype(np.int64)
    order = np.argsort(microseconds, kind="stable")
    events = np.empty(len(order), dtype=[("x", np.int16), ("y", np.int16), ("p", np.int8), ("t", np.int64)])
    for name, column in (("x", x), ("y", y), ("p", polarity)):
        events[name] = np.repeat(column, repeats)[order]
    events["t"] = microseconds[order]
    return events


def _check_shape(size: int, time_steps: int, duration: float) -> None:
    check_integer("size", size, minimum=2)
    check_integer("time_steps", time_steps)
    check_positive("duration", duration)
    if duration / time_steps < SHORTEST_FRAME:
        raise ValueError(
            f"Expected argument `duration` to give each of {time_steps} frames at least {SHORTEST_FRAME:g} seconds, "
            f"but got {duration!r}"
        )


def _children(key: np.random.SeedSequence) -> list[np.random.SeedSequence]:
    """Return three keys derived from ``key``, the same as those of its ``spawn`` but without changing it."""
    return [np.random.SeedSequence(key.entropy, spawn_key=(*key.spawn_key, child)) for child in range(3)]


@dataclass(frozen=True)
class Split:
    """Recordings of one split: each of its subjects makes each gesture ``repetitions`` times.

    A recording depends only on ``(seed, split, subject, class, repetition)``. Subjects of different splits are
    different people. The light of a recording is drawn from ``LIGHTS``, but every other repetition of the test split
    is under ``UNSEEN_LIGHT``.

    Args:
        name: "train", "val" or "test".
        subjects: number of people.
        repetitions: recordings per person and gesture.
        seed: integer from 0 that determines people and recordings.
        size: height and width in pixels.
        time_steps: frames per recording.
        duration: length of a recording in seconds.

    Raises:
        ValueError: if ``name``, ``size``, ``time_steps`` or ``duration`` is out of range.
    """

    content: ClassVar[str] = "gestures"

    name: str
    subjects: int
    repetitions: int
    seed: int = 0
    size: int = 32
    time_steps: int = 16
    duration: float = 1.6

    def __post_init__(self) -> None:
        check_choice("name", self.name, SPLITS)
        _check_shape(self.size, self.time_steps, self.duration)

    def __len__(self) -> int:
        return self.subjects * len(CLASS_NAMES) * self.repetitions

    @property
    def recording_shape(self) -> tuple[int, ...]:
        """Shape of a recording as counts."""
        return self.time_steps, 2, self.size, self.size

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each recording, shape ``(N,)``."""
        return np.arange(len(self)) // self.repetitions % len(CLASS_NAMES)

    @property
    def subject_numbers(self) -> NDArray[np.int64]:
        """Number of the person in each recording, from 0 within the split, shape ``(N,)``."""
        return np.arange(len(self)) // (self.repetitions * len(CLASS_NAMES))

    @property
    def under_unseen_light(self) -> NDArray[np.bool_]:
        """Mask of the recordings under ``UNSEEN_LIGHT``, shape ``(N,)``."""
        odd: NDArray[np.bool_] = np.arange(len(self)) % self.repetitions % 2 == 1
        return odd if self.name == "test" else np.zeros_like(odd)

    def subject(self, number: int) -> Subject:
        """Return the person of this number."""
        key = np.random.SeedSequence(self.seed, spawn_key=(SPLITS.index(self.name), number))
        return draw_subject(np.random.Generator(np.random.Philox(key)))

    def frames(self, index: int) -> Counts:
        """Simulate one recording as counts, shape ``(time_steps, 2, size, size)``."""
        number, label = int(self.subject_numbers[index]), int(self.labels[index])
        key = np.random.SeedSequence(
            self.seed, spawn_key=(SPLITS.index(self.name), number, label, index % self.repetitions)
        )
        light = LIGHTS[np.random.Generator(np.random.Philox(key)).integers(len(LIGHTS))]
        if self.under_unseen_light[index]:
            light = UNSEEN_LIGHT
        return simulate_frames(label, self.subject(number), light, key, self.size, self.time_steps, self.duration)
