"""The lambda of IW-ST that suits what a noisy run measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_snn.functional.estimators import best_lambda, bias_difference, layer_factors
from lightning_snn.functional.scalars import values_like
from lightning_snn.methods.bayes.monitor import NoisyCall

_LARGEST = 40.0  # logarithm; its exponential is 2e17, beside which nothing else counts


def measured_lambda(calls: Sequence[NoisyCall], batch_size: float | Tensor) -> Tensor:
    """Return the lambda of the smallest squared error, one for all layers, see `functional.estimators.depth`.

    Variances come from the measured slopes of each call, in place of those of normal pre-activations, and beta is the
    mean of its estimates for the calls.

    Args:
        calls: statistics of the calls of noisy layers in order, at least one.
        batch_size: number of samples that an optimizer step averages.

    Returns:
        Scalar in [0, 1].
    """
    chi_squared = torch.stack([call.chi_squared for call in calls])
    spread = torch.stack([call.slope_spread for call in calls])
    # logarithms do not overflow in deep networks, where the difference of the two products is their larger one
    with_zero, with_one = (layer_factors(chi_squared, spread, lam).log().sum() for lam in (0.0, 1.0))
    difference = with_one.clamp(max=_LARGEST).exp() * torch.expm1((with_zero - with_one).clamp(max=_LARGEST))
    squares = torch.stack([call.square for call in calls])
    beta = bias_difference(squares, values_like([call.units for call in calls], squares)).mean()
    batch = batch_size.to(beta) if isinstance(batch_size, Tensor) else batch_size
    found = best_lambda(beta, difference, batch)
    assert isinstance(found, Tensor)
    return found
