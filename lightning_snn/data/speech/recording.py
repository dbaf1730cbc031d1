"""Recordings of one person who says one word, as spikes of a cochlea, and the recordings of a whole split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_snn.checks import check_between, check_choice, check_integer
from lightning_snn.data.frames import check_divides, count_spikes

from .cochlea import STEP, UNITS, hear
from .phonemes import CLASS_NAMES
from .speaker import Speaker, draw_speaker
from .voice import Array, speak

SPEECH_VERSION = 1
"""Changes whenever the same arguments would give other spikes, so that caches are not reused."""

SPLITS = ("train", "val", "test")
LONGEST_SECONDS = 5.0


def simulate_spikes(class_index: int, speaker: Speaker, key: np.random.SeedSequence) -> tuple[Array, NDArray[np.int64]]:
    """Simulate one spoken word.

    Args:
        class_index: word, an index into ``CLASS_NAMES``.
        speaker: the person.
        key: seed of all random numbers of this recording.

    Returns:
        Spike times in seconds, sorted, in the middle of steps of 1 ms, and the unit of each spike in ``[0, 700)``, from
        low to high frequencies; both of shape ``(N,)``.

    Raises:
        ValueError: if ``class_index`` is out of range.

    Example:
        >>> speaker = draw_speaker(np.random.default_rng(0))
        >>> times, units = simulate_spikes(3, speaker, np.random.SeedSequence(0))
        >>> len(times) == len(units), 1000 < len(times) < 20000, bool(0 < times[0] < times[-1] < 1.5)
        (True, True, True)
    """
    check_choice("class_index", class_index, range(len(CLASS_NAMES)))
    rng = np.random.Generator(np.random.Philox(key))
    steps, units = np.nonzero(hear(speak(CLASS_NAMES[class_index], speaker, rng), rng))
    return (steps + 0.5) * STEP, units.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Split:
    """Recordings of one split: each of its speakers says each word ``repetitions`` times.

    A recording depends only on ``(seed, split, speaker, word, repetition)``, and how it is counted on the rest.
    Speakers of different splits are different people.

    Args:
        name: "train", "val" or "test".
        speakers: number of people.
        repetitions: recordings per person and word.
        seed: integer from 0 that determines people and recordings.
        time_steps: time bins per recording.
        duration: time covered by the bins in seconds, from the start of a recording, at most 5.
        channels: inputs per time step, 700 or a divisor of it.

    Raises:
        ValueError: if an argument is out of range.
    """

    content: ClassVar[str] = "spoken digits"

    name: str
    speakers: int
    repetitions: int
    seed: int = 0
    time_steps: int = 100
    duration: float = 1.0
    channels: int = 140

    def __post_init__(self) -> None:
        check_choice("name", self.name, SPLITS)
        check_integer("speakers", self.speakers)
        check_integer("repetitions", self.repetitions)
        check_integer("seed", self.seed, minimum=0)
        check_integer("time_steps", self.time_steps)
        check_between("duration", self.duration, 0.001, LONGEST_SECONDS)
        check_divides("channels", self.channels, UNITS, "units of the cochlea")

    def __len__(self) -> int:
        return self.speakers * len(CLASS_NAMES) * self.repetitions

    @property
    def recording_shape(self) -> tuple[int, ...]:
        """Shape of a recording as counts."""
        return self.time_steps, self.channels

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each recording, shape ``(N,)``."""
        return np.arange(len(self)) // self.repetitions % len(CLASS_NAMES)

    @property
    def speaker_numbers(self) -> NDArray[np.int64]:
        """Number of the speaker of each recording, from 0 within the split, shape ``(N,)``."""
        return np.arange(len(self)) // (self.repetitions * len(CLASS_NAMES))

    def speaker(self, number: int) -> Speaker:
        """Return the person of this number."""
        return _speaker(self.seed, SPLITS.index(self.name), number)

    def spikes(self, index: int) -> tuple[Array, NDArray[np.int64]]:
        """Simulate one recording; returns times and units as :func:`simulate_spikes`."""
        number, label = int(self.speaker_numbers[index]), int(self.labels[index])
        place = SPLITS.index(self.name), number, label, index % self.repetitions
        return simulate_spikes(label, self.speaker(number), np.random.SeedSequence(self.seed, spawn_key=place))

    def frames(self, index: int) -> NDArray[np.uint8]:
        """Simulate one recording as counts, shape ``(time_steps, channels)``; they saturate at 255."""
        return count_spikes(*self.spikes(index), UNITS, self.channels, self.time_steps, self.duration)


@lru_cache(maxsize=64)
def _speaker(seed: int, split: int, number: int) -> Speaker:
    key = np.random.SeedSequence(seed, spawn_key=(split, number))
    return draw_speaker(np.random.Generator(np.random.Philox(key)))
