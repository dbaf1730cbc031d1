"""Triton kernel of the scan of LIF neurons with forward-mode derivatives; see `functional.scans.rate_loop`.

A program keeps membrane potentials, tangents and sums of a block of neurons in registers and loops over time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_snn.functional.scans.triton_parts import (
    after_spikes,
    at_threshold,
    bump,
    charged,
    marked,
    neurons_of,
    parameter,
    row,
)


@triton.jit
def _through_reset(
    tangent: tl.tensor,
    change: tl.tensor,
    membrane: tl.tensor,
    fired: tl.tensor,
    decay: tl.tensor,
    level: tl.tensor,
    ALONG_THRESHOLD: tl.constexpr,
    PENDING: tl.constexpr,
    ZERO: tl.constexpr,
    DETACHED: tl.constexpr,
) -> tl.tensor:
    """Advance a tangent through reset and leak; `change` is the tangent of the spike."""
    if ALONG_THRESHOLD:
        tangent = tangent + 1.0  # tangent of the membrane instead of its distance to the threshold
    if PENDING:
        tangent = tangent * decay
    if ZERO:
        tangent = tangent - tangent * fired
        if not DETACHED:
            tangent = tangent - membrane * change
    else:
        if not DETACHED:
            tangent = tangent - change * level
        if ALONG_THRESHOLD:
            tangent = tangent - fired
    if not PENDING:
        tangent = tangent * decay
    return tangent


@triton.jit(do_not_specialize=["steps"])
def rate_scan(
    x: tl.tensor,
    beta: tl.tensor,
    threshold: tl.tensor,
    tangent: tl.tensor,
    spikes: tl.tensor,
    membrane_row: tl.tensor,
    count_row: tl.tensor,
    tangent_row: tl.tensor,
    total_row: tl.tensor,
    beta_tangent_row: tl.tensor,
    beta_total_row: tl.tensor,
    threshold_tangent_row: tl.tensor,
    threshold_total_row: tl.tensor,
    link_tangent_row: tl.tensor,
    link_total_row: tl.tensor,
    beta_number: tl.tensor,
    threshold_number: tl.tensor,
    tangent_number: tl.tensor,
    link_number: tl.tensor,
    width: tl.tensor,
    steps: tl.tensor,
    neurons: tl.tensor,
    x_step: tl.tensor,
    beta_stride: tl.tensor,
    beta_count: tl.tensor,
    threshold_stride: tl.tensor,
    threshold_count: tl.tensor,
    tangent_stride: tl.tensor,
    tangent_count: tl.tensor,
    SURROGATE: tl.constexpr,
    PENDING: tl.constexpr,
    ZERO: tl.constexpr,
    DETACHED: tl.constexpr,
    RESTED: tl.constexpr,
    STARTS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Run the recurrence, and overwrite the rows of the state.

    The tangent along the input is read as a parameter, and written to a row unless it follows from a number. At the
    start of a window, the rows have no values; neither has the membrane at rest.
    """
    index = neurons_of(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    level = parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    rho = tl.zeros([BLOCK], tl.float32) + parameter(
        tangent, tangent_number, tangent_stride, tangent_count, index, inside
    )
    carried = tl.zeros([BLOCK], tl.float32)
    if not RESTED:
        carried = row(membrane_row, index, inside, BLOCK)
    if threshold is not None:
        carried = at_threshold(carried, level)
    fired = tl.zeros([BLOCK], tl.float32)
    if PENDING and not RESTED:
        fired = tl.where(carried > level, 1.0, 0.0)
    count = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    of_beta, beta_total = carried, total
    of_threshold, threshold_total = -1.0 - fired, total
    of_link, link_total = total + link_number, total
    if not STARTS:
        link_total = row(link_total_row, index, inside, BLOCK)
        if link_tangent_row is not None:
            of_link = row(link_tangent_row, index, inside, BLOCK)
        count = row(count_row, index, inside, BLOCK)
        total = row(total_row, index, inside, BLOCK)
        of_beta = row(beta_tangent_row, index, inside, BLOCK)
        beta_total = row(beta_total_row, index, inside, BLOCK)
        of_threshold = row(threshold_tangent_row, index, inside, BLOCK)
        threshold_total = row(threshold_total_row, index, inside, BLOCK)
    at_x = x + index
    at_spikes = spikes + index
    for _ in range(steps):
        current = tl.load(at_x, mask=inside, other=0).to(tl.float32)
        membrane = charged(carried, decay, current, level, fired, PENDING)
        fired = tl.where(membrane > level, 1.0, 0.0)
        slope = bump(membrane - level, width, SURROGATE)
        change = slope * rho
        total = total + change
        rho = _through_reset(rho, change, membrane, fired, decay, level, False, PENDING, ZERO, DETACHED) + 1.0
        if link_total_row is not None:
            change = slope * of_link
            link_total = link_total + change
            of_link = _through_reset(of_link, change, membrane, fired, decay, level, False, PENDING, ZERO, DETACHED)
        if threshold_total_row is not None:
            change = slope * of_threshold
            threshold_total = threshold_total + change
            of_threshold = (
                _through_reset(of_threshold, change, membrane, fired, decay, level, True, PENDING, ZERO, DETACHED) - 1.0
            )
        carried = after_spikes(membrane, fired, level, PENDING, ZERO)
        if beta_total_row is not None:
            change = slope * of_beta
            beta_total = beta_total + change
            of_beta = (
                _through_reset(of_beta, change, membrane, fired, decay, level, False, PENDING, ZERO, DETACHED) + carried
            )
        spike = marked(fired, membrane)
        count = count + spike
        tl.store(at_spikes, spike.to(spikes.dtype.element_ty), mask=inside)
        at_x += x_step
        at_spikes += neurons
    tl.store(membrane_row + index, carried, mask=inside)
    tl.store(count_row + index, count, mask=inside)
    tl.store(total_row + index, total, mask=inside)
    if tangent_row is not None:
        tl.store(tangent_row + index, rho, mask=inside)
    if beta_total_row is not None:
        tl.store(beta_tangent_row + index, of_beta, mask=inside)
        tl.store(beta_total_row + index, beta_total, mask=inside)
    if threshold_total_row is not None:
        tl.store(threshold_tangent_row + index, of_threshold, mask=inside)
        tl.store(threshold_total_row + index, threshold_total, mask=inside)
    if link_total_row is not None:
        tl.store(link_total_row + index, link_total, mask=inside)
    if link_tangent_row is not None:
        tl.store(link_tangent_row + index, of_link, mask=inside)
