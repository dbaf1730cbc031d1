"""Blocks of steps that fit into the cache of a CPU core, and operations on them in place."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics

# size of one buffer of the backward pass: two buffers and their inputs fit into the cache of a core
CACHED_ELEMENTS = 1 << 18
# steps that a scan without a gradient holds at a time
FEW_STEPS = 8


def steps_per_block(sequence: Tensor, most: int | None = None) -> int:
    """Return how many steps of a sequence `[T, B, ...]`, at most `most`, fit into a buffer of `CACHED_ELEMENTS`."""
    fitting = max(1, CACHED_ELEMENTS // max(1, sequence[0].numel()))
    return min(len(sequence), fitting if most is None else min(most, fitting))


def empty_state(x: Tensor) -> Tensor:
    """Return an empty tensor for a state of neurons that receive `x` `[T, B, ...]`, in float32 or wider."""
    return torch.empty_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))


def holds_input(saved: Tensor) -> bool:
    """Return whether a scan saved its input in 16 bits instead of membrane potentials in float32 or wider."""
    return saved.dtype.itemsize < 4


def spread_over(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Expand a tensor over the neurons of a step, because broadcasting it at every step is much slower."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return torch.empty_like(like).copy_(value)


def minus_scaled(a: Tensor, b: Tensor, scale: float | Tensor, out: Tensor) -> Tensor:
    """Compute ``out = a - scale * b`` without a temporary tensor."""
    if isinstance(scale, Tensor):
        return torch.addcmul(a, b, scale, value=-1, out=out)
    return torch.sub(a, b, alpha=scale, out=out)


def reset(membrane: Tensor, spike: Tensor, threshold: float | Tensor, dynamics: Dynamics, out: Tensor) -> Tensor:
    """Compute the membrane potential after its reset, without a temporary tensor; `out` may be `membrane` itself."""
    if dynamics.reset == "subtract":
        return minus_scaled(membrane, spike, threshold, out=out)
    return torch.addcmul(membrane, membrane, spike, value=-1, out=out)
