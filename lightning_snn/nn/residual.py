r"""Residual blocks that need no normalization: the shortcut carries the membrane's drive, mean and variance.

.. math:: M_{l+1} = M_l + \mu_l(x_l), \qquad V_{l+1} = V_l + v_l(x_l), \qquad P(x_l = 1) = \Phi(M_l / \sqrt{V_l})

Mean and variance both grow linearly with depth, so that the standardized pre-activation ``M / sqrt(V)`` stays of the
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
    """A block whose shortcut skips the spikes: ``y = shortcut(x) + branch(x)``, on the drive of the membranes.

    The branch begins with the neurons and ends with a weight layer, so that what is added is a current on both sides
    (the pre-activation order; MS-ResNet of Hu et al. 2021 for spiking networks). Within `posterior_noise` the stream is
    a `Moments`, and means and variances add.

    Args:
        branch: from the stream to its increment, such as ``nn.Sequential(LIF(), nn.Conv2d(16, 16, 3, padding=1))``.
        shortcut: what carries the stream on; None is the identity. Where shape or channels change: average pooling and
            a 1x1 convolution.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Any) -> Any:
        return self.shortcut(x) + self.branch(x)


class GaussianNoise(nn.Module):
    """Noise of a fixed standard deviation on the drive of the next neurons, within `posterior_noise`; the identity
    outside it.

    Args:
        std: standard deviation, larger than 0, in the units of its input.
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
            return Moments(x.mean, x.variance + variance)
        return Moments(x, variance.expand(x.shape))

    def extra_repr(self) -> str:
        return f"std={self.std:g}"
