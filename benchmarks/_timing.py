"""Interleaved timing: every contender once per round, the median over rounds, so that a drifting machine hits all
alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Milliseconds of every call, by contender; `warmup` rounds come first and do not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(warmup + rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if index >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratio(times: Mapping[str, list[float]], peer: str, ours: str) -> float:
    """Median over rounds of peer / ours: how many times faster ours is."""
    return statistics.median(a / b for a, b in zip(times[peer], times[ours], strict=True))


def table(rows: list[list[str]]) -> str:
    """Rows as aligned columns, the first row as heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
