"""The scan of LIF neurons with forward-mode derivatives as an operator of PyTorch, see `functional.eligibility`.

It overwrites the buffers of its state and returns the spikes. It has no gradient. See `functional.scans.operators` for
why it is an operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, Order, Reset
from lightning_snn.functional.scans.choice import scan_choice
from lightning_snn.functional.scans.rate_loop import Trace, empty_spikes, rate_loop
from lightning_snn.functional.scans.variants import TAGS, surrogate_of

NAME = "lightning_snn::rate_scan"

torch.library.define(
    NAME,
    "(Tensor x, Tensor? beta, float beta_number, Tensor? threshold, float threshold_number, Tensor(a!) membrane,"
    " Tensor(b!) spike_count, Tensor(c!)? tangent, Tensor(d!) total, Tensor(e!)? beta_tangent, Tensor(f!)? beta_total,"
    " Tensor(g!)? threshold_tangent, Tensor(h!)? threshold_total,"
    " Tensor(i!)? membrane_tangent, Tensor(j!)? membrane_total, SymInt steps, bool rested, str reset, str order,"
    " bool detach_reset, str surrogate, float width) -> Tensor spikes",
    tags=TAGS,
)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _scan(
    x: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    membrane: Tensor,
    spike_count: Tensor,
    tangent: Tensor | None,
    total: Tensor,
    beta_tangent: Tensor | None,
    beta_total: Tensor | None,
    threshold_tangent: Tensor | None,
    threshold_total: Tensor | None,
    membrane_tangent: Tensor | None,
    membrane_total: Tensor | None,
    steps: int,
    rested: bool,
    reset: Reset,
    order: Order,
    detach_reset: bool,
    surrogate: str,
    width: float,
) -> Tensor:
    decay = beta_number if beta is None else beta
    level = threshold_number if threshold is None else threshold
    along_input = Trace(tangent, total)
    along_beta = None if beta_total is None else Trace(beta_tangent, beta_total)
    along_threshold = None if threshold_total is None else Trace(threshold_tangent, threshold_total)
    along_membrane = None if membrane_total is None else Trace(membrane_tangent, membrane_total)
    dynamics = Dynamics(reset, order, detach_reset, surrogate_of(surrogate, width))
    state = (membrane, spike_count, along_input, along_beta, along_threshold, along_membrane, steps, rested)
    if scan_choice(x.device, x.dtype).implementation == "triton":
        from lightning_snn.functional.scans.triton_rate import rate_kernel

        return rate_kernel(x, decay, level, *state, dynamics, surrogate, width)
    return rate_loop(x, decay, level, *state, dynamics)


@torch.library.impl(NAME, "Meta")
def _fake(
    x: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    membrane: Tensor,
    *state: object,
) -> Tensor:
    return empty_spikes(x, membrane)


rate_scan = torch.ops.lightning_snn.rate_scan.default
