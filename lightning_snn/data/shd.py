"""Spiking Heidelberg Digits: spoken digits, converted to spikes by a model cochlea (Cramer et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_between, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.frames import check_divides, frame_events
from lightning_snn.data.shd_check import check_readable
from lightning_snn.data.shd_files import LONGEST_SECONDS, SOURCE, UNITS, SHDFile, find_shd

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GERMAN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")


class SHD(FrameDataModule):
    r"""Spiking Heidelberg Digits, read in place from ``shd_train.h5`` and ``shd_test.h5`` and binned once into a cache.

    Batches are ``(x [T, B, channels], y [B])``, where x counts the spikes of ``700 / channels`` neighboring units of
    the cochlea in time bin ``floor(t T / duration)``. The files store times as float16, 1 ms apart after the first
    second; they are binned unchanged, in float64. Counts saturate at 255.

    Spikes at ``duration`` or later are left out; ``setup`` logs their numbers and stores them in ``left_out``. The
    longest recording lasts about 1.4 s: ``time_steps=140, duration=1.4`` keeps every spike, in bins of the same 10 ms.

    The validation set takes whole speakers of the training file. Two people, 4 and 5, speak most of the test file and
    nothing of the training file, so a validation set of training speakers would overestimate the accuracy and select
    the wrong checkpoint. Speakers are given instead of drawn, so that runs of different seeds are validated on the
    same voices; the default takes the last two of the ten in the training file.

    Args:
        root: the folder that holds the two files, or its parent if that folder is named ``SHD``.
        time_steps: time bins per sample, T, of equal duration.
        duration: time covered by the bins, in seconds from the start of a recording, at most 5.
        channels: inputs per time step: 700 or a divisor of it.
        val_speakers: speakers of the training file in the validation set, at least one.
        max_shift: training recordings are shifted at random by up to this many channels, from 0 to ``channels``,
            toward high or low pitch; counts shifted beyond the first or last channel are lost.
        batch_size: samples per batch.
        cache_dir: folder of the cached counts; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: other arguments of :class:`~lightning_snn.data.FrameDataModule`.

    Raises:
        ValueError: if an argument is out of range, or ``root`` is None; then the message names the source of the files.

    ``setup`` raises a FileNotFoundError if a file is missing and a ValueError if one is damaged; the message names it.
    It raises an ImportError if h5py is missing. Nothing is downloaded.

    Source: Cramer, Stradmann, Schemmel and Zenke, "The Heidelberg spiking data sets for the systematic evaluation of
    spiking neural networks", IEEE Transactions on Neural Networks and Learning Systems 33, 2022.

    Example:
        >>> data = SHD("data/SHD", channels=70, time_steps=140, duration=1.4)
        >>> data.frame_shape, data.num_classes
        ((70,), 20)
    """

    num_classes = 20
    class_names = (*ENGLISH, *GERMAN)
    citation = """@article{cramer2022heidelberg,
  title = {The {Heidelberg} Spiking Data Sets for the Systematic Evaluation of Spiking Neural Networks},
  author = {Cramer, Benjamin and Stradmann, Yannik and Schemmel, Johannes and Zenke, Friedemann},
  journal = {IEEE Transactions on Neural Networks and Learning Systems},
  volume = {33},
  number = {7},
  pages = {2744--2757},
  year = {2022}
}"""
    left_out: dict[str, int]
    """number of spikes left out, per split"""

    def __init__(
        self,
        root: str | None = None,
        *,
        time_steps: int = 100,
        duration: float = 1.0,
        channels: int = 140,
        val_speakers: Sequence[int] = (10, 11),
        max_shift: int = 0,
        batch_size: int = 128,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_shift=max_shift, **loader_options)
        if root is None:
            raise ValueError(f"Expected argument `root` to be a folder, but got None. {SOURCE}")
        check_integer("time_steps", time_steps)
        check_between("duration", duration, 0.001, LONGEST_SECONDS)
        check_divides("channels", channels, UNITS, "units of the cochlea")
        if not val_speakers:
            raise ValueError(f"Expected argument `val_speakers` to hold at least one speaker, but got {val_speakers}")
        for speaker in val_speakers:
            check_integer("val_speakers", speaker, minimum=0)
        check_between("max_shift", max_shift, 0, channels)
        self.root = root
        self.time_steps = time_steps
        self.duration = float(duration)
        self.channels = channels
        self.frame_shape = (channels,)
        self.val_speakers = tuple(val_speakers)
        self.cache_dir = cache_dir
        self.left_out = {}

    def prepare_data(self) -> None:
        """Bin the recordings into the cache, if it does not hold them yet."""
        for split, path in find_shd(Path(self.root).expanduser()).items():
            self._binned(split, path)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the recordings of the training speakers, of the validation speakers, and of the test file."""
        paths = find_shd(Path(self.root).expanduser())
        train, test = (self._binned(split, path) for split, path in paths.items())
        speakers = np.unique(train["speakers"]).tolist()
        if not set(self.val_speakers) < set(speakers):
            raise ValueError(
                f"Expected argument `val_speakers` to be some, but not all, of the speakers {speakers} in "
                f"{paths['train']}, but got {list(self.val_speakers)}"
            )
        self.left_out = {"train": int(train["left_out"].sum()), "test": int(test["left_out"].sum())}
        if any(self.left_out.values()):
            rank_zero_info(
                f"SHD: spikes at {self.duration:g} s or later are left out: {self.left_out['train']} in the training "
                f"file and {self.left_out['test']} in the test file"
            )
        held_out = np.isin(train["speakers"], self.val_speakers)
        recordings = _dataset(train)
        return (
            Subset(recordings, np.flatnonzero(~held_out).tolist()),
            Subset(recordings, np.flatnonzero(held_out).tolist()),
            _dataset(test),
        )

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the network input ``(T, B, channels)``, float32, of loaded counts ``(B, T, 1, 1, channels)``."""
        return super().preprocess(frames).flatten(2)

    def _binned(self, split: str, path: Path) -> dict[str, np.ndarray]:
        """Return counts, labels, speakers and numbers of spikes left out of all recordings of a file."""
        parameters = {
            "format": 1,
            "time_steps": self.time_steps,
            "duration": self.duration,
            "channels": self.channels,
            "sources": file_signature([path], path.parent),
        }
        return cached_rows(
            cache_root(self.cache_dir) / "shd" / f"{split}-{cache_key(parameters)}",
            lambda: self._rows(split, path),
            {
                "counts": ((None, self.time_steps, *self.frame_shape), np.uint8),
                "labels": ((None,), np.int64),
                "speakers": ((None,), np.int64),
                "left_out": ((None,), np.int64),
            },
        )

    def _rows(self, split: str, path: Path) -> Iterator[dict[str, Any]]:
        check_readable(path)
        with SHDFile(path) as recordings:
            bar = tqdm(recordings, f"Binning SHD {split}", unit="recording", disable=None)
            for times, units, label, speaker in bar:
                covered = times < self.duration
                # the cochlea is a sensor with one row and one polarity
                row = np.zeros(np.count_nonzero(covered), np.int64)
                counts = frame_events(
                    units[covered],
                    row,
                    row,
                    times[covered],
                    time_steps=self.time_steps,
                    sensor_size=(1, UNITS),
                    size=(1, self.channels),
                    start=0,
                    duration=self.duration,
                )[:, 0, 0]
                yield {
                    "counts": counts,
                    "labels": np.int64(label),
                    "speakers": np.int64(speaker),
                    "left_out": np.int64(len(times) - len(row)),
                }


def _dataset(binned: dict[str, np.ndarray]) -> FrameDataset:
    # a cochlea is a sensor with one row, along which recordings are shifted
    return FrameDataset(binned["counts"][:, :, None, None], binned["labels"])
