"""Readers of DVS128 Gesture in each of its three layouts on disk."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_snn.data.aedat3 import read_aedat3
from lightning_snn.data.events import Events, checked_events
from lightning_snn.data.npz import read_npz
from lightning_snn.reading import reading

CLASSES = 11
SENSOR_SIZE = (128, 128)
LONGEST_SECONDS = 600
FILE_NAME = re.compile(r"[\w.-]{1,200}")
LONGEST_NUMBER = 15  # digits of a time in us
SPLITS = ("train", "test")
CSV_COLUMNS = ["class", "startTime_usec", "endTime_usec"]


@dataclass(frozen=True)
class Recording:
    """File of events.

    Attributes:
        path: the file.
        group: recordings of a group stay on one side of a split: the subject, or the recording session if the name
            contains no subject.
        label: the gesture, 0 to 10; None if the file holds several, listed in ``labels_path``.
    """

    path: Path
    group: str
    label: int | None = None

    @property
    def labels_path(self) -> Path:
        """The file that lists the gestures of an AEDAT recording."""
        return self.path.with_name(f"{self.path.stem}_labels.csv")

    @property
    def files(self) -> list[Path]:
        """All files from which the gestures of the recording are read."""
        return [self.path] if self.label is not None else [self.path, self.labels_path]


@dataclass(frozen=True)
class Gesture:
    """Events of one gesture, sorted by time.

    Attributes:
        events: the events, times in us.
        start: start in us, an integer.
        stop: end in us, an integer, excluded.
        label: the gesture, 0 to 10.
    """

    events: Events
    start: int
    stop: int
    label: int


def find_recordings(root: Path) -> tuple[Path, dict[str, list[Recording]]]:
    """Find the recordings under ``root`` in any of the three layouts, sorted by path and label.

    ======================  ==========================================================================================
    tonic                   ``ibmGesture{Train,Test}/userNN_<light>/<label 0..10>.npy``
    SpikingJelly            ``events_np/{train,test}/<label 0..10>/userNN_<light>_<index>.npz``
    the original            ``userNN_<light>.aedat``, ``userNN_<light>_labels.csv``, ``trials_to_{train,test}.txt``
    ======================  ==========================================================================================

    Args:
        root: the folder that holds one of these, or its parent if that folder is named ``DVSGesture`` (tonic) or
            ``DvsGesture`` (the original).

    Returns:
        The folder that holds the layout, and its recordings for ``"train"`` and ``"test"``.

    Raises:
        FileNotFoundError: if there is no such layout or a part of it is missing; the message names it.
        ValueError: if a file name or a trial list is not as expected; the message names it.

    Example:
        >>> for split in ("Train", "Test"):
        ...     folder = Path(f"ibmGesture{split}/user01_led")
        ...     folder.mkdir(parents=True)
        ...     np.save(folder / "3.npy", [[5, 6, 1, 0.0], [7, 8, 0, 2.5]])  # x, y, p and t in ms
        >>> folder, recordings = find_recordings(Path("."))
        >>> gesture = next(read_gestures(recordings["train"][0]))
        >>> gesture.label, gesture.events.t
        (3, array([   0, 2500]))
    """
    layouts: tuple[tuple[str, Callable[[Path, str], list[Recording]]], ...] = (
        ("ibmGestureTrain", _list_tonic),
        ("events_np/train", _list_spikingjelly),
        ("trials_to_train.txt", _list_original),
    )
    for folder in (root, root / "DVSGesture", root / "DvsGesture", root / "extract" / "DvsGesture"):
        for marker, list_recordings in layouts:
            if (folder / marker).exists():
                recordings = {split: list_recordings(folder, split) for split in SPLITS}
                for split, found in recordings.items():
                    if not found:
                        raise FileNotFoundError(f"Expected {folder} to hold {split} recordings, but got none")
                both = {recording.path for recording in recordings["train"]} & {r.path for r in recordings["test"]}
                if both:
                    raise ValueError(f"Expected the trial lists in {folder} to be disjoint, but both name {min(both)}")
                return folder, recordings
    raise FileNotFoundError(
        f"Expected argument `root` to be a folder that holds one of {', '.join(marker for marker, _ in layouts)} and "
        f"the rest of DVS128 Gesture, but {root} {'holds none of them' if root.is_dir() else 'is not a folder'}"
    )


def read_gestures(recording: Recording) -> Iterator[Gesture]:
    """Read the gestures of one recording, in the order of the file.

    Raises:
        OSError: if a file is missing or cannot be read; the message names it.
        ValueError: if a file is truncated, corrupt or of another format, or holds events outside of the sensor, before
            time 0, or of a clock that was restarted within a gesture; the message names it.
    """
    if recording.label is not None:
        read = _read_npy if recording.path.suffix == ".npy" else _read_npz
        events = checked_events(Events(*read(recording.path)), recording.path, SENSOR_SIZE)
        start, stop = int(events.t[0]), int(events.t[-1]) + 1
        if stop - start > LONGEST_SECONDS * 1_000_000:
            raise ValueError(
                f"Expected {recording.path} to last at most {LONGEST_SECONDS} s, with times in "
                f"{'ms' if read is _read_npy else 'us'}, but got {(stop - start) / 1e6:.0f} s"
            )
        yield Gesture(events, start, stop, recording.label)
        return
    # the clock may be restarted between gestures, so only the events of each are checked
    events = read_aedat3(recording.path)
    for label, start, stop in _read_labels(recording.labels_path):
        inside = events.select((events.t >= start) & (events.t < stop))
        if len(inside.t) == 0:
            raise ValueError(
                f"Expected {recording.path} to hold events from {start} to {stop} us, where "
                f"{recording.labels_path.name} lists class {label + 1}, but got events from {events.t.min()} to "
                f"{events.t.max()} us"
            )
        yield Gesture(checked_events(inside, recording.path, SENSOR_SIZE), start, stop, label)


def _list_tonic(folder: Path, split: str) -> list[Recording]:
    part = folder / f"ibmGesture{split.capitalize()}"
    paths = sorted(part.glob("*/*.npy"), key=lambda path: (path.parent.name, len(path.stem), path.stem))
    return [Recording(path, _group(path.parent.name), _label(path, path.stem)) for path in paths]


def _list_spikingjelly(folder: Path, split: str) -> list[Recording]:
    paths = sorted(
        (folder / "events_np" / split).glob("*/*.npz"), key=lambda path: (path.name, len(path.parent.name), path.parent)
    )
    return [Recording(path, _group(re.sub(r"_\d+$", "", path.stem)), _label(path, path.parent.name)) for path in paths]


def _list_original(folder: Path, split: str) -> list[Recording]:
    trials = folder / f"trials_to_{split}.txt"
    if not trials.is_file():
        raise FileNotFoundError(f"Expected {trials} to list the {split} recordings, but it is missing")
    with reading(trials, "a list of recordings"):
        names = {line.strip() for line in trials.read_text(encoding="utf-8").splitlines()} - {""}
    if not names:
        raise ValueError(f"Expected {trials} to list recordings, but it lists none")
    recordings = []
    for name in sorted(names):
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"Expected {trials} to list names of files in its folder, but got {name[:80]!r}")
        recording = Recording(folder / name, _group(name))
        for file in recording.files:
            if not file.is_file():
                raise FileNotFoundError(f"Expected {file}, because {trials} lists {name}, but it is missing")
        recordings.append(recording)
    return recordings


def _group(name: str) -> str:
    subject = re.match(r"user\d+", name)
    return subject.group() if subject else name


def _label(path: Path, text: str) -> int:
    if not text.isdecimal() or int(text) >= CLASSES:
        raise ValueError(f"Expected {path} to be named after its class, 0 to {CLASSES - 1}, but got {text!r}")
    return int(text)


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read columns x, y, p and t in ms, of any integer or float type."""
    with reading(path, "an array of events"):
        events = np.load(path, allow_pickle=False)
        if not isinstance(events, np.ndarray):
            raise ValueError("it is an archive of arrays")
    if events.ndim != 2 or events.shape[1] != 4 or events.dtype.kind not in "iuf":
        raise ValueError(
            f"Expected {path} to hold numbers of shape (N, 4), columns x, y, p and t, but got {events.dtype} of shape "
            f"{events.shape}"
        )
    if not np.isfinite(events).all() or (events[:, :3] % 1 != 0).any():
        raise ValueError(f"Expected {path} to hold integers x, y and p and finite times, but got others")
    x, y, p = events[:, :3].T.astype(np.int64)
    return x, y, p, np.rint(events[:, 3].astype(np.float64) * 1000).astype(np.int64)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read arrays x, y, p and t in us."""
    x, y, p, t = read_npz(path, tuple("xypt"))
    if any(array.dtype.kind not in "biu" for array in (x, y, p, t)) or not x.shape == y.shape == p.shape == t.shape == (
        x.size,
    ):
        raise ValueError(
            f"Expected {path} to hold integer arrays x, y, p and t of the same length, but got "
            f"{', '.join(f'{array.dtype} of shape {array.shape}' for array in (x, y, p, t))}"
        )
    return x, y, p, t.astype(np.int64)


def _read_labels(path: Path) -> list[tuple[int, int, int]]:
    """Read the class from 0, start and end in us of each gesture; the file counts classes from 1."""
    with reading(path, "a table of gestures"), open(path, newline="", encoding="utf-8") as file:
        rows = [[field.strip() for field in row] for row in csv.reader(file)]
    if not rows or rows[0] != CSV_COLUMNS:
        raise ValueError(
            f"Expected {path} to start with {','.join(CSV_COLUMNS)}, but got {','.join(rows[0] if rows else [])!r}"
        )
    gestures = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        valid = len(row) == 3 and all(field.isdecimal() and len(field) <= LONGEST_NUMBER for field in row)
        label, start, stop = map(int, row) if valid else (0, 0, 0)
        if not (1 <= label <= CLASSES and start < stop <= start + LONGEST_SECONDS * 1_000_000):
            raise ValueError(
                f"Expected line {line} of {path} to hold a class from 1 to {CLASSES}, a start, and an end at most "
                f"{LONGEST_SECONDS} s later, in us, but got {','.join(row)!r}"
            )
        gestures.append((label - 1, start, stop))
    if not gestures:
        raise ValueError(f"Expected {path} to list at least one gesture, but got none")
    return gestures
