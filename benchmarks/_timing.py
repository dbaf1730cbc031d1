"""Interleaved timing, so that a change in machine speed affects all contenders alike, and tables of results."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_snn.cpu import keep_freed_memory


def parser(description: str | None, threads: Sequence[int]) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark, and use the memory settings of recipes."""
    keep_freed_memory()
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", help="write the results to this file")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--threads", type=int, nargs="+", default=list(threads))
    return arguments


def compare(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Return median times over interleaved rounds, after `warmup` rounds that are discarded.

    Args:
        contenders: functions to time, by name; one is named "ours".
        rounds: number of calls of each function.
        warmup: number of calls before the timed ones.
        clock: clock in seconds. `time.process_time` counts the work of this process only, whatever else the machine
            does.

    Returns:
        `ms`: milliseconds per call by contender; `ratio`: time of each contender over ours, computed round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(warmup + rounds):
        for name, call in contenders.items():
            start = clock()
            call()
            if index >= warmup:
                times[name].append(1e3 * (clock() - start))
    ours = times["ours"]
    return {
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {
            name: statistics.median(theirs / our for theirs, our in zip(values, ours, strict=True))
            for name, values in times.items()
        },
    }


def show(heading: list[str], rows: list[list[str]], results: list[dict[str, Any]], path: str | None) -> None:
    """Print the rows as aligned columns, and write the results to `path` if it is not None."""
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=2)
