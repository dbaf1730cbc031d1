"""Reader of the files of the Spiking Heidelberg Digits and of the Spiking Speech Commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from lightning_snn.reading import reading

UNITS = 700
# the longest recording lasts about 1.4 s; larger times are not in seconds
LONGEST_SECONDS = 5.0
SITE = "https://zenkelab.org/resources/spiking-heidelberg-datasets-shd"


@dataclass(frozen=True)
class SpikeFiles:
    """Files of one data set, a file per split.

    Attributes:
        title: name of the data set.
        prefix: start of the file names.
        splits: splits, in the order training, validation, test.
        classes: number of classes.
        speakers: whether the files must name speakers and classes.
    """

    title: str
    prefix: str
    splits: tuple[str, ...]
    classes: int
    speakers: bool

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return [f"{self.prefix}_{split}.h5" for split in self.splits]

    @property
    def source(self) -> str:
        """Sentences on the place where the files are published, and on what to do with them."""
        packed, unpacked = ([name + end for name in self.names] for end in (".gz", ""))
        return (
            f"The {self.title} are published at {SITE} under the license CC BY 4.0. Download {listed(packed)}, unpack "
            f"them with gunzip, and pass the folder that holds {listed(unpacked)} as `root`. This library downloads "
            "nothing."
        )

    def find(self, root: Path) -> dict[str, Path]:
        """Return the file of each split.

        Args:
            root: the folder that holds the files, or its parent if that folder is named by the prefix in capitals, as
                with tonic.

        Raises:
            FileNotFoundError: if a file is missing; the message names it and its source.
        """
        folders = (root, root / self.prefix.upper())
        folder = next((folder for folder in folders if list(folder.glob(f"{self.prefix}_*.h5*"))), root)
        paths = {split: folder / name for split, name in zip(self.splits, self.names, strict=True)}
        for path in paths.values():
            if path.is_file():
                continue
            packed = path.with_name(f"{path.name}.gz")
            if packed.is_file():
                raise FileNotFoundError(
                    f"Expected {path}, but only {packed.name} exists. Unpack it with gunzip {packed}"
                )
            found = "it is missing" if folder.is_dir() else f"{folder} is not a folder"
            raise FileNotFoundError(f"Expected {path}, but {found}. {self.source}")
        return paths


def listed(names: list[str]) -> str:
    """Return the names as they are listed in a sentence."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


DIGITS = SpikeFiles("Spiking Heidelberg Digits", "shd", ("train", "test"), 20, speakers=True)
COMMANDS = SpikeFiles("Spiking Speech Commands", "ssc", ("train", "valid", "test"), 35, speakers=False)


class Recording(NamedTuple):
    """Spoken word as spikes of a cochlea.

    Attributes:
        times: spike times in seconds, float64, shape ``(N,)``, rounded to float16 as in the file.
        units: cochlea unit of each spike, integers in ``[0, 700)``, shape ``(N,)``.
        label: class from 0; of digits ten English ones, then ten German ones.
        speaker: number of the speaker, from 0; -1 if the file names none.
    """

    times: np.ndarray
    units: np.ndarray
    label: int
    speaker: int


class SHDFile:
    """Recordings of one file in the order of the file, read one by one; a context manager that closes the file.

    Layout: ``spikes/times`` and ``spikes/units``, an array of any length per recording; ``labels`` and
    ``extra/speaker``, an integer per recording; ``extra/keys``, the names of the classes. The Spiking Speech Commands
    may lack what is in ``extra``.

    Args:
        path: ``shd_train.h5`` or ``shd_test.h5``, or ``ssc_train.h5``, ``ssc_valid.h5`` or ``ssc_test.h5``. A file of
            the Spiking Speech Commands is recognized by its name.

    Attributes:
        class_names: names of the classes; empty if the file does not hold them.

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
        files = COMMANDS if path.name.startswith(COMMANDS.prefix) else DIGITS
        with reading(path, "an HDF5 file"):
            self._file = h5py.File(path, "r")
        try:
            self.labels = self._integers("labels", files.classes)
            self._times, self._units = self._dataset("spikes/times"), self._dataset("spikes/units")
            per_recording = ["spikes/times", "spikes/units"]
            self.speakers = np.full(len(self), -1)
            if files.speakers or "extra/speaker" in self._file:
                self.speakers = self._integers("extra/speaker")
                per_recording.append("extra/speaker")
            lengths = {name: self._dataset(name).len() for name in per_recording}
            if set(lengths.values()) != {len(self)}:
                found = ", ".join(f"{length} {name}" for name, length in lengths.items())
                raise ValueError(
                    f"Expected {path} to hold one entry per recording, but got {len(self)} labels, {found}"
                )
            self.class_names: tuple[str, ...] = ()
            if files.speakers or "extra/keys" in self._file:
                self.class_names = self._names("extra/keys", files.classes)
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

    def _names(self, name: str, count: int) -> tuple[str, ...]:
        keys = self._read(self._dataset(name), slice(None)).ravel().tolist()
        if len(keys) != count:
            raise ValueError(f"Expected {self.path} to name {count} classes in {name}, but got {len(keys)}")
        return tuple(key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys)

    def _read(self, dataset: Any, index: int | slice) -> np.ndarray:
        with reading(self.path, f"an HDF5 file with readable {dataset.name}"):
            return np.asarray(dataset[index])

    def _damaged(self, index: int, expected: str, found: str) -> ValueError:
        return ValueError(f"Expected recording {index} of {self.path} to hold {expected}, but got {found}")
