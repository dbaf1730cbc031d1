"""The processes that train together (``torch.distributed``), and what they collect from each other."""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

T = TypeVar("T")
_warned: WeakSet[DistributedSampler[Any]] = WeakSet()


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


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return a value of each process, in the order of their ranks. All processes have to call this function.

    Args:
        value: what `pickle` takes, such as numbers and names.
        group: the process group; None is the default group.

    Example:
        >>> gather({"layers": 3})
        [{'layers': 3}]
    """
    if world_size(group) == 1:
        return [value]
    every: list[Any] = [None] * world_size(group)
    dist.all_gather_object(every, value, group)
    return every


def gather_parts(rows: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Return the rows of each process, in the order of their ranks. All processes have to call this function.

    It is a `dist_sync_fn` for metrics of torchmetrics, whose own function fails if a process without rows does not know
    their shape and dtype.

    Args:
        rows: any number of rows `[N, ...]`, which may differ among processes, on the device of the process group. Shape
            and dtype of a row are those of the processes that have some.
        group: the process group; None is the default group.

    Raises:
        ValueError: in all processes, if shape or dtype of a row differ.

    Example:
        >>> gather_parts(torch.tensor([[1, 2]]))
        [tensor([[1, 2]])]
    """
    described = gather((len(rows), (tuple(rows.shape[1:]), rows.dtype)), group)
    kinds = {kind for count, kind in described if count}
    if len(described) == 1 or not kinds:
        return [rows] * len(described)
    if len(kinds) > 1:
        found = " and ".join(f"{dtype} of shape {shape}" for shape, dtype in sorted(kinds, key=str))
        raise ValueError(f"Expected rows of one shape and dtype in all processes, but got {found}")
    ((shape, dtype),) = kinds
    longest = max(count for count, _ in described)
    padded = torch.zeros(longest, *shape, dtype=dtype, device=rows.device)
    if len(rows):
        padded[: len(rows)] = rows.detach()
    every = [torch.empty_like(padded) for _ in described]
    dist.all_gather(every, padded, group)
    return [part[:count] for part, (count, _) in zip(every, described, strict=True)]


def warn_of_repeated_samples(loaders: Any) -> None:
    """Warn once of loaders whose samples were repeated so that all processes have equally many: they count twice.

    Args:
        loaders: loaders of a validation or test, alone or in containers, as a Trainer holds them.
    """
    for loader in tree_leaves(loaders):
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler) or sampler in _warned:
            continue
        samples = len(sampler.dataset)  # type: ignore[arg-type]
        repeated = sampler.total_size - samples
        if repeated > 0:
            _warned.add(sampler)
            rank_zero_warn(
                f"{repeated} of {samples} samples count twice in the metrics, because {sampler.num_replicas} processes "
                "get equally many from the sampler that Lightning inserts. Evaluate on one device, or use a data "
                "module of lightning_snn, which divides the samples without repeating any"
            )


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
