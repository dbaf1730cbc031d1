"""Other processes: one that trains together with this one, scripts, and conditions to wait for.

Nothing here assumes that a machine is fast: `PATIENCE` only ends what hangs.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

PATIENCE = 900  # seconds
ROOT = Path(__file__).resolve().parents[2]


def on_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what ``work(rank)`` returns in this process, rank 0, and in another one, rank 1, of one process group.

    The other process serves all tests of a session, because its imports take longer than most of them, until one of
    them fails: then the next test gets a new one. It has the environment of this process.

    Args:
        work: a function of a module; what it returns must load with ``weights_only=True``.
        folder: an empty one.
    """
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    other = _OtherProcess.get()
    try:
        other.request(work, folder)
        try:
            _take_part(0, work, str(folder))
        except BaseException as error:
            # one of the two failures is only that the connection was closed by the other: show both
            raise error from other.failure(60)
        failure = other.failure()
        if failure is not None:
            raise failure
    except BaseException:
        stop_other_process()
        raise
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@contextmanager
def as_launched(rank: int) -> Iterator[None]:
    """Enter a context in which a Trainer with ``devices=2`` takes this process for the given one of two."""
    launched = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    launched |= {"MASTER_PORT": "0", "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    with mock.patch.dict(os.environ, launched):
        yield


def stop_other_process() -> None:
    """End the other process, if there is one."""
    if _OtherProcess.kept is not None:
        _OtherProcess.kept.process.kill()
        _OtherProcess.kept.process.join()
        _OtherProcess.kept = None


def run_python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with this checkout on its path, and return its output.

    Args:
        *arguments: of the interpreter, for example a script and its arguments.
        cwd: the folder.
        **environment: variables in addition to those of this process.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=with_checkout(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def with_checkout(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this process and these, with this checkout on Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **environment}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Return as soon as a condition holds, and fail if a process ends before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)


class _OtherProcess:
    kept: _OtherProcess | None = None

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(there,), daemon=True)
        self.process.start()
        there.close()

    @classmethod
    def get(cls) -> _OtherProcess:
        if cls.kept is None or not cls.kept.process.is_alive():
            cls.kept = cls()
        return cls.kept

    def request(self, work: Callable[[int], Any], folder: Path) -> None:
        """Return as soon as the process has imported what the work needs."""
        self.connection.send_bytes(ForkingPickler.dumps((dict(os.environ), bytes(ForkingPickler.dumps(work)))))
        self.connection.send(str(folder))
        failure = self.failure()
        if failure is not None:
            raise failure

    def failure(self, patience: float = PATIENCE) -> RuntimeError | None:
        """Return the next answer of the process: None if all is well."""
        ready = connection.wait([self.connection, self.process.sentinel], patience)
        if not ready:
            return RuntimeError("The other process does not answer")
        try:
            found = self.connection.recv()
        except EOFError:
            self.process.join()
            return RuntimeError(f"The other process ended with exit code {self.process.exitcode}")
        return None if found is None else RuntimeError(f"The other process failed:\n{found}")


def _serve(asked: connection.Connection) -> None:
    while True:
        try:
            environment, work = pickle.loads(asked.recv_bytes())
            folder = asked.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        try:
            function = pickle.loads(work)
            asked.send(None)
            _take_part(1, function, folder)
            asked.send(None)
        except Exception:
            asked.send(traceback.format_exc())


def _take_part(rank: int, work: Callable[[int], Any], folder: str) -> None:
    # a process counts its groups and names the next one by the count, which a group that never formed leaves behind:
    # then a new process would wait for a group of another name
    torch.distributed.distributed_c10d._world.group_count = 0
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )
    try:
        torch.save(work(rank), Path(folder) / f"rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
