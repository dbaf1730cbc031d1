"""Simulation of a split of recordings by several processes.

The processes are plain commands instead of `multiprocessing` workers, which import the user's main script again. That
fails without an ``if __name__ == "__main__"`` guard, and otherwise loads torch in every process.

``python -m lightning_snn.data.parallel MODULE CLASS SPLIT FIRST STRIDE`` writes the recordings FIRST, FIRST + STRIDE,
... of a split to stdout, one after the other; SPLIT holds the arguments of CLASS in MODULE as a JSON object.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_snn.subprocesses import child_environment

Counts = NDArray[np.uint8]


class SimulatedSplit(Protocol):
    """Recordings of one split; a dataclass whose fields are plain data.

    Attributes:
        content: what the recordings are, a word in the plural.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    content: ClassVar[str]

    @property
    def name(self) -> str:
        """Name of the split."""
        ...

    @property
    def recording_shape(self) -> tuple[int, ...]:
        """Shape of the counts of a recording."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each recording."""
        ...

    def __len__(self) -> int: ...

    def frames(self, index: int) -> Counts:
        """Simulate one recording."""
        ...


def simulate_split(split: SimulatedSplit, processes: int) -> Iterator[Counts]:
    """Simulate all recordings of a split in order, with a progress bar; the same for any number of processes.

    Args:
        split: the recordings.
        processes: number of processes that simulate.

    Yields:
        The counts of each recording, of shape ``split.recording_shape``, uint8.

    Raises:
        RuntimeError: if a process fails; its own traceback is printed before.
    """
    title = f"Simulating {split.name} {split.content}"
    with tqdm(total=len(split), desc=title, unit="recording", disable=None) as bar:
        source = map(split.frames, range(len(split))) if processes == 1 else _from_processes(split, processes)
        for frames in source:
            yield frames
            bar.update()


def _from_processes(split: SimulatedSplit, processes: int) -> Iterator[Counts]:
    plan = [type(split).__module__, type(split).__name__, json.dumps(dataclasses.asdict(split))]
    shape = split.recording_shape
    size = int(np.prod(shape))
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, *plan, str(first), str(processes)],
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


def main(arguments: list[str]) -> None:
    """Write the recordings of a split that the arguments of the command name."""
    # Ctrl-C reaches every process of the terminal; the parent ends this one, so that only one traceback is printed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, name, plan, first, stride = arguments
    split: SimulatedSplit = getattr(importlib.import_module(module), name)(**json.loads(plan))
    for index in range(int(first), len(split), int(stride)):
        sys.stdout.buffer.write(split.frames(index).tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
