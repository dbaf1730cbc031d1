"""Encoders, which turn a static input into a sequence `[T, B, ...]`, or events into their first times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_fraction, check_integer, check_positive
from lightning_snn.functional.surrogate import propagate_nan


class DirectEncoder(nn.Module):
    """Direct encoding: the same analog input at every step, as a view. The first layer turns it into spikes.

    Args:
        time_steps: number of time steps T, at least 1.

    Shape:
        `[B, ...]` to `[T, B, ...]`.

    Example:
        >>> DirectEncoder(time_steps=10)(torch.rand(2, 4)).shape
        torch.Size([10, 2, 4])
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
    """Rate encoding by independent Bernoulli spikes with ``P(s_t = 1) = x``, a discrete Poisson process.

    The spikes are drawn from torch's default generator.

    Args:
        time_steps: number of time steps T, at least 1.

    Raises:
        ValueError: if an input is outside [0, 1] or NaN.

    Shape:
        `[B, ...]` to `[T, B, ...]`.

    Example:
        >>> PoissonEncoder(time_steps=3)(torch.tensor([0.0, 1.0]))
        tensor([[0., 1.],
                [0., 1.],
                [0., 1.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        _check_unit_range(x, self)
        return torch.bernoulli(super().forward(x))


class LatencyEncoder(DirectEncoder):
    """Latency encoding: one spike per input, at step ``round((1 - x)(T - 1))``, so larger inputs spike earlier.

    An input of 0 does not spike.

    Args:
        time_steps: number of time steps T, at least 1.

    Shape:
        `[B, ...]` to `[T, B, ...]`.

    Raises:
        ValueError: if an input is outside [0, 1] or NaN.

    Example:
        >>> LatencyEncoder(time_steps=3)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([[0., 0., 1.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        _check_unit_range(x, self)
        step = torch.round((1 - x) * (self.time_steps - 1))
        clock = torch.arange(self.time_steps, device=x.device).view(-1, *(1,) * x.dim())
        return ((clock == step) & (x > 0)).to(x.dtype)


class FirstEventEncoder(nn.Module):
    r"""First event times: the time from the first event of each cell to the end of a window, in a single step, T = 1.

    .. math:: \hat x = 1 - t_\text{first} / W, \quad \hat x = 0 \text{ without events},

    where t is the step of the first event, counted from 0 within its window of W steps. These are the remaining times
    that `TimeToFirstSpike` reads: each cell spikes at the time of its first event, in units of the window. Several
    windows become channels, so the input has one spike per cell and window. Later events of a window do not count.

    Args:
        window: time steps W of a window, at least 1. With frames of 1 ms it is the length in ms, and the resolution of
            times.

    Raises:
        ValueError: if `window` is outside its range; in a call, if it does not divide the time steps of the input.

    Shape:
        Event counts `[T, B, C, ...]`, in which any nonzero value is an event, to `[1, B, T / W * C, ...]` in [0, 1]:
        channels of the first window, then those of the second, and so on. NaN in a window gives NaN.

    Example:
        >>> events = torch.tensor([[0, 1], [0, 1], [3, 0], [0, 0]])[:, None]  # 4 steps, 1 sample, 2 channels
        >>> FirstEventEncoder(window=4)(events)
        tensor([[[0.5000, 1.0000]]])
        >>> FirstEventEncoder(window=2)(events)
        tensor([[[0., 1., 1., 0.]]])
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        check_integer("window", window)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or len(x) == 0 or len(x) % self.window:
            raise ValueError(
                f"Expected events of shape [T, B, C, ...] with a number of time steps T that window={self.window} "
                f"divides, but got {tuple(x.shape)}"
            )
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        windows = x.unflatten(0, (-1, self.window))
        left = torch.arange(self.window, 0, -1, dtype=x.dtype, device=x.device) / self.window
        left = left.view(-1, *(1,) * (x.dim() - 1))
        remaining = propagate_nan((windows != 0) * left, windows).amax(1)
        # [windows, B, C, ...] to [1, B, windows * C, ...]
        return remaining.transpose(0, 1).flatten(1, 2)[None]

    def extra_repr(self) -> str:
        return f"window={self.window}"


class ThresholdEncoder(nn.Module):
    """Binarization of the input in a single time step, T = 1: ``s = 1[x > threshold]``.

    A threshold of 0.5 splits 8-bit pixels, divided by 255, into 0 to 127 and 128 to 255.

    Args:
        threshold: threshold, in (0, 1).

    Raises:
        ValueError: if an input is outside [0, 1] or NaN.

    Shape:
        `[B, ...]` to `[1, B, ...]`.

    Example:
        >>> ThresholdEncoder(0.5)(torch.tensor([0.2, 0.7]))
        tensor([[0., 1.]])
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        check_fraction("threshold", threshold)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        _check_unit_range(x, self)
        return (x > self.threshold).to(x.dtype)[None]

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


class Complement(nn.Module):
    """Inputs in [0, 1] and their complements, ``[x, 1 - x]``, so weights that cannot be negative can inhibit.

    Shape:
        `[B, C, ...]` to `[B, 2 C, ...]`.

    Example:
        >>> Complement()(torch.tensor([[1.0, 0.25]]))
        tensor([[1.0000, 0.2500, 0.0000, 0.7500]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 1 - x], 1)


class PopulationEncoder(nn.Module):
    """Population encoding by Gaussian receptive fields in a single time step, T = 1.

    ``s_k = 1[exp(-(x - c_k)^2 / (2 width^2)) > threshold]``, with the centers c_k evenly spaced from `low` to `high`.

    No neuron spikes for an input far outside [low, high]. All neurons of an input of NaN are NaN.

    Args:
        low: lowest center, in units of the input.
        high: highest center, in units of the input.
        fields: number of neurons per input, at least 2.
        width: standard deviation of the receptive fields, in units of the input, larger than 0.
        threshold: in (0, 1); a neuron spikes within ``width sqrt(-2 log threshold)`` of its center.

    Shape:
        `[B, D]`, with D numbers per sample, to `[1, B, D * fields]`; `[B]` to `[1, B, fields]`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> PopulationEncoder(0.0, 1.0, fields=3, width=0.2)(torch.tensor([0.0, 0.6]))
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """

    def __init__(self, low: float, high: float, fields: int = 100, width: float = 0.12, threshold: float = 0.5) -> None:
        super().__init__()
        check_between("low", low, -math.inf, math.inf)
        check_between("high", high, -math.inf, math.inf)
        if low >= high:
            raise ValueError(f"Expected argument `high` to be larger than `low`, {low}, but got {high}")
        check_integer("fields", fields, 2)
        check_positive("width", width)
        check_fraction("threshold", threshold)
        self.low, self.high, self.fields, self.width, self.threshold = low, high, fields, width, threshold

    def forward(self, x: Tensor) -> Tensor:
        centers = torch.linspace(self.low, self.high, self.fields, dtype=x.dtype, device=x.device)
        response = torch.exp(-((x[..., None] - centers) ** 2) / (2 * self.width**2))
        return propagate_nan((response > self.threshold).to(x.dtype), response).flatten(1)[None]

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}, fields={self.fields}, width={self.width}, threshold={self.threshold}"


def _check_unit_range(x: Tensor, encoder: nn.Module) -> None:
    low, high = torch.aminmax(x)
    if not (low >= 0 and high <= 1):  # NaN is outside
        raise ValueError(
            f"Expected the input of {type(encoder).__name__} to be in [0, 1], but got values from {low:g} to {high:g}"
        )
