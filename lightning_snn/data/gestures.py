"""Simulated event-camera gestures as a data module: generated once, in parallel, and cached."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lightning_snn.checks import check_between, check_choice, check_integer
from lightning_snn.data.augmentation import shift
from lightning_snn.data.base import FrameDataModule, FrameDataset
from lightning_snn.data.cache import cache_key, cache_root, cached_rows
from lightning_snn.data.simulator import CLASS_NAMES, DIRECTION_PAIRS, SIMULATOR_VERSION, Split, simulate_split


class Gestures(FrameDataModule):
    """Simulated gestures of people before an event camera: 11 classes, named as in DVS128 Gesture.

    The recordings are *simulated*: accuracies are not comparable with published ones on DVS128 Gesture. Every person of
    a split makes every gesture `repetitions` times; nobody is in two splits, and half of the test recordings are under
    a light that training never saw. Clockwise and counter-clockwise differ in nothing but the direction of motion
    (`pairs`).

    Frames are generated once, on all processors, and cached under a key of everything that shapes them; the result does
    not depend on the number of processes.

    Args:
        size: height and width of the sensor in pixels, 32 or 64.
        time_steps: frames a recording, T.
        duration: length of a recording in seconds.
        train_subjects, val_subjects, test_subjects: people in each split.
        repetitions: recordings of each person and gesture in the training split; validation and test have two.
        max_shift: training recordings are shifted at random by up to so many pixels, `size` at most.
        batch_size: samples a batch.
        num_workers: worker processes of each loader; the frames lie in memory, so that 0 is fastest.
        processes: processes that simulate; None takes one for each processor that this one may use.
        seed: of people, recordings and the order of the training samples.
        max_count: counts are clipped at it and divided by it; None leaves them as they are.
        fixed_batches: make training batches of the same samples in every epoch, in another order.
        cache_dir: folder of the cached frames; None takes :func:`~lightning_snn.data.cache.cache_root`'s.

    Raises:
        ValueError: if an argument is out of range. ``setup`` raises one, naming the file, for a damaged cache.
        RuntimeError: from ``prepare_data`` and ``setup``, if a process that simulates fails.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    pairs = DIRECTION_PAIRS

    def __init__(
        self,
        *,
        size: int = 32,
        time_steps: int = 16,
        duration: float = 1.6,
        train_subjects: int = 128,
        val_subjects: int = 12,
        test_subjects: int = 16,
        repetitions: int = 2,
        max_shift: int = 2,
        batch_size: int = 32,
        num_workers: int = 0,
        processes: int | None = None,
        seed: int = 0,
        max_count: int | None = None,
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
        check_choice("size", size, (32, 64))
        for name, value in (
            ("train_subjects", train_subjects),
            ("val_subjects", val_subjects),
            ("test_subjects", test_subjects),
            ("repetitions", repetitions),
        ):
            check_integer(name, value)
        check_integer("max_shift", max_shift, minimum=0)
        check_between("max_shift", max_shift, 0, size)
        if processes is not None:
            check_integer("processes", processes)
        shape: dict[str, Any] = {"seed": seed, "size": size, "time_steps": time_steps, "duration": duration}
        self.splits = (
            Split("train", train_subjects, repetitions, **shape),
            Split("val", val_subjects, 2, **shape),
            Split("test", test_subjects, 2, **shape),
        )
        self.frame_shape = (2, size, size)
        self.time_steps = time_steps
        self.max_shift = max_shift
        self.processes = processes or _usable_processors()
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Simulate what the cache does not hold yet."""
        for split in self.splits:
            self._frames(split)

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        """Training, validation and test recordings, each of its own people."""
        train, val, test = (FrameDataset(np.array(self._frames(split)), split.labels) for split in self.splits)
        return train, val, test

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each recording shifted as a whole; never mirrored, since that would turn clockwise into counter-clockwise."""
        return (shift(x, self.max_shift), y) if self.max_shift else (x, y)

    def _frames(self, split: Split) -> np.ndarray:
        key = cache_key({"simulator": SIMULATOR_VERSION, **dataclasses.asdict(split)})
        path = cache_root(self.cache_dir) / f"gestures-{split.name}-{key}"
        shape = (len(split), split.time_steps, 2, split.size, split.size)

        def rows() -> Iterator[dict[str, np.ndarray]]:
            return ({"frames": frames} for frames in simulate_split(split, self.processes))

        return cached_rows(path, rows, {"frames": (shape, np.uint8)})["frames"]


def _usable_processors() -> int:
    # A batch system often grants fewer processors than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
