"""Data module of simulated spoken digits, generated once, in parallel, and cached."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lightning_snn.checks import check_between, check_integer
from lightning_snn.cpu import usable_processors
from lightning_snn.data.base import FrameDataModule, FrameDataset
from lightning_snn.data.simulated import cached_split
from lightning_snn.data.speech import CLASS_NAMES, SPEECH_VERSION, Split


class SpokenDigits(FrameDataModule):
    """Simulated spoken digits as spikes of a cochlea: 20 classes, those of the Spiking Heidelberg Digits (`SHD`).

    The recordings are *simulated*: accuracies are not comparable with published ones on the Spiking Heidelberg Digits.
    A formant synthesizer speaks the English and the German digits, and a model cochlea of 700 channels hears them; see
    :mod:`lightning_snn.data.speech`. Each speaker has a vocal tract, a pitch, a tempo and an accent of their own, says
    each word `repetitions` times, and is in one split only.

    Batches are those of :class:`~lightning_snn.data.SHD`: ``(x [T, B, channels], y [B])``, where x counts the spikes of
    ``700 / channels`` neighboring units, from low to high frequencies, in time bin ``floor(t T / duration)``.

    Counts are generated once, on all processors, and cached under a key of everything that they depend on. They do not
    depend on the number of processes.

    Args:
        time_steps: time bins per recording, T, of equal duration.
        duration: time covered by the bins in seconds, from the start of a recording, at most 5. One word in about a
            hundred is longer than the default; its end is left out.
        channels: inputs per time step: 700 or a divisor of it.
        train_speakers: people in the training split.
        val_speakers: people in the validation split.
        test_speakers: people in the test split.
        repetitions: recordings per person and word.
        max_shift: training recordings are shifted at random by up to this many channels, from 0 to ``channels``,
            toward high or low pitch; counts shifted beyond the first or last channel are lost.
        batch_size: samples per batch.
        processes: processes that simulate; None takes one per processor available to this process.
        cache_dir: folder of the cached counts; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: other arguments of :class:`~lightning_snn.data.FrameDataModule`; the seed also determines
            people and recordings. Counts are held in memory, so ``num_workers=0`` is fastest.

    Raises:
        ValueError: if an argument is out of range.
        RuntimeError: from ``prepare_data`` and ``setup``, if a process that simulates fails.

    Example:
        >>> data = SpokenDigits(channels=70, time_steps=50)
        >>> data.frame_shape, data.time_steps, data.num_classes, data.class_names[13]
        ((70,), 50, 20, 'drei')
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        *,
        time_steps: int = 100,
        duration: float = 1.0,
        channels: int = 140,
        train_speakers: int = 120,
        val_speakers: int = 16,
        test_speakers: int = 24,
        repetitions: int = 2,
        max_shift: int = 0,
        batch_size: int = 128,
        processes: int | None = None,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_shift=max_shift, **loader_options)
        for name, value in (
            ("train_speakers", train_speakers),
            ("val_speakers", val_speakers),
            ("test_speakers", test_speakers),
        ):
            check_integer(name, value)
        if processes is not None:
            check_integer("processes", processes)
        bins: dict[str, Any] = {
            "seed": self.seed,
            "time_steps": time_steps,
            "duration": duration,
            "channels": channels,
        }
        self.splits = (
            Split("train", train_speakers, repetitions, **bins),
            Split("val", val_speakers, repetitions, **bins),
            Split("test", test_speakers, repetitions, **bins),
        )
        check_between("max_shift", max_shift, 0, channels)
        self.frame_shape = (channels,)
        self.time_steps = time_steps
        self.processes = processes or usable_processors()
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Simulate the splits that the cache does not hold yet."""
        for split in self.splits:
            self._counts(split)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return training, validation and test recordings, each of other people."""
        train, val, test = (
            # a cochlea is a sensor with one row, along which recordings are shifted
            FrameDataset(np.array(self._counts(split))[:, :, None, None], split.labels)
            for split in self.splits
        )
        return train, val, test

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the network input ``(T, B, channels)``, float32, of loaded counts ``(B, T, 1, 1, channels)``."""
        return super().preprocess(frames).flatten(2)

    def _counts(self, split: Split) -> np.ndarray:
        return cached_split("spoken_digits", SPEECH_VERSION, split, self.processes, self.cache_dir)
