"""What benchmarks share: interleaved timing, so that a drifting machine hits every contender alike, and the table."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_snn.cpu import keep_freed_memory


def parser(description: str | None, threads: Sequence[int]) -> argparse.ArgumentParser:
    """The options of every benchmark, and memory for all contenders as recipes have it."""
    keep_freed_memory()
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", help="write the results to this file")
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--threads", type=int, nargs="+", default=list(threads))
    return made


def compare(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Medians over interleaved rounds, after `warmup` rounds that do not count.

    Args:
        contenders: what is timed, by name; one is called "ours".
        rounds: how often each is called.
        warmup: calls before them.
        clock: in seconds; `time.process_time` counts what the process itself works, whatever else the machine does.

    Returns:
        `ms`: milliseconds of a call by contender; `ratio`: the time of each contender over ours, taken round by round.
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
    """Print the rows as aligned columns, and write the results to `path` if there is one."""
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=2)
