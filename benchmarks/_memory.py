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


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory that a call allocates on the CPU, in bytes, beyond that allocated before it."""
    return peak_and_kept_bytes(call)[0]


def peak_and_kept_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """Return the peak memory that a call allocates, and the memory still allocated at its end, with its result.

    Garbage is collected before the call and not during it, so reference cycles of the call itself count in full.
    """
    with _without_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak, allocated


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect garbage, then suspend collection.

    The profiler counts what is freed even where an earlier profile saw it allocated, so garbage of an earlier
    measurement that happened to be collected in this one would be subtracted from it.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
