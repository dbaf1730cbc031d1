"""Reader of the files of the Spiking Heidelberg Digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from lightning_snn.reading import reading

UNITS = 700
CLASSES = 20
# the longest recording lasts about 1.4 s; larger times are not in seconds
LONGEST_SECONDS = 5.0
SOURCE = (
    "The Spiking Heidelberg Digits are published at https://zenkelab.org/resources/spiking-heidelberg-datasets-shd "
    "under the license CC BY 4.0. Download shd_train.h5.gz and shd_test.h5.gz, unpack both with gunzip, and pass the "
    "folder that holds shd_train.h5 and shd_test.h5 as `root`. This library downloads nothing."
)


class Recording(NamedTuple):
    """Spoken digit as spikes of a cochlea.

    Attributes:
        times: spike times in seconds, float64, shape ``(N,)``, rounded to float16 as in the file.
        units: cochlea unit of each spike, integers in ``[0, 700)``, shape ``(N,)``.
        label: class from 0: ten English digits, then ten German ones.
        speaker: number of the speaker, from 0.
    """

    times: np.ndarray
    units: np.ndarray
    label: int
    speaker: int


class SHDFile:
    """Recordings of one file in the order of the file, read one by one; a context manager that closes the file.

    Layout: ``spikes/times`` and ``spikes/units``, an array of any length per recording; ``labels`` and
    ``extra/speaker``, an integer per recording; ``extra/keys``, the names of the 20 classes.

    Args:
        path: ``shd_train.h5`` or ``shd_test.h5``.

    Raises:
        ImportError: if h5py is not installed.
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is truncated, corrupt or of another format; the message names it.

    Example:
        >>> import h5py
        >>> with h5py.File("shd_test.h5", "w") as file:
        ...     file["spikes/times"] = file.create_dataset("t", (1,), h5py.vlen_dtype(np.float16))
        ...     file["spikes/units"] = file.create_dataset("u", (1,), h5py.vlen_dtype(np.uint16))
        ...     file["t"][0], file["u"][0] = [0.25, 0.5], [17, 690]
        ...     file["labels"], file["extra/speaker"], file["extra/keys"] = [3], [4], [b"zero"] * 20
        >>> with SHDFile(Path("shd_test.h5")) as recordings:
        ...     recordings[0].units, recordings[0].label, recordings[0].speaker
        (array([ 17, 690], dtype=uint16), 3, 4)
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"Expected h5py to be installed, which reading {path} needs: pip install 'lightning-snn[events]'"
            ) from error
        self.path = path
        with reading(path, "an HDF5 file"):
            self._file = h5py.File(path, "r")
        try:
            self.labels = self._integers("labels", CLASSES)
            self.speakers = self._integers("extra/speaker")
            self._times, self._units = self._dataset("spikes/times"), self._dataset("spikes/units")
            lengths = {name: self._dataset(name).len() for name in ("spikes/times", "spikes/units", "extra/speaker")}
            if set(lengths.values()) != {len(self)}:
                found = ", ".join(f"{length} {name}" for name, length in lengths.items())
                raise ValueError(
                    f"Expected {path} to hold one entry per recording, but got {len(self)} labels, {found}"
                )
            classes = self._dataset("extra/keys").len()
            if classes != CLASSES:
                raise ValueError(f"Expected {path} to name {CLASSES} classes in extra/keys, but got {classes}")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SHDFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Recording]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Recording:
        """Return recording ``index``; if its spikes are damaged, raise a ValueError that names it and the file."""
        times, units = self._read(self._times, index), self._read(self._units, index)
        found = f"{times.dtype} of shape {times.shape} and {units.dtype} of shape {units.shape}"
        if times.ndim != 1 or times.shape != units.shape or times.dtype.kind != "f" or units.dtype.kind not in "iu":
            raise self._damaged(index, "equally many times (floats) and units (integers)", found)
        if len(times):
            # `not`, so that NaN fails the check
            if not (times.min() >= 0 and times.max() <= LONGEST_SECONDS):
                bounds = f"times from {times.min()} to {times.max()}"
                raise self._damaged(index, f"times in seconds, from 0 to {LONGEST_SECONDS:g}", bounds)
            if units.min() < 0 or units.max() >= UNITS:
                raise self._damaged(index, f"units in [0, {UNITS})", f"units from {units.min()} to {units.max()}")
        return Recording(times.astype(np.float64), units, int(self.labels[index]), int(self.speakers[index]))

    def _dataset(self, name: str) -> Any:
        import h5py

        with reading(self.path, f"an HDF5 file with {name}"):
            dataset = self._file.get(name)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim == 0:
            raise ValueError(
                f"Expected {self.path} to hold spikes/times, spikes/units, labels, extra/speaker and extra/keys, but "
                f"{name} is missing"
            )
        return dataset

    def _integers(self, name: str, stop: int | None = None) -> np.ndarray:
        """Return one integer per recording, int64, in ``[0, stop)``."""
        values = self._read(self._dataset(name), slice(None))
        if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
            raise ValueError(
                f"Expected {name} of {self.path} to be one integer per recording, but got {values.dtype} of shape "
                f"{values.shape}"
            )
        if values.min() < 0 or (stop is not None and values.max() >= stop):
            bounds = "at least 0" if stop is None else f"in [0, {stop})"
            raise ValueError(
                f"Expected {name} of {self.path} to be {bounds}, but got values from {values.min()} to {values.max()}"
            )
        return values.astype(np.int64)

    def _read(self, dataset: Any, index: int | slice) -> np.ndarray:
        with reading(self.path, f"an HDF5 file with readable {dataset.name}"):
            return np.asarray(dataset[index])

    def _damaged(self, index: int, expected: str, found: str) -> ValueError:
        return ValueError(f"Expected recording {index} of {self.path} to hold {expected}, but got {found}")


def find_shd(root: Path) -> dict[str, Path]:
    """Return the files of the splits ``"train"`` and ``"test"``.

    Args:
        root: the folder that holds ``shd_train.h5`` and ``shd_test.h5``, or its parent if that folder is named ``SHD``,
            as with tonic.

    Raises:
        FileNotFoundError: if a file is missing; the message names it and its source.
    """
    folder = next((folder for folder in (root, root / "SHD") if list(folder.glob("shd_*.h5*"))), root)
    paths = {split: folder / f"shd_{split}.h5" for split in ("train", "test")}
    for path in paths.values():
        if path.is_file():
            continue
        packed = path.with_name(f"{path.name}.gz")
        if packed.is_file():
            raise FileNotFoundError(f"Expected {path}, but only {packed.name} exists. Unpack it with gunzip {packed}")
        found = "it is missing" if folder.is_dir() else f"{folder} is not a folder"
        raise FileNotFoundError(f"Expected {path}, but {found}. {SOURCE}")
    return paths
