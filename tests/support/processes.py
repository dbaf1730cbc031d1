"""Two processes that talk by gloo, for what must hold over several."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

_SECONDS = 60


def on_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` gives in this process, rank 0, and in another one, rank 1, within one process group.

    The other process is the same for all tests of a session, for its imports take longer than most of them; it has the
    environment of this one.

    Args:
        work: a function of a module; what it gives must load with ``weights_only=True``.
        folder: an empty one.
    """
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    other = _other_process()
    other.send((work, str(folder), dict(os.environ)))
    try:
        _take_part(0, work, str(folder))
    finally:
        failure = other.recv() if other.poll(2 * _SECONDS) else "the other process does not answer"
    if failure is not None:
        raise RuntimeError(f"The other process failed:\n{failure}")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@cache
def _other_process() -> Connection:
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there,), daemon=True).start()
    return here


def _serve(connection: Connection) -> None:
    while True:
        try:
            work, folder, environment = connection.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        try:
            _take_part(1, work, folder)
            connection.send(None)
        except Exception:
            connection.send(traceback.format_exc())


def _take_part(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_SECONDS),
    )
    try:
        torch.save(work(rank), Path(folder) / f"rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()
