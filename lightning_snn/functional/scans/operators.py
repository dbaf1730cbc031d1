"""The LIF scan and its backward pass as operators of PyTorch, which `torch.compile` calls and does not look into.

Once the compiler sees the loop over time it unrolls it, which takes seconds for each T and makes training slower. An
operator is opaque. Its schema holds tensors, numbers and names only, so a variant of the scan is given by arguments:
the four surrogates of the library by name and width, a decay or threshold as an optional tensor and a number. The
operators have no gradient of their own; the `autograd.Function` of `functional.lif` calls them.

Which implementation runs is decided in each call, see `functional.scans.choice`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, Order, Reset
from lightning_snn.functional.scans.buffers import empty_state, holds_input
from lightning_snn.functional.scans.choice import scan_choice
from lightning_snn.functional.scans.loop import backward_loop, forward_loop
from lightning_snn.functional.scans.variants import TAGS, surrogate_of

FORWARD, BACKWARD = "lightning_snn::lif_forward", "lightning_snn::lif_backward"

torch.library.define(
    FORWARD,
    "(Tensor x, Tensor? beta, float beta_number, Tensor? threshold, float threshold_number, Tensor? state,"
    " Tensor? before, str reset, str order, bool keeps_membranes) -> (Tensor spikes, Tensor final, Tensor membranes)",
    tags=TAGS,
)
torch.library.define(
    BACKWARD,
    "(Tensor saved, Tensor? beta, float beta_number, Tensor? threshold, float threshold_number, Tensor? state,"
    " Tensor? before, Tensor? grad_spikes, Tensor? grad_state, Tensor? grad_membranes, str reset, str order,"
    " bool detach_reset, str surrogate, float width, ScalarType dtype, bool wants_first, bool wants_beta,"
    " bool wants_threshold) -> (Tensor grad_x, Tensor grad_first, Tensor grad_beta, Tensor grad_threshold)",
    tags=TAGS,
)


@torch.library.impl(FORWARD, "CompositeExplicitAutograd")
def _forward(
    x: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    state: Tensor | None,
    before: Tensor | None,
    reset: Reset,
    order: Order,
    keeps_membranes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    decay = beta_number if beta is None else beta
    level = threshold_number if threshold is None else threshold
    dynamics = Dynamics(reset, order)
    if scan_choice(x.device, x.dtype).implementation == "triton":
        from lightning_snn.functional.scans.triton_lif import forward_kernel

        return forward_kernel(x, decay, level, state, before, dynamics, keeps_membranes)
    spikes, final, membranes = forward_loop(x, decay, level, state, before, None, dynamics, keeps_membranes)
    if not x.is_contiguous():
        final = _in_layout_of(empty_state(x), final)
    return spikes, final, membranes


def _forward_fake(
    x: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    state: Tensor | None,
    before: Tensor | None,
    reset: str,
    order: str,
    keeps_membranes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    final = empty_state(x)
    membranes = torch.empty_like(x, dtype=final.dtype) if keeps_membranes else final.new_empty(0)
    return torch.empty_like(x), final, membranes


@torch.library.impl(BACKWARD, "CompositeExplicitAutograd")
def _backward(
    saved: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    state: Tensor | None,
    before: Tensor | None,
    grad_spikes: Tensor | None,
    grad_state: Tensor | None,
    grad_membranes: Tensor | None,
    reset: Reset,
    order: Order,
    detach_reset: bool,
    surrogate: str,
    width: float,
    dtype: torch.dtype,
    wants_first: bool,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decay = beta_number if beta is None else beta
    level = threshold_number if threshold is None else threshold
    if grad_membranes is None and scan_choice(saved.device, saved.dtype).implementation == "triton":
        from lightning_snn.functional.scans.triton_lif import backward_kernel

        return backward_kernel(
            saved,
            decay,
            level,
            state,
            before,
            grad_spikes,
            grad_state,
            Dynamics(reset, order, detach_reset),
            surrogate,
            width,
            dtype,
            wants_first,
            wants_beta,
            wants_threshold,
        )
    dynamics = Dynamics(reset, order, detach_reset, surrogate_of(surrogate, width))
    membranes = saved
    if holds_input(saved):
        membranes = forward_loop(saved, decay, level, state, before, None, dynamics, True).membranes
    found, of_beta, of_threshold = backward_loop(
        membranes,
        decay,
        level,
        state,
        before,
        None,
        dynamics,
        grad_spikes,
        grad_state,
        grad_membranes,
        wants_beta,
        wants_threshold,
    )
    first = found[0].clone() if wants_first else None
    return found.to(dtype), _row(membranes, first), _row(membranes, of_beta), _row(membranes, of_threshold)


def _backward_fake(
    saved: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    state: Tensor | None,
    before: Tensor | None,
    grad_spikes: Tensor | None,
    grad_state: Tensor | None,
    grad_membranes: Tensor | None,
    reset: str,
    order: str,
    detach_reset: bool,
    surrogate: str,
    width: float,
    dtype: torch.dtype,
    wants_first: bool,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = empty_state(saved)
    first, of_beta, of_threshold = (
        torch.empty_like(row) if wanted else row.new_empty(0) for wanted in (wants_first, wants_beta, wants_threshold)
    )
    return torch.empty_like(saved, dtype=dtype), first, of_beta, of_threshold


def _in_layout_of(like: Tensor, value: Tensor) -> Tensor:
    """Return the values with the strides of `like`; no copy is made if they have them."""
    return value if value.stride() == like.stride() else like.copy_(value)


def _row(membranes: Tensor, values: Tensor | None) -> Tensor:
    """Return values of a step in the layout that the fake implementation declares; empty if there are none."""
    return membranes.new_empty(0) if values is None else _in_layout_of(torch.empty_like(membranes[0]), values)


# not `register_fake`, which looks through all modules for the source of its caller: 5 % of the import of this library
torch.library.impl(FORWARD, "Meta")(_forward_fake)
torch.library.impl(BACKWARD, "Meta")(_backward_fake)
lif_forward, lif_backward = torch.ops.lightning_snn.lif_forward.default, torch.ops.lightning_snn.lif_backward.default
