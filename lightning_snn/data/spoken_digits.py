"""Data module of simulated spoken digits, generated once, in parallel, and cached."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_snn.checks import check_between, check_integer
from lightning_snn.data.simulated import SimulatedDataModule
from lightning_snn.data.speech import CLASS_NAMES, SPEECH_VERSION, Split


class SpokenDigits(SimulatedDataModule):
    """Simulated spoken digits as spikes of a cochlea: 20 classes, those of the Spiking Heidelberg Digits (`SHD`).

    The recordings are *simulated*: accuracies are not comparable with published ones on the Spiking Heidelberg Digits.
    A formant synthesizer speaks the English and the German digits, and a model cochlea of 700 channels hears them; see
    :mod:`lightning_snn.data.speech`. Each speaker has a vocal tract, a pitch, a tempo and an accent of their own, says
    each word `repetitions` times, and is in one split only.

    Batches are those of :class:`~lightning_snn.data.SHD`: ``(x [T, B, channels], y [B])``, where x counts the spikes of
    ``700 / channels`` neighboring units, from low to high frequencies, in time bin ``floor(t T / duration)``.

    Words differ in length, most of them 0.3 to 0.9 s. With ``lengths=True`` batches are ``(x, y, lengths [B])``, where
    lengths are the time bins up to the last spike of each recording: the silence after a word then counts neither in
    readouts and losses nor in rates and metrics.

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
        **loader_options: other arguments of :class:`~lightning_snn.data.FrameDataModule`, such as `lengths`; the seed
            also determines people and recordings. Counts are held in memory, so ``num_workers=0`` is fastest.

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
    cache_name = "spoken_digits"
    simulator_version = SPEECH_VERSION

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
        super().__init__(
            processes=processes, cache_dir=cache_dir, batch_size=batch_size, max_shift=max_shift, **loader_options
        )
        for name, value in (
            ("train_speakers", train_speakers),
            ("val_speakers", val_speakers),
            ("test_speakers", test_speakers),
        ):
            check_integer(name, value)
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

    def as_frames(self, counts: np.ndarray) -> np.ndarray:
        """Return frames ``(N, T, 1, 1, channels)``: a cochlea is a sensor with one row, along which to shift."""
        return counts[:, :, None, None]

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the network input ``(T, B, channels)``, float32, of loaded counts ``(B, T, 1, 1, channels)``."""
        return super().preprocess(frames).flatten(2)
