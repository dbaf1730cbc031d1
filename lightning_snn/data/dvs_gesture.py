"""DVS128 Gesture: eleven hand and arm gestures of 29 people before an event camera (Amir et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_between, check_fraction, check_integer
from lightning_snn.data.base import FrameDataModule, FrameDataset, split_by_group
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.frames import frame_events
from lightning_snn.data.gesture_files import LONGEST_SECONDS, Recording, find_recordings, read_gestures
from lightning_snn.data.simulator.body import CLASS_NAMES

SENSOR_SIZE = (128, 128)


class DVSGesture(FrameDataModule):
    """DVS128 Gesture, read in place from any of its three layouts and framed once into a cache.

    A gesture was recorded for some six seconds. It is cut, from its start on, into clips of ``clip_duration`` that do
    not overlap and of which each is a sample; what is left at its end and fills no clip is left out. A gesture shorter
    than a clip gives one clip that ends without events. Of 16 frames in 1.5 s each lasts 94 ms, short enough to show
    the direction in which an arm circles.

    The set comes divided by subject into training and test; the validation set takes whole subjects of the training
    part (whole recordings where their names tell no subject). Frames are counts saturated at 255.

    Args:
        root: the folder of the set; see :func:`~lightning_snn.data.gesture_files.find_recordings` for the layouts.
        time_steps: frames a sample, T, equal in time.
        size: rows and columns of a frame: 128 or a divisor of it.
        clip_duration: seconds a sample; None takes the whole gesture, whatever its length, as one sample.
        val_fraction: share of the training subjects that the validation set takes.
        max_count: counts are clipped at it and divided by it; None leaves them as they are.
        batch_size: samples a batch.
        num_workers: worker processes of each loader.
        seed: of the validation split and the order of the training samples.
        fixed_batches: make training batches of the same samples in every epoch, in another order.
        cache_dir: folder of the cached frames; None takes :func:`~lightning_snn.data.cache.cache_root`'s.

    Raises:
        ValueError: if an argument is out of range.

    ``setup`` raises a FileNotFoundError for what is missing and a ValueError for a damaged file, by name. Nothing is
    downloaded.
    """

    num_classes = 11
    class_names = CLASS_NAMES
    pairs = ((3, 4), (5, 6))

    def __init__(
        self,
        root: str,
        *,
        time_steps: int = 16,
        size: int = 32,
        clip_duration: float | None = 1.5,
        val_fraction: float = 0.15,
        max_count: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        fixed_batches: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            max_count=max_count,
            fixed_batches=fixed_batches,
        )
        check_integer("time_steps", time_steps)
        check_integer("size", size)
        if SENSOR_SIZE[0] % size:
            raise ValueError(
                f"Expected argument `size` to divide the sensor's 128 pixels without a rest, but got {size}"
            )
        if clip_duration is not None:
            check_between("clip_duration", clip_duration, 0.001, LONGEST_SECONDS)
        check_fraction("val_fraction", val_fraction)
        self.root = root
        self.time_steps = time_steps
        self.frame_shape = (2, size, size)
        self.clip_duration = clip_duration
        self.val_fraction = val_fraction
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Frame the recordings into the cache unless they are there."""
        folder, recordings = find_recordings(Path(self.root).expanduser())
        for split in recordings:
            self._framed(folder, split, recordings[split])

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        """Clips of the training, validation and test subjects."""
        folder, recordings = find_recordings(Path(self.root).expanduser())
        train, recording_of_clip = self._framed(folder, "train", recordings["train"])
        test, _ = self._framed(folder, "test", recordings["test"])
        groups = np.array([recording.group for recording in recordings["train"]])[recording_of_clip]
        kept, held_out = split_by_group(groups, self.val_fraction, self.seed)
        return Subset(train, kept.tolist()), Subset(train, held_out.tolist()), test

    def _framed(self, folder: Path, split: str, recordings: list[Recording]) -> tuple[FrameDataset, np.ndarray]:
        """The clips of a split, and for each the index of its recording."""
        parameters = {
            "format": 1,
            "time_steps": self.time_steps,
            "size": self.frame_shape[1],
            "clip_duration": self.clip_duration,
            "sources": file_signature([file for recording in recordings for file in recording.files], folder),
        }
        arrays = cached_rows(
            cache_root(self.cache_dir) / "dvs_gesture" / f"{split}-{cache_key(parameters)}",
            lambda: self._clips(tqdm(recordings, f"Framing DVS128 Gesture, {split}", unit="file")),
            {
                "frames": ((None, self.time_steps, *self.frame_shape), np.uint8),
                "labels": ((None,), np.int64),
                "recordings": ((None,), np.int64),
            },
        )
        return FrameDataset(arrays["frames"], arrays["labels"]), arrays["recordings"]

    def _clips(self, recordings: Iterable[Recording]) -> Iterator[dict[str, Any]]:
        for index, recording in enumerate(recordings):
            for gesture in read_gestures(recording):
                duration = gesture.stop - gesture.start
                if self.clip_duration is not None:
                    duration = round(self.clip_duration * 1_000_000)
                for start in range(gesture.start, max(gesture.stop - duration, gesture.start) + 1, duration):
                    inside = (gesture.t >= start) & (gesture.t < start + duration)
                    try:
                        frames = frame_events(
                            gesture.x[inside],
                            gesture.y[inside],
                            gesture.p[inside],
                            gesture.t[inside],
                            time_steps=self.time_steps,
                            sensor_size=SENSOR_SIZE,
                            size=self.frame_shape[1:],
                            start=start,
                            duration=duration,
                        )
                    except ValueError as error:
                        raise ValueError(f"Expected {recording.path} to hold DVS128 events: {error}") from error
                    yield {"frames": frames, "labels": np.int64(gesture.label), "recordings": np.int64(index)}
