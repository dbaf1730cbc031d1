"""Folders of recordings of an event camera, one per class: CIFAR10-DVS and N-Caltech101."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_choice, check_fraction, check_integer
from lightning_snn.data.aedat import read_aedat
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.events import Events, checked_events
from lightning_snn.data.frames import check_divides, frame_events
from lightning_snn.data.gesture_files import SENSOR_SIZE as DVS128
from lightning_snn.data.nmnist import NMNIST, read_atis
from lightning_snn.data.npz import read_npz
from lightning_snn.data.splits import split_stratified
from lightning_snn.reading import reading

Reader = Callable[[Path], Events]


class EventFolders(FrameDataModule):
    """Base class of data modules of ``CLASS/RECORDING`` files, read in place and framed once into a cache.

    Neither set came divided. Of each class the last `test_fraction` of the recordings, by the number in their names, is
    the test set, and `val_fraction` of the others, drawn at random, is the validation set.

    Args:
        root: the folder that holds the folders of the classes, or its parent if it has one of the names in `folders`.
        time_steps: frames per sample, T.
        frames: what the frames of a recording have in common: "number" of events, or "duration".
        shrink: rows and columns of the sensor that share a row or column of a frame, a divisor of both.
        test_fraction: share of the recordings of each class in the test set.
        val_fraction: share of the other recordings of each class in the validation set.
        cache_dir: folder of the cached frames; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: arguments of :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the
            validation split.

    Raises:
        FileNotFoundError: if the folder does not hold the classes, or one of them no recordings.
        ValueError: if an argument is out of range.

    ``setup`` raises a ValueError if a file is damaged; the message names it. Nothing is downloaded.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    """names that the folder of the classes may have within ``root``"""
    sensor_size: ClassVar[tuple[int, int]]
    """rows and columns of the sensor"""
    readers: ClassVar[Mapping[str, Reader]]
    """reader of each file type, by suffix"""

    def __init__(
        self,
        root: str,
        *,
        time_steps: int = 10,
        frames: Literal["number", "duration"] = "number",
        shrink: int = 1,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(**loader_options)
        check_integer("time_steps", time_steps)
        check_choice("frames", frames, ("number", "duration"))
        for side, unit in zip(self.sensor_size, ("rows", "columns"), strict=True):
            check_divides("shrink", shrink, side, f"{unit} of the sensor")
        check_fraction("test_fraction", test_fraction)
        check_fraction("val_fraction", val_fraction)
        self.time_steps, self.frames, self.shrink = time_steps, frames, shrink
        self.frame_shape = (2, *(side // shrink for side in self.sensor_size))
        self.test_fraction, self.val_fraction, self.cache_dir = test_fraction, val_fraction, cache_dir
        self.root = root
        self.folder = self._find_folder(Path(root).expanduser())
        self.class_names = self.find_classes(self.folder)
        self.num_classes = len(self.class_names)

    def find_classes(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the classes, which are those of their folders."""
        return self.class_names

    def prepare_data(self) -> None:
        """Frame the recordings into the cache, if it does not hold them yet."""
        self._framed()

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the recordings of the three sets."""
        dataset = self._framed()
        labels = dataset.labels.numpy()
        tested = np.concatenate(
            [
                members[len(members) - max(round(self.test_fraction * len(members)), 1) :]
                for members in (np.flatnonzero(labels == label) for label in range(self.num_classes))
            ]
        )
        others = np.setdiff1d(np.arange(len(labels)), tested)
        kept, held_out = split_stratified(labels[others], self.val_fraction, self.seed)
        train, val, test = (Subset(dataset, part.tolist()) for part in (others[kept], others[held_out], tested))
        return train, val, test

    def _find_folder(self, root: Path) -> Path:
        places = [root, *(root / name for name in self.folders)]
        for folder in places:
            if any(self._recordings(each) for each in folder.glob("*/")):
                return folder
        raise FileNotFoundError(
            f"Expected argument `root` to hold one folder of recordings ({', '.join(self.readers)}) per class, in "
            f"itself or in {' or '.join(self.folders)}, but {root} {'holds none' if root.is_dir() else 'is no folder'}"
        )

    def _recordings(self, folder: Path) -> list[Path]:
        """Return the recordings of a folder, all of one type, in the order of the numbers in their names."""
        for suffix in self.readers:
            if found := sorted(folder.glob(f"*{suffix}"), key=_by_number):
                return found
        return []

    def _framed(self) -> FrameDataset:
        files, labels = [], []
        for label, name in enumerate(self.class_names):
            found = self._recordings(self.folder / name)
            if len(found) < 3:
                raise FileNotFoundError(
                    f"Expected folder {self.folder / name} to hold recordings ({', '.join(self.readers)}), at "
                    f"least one for each set, but it holds {len(found)}"
                )
            files += found
            labels += [label] * len(found)
        parameters = {
            "format": 1,
            "time_steps": self.time_steps,
            "frames": self.frames,
            "shrink": self.shrink,
            "sources": file_signature(files, self.folder),
        }
        name = type(self).__name__
        arrays = cached_rows(
            cache_root(self.cache_dir) / name.lower() / cache_key(parameters),
            lambda: (
                {"frames": self._read_frames(file)}
                for file in tqdm(files, f"Framing {name}", unit="file", disable=None)
            ),
            {"frames": ((len(files), self.time_steps, *self.frame_shape), np.uint8)},
        )
        return FrameDataset(arrays["frames"], np.array(labels))

    def _read_frames(self, file: Path) -> np.ndarray:
        x, y, p, t = self.readers[file.suffix](file)
        return frame_events(
            *(x, y, p, np.arange(len(t)) if self.frames == "number" else t),
            time_steps=self.time_steps,
            sensor_size=self.sensor_size,
            size=(self.frame_shape[1], self.frame_shape[2]),
        )


def read_mat(path: Path) -> Events:
    """Read the events of a recording of a DVS128 that ``dat2mat.m`` converted, a matrix ``out1``.

    Its columns are t in microseconds, x, y from the bottom, and p, 1 or -1; versions that add two columns after t are
    read as well.

    Raises:
        ImportError: if scipy is not installed.
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is damaged or holds something else; the message names it.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            "Expected scipy to be installed, which reads .mat files: pip install 'lightning-snn[events]'"
        ) from error
    with reading(path, "a .mat file with the matrix out1"):
        table = np.asarray(loadmat(path, variable_names=["out1"])["out1"])
    if table.ndim != 2 or table.shape[1] not in (4, 6) or table.dtype.kind not in "iuf":
        raise ValueError(
            f"Expected the matrix out1 of {path} to hold a row of 4 or 6 numbers per event, but got {table.dtype} of "
            f"shape {table.shape}"
        )
    t, x, y, p = (table[:, column].astype(np.int64) for column in (0, -3, -2, -1))
    return checked_events(Events(x, DVS128[0] - 1 - y, (p > 0).astype(np.uint8), t), path, DVS128)


def read_arrays(path: Path, sensor_size: tuple[int, int], transposed: bool) -> Events:
    """Read the events of a ``.npz`` file with the arrays t, x, y and p, as SpikingJelly writes it.

    Args:
        path: the file.
        sensor_size: rows and columns of the sensor.
        transposed: whether x are rows and y columns, as in SpikingJelly's files of CIFAR10-DVS.

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is damaged or holds other arrays; the message names it.
    """
    t, x, y, p = read_npz(path, ("t", "x", "y", "p"))
    if not x.shape == y.shape == p.shape == t.shape == (t.size,) or any(
        each.dtype.kind not in "biu" for each in (x, y, p)
    ):
        raise ValueError(
            f"Expected the arrays t, x, y and p of {path} to hold one number per event, x, y and p integers, but got "
            f"{', '.join(f'{each.dtype} of shape {each.shape}' for each in (t, x, y, p))}"
        )
    events = Events(y, x, p, t) if transposed else Events(x, y, p, t)
    return checked_events(events, path, sensor_size)


class CIFAR10DVS(EventFolders):
    """CIFAR10-DVS: 10,000 recordings of moving photographs by a DVS128, ten classes, ``(T, B, 2, 128, 128)``.

    Files are the original ``CLASS/*.aedat``, ``CLASS/*.aedat4``, ``events_np/CLASS/*.npz`` as SpikingJelly writes them,
    or ``CLASS/*.mat`` of ``dat2mat.m``. All are shown as jAER shows them; SpikingJelly's frames are transposed.
    Frames of an equal number of events are those in use for published figures.

    Arguments and errors are those of :class:`~lightning_snn.data.event_folders.EventFolders`.

    Example:
        >>> CIFAR10DVS("data")
        Traceback (most recent call last):
        FileNotFoundError: Expected argument `root` to hold one folder of recordings (.aedat, .aedat4, .npz, .mat) ...
    """

    folders = ("CIFAR10DVS", "events_np", "extract", "CIFAR10DVS/events_np")
    sensor_size = DVS128
    readers: ClassVar[Mapping[str, Reader]] = {
        ".aedat": lambda path: read_aedat(path, sensor_size=DVS128),
        ".aedat4": lambda path: read_aedat(path, sensor_size=DVS128),
        ".npz": lambda path: read_arrays(path, DVS128, transposed=True),
        ".mat": read_mat,
    }
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    citation = """@article{li2017cifar10dvs,
  title = {{CIFAR10-DVS}: An Event-Stream Dataset for Object Classification},
  author = {Li, Hongmin and Liu, Hanchao and Ji, Xiangyang and Li, Guoqi and Shi, Luping},
  journal = {Frontiers in Neuroscience},
  volume = {11},
  year = {2017}
}"""


ATIS = (180, 240)


class NCaltech101(EventFolders):
    """N-Caltech101: 8,709 recordings of photographs by a moving ATIS, 101 classes, ``(T, B, 2, 180, 240)``.

    Files are the original ``Caltech101/CLASS/*.bin``, or ``events_np/CLASS/*.npz`` as SpikingJelly writes them. Classes
    are the sorted names of the folders; that of the background is a class.

    Arguments and errors are those of :class:`~lightning_snn.data.event_folders.EventFolders`.

    Example:
        >>> NCaltech101("data")
        Traceback (most recent call last):
        FileNotFoundError: Expected argument `root` to hold one folder of recordings (.bin, .npz) per class, in ...
    """

    folders = ("Caltech101", "NCaltech101", "N-Caltech101", "events_np", "NCaltech101/Caltech101")
    sensor_size = ATIS
    readers: ClassVar[Mapping[str, Reader]] = {
        ".bin": lambda path: read_atis(path, ATIS, "a recording of N-Caltech101"),
        ".npz": lambda path: read_arrays(path, ATIS, transposed=False),
    }
    citation = NMNIST.citation  # the same publication

    def find_classes(self, folder: Path) -> tuple[str, ...]:
        """Return the sorted names of the folders that hold recordings."""
        return tuple(sorted(each.name for each in folder.glob("*/") if self._recordings(each)))


def _by_number(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.name
