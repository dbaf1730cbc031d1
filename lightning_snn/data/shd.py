"""Spiking Heidelberg Digits and Spiking Speech Commands: words as spikes of a model cochlea (Cramer et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_between, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.frames import check_divides, count_spikes
from lightning_snn.data.shd_check import check_readable
from lightning_snn.data.shd_files import COMMANDS, DIGITS, LONGEST_SECONDS, UNITS, SHDFile, SpikeFiles, listed
from lightning_snn.data.speech import CLASS_NAMES


class SpikeFileModule(FrameDataModule):
    """Base of the data modules of spikes of a cochlea, binned once into a cache: `SHD` and `SSC`.

    Batches are ``(x [T, B, channels], y [B])``, where x counts the spikes of ``700 / channels`` neighboring units in
    time bin ``floor(t T / duration)``. Counts saturate at 255.

    Args:
        root: the folder that holds the files.
        time_steps: time bins per sample, T, of equal duration.
        duration: time covered by the bins, in seconds from the start of a recording, at most 5.
        channels: inputs per time step: 700 or a divisor of it.
        max_shift: training recordings are shifted at random by up to this many channels, from 0 to ``channels``,
            toward high or low pitch; counts shifted beyond the first or last channel are lost.
        batch_size: samples per batch.
        cache_dir: folder of the cached counts; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: other arguments of :class:`~lightning_snn.data.FrameDataModule`.

    Raises:
        ValueError: if an argument is out of range, or ``root`` is None; then the message names the source of the files.
    """

    files: ClassVar[SpikeFiles]
    """what the files are named and hold"""
    left_out: dict[str, int]
    """number of spikes left out, per split"""
    citation = """@article{cramer2022heidelberg,
  title = {The {Heidelberg} Spiking Data Sets for the Systematic Evaluation of Spiking Neural Networks},
  author = {Cramer, Benjamin and Stradmann, Yannik and Schemmel, Johannes and Zenke, Friedemann},
  journal = {IEEE Transactions on Neural Networks and Learning Systems},
  volume = {33},
  number = {7},
  pages = {2744--2757},
  year = {2022}
}"""

    def __init__(
        self,
        root: str | None = None,
        *,
        time_steps: int = 100,
        duration: float = 1.0,
        channels: int = 140,
        max_shift: int = 0,
        batch_size: int = 128,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_shift=max_shift, **loader_options)
        if root is None:
            raise ValueError(f"Expected argument `root` to be a folder, but got None. {self.files.source}")
        check_integer("time_steps", time_steps)
        check_between("duration", duration, 0.001, LONGEST_SECONDS)
        check_divides("channels", channels, UNITS, "units of the cochlea")
        check_between("max_shift", max_shift, 0, channels)
        self.root = root
        self.time_steps = time_steps
        self.duration = float(duration)
        self.channels = channels
        self.frame_shape = (channels,)
        self.cache_dir = cache_dir
        self.left_out = {}

    def prepare_data(self) -> None:
        """Bin the recordings into the cache, if it does not hold them yet."""
        self.binned()

    def binned(self) -> list[dict[str, np.ndarray]]:
        """Return counts, labels, speakers and numbers of spikes left out of each file, in the order of the splits."""
        paths = self.files.find(Path(self.root).expanduser())
        found = {split: self._binned(split, path) for split, path in paths.items()}
        self.left_out = {split: int(arrays["left_out"].sum()) for split, arrays in found.items()}
        return list(found.values())

    def report_left_out(self) -> None:
        """Log the numbers of spikes that are left out, if there are any."""
        if any(self.left_out.values()):
            counts = listed(
                [f"{count} in {name}" for name, count in zip(self.files.names, self.left_out.values(), strict=True)]
            )
            rank_zero_info(f"{type(self).__name__}: spikes at {self.duration:g} s or later are left out: {counts}")

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
            cache_root(self.cache_dir) / self.files.prefix / f"{split}-{cache_key(parameters)}",
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
            for times, units, label, speaker in tqdm(
                recordings, f"Binning {type(self).__name__} {split}", unit="recording", disable=None
            ):
                counts = count_spikes(times, units, UNITS, self.channels, self.time_steps, self.duration)
                yield {
                    "counts": counts,
                    "labels": np.int64(label),
                    "speakers": np.int64(speaker),
                    "left_out": np.int64(np.count_nonzero(times >= self.duration)),
                }


class SHD(SpikeFileModule):
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
        val_speakers: speakers of the training file in the validation set, at least one.
        **options: the other arguments of :class:`~lightning_snn.data.shd.SpikeFileModule`: ``time_steps``,
            ``duration``, ``channels``, ``max_shift``, ``batch_size``, ``cache_dir``, and those of
            :class:`~lightning_snn.data.FrameDataModule`.

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

    files = DIGITS
    num_classes = DIGITS.classes
    class_names = CLASS_NAMES

    def __init__(self, root: str | None = None, *, val_speakers: Sequence[int] = (10, 11), **options: Any) -> None:
        super().__init__(root, **options)
        if not val_speakers:
            raise ValueError(f"Expected argument `val_speakers` to hold at least one speaker, but got {val_speakers}")
        for speaker in val_speakers:
            check_integer("val_speakers", speaker, minimum=0)
        self.val_speakers = tuple(val_speakers)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the recordings of the training speakers, of the validation speakers, and of the test file."""
        train, test = self.binned()
        speakers = np.unique(train["speakers"]).tolist()
        if not set(self.val_speakers) < set(speakers):
            raise ValueError(
                f"Expected argument `val_speakers` to be some, but not all, of the speakers {speakers} in "
                f"{self.files.names[0]}, but got {list(self.val_speakers)}"
            )
        self.report_left_out()
        held_out = np.isin(train["speakers"], self.val_speakers)
        recordings = _dataset(train)
        return (
            Subset(recordings, np.flatnonzero(~held_out).tolist()),
            Subset(recordings, np.flatnonzero(held_out).tolist()),
            _dataset(test),
        )


class SSC(SpikeFileModule):
    """Spiking Speech Commands: 35 words, read in place from ``ssc_train.h5``, ``ssc_valid.h5`` and ``ssc_test.h5``.

    Batches, bins, cache and spikes that are left out are as those of :class:`SHD`. The three files are the published
    split into training, validation and test. The names of the classes are those in the training file once `setup` has
    read it; before, and if there are none, they are numbers.

    Args:
        root: the folder that holds the three files, or its parent if that folder is named ``SSC``.
        **options: the other arguments of :class:`~lightning_snn.data.shd.SpikeFileModule`, as for :class:`SHD`.

    Raises:
        ValueError: if an argument is out of range, or ``root`` is None; then the message names the source of the files.

    ``setup`` raises a FileNotFoundError if a file is missing and a ValueError if one is damaged; the message names it.
    It raises an ImportError if h5py is missing. Nothing is downloaded.

    Source: Cramer et al. 2022, see :class:`SHD`; of the recordings, Warden, "Speech commands: a dataset for
    limited-vocabulary speech recognition", arXiv:1804.03209, 2018.

    Example:
        >>> data = SSC("data/SSC", channels=140)
        >>> data.frame_shape, data.num_classes
        ((140,), 35)
    """

    files = COMMANDS
    num_classes = COMMANDS.classes
    class_names = tuple(str(index) for index in range(COMMANDS.classes))

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the recordings of the three files."""
        train, val, test = (_dataset(arrays) for arrays in self.binned())
        with SHDFile(self.files.find(Path(self.root).expanduser())["train"]) as recordings:
            self.class_names = recordings.class_names or self.class_names
        self.report_left_out()
        return train, val, test


def _dataset(binned: dict[str, np.ndarray]) -> FrameDataset:
    # a cochlea is a sensor with one row, along which recordings are shifted
    return FrameDataset(binned["counts"][:, :, None, None], binned["labels"])
