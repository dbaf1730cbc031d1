"""What benchmarks share: memory of a call, counted by tensor and exactly repeatable, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(call: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass, every storage counted once, parameters apart.

    Args:
        call: the forward pass; what it returns is held until all is counted.
        parameters: tensors that are not counted.
    """
    apart = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = call()
    total = sum(saved.values())
    del held
    return total


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call had allocated at once, beyond what was there before it; on the CPU."""
    return peak_and_kept_bytes(call)[0]


def peak_and_kept_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """The most memory that a call had allocated at once, and what it still has in the end, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = call()
    del held
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak, level
