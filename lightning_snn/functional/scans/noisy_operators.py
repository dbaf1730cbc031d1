"""The scan of noisy LIF neurons and its backward pass as operators of PyTorch, see `functional.noisy_lif`.

The noise is PyTorch's, and drawn by the operator: a compiled scan has that of the eager scan, and a kernel that of the
loop. See `functional.scans.operators` for why the scans are operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, Reset
from lightning_snn.functional.estimators import IWST
from lightning_snn.functional.scans.choice import scan_choice
from lightning_snn.functional.scans.noisy_loop import noisy_backward_loop, noisy_forward_loop
from lightning_snn.functional.scans.variants import TAGS

FORWARD, BACKWARD = "lightning_snn::noisy_forward", "lightning_snn::noisy_backward"

torch.library.define(
    FORWARD,
    "(Tensor mean, Tensor variance, Tensor? beta, float beta_number, Tensor? threshold, float threshold_number,"
    " Tensor? noise, Generator? generator, str reset, str mode)"
    " -> (Tensor spikes, Tensor standardized, Tensor precision_root, Tensor draws)",
    tags=(*TAGS, torch.Tag.nondeterministic_seeded),
)
torch.library.define(
    BACKWARD,
    "(Tensor standardized, Tensor precision_root, Tensor spikes, Tensor? weight, Tensor? draws, Tensor? beta,"
    " float beta_number, Tensor? threshold, float threshold_number, Tensor? grad_spikes, Tensor? grad_standardized,"
    " float lam, str reset, bool detach_reset, str mode, ScalarType mean_dtype, ScalarType variance_dtype,"
    " bool wants_beta, bool wants_threshold)"
    " -> (Tensor grad_mean, Tensor grad_variance, Tensor grad_beta, Tensor grad_threshold)",
    tags=TAGS,
)


@torch.library.impl(FORWARD, "CompositeExplicitAutograd")
def _forward(
    mean: Tensor,
    variance: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    noise: Tensor | None,
    generator: torch.Generator | None,
    reset: Reset,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decay = beta_number if beta is None else beta
    level = threshold_number if threshold is None else threshold
    dynamics = Dynamics(reset)
    if scan_choice(mean.device, torch.promote_types(mean.dtype, variance.dtype)).implementation == "triton":
        from lightning_snn.functional.scans.triton_noisy import noisy_forward_kernel

        return noisy_forward_kernel(mean, variance, decay, level, noise, generator, dynamics, mode)
    return noisy_forward_loop(mean, variance, decay, level, None, None, noise, generator, dynamics, mode)


@torch.library.impl(FORWARD, "Meta")
def _forward_fake(
    mean: Tensor,
    variance: Tensor,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    noise: Tensor | None,
    generator: torch.Generator | None,
    reset: str,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    standardized = torch.empty_like(mean, dtype=torch.promote_types(mean.dtype, torch.float32))
    drawn = noise is None and mode == "step"
    draws = standardized.new_empty((mean.shape[0], mean[0].numel()) if drawn else 0)
    return torch.empty_like(mean), standardized, torch.empty_like(standardized), draws


@torch.library.impl(BACKWARD, "CompositeExplicitAutograd")
def _backward(
    standardized: Tensor,
    precision_root: Tensor,
    spikes: Tensor,
    weight: Tensor | None,
    draws: Tensor | None,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    grad_spikes: Tensor | None,
    grad_standardized: Tensor | None,
    lam: float,
    reset: Reset,
    detach_reset: bool,
    mode: str,
    mean_dtype: torch.dtype,
    variance_dtype: torch.dtype,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    decay = beta_number if beta is None else beta
    level = threshold_number if threshold is None else threshold
    dynamics = Dynamics(reset, detach_reset=detach_reset)
    scan = (standardized, precision_root, spikes, weight, draws, decay, level)
    if scan_choice(standardized.device, standardized.dtype).implementation == "triton":
        from lightning_snn.functional.scans.triton_noisy import noisy_backward_kernel

        dtypes = (mean_dtype, variance_dtype)
        return noisy_backward_kernel(
            *scan, grad_spikes, grad_standardized, lam, dynamics, mode, dtypes, wants_beta, wants_threshold
        )
    found = noisy_backward_loop(
        *scan, None, None, grad_spikes, grad_standardized, IWST(lam), dynamics, mode, wants_beta, wants_threshold
    )
    empty = standardized.new_empty(0)
    return (
        found.mean.to(mean_dtype),
        found.variance.to(variance_dtype),
        empty if found.beta is None else found.beta,
        empty.clone() if found.threshold is None else found.threshold,
    )


@torch.library.impl(BACKWARD, "Meta")
def _backward_fake(
    standardized: Tensor,
    precision_root: Tensor,
    spikes: Tensor,
    weight: Tensor | None,
    draws: Tensor | None,
    beta: Tensor | None,
    beta_number: float,
    threshold: Tensor | None,
    threshold_number: float,
    grad_spikes: Tensor | None,
    grad_standardized: Tensor | None,
    lam: float,
    reset: str,
    detach_reset: bool,
    mode: str,
    mean_dtype: torch.dtype,
    variance_dtype: torch.dtype,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_beta, of_threshold = (
        torch.empty_like(standardized[0]) if wanted else standardized.new_empty(0)
        for wanted in (wants_beta, wants_threshold)
    )
    of_mean, of_variance = (torch.empty_like(standardized, dtype=dtype) for dtype in (mean_dtype, variance_dtype))
    return of_mean, of_variance, of_beta, of_threshold


noisy_forward = torch.ops.lightning_snn.noisy_forward.default
noisy_backward = torch.ops.lightning_snn.noisy_backward.default
