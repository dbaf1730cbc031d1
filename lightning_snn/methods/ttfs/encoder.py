"""Encoder of inputs as spike times."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from lightning_snn.checks import check_between
from lightning_snn.functional.ttfs import through_time
from lightning_snn.methods.ttfs.time_window import TimeWindow


class SpikeEncoder(TimeWindow):
    r"""Encoder of inputs as spikes in a window of length 1: :math:`\hat x = (x - l) / (h - l)`, larger is earlier.

    Values outside [low, high] are clamped and counted, and cause one warning. The count is read from the device in
    calls 1, 2, 4, 8 and so on only, so that training does not wait for it. Mismatched slopes do not apply to inputs.

    Args:
        low: input that causes no spike.
        high: input that spikes at time 0, larger than `low`.

    Attributes:
        outside: number of values outside [low, high] so far, a scalar tensor; None if there certainly was none; not in
            the state dict.

    Raises:
        ValueError: if the range is empty.

    Example:
        >>> SpikeEncoder(low=-1.0, high=1.0)(torch.tensor([[-1.0, 0.0, 0.5]]))
        tensor([[0.0000, 0.5000, 0.7500]])
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        for name, value in (("low", low), ("high", high)):
            check_between(name, value, -float("inf"), float("inf"))
        if not low < high:
            raise ValueError(f"Expected argument `high` to be larger than low = {low}, but got {high!r}")
        self.low, self.high = low, high
        self._register_window(1.0, 0.0)
        self.outside: Tensor | None = None
        self._calls, self._warned = 0, False

    def forward(self, x: Tensor) -> Tensor:
        """Return the remaining times in [0, 1] of inputs `[B, ...]`."""
        remaining = x if (self.low, self.high) == (0, 1) else (x - self.low) / (self.high - self.low)
        inside = remaining
        if not _certainly_inside(remaining.detach()):
            inside = remaining.clamp(0, 1)
            if not torch.compiler.is_compiling():  # which cannot warn
                self._count_outside(remaining.detach(), inside.detach())
        if self.constraints is None or not self.constraints.active:
            return inside
        return through_time(inside, self.window, 0.0, "clip", replace(self.constraints, slope_mismatch=0.0))

    def _count_outside(self, remaining: Tensor, inside: Tensor) -> None:
        # several times faster than comparing and counting
        wide = torch.promote_types(inside.dtype, torch.float32)
        outside = (remaining - inside).abs_().sign_().sum(dtype=wide).double()
        self.outside = outside if self.outside is None else self.outside.to(outside.device) + outside
        self._calls += 1
        due = self._calls & (self._calls - 1) == 0
        if due and not self._warned and bool(self.outside > 0):
            self._warned = True
            warnings.warn(
                f"{int(self.outside)} inputs were outside the range [{self.low:g}, {self.high:g}] of the spike "
                "encoder and were clamped",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


def _certainly_inside(remaining: Tensor) -> bool:
    """Return True if all values are known to be in [0, 1]; False on other devices, which it does not wait for."""
    if remaining.device.type != "cpu" or remaining.numel() == 0 or torch.compiler.is_compiling():
        return False
    # much cheaper than clamping and counting, which cost as much as a layer of neurons
    low, high = remaining.aminmax()
    return low.item() >= 0 and high.item() <= 1
