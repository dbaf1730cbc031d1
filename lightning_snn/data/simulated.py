"""Cached recordings of a simulated split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from lightning_snn.data.cache import cache_key, cache_root, cached_rows
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
