"""Encoders: a static input in [0, 1] becomes a sequence `[T, B, ...]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer


class DirectEncoder(nn.Module):
    """The same analogue input at every step (a view, nothing is copied); the first layer turns it into spikes.

    Args:
        time_steps: T, at least 1.
    """

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        check_integer("time_steps", time_steps)
        self.time_steps = time_steps

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(self.time_steps, *x.shape)

    def extra_repr(self) -> str:
        return f"time_steps={self.time_steps}"


class PoissonEncoder(DirectEncoder):
    """Independent Bernoulli spikes with ``P(s_t = 1) = x``, the discrete Poisson process; noise from torch's generator.

    Args:
        time_steps: T, at least 1.

    Raises:
        ValueError: if an input is outside [0, 1].
    """

    def forward(self, x: Tensor) -> Tensor:
        _check_unit_range(x, self)
        return torch.bernoulli(super().forward(x))


class LatencyEncoder(DirectEncoder):
    """One spike an input, the earlier the larger: at step ``round((1 - x)(T - 1))``. An input of 0 stays silent.

    Args:
        time_steps: T, at least 1.

    Raises:
        ValueError: if an input is outside [0, 1].
    """

    def forward(self, x: Tensor) -> Tensor:
        _check_unit_range(x, self)
        step = torch.round((1 - x) * (self.time_steps - 1))
        clock = torch.arange(self.time_steps, device=x.device).view(-1, *(1,) * x.dim())
        return ((clock == step) & (x > 0)).to(x.dtype)


def _check_unit_range(x: Tensor, encoder: nn.Module) -> None:
    low, high = torch.aminmax(x)
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected the input of {type(encoder).__name__} in [0, 1], but got values from {low:g} to {high:g}"
        )
