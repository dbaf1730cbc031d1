"""Base of the data modules of simulated recordings, which are generated once, in parallel, and cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from lightning_snn.checks import check_integer
from lightning_snn.cpu import usable_processors
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.cache import cache_key, cache_root, cached_rows
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.parallel import SimulatedSplit, simulate_split


def cached_split(
    data: str, version: int, split: SimulatedSplit, processes: int, cache_dir: str | None = None
) -> np.ndarray:
    """Return the recordings of a split, mapped read-only, and simulate them first if the cache does not hold them.

    The cache is the folder ``DATA-SPLIT-KEY`` of :func:`~lightning_snn.data.cache.cache_root`, where the key is of
    ``version`` and all fields of the split.

    Args:
        data: name of the data set.
        version: number that changes whenever the same split would give other recordings.
        split: the recordings.
        processes: processes that simulate.
        cache_dir: folder of the caches; None takes the default one.

    Returns:
        Counts, uint8, shape ``(N, *split.recording_shape)``.

    Raises:
        RuntimeError: if a process that simulates fails.
        OSError: if the disk is full or may not be written to; the message names it.
    """
    key = cache_key({"simulator": version, **dataclasses.asdict(split)})

    def rows() -> Iterator[dict[str, np.ndarray]]:
        return ({"frames": frames} for frames in simulate_split(split, processes))

    path = cache_root(cache_dir) / f"{data}-{split.name}-{key}"
    return cached_rows(path, rows, {"frames": ((len(split), *split.recording_shape), np.uint8)})["frames"]


class SimulatedDataModule(FrameDataModule):
    """Base of the data modules of simulated recordings: `Gestures` and `SpokenDigits`.

    A subclass sets the attributes below.

    Args:
        processes: processes that simulate; None takes one per processor available to this process.
        cache_dir: folder of the cached recordings; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: the arguments of :class:`~lightning_snn.data.FrameDataModule`.

    Raises:
        ValueError: if an argument is out of range.
    """

    cache_name: ClassVar[str]
    """name of the data set, with which the names of its caches begin"""
    simulator_version: ClassVar[int]
    """number that changes whenever the same split would give other recordings"""
    splits: Sequence[SimulatedSplit]
    """recordings for training, validation and test"""

    def __init__(self, *, processes: int | None = None, cache_dir: str | None = None, **loader_options: Any) -> None:
        super().__init__(**loader_options)
        if processes is not None:
            check_integer("processes", processes)
        self.processes = processes or usable_processors()
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Simulate the splits that the cache does not hold yet."""
        for split in self.splits:
            self._recordings(split)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return training, validation and test recordings, each of other people."""
        train, val, test = (
            FrameDataset(self.as_frames(np.array(self._recordings(split))), split.labels) for split in self.splits
        )
        return train, val, test

    def as_frames(self, counts: np.ndarray) -> np.ndarray:
        """Return the frames ``(N, T, C, H, W)`` of counts ``(N, *split.recording_shape)``, of which they may be a view.

        A subclass whose recordings have no rows and columns overrides this.
        """
        return counts

    def _recordings(self, split: SimulatedSplit) -> np.ndarray:
        return cached_split(self.cache_name, self.simulator_version, split, self.processes, self.cache_dir)
