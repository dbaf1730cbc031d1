"""The membrane of neurons whose spikes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.lif import Dynamics, check_input, reset


def membranes(
    x: Tensor, spikes: Tensor, beta: float | Tensor, threshold: float | Tensor, dynamics: Dynamics = Dynamics()
) -> Tensor:
    """The membranes `v_t` before reset that go with spikes which are known: those of another run, or of noise.

    v_t = beta u_{t-1} + x_t, with u_{t-1} the membrane after the reset by s_{t-1}

    Args:
        x: input current, of recurrent neurons with what they hear of their layer, shape `[T, B, ...]`.
        spikes: of the same shape.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        dynamics: reset and order; see `functional.lif.Dynamics`.

    Returns:
        shape `[T, B, ...]`, in float32 or wider.

    Raises:
        ValueError: if `x` has no time axis.
    """
    check_input(x)
    accumulator = torch.promote_types(x.dtype, torch.float32)
    membrane = torch.zeros_like(x[0], dtype=accumulator)
    owed = torch.zeros_like(membrane)
    found = []
    for current, spike in zip(x, spikes.to(accumulator), strict=True):
        if dynamics.pending_reset:
            membrane = beta * membrane + current - threshold * owed
        else:
            membrane = beta * reset(membrane, owed, threshold, dynamics, torch.empty_like(membrane)) + current
        owed = spike
        found.append(membrane)
    return torch.stack(found)
