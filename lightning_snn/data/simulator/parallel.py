"""Simulation of a split by several processes.

The processes are plain commands instead of `multiprocessing` workers, which import the user's main script again. That
fails without an ``if __name__ == "__main__"`` guard, and otherwise loads torch in every process.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from lightning_snn.subprocesses import child_environment

from .recording import Split
from .sensor import Counts


def simulate_split(split: Split, processes: int) -> Iterator[Counts]:
    """Simulate all recordings of a split in order, with a progress bar; the same for any number of processes.

    Args:
        split: the recordings.
        processes: number of processes that simulate.

    Yields:
        The frames of each recording, shape ``(time_steps, 2, size, size)``, uint8.

    Raises:
        RuntimeError: if a process fails; its own traceback is printed before.
    """
    with tqdm(total=len(split), desc=f"Simulating {split.name} gestures", unit="recording", disable=None) as bar:
        source = map(split.frames, range(len(split))) if processes == 1 else _from_processes(split, processes)
        for frames in source:
            yield frames
            bar.update()


def _from_processes(split: Split, processes: int) -> Iterator[Counts]:
    plan = json.dumps(dataclasses.asdict(split))
    shape = split.time_steps, 2, split.size, split.size
    size = int(np.prod(shape))
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __package__, plan, str(first), str(processes)],
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        for first in range(min(processes, len(split)))
    ]
    try:
        for index in range(len(split)):
            worker = workers[index % len(workers)]
            assert worker.stdout is not None
            data = worker.stdout.read(size)
            if len(data) < size:
                raise RuntimeError(
                    f"Expected the process that simulates recording {index} to succeed, but got exit code "
                    f"{worker.wait()}"
                )
            yield np.frombuffer(data, np.uint8).reshape(shape)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
