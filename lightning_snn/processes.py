"""The processes that train together (``torch.distributed``)."""

from __future__ import annotations

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
