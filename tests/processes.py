"""Two processes that talk by gloo, for what must hold over several."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch


def on_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What ``work(rank)`` gives in this process, rank 0, and in a new one, rank 1, within one process group.

    Args:
        work: a function of a module; what it gives must load with ``weights_only=True``.
        folder: an empty one.
    """
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    other = torch.multiprocessing.spawn(_take_part, args=(1, work, str(folder)), nprocs=1, join=False)
    _take_part(0, 0, work, str(folder))
    while not other.join():
        pass
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _take_part(child: int, rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(work(rank), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
