"""The processes that train together (``torch.distributed``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Return whether this process belongs to an initialized process group."""
    return dist.is_available() and dist.is_initialized()


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes; 1 if no process group is initialized.

    Args:
        group: the process group; None is the default group.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size(group) if is_distributed() else 1


def rank() -> int:
    """Return the number of this process, from 0; 0 if no process group is initialized."""
    return dist.get_rank() if is_distributed() else 0


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank; all processes have to call this.

    Args:
        value: any value that can be pickled.

    Example:
        >>> gather({"seed": 1})
        [{'seed': 1}]
    """
    values = [value] * world_size()
    if is_distributed():
        dist.all_gather_object(values, value)
    return values


def seed_noise_by_rank() -> None:
    """Seed the global generators of torch anew in all processes but the first, so that their noise differs.

    After `seed_everything` all processes have the same generators and would draw the same noise. The new seed depends
    on the rank and on the present state of the generator on the CPU, so a run stays reproducible. Generators of Python
    and NumPy, and generators that are passed to a function, stay as they are. A sampler of your own that has to draw
    the same in all processes needs a generator of its own.
    """
    if rank() > 0:
        drawn = int(torch.empty((), dtype=torch.int64).random_())
        torch.manual_seed(int(np.random.SeedSequence([drawn, rank()]).generate_state(1, np.uint64)[0] >> 1))
