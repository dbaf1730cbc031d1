"""DVS128 Gesture: eleven hand and arm gestures of 29 people, recorded by an event camera (Amir et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_between, check_fraction, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows, file_signature
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.events import cut_by_duration
from lightning_snn.data.frames import check_divides, frame_events
from lightning_snn.data.gesture_files import LONGEST_SECONDS, SENSOR_SIZE, Recording, find_recordings, read_gestures
from lightning_snn.data.simulator import CLASS_NAMES, DIRECTION_PAIRS, MIRRORED_CLASSES
from lightning_snn.data.splits import split_by_group


class DVSGesture(FrameDataModule):
    """DVS128 Gesture, read in place from any of its three layouts and framed once into a cache.

    Each gesture was recorded for about six seconds. It is cut from its start into clips of ``clip_duration`` that do
    not overlap; each clip is a sample, and a remainder shorter than a clip is dropped. A gesture shorter than a clip
    gives one clip that ends without events. 16 frames in 1.5 s last 94 ms each, short enough to show the direction in
    which an arm circles.

    The set comes divided by subject into training and test. The validation set takes whole subjects of the training
    part (whole recordings if their names contain no subject). Frames are event counts saturated at 255.

    Args:
        root: the folder of the set; see :func:`~lightning_snn.data.gesture_files.find_recordings` for the layouts.
        time_steps: frames per sample, T, of equal duration.
        size: rows and columns of a frame: 128 or a divisor of it.
        clip_duration: seconds per sample; None makes each whole gesture one sample, whatever its length.
        val_fraction: share of the training subjects in the validation set.
        max_shift: training clips are shifted at random by up to this many pixels, from 0 to ``size``.
        mirror: mirror training clips left to right with probability 1/2, and exchange the classes of right and left as
            in :class:`~lightning_snn.data.Gestures`.
        cache_dir: folder of the cached frames; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: arguments of :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the
            validation split.

    Raises:
        ValueError: if an argument is out of range.

    ``setup`` raises a FileNotFoundError if a file is missing and a ValueError if one is damaged; the message names it.
    Nothing is downloaded.

    Example:
        >>> data = DVSGesture("data/DVSGesture", time_steps=20, size=64, batch_size=16)
        >>> data.frame_shape, data.num_classes
        ((2, 64, 64), 11)
    """

    num_classes = 11
    class_names = CLASS_NAMES
    pairs = DIRECTION_PAIRS
    mirrored_classes = MIRRORED_CLASSES
    citation = """@inproceedings{amir2017low,
  title = {A Low Power, Fully Event-Based Gesture Recognition System},
  author = {Amir, Arnon and Taba, Brian and Berg, David and Melano, Timothy and McKinstry, Jeffrey and Di Nolfo, Carmelo
    and Nayak, Tapan and Andreopoulos, Alexander and Garreau, Guillaume and Mendoza, Marcela and Kusnitz, Jeff and
    Debole, Michael and Esser, Steve and Delbruck, Tobi and Flickner, Myron and Modha, Dharmendra},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {7243--7252},
  year = {2017}
}"""

    def __init__(
        self,
        root: str,
        *,
        time_steps: int = 16,
        size: int = 32,
        clip_duration: float | None = 1.5,
        val_fraction: float = 0.15,
        max_shift: int = 2,
        mirror: bool | Sequence[int] = True,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(max_shift=max_shift, mirror=mirror, **loader_options)
        check_integer("time_steps", time_steps)
        check_divides("size", size, SENSOR_SIZE[0], "pixels of the sensor")
        if clip_duration is not None:
            check_between("clip_duration", clip_duration, 0.001, LONGEST_SECONDS)
        check_fraction("val_fraction", val_fraction)
        check_between("max_shift", max_shift, 0, size)
        self.root = root
        self.time_steps = time_steps
        self.size = size
        self.frame_shape = (2, size, size)
        self.clip_duration = clip_duration
        self.val_fraction = val_fraction
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Frame the recordings into the cache, if it does not hold them yet."""
        folder, recordings = find_recordings(Path(self.root).expanduser())
        for split in recordings:
            self._framed(folder, split, recordings[split])

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the clips of the training, validation and test subjects."""
        folder, recordings = find_recordings(Path(self.root).expanduser())
        train, recording_of_clip = self._framed(folder, "train", recordings["train"])
        test, _ = self._framed(folder, "test", recordings["test"])
        groups = np.array([recording.group for recording in recordings["train"]])[recording_of_clip]
        kept, held_out = split_by_group(groups, self.val_fraction, self.seed)
        return Subset(train, kept.tolist()), Subset(train, held_out.tolist()), test

    def _framed(self, folder: Path, split: str, recordings: list[Recording]) -> tuple[FrameDataset, np.ndarray]:
        """Return the clips of a split, and the index of the recording of each clip."""
        parameters = {
            "format": 1,
            "time_steps": self.time_steps,
            "size": self.size,
            "clip_duration": self.clip_duration,
            "sources": file_signature([file for recording in recordings for file in recording.files], folder),
        }
        arrays = cached_rows(
            cache_root(self.cache_dir) / "dvs_gesture" / f"{split}-{cache_key(parameters)}",
            lambda: self._clips(tqdm(recordings, f"Framing DVS128 Gesture, {split}", unit="file", disable=None)),
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
                stop = max(gesture.stop, gesture.start + duration)
                for clip in cut_by_duration(gesture.events, duration, start=gesture.start, stop=stop):
                    try:
                        frames = frame_events(
                            *clip,
                            time_steps=self.time_steps,
                            sensor_size=SENSOR_SIZE,
                            size=(self.size, self.size),
                            start=0,
                            duration=duration,
                        )
                    except ValueError as error:
                        raise ValueError(f"Expected {recording.path} to hold DVS128 events: {error}") from error
                    yield {"frames": frames, "labels": np.int64(gesture.label), "recordings": np.int64(index)}
