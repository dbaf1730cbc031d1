"""Membrane potentials of LIF neurons by a loop of their own, as a reference."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.lif import check_input
from lightning_snn.functional.scans.buffers import reset


def membranes(
    x: Tensor, spikes: Tensor, beta: float | Tensor, threshold: float | Tensor, dynamics: Dynamics = Dynamics()
) -> Tensor:
    """Compute the membrane potentials before reset for given spikes, such as those of another run or of noisy neurons.

    v_t = beta u_{t-1} + x_t, where u_{t-1} is the membrane potential after the reset by s_{t-1}.

    Args:
        x: input current, shape `[T, B, ...]`; for recurrent neurons it includes the recurrent current.
        spikes: spikes in {0, 1}, of the same shape.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        dynamics: reset and order; see `functional.Dynamics`.

    Returns:
        membrane potentials, shape `[T, B, ...]`, in float32 or wider.

    Raises:
        ValueError: if `x` has no time axis or is not floating point.

    Example:
        >>> membranes(torch.ones(3, 1), torch.tensor([[0.0], [1.0], [0.0]]), beta=0.5, threshold=1.0).flatten()
        tensor([1.0000, 1.5000, 1.2500])
    """
    check_input(x)
    accumulator = torch.promote_types(x.dtype, torch.float32)
    membrane = torch.zeros_like(x[0], dtype=accumulator)
    spiked = torch.zeros_like(membrane)
    found = []
    for current, spike in zip(x, spikes.to(accumulator), strict=True):
        if dynamics.pending_reset:
            membrane = beta * membrane + current - threshold * spiked
        else:
            membrane = beta * reset(membrane, spiked, threshold, dynamics, torch.empty_like(membrane)) + current
        spiked = spike
        found.append(membrane)
    return torch.stack(found)
