r"""Residual blocks that need no normalization: the shortcut carries mean and variance of the input current.

.. math:: M_{l+1} = M_l + \mu_l(x_l), \qquad V_{l+1} = V_l + v_l(x_l), \qquad P(x_l = 1) = \Phi(M_l / \sqrt{V_l})

Mean and variance both grow linearly with depth, so the standardized pre-activation ``M / sqrt(V)`` stays of the
same order at every depth, and gradients grow polynomially with depth instead of vanishing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_positive
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.noise import spike_noise


class MembraneResidual(nn.Module):
    """A residual block whose shortcut skips the spikes: ``y = shortcut(x) + branch(x)``, a sum of input currents.

    The branch starts with the neurons and ends with a weight layer, so both terms are currents (the pre-activation
    order; MS-ResNet of Hu et al. 2021 for spiking networks). Within `posterior_noise` both are `Moments`, and means and
    variances add.

    Args:
        branch: from the current to its increment, such as ``nn.Sequential(LIF(), nn.Conv2d(16, 16, 3, padding=1))``.
        shortcut: module of the shortcut; None is the identity. Use average pooling and a 1x1 convolution where the
            shape or the number of channels changes.

    Shape:
        input and output `[T*B, ...]`, as `branch` and `shortcut` map them.

    Example:
        >>> block = MembraneResidual(nn.Sequential(LIF(), nn.Linear(8, 8)))
        >>> run(block, torch.rand(5, 2, 8)).shape
        torch.Size([5, 2, 8])
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Any) -> Any:
        return self.shortcut(x) + self.branch(x)


class GaussianNoise(nn.Module):
    """Gaussian noise of a fixed standard deviation on the input current of the next neurons.

    It applies within `posterior_noise`; outside the layer is the identity.

    Args:
        std: standard deviation, larger than 0, in units of the input.

    Raises:
        ValueError: if `std` is not larger than 0.

    Example:
        >>> with lightning_snn.nn.posterior_noise():
        ...     GaussianNoise(0.5)(torch.zeros(2, 3)).variance[0]
        tensor([0.2500, 0.2500, 0.2500])
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        check_positive("std", std)
        self.std = std

    def forward(self, x: Tensor | Moments) -> Tensor | Moments:
        if spike_noise() is None:
            return x
        variance = torch.full((), self.std**2, dtype=x.dtype, device=x.device)
        if isinstance(x, Moments):
            return Moments(x.expectation, x.variance + variance)
        return Moments(x, variance.expand(x.shape))

    def extra_repr(self) -> str:
        return f"std={self.std:g}"
