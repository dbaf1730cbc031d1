"""N-MNIST: the MNIST digits, recorded by an event camera on a moving mount (Orchard et al. 2015)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_between, check_fraction, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.events import Events, checked_events
from lightning_snn.data.frames import check_divides, frame_events
from lightning_snn.data.splits import split_stratified
from lightning_snn.reading import read_bytes

SENSOR_SIZE = (34, 34)
OVERFLOW_ROW = 240
OVERFLOW_TICKS = 1 << 13


def read_nmnist(path: str | os.PathLike[str]) -> Events:
    """Read the events of one original N-MNIST file.

    An event is five bytes: x, y, ``p << 7 | t[22:16]``, ``t[15:8]``, ``t[7:0]``. A record with y = 240 is not an event:
    it marks an overflow of the recorder's clock and adds 2**13 us to the time of every event after it.

    Args:
        path: the ``.bin`` file.

    Returns:
        The events, sorted by time: ``x``, ``y`` and ``p`` (uint8, 1 is ON), and ``t`` (int64, us).

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is empty or truncated, holds an event outside the sensor, or its clock was restarted;
            the message names it.

    Source: Orchard, Jayawant, Cohen and Thakor, "Converting static image datasets to spiking neuromorphic datasets
    using saccades", Frontiers in Neuroscience 9, 2015, and the authors' ``Read_Ndataset.m``.

    Example:
        >>> written = Path("00001.bin").write_bytes(bytes([3, 5, 0x80, 1, 7]))
        >>> x, y, p, t = read_nmnist("00001.bin")
        >>> x.tolist(), y.tolist(), p.tolist(), t.tolist()
        ([3], [5], [1], [263])
    """
    return read_atis(path, SENSOR_SIZE, "a recording of N-MNIST")


def read_atis(path: str | os.PathLike[str], sensor_size: tuple[int, int], expected: str) -> Events:
    """Read the events of one file in the format of N-MNIST and N-Caltech101; see `read_nmnist`.

    Args:
        path: the ``.bin`` file.
        sensor_size: rows and columns of the sensor, at most 240 rows.
        expected: what the file should be, for messages, as in "a recording of N-MNIST".

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: as `read_nmnist`.
    """
    raw = read_bytes(path, expected)
    if len(raw) == 0 or len(raw) % 5:
        raise ValueError(f"Expected {path} to hold events of 5 bytes, at least one, but it is {len(raw)} bytes long")
    x, y, high, middle, low = raw.reshape(-1, 5).T
    t = (high & 0x7F).astype(np.int64) << 16 | middle.astype(np.int64) << 8 | low
    overflow = y == OVERFLOW_ROW
    if overflow.any():
        t += OVERFLOW_TICKS * np.cumsum(overflow)
        x, y, high, t = x[~overflow], y[~overflow], high[~overflow], t[~overflow]
        if len(t) == 0:
            raise ValueError(f"Expected {path} to hold at least one event, but it holds clock overflows only")
    return checked_events(Events(x, y, high >> 7, t), path, sensor_size)


class NMNIST(FrameDataModule):
    """N-MNIST, read in place from its original tree ``{Train,Test}/<digit>/*.bin`` and framed once into a cache.

    The time bins are equal parts of the first ``duration`` milliseconds of a recording, whatever its length, so that
    frame t shows the same phase of the three saccades (about 100 ms each) in every sample. Later events are dropped.
    Frames are event counts saturated at 255. The default frames of the whole set take 1.9 GB on disk.

    Args:
        root: the folder that holds ``Train`` and ``Test``, or its parent if that folder is named ``NMNIST`` or
            ``N-MNIST``.
        time_steps: frames per sample, T; a multiple of 3 keeps the saccades apart.
        size: rows and columns of a frame: 34 or a divisor of it, such as 17.
        duration: time covered by the frames, in milliseconds from the start of a recording.
        val_fraction: share of the training recordings of each digit in the validation set.
        max_shift: training recordings are shifted at random by up to this many pixels, from 0 to ``size``.
        cache_dir: folder of the cached frames; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: arguments of :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the
            validation split.

    Raises:
        ValueError: if an argument is out of range.

    ``setup`` raises a FileNotFoundError if a folder is missing and a ValueError if a file is damaged; the message names
    it. Nothing is downloaded.

    Example:
        >>> data = NMNIST("data/NMNIST", size=17, max_count=1)
        >>> data.frame_shape, data.time_steps
        ((2, 17, 17), 12)
    """

    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    citation = """@article{orchard2015converting,
  title = {Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades},
  author = {Orchard, Garrick and Jayawant, Ajinkya and Cohen, Gregory K. and Thakor, Nitish},
  journal = {Frontiers in Neuroscience},
  volume = {9},
  year = {2015}
}"""

    def __init__(
        self,
        root: str,
        *,
        time_steps: int = 12,
        size: int = 34,
        duration: float = 315.0,
        val_fraction: float = 0.1,
        max_shift: int = 2,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(max_shift=max_shift, **loader_options)
        check_integer("time_steps", time_steps)
        check_divides("size", size, SENSOR_SIZE[0], "pixels of the sensor")
        check_between("duration", duration, 0.001, np.inf)
        check_fraction("val_fraction", val_fraction)
        check_between("max_shift", max_shift, 0, size)
        self.root = root
        self.time_steps = time_steps
        self.size = size
        self.frame_shape = (2, size, size)
        self.duration = duration
        self.val_fraction = val_fraction
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Frame the recordings into the cache, if it does not hold them yet."""
        for split in ("Train", "Test"):
            self._framed(split)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return training and validation recordings, both from ``Train``, and those of ``Test``."""
        train, test = self._framed("Train"), self._framed("Test")
        kept, held_out = split_stratified(train.labels.numpy(), self.val_fraction, self.seed)
        return Subset(train, kept.tolist()), Subset(train, held_out.tolist()), test

    def _framed(self, split: str) -> FrameDataset:
        folder = _find_root(Path(self.root).expanduser()) / split
        files, labels = _list_files(folder)
        parameters = {
            "format": 1,
            "time_steps": self.time_steps,
            "size": self.size,
            "duration": self.duration,
            "sources": file_signature(files, folder),
        }
        arrays = cached_rows(
            cache_root(self.cache_dir) / "nmnist" / f"{split.lower()}-{cache_key(parameters)}",
            lambda: (
                {"frames": self._read_frames(file)}
                for file in tqdm(files, f"Framing N-MNIST {split}", unit="file", disable=None)
            ),
            {"frames": ((len(files), self.time_steps, *self.frame_shape), np.uint8)},
        )
        return FrameDataset(arrays["frames"], labels)

    def _read_frames(self, file: Path) -> np.ndarray:
        events = read_nmnist(file)
        microseconds = round(self.duration * 1000)
        covered = events.select(events.t < microseconds)
        if len(covered.t) == 0:
            raise ValueError(
                f"Expected argument `duration` to cover events of {file}, but it is {self.duration:g} ms and the first "
                f"event is at {events.t[0] / 1000:g} ms"
            )
        return frame_events(
            *covered,
            time_steps=self.time_steps,
            sensor_size=SENSOR_SIZE,
            size=(self.size, self.size),
            start=0,
            duration=microseconds,
        )


def _find_root(root: Path) -> Path:
    for folder in (root, root / "NMNIST", root / "N-MNIST"):
        if (folder / "Train").is_dir():
            return folder
    raise FileNotFoundError(
        "Expected argument `root` to be a folder that holds N-MNIST as Train/<digit>/*.bin and Test/<digit>/*.bin, "
        f"but {root} {'has no folder Train' if root.is_dir() else 'is not a folder'}"
    )


def _list_files(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Return the recordings of one split, sorted by (digit, name) whatever the file system, and their digits."""
    files, labels = [], []
    for digit in range(10):
        found = sorted((folder / str(digit)).glob("*.bin"))
        if not found:
            raise FileNotFoundError(
                f"Expected folder {folder / str(digit)} to hold N-MNIST recordings *.bin, but got none"
            )
        files += found
        labels += [digit] * len(found)
    return files, np.array(labels)
