"""Parts of the Triton kernels of the scans: indices of neurons, parameters, charge, reset and surrogate derivatives.

A program computes a block of neurons. The neurons of a step lie one after the other, in an order that is the same in
all arguments. All arithmetic is in float32, in the order of operations of the loops. Launched without fused
multiply-adds, a kernel gives the same spikes and states as its loop.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def neurons_of(block: tl.tensor, BLOCK: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Return the indices of the neurons of a block; 64 bits are needed from 2^31 neurons on."""
    if WIDE:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def parameter(
    table: tl.tensor, number: tl.tensor, stride: tl.tensor, count: tl.tensor, index: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Return a decay or a threshold: a number, or the entries of a table for the channels of the neurons."""
    if table is None:
        value = number
    else:
        value = tl.load(table + (index // stride) % count, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def row(pointer: tl.tensor, index: tl.tensor, inside: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the values of the neurons in float32; None is 0."""
    if pointer is None:
        values = tl.zeros([BLOCK], tl.float32)
    else:
        values = tl.load(pointer + index, mask=inside, other=0).to(tl.float32)
    return values


@triton.jit
def at_threshold(carried: tl.tensor, level: tl.tensor) -> tl.tensor:
    """Return the membrane potentials before the first step, which are NaN where the threshold is."""
    return tl.where(level != level, level, carried)


@triton.jit
def charged(
    carried: tl.tensor,
    decay: tl.tensor,
    current: tl.tensor,
    level: tl.tensor,
    fired: tl.tensor,
    PENDING: tl.constexpr,
) -> tl.tensor:
    """Return the membrane potentials of a step before its spikes; see `functional.dynamics.lif_charge`."""
    membrane = carried * decay
    membrane = membrane + current
    if PENDING:
        membrane = membrane - level * fired
    return membrane


@triton.jit
def after_spikes(
    membrane: tl.tensor, fired: tl.tensor, level: tl.tensor, PENDING: tl.constexpr, ZERO: tl.constexpr
) -> tl.tensor:
    """Return the membrane potentials after the spikes of a step; see `functional.dynamics.lif_after_spikes`."""
    if PENDING:
        carried = membrane
    elif ZERO:
        carried = membrane - membrane * fired
    else:
        carried = membrane - level * fired
    return carried


@triton.jit
def marked(fired: tl.tensor, source: tl.tensor) -> tl.tensor:
    """Return the spikes, and NaN where the compared value is NaN; see `functional.surrogate.propagate_nan`."""
    return tl.where(source != source, source, fired)


@triton.jit
def bump(distance: tl.tensor, width: tl.tensor, SURROGATE: tl.constexpr) -> tl.tensor:
    """Return the surrogate derivative; see `functional.surrogate`."""
    z = distance / width
    if SURROGATE == "arctangent":
        slope = 1.0 / (z * z + 1.0)
    elif SURROGATE == "fast_sigmoid":
        root = tl.abs(z) + 1.0
        slope = 1.0 / (root * root)
    elif SURROGATE == "sigmoid":
        tail = tl.exp(-tl.abs(z))
        p = tail / (tail + 1.0)
        slope = 4.0 * (p - p * p)
    else:
        tl.static_assert(SURROGATE == "triangular")
        height = 1.0 - tl.abs(z)
        slope = tl.where(height < 0, 0.0, height)  # NaN stays NaN
    return slope
