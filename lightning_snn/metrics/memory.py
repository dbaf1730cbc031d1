"""Memory of a call, counted by tensor and exactly reproducible, on any device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(call: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Return the number of bytes that a forward pass saves for its backward pass, each storage counted once.

    Args:
        call: the forward pass. Its result is kept until the count is complete.
        parameters: tensors to leave out of the count.

    Example:
        >>> w = torch.ones(5, requires_grad=True)
        >>> saved_bytes(lambda: (w * torch.ones(5)).exp(), [w])  # the other factor, and the result of exp
        40
    """
    excluded = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    total = sum(saved.values())
    del result
    return total


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the peak memory that a call allocates, in bytes, beyond that allocated before it.

    Args:
        call: the call. On a CPU it is profiled: every tensor counts while it is alive. On a GPU the allocator counts.
        device: device whose memory is counted, a CPU or a GPU of CUDA.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000))  # two terms and their sum
        12000
    """
    device = torch.device(device)
    if device.type != "cuda":
        return peak_and_kept_bytes(call)[0]
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_and_kept_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """Return the peak memory that a call allocates on the CPU, and the memory still allocated at its end.

    No garbage is collected during the call, so reference cycles of the call itself count in full.

    Args:
        call: the call. Its result counts as allocated at its end.

    Example:
        >>> peak_and_kept_bytes(lambda: torch.zeros(1000) + torch.zeros(1000))
        (12000, 4000)
    """
    with _without_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak, allocated


@contextmanager
def _without_collection() -> Iterator[None]:
    """Suspend the collection of garbage.

    The profiler counts what is freed even where an earlier profile saw it allocated, so garbage of an earlier
    measurement that happened to be collected in this one would be subtracted from it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
