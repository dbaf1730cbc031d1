"""Launch of the Triton kernel of the scan with forward-mode derivatives: one, whatever the number of steps."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.scans.rate_loop import (
    Trace,
    empty_spikes,
    shared_link,
    shared_tangent,
    tangent_is_shared,
)
from lightning_snn.functional.scans.triton_launch import (
    BLOCK,
    OPTIONS,
    Table,
    give_back,
    in_order_of,
    is_wide,
    on_device_of,
    table,
)
from lightning_snn.functional.scans.triton_rate_kernels import rate_scan


def rate_kernel(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    membrane: Tensor,
    spike_count: Tensor,
    along_input: Trace,
    along_beta: Trace | None,
    along_threshold: Trace | None,
    along_membrane: Trace | None,
    steps: int,
    rested: bool,
    dynamics: Dynamics,
    surrogate: str,
    width: float,
) -> Tensor:
    """Run the scan of `functional.eligibility.lif_rate`, which overwrites the buffers, and return the spikes.

    Args:
        x: input current of the next t steps, `[t, B, ...]`, in float32, bfloat16 or float16.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        membrane: membrane potential after its reset, or before it if the reset is pending, `[B, ...]`, dense.
        spike_count: sum of the spikes, `[B, ...]`.
        along_input: trace along a constant shift of the input current.
        along_beta: trace along the decay, or None.
        along_threshold: trace along the threshold, or None.
        along_membrane: trace along the membrane potential before the window, or None.
        steps: number of steps since the start of the window. At 0, counts and traces have no values yet.
        rested: whether the neurons are at rest. The membrane has no values then either.
        dynamics: reset, order, and whether the reset is detached.
        surrogate: name of the surrogate derivative.
        width: width of the surrogate derivative.
    """
    spikes = empty_spikes(x, membrane)
    if x.numel() == 0:
        return spikes
    current = in_order_of(membrane, x)
    decay, level = table(beta, membrane), table(threshold, membrane)
    neurons = membrane.numel()
    shared = along_input.tangent if tangent_is_shared(dynamics) else None
    buffers = [
        membrane,
        spike_count,
        # a tangent that neurons share is read by several programs, so they write one value each
        torch.empty_like(membrane) if shared is not None else along_input.tangent,
        along_input.total,
        *(along_beta or (None, None)),
        *(along_threshold or (None, None)),
        *(along_membrane or (None, None)),
    ]
    rows = [None if each is None else in_order_of(membrane, each) for each in buffers]
    if along_input.tangent is None:
        assert not isinstance(beta, Tensor)
        tangent = Table(None, shared_tangent(beta, steps), 1, 1)
    elif steps == 0:
        tangent = Table(None, 1.0, 1, 1)
    else:
        tangent = table(along_input.tangent, membrane)
    link = 1.0  # of the first step, or where it follows from the decay of all neurons
    if along_membrane is not None and along_membrane.tangent is None:
        assert not isinstance(beta, Tensor)
        link = shared_link(beta, steps)
    with on_device_of(x):
        rate_scan[(triton.cdiv(neurons, BLOCK),)](
            current,
            decay.values,
            level.values,
            tangent.values,
            spikes,
            *rows,
            decay.number,
            level.number,
            tangent.number,
            link,
            width,
            len(x),
            neurons,
            current.stride(0),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            tangent.stride,
            tangent.channels,
            SURROGATE=surrogate,
            PENDING=dynamics.pending_reset,
            ZERO=dynamics.reset == "zero",
            DETACHED=dynamics.detach_reset,
            RESTED=rested,
            STARTS=steps == 0,
            WIDE=is_wide(neurons),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    give_back(buffers, rows)
    if shared is not None:
        # of the first of the neurons that share an entry
        shape = (1,) * (membrane.dim() - shared.dim()) + shared.shape
        tangents = rows[2]
        assert tangents is not None
        shared.copy_(tangents[tuple(slice(size) for size in shape)].reshape(shared.shape))
    return spikes
