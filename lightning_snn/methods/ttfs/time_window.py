"""Time windows of spiking layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_positive
from lightning_snn.functional.ttfs import TimeConstraints


class TimeWindow(nn.Module):
    r"""Base class of spiking layers, with a window from `t_min` to `t_max`, in float64 whatever the layer is cast to.

    Attributes:
        window: length :math:`\Delta` of the window, a scalar buffer.
        t_min: start of the window, a scalar buffer.
        constraints: effects of hardware on the spike times of this layer; None for none.

    Example:
        >>> from lightning_snn.methods.ttfs import FirstSpike
        >>> layer = FirstSpike(window=2.0).half()
        >>> isinstance(layer, TimeWindow), layer.t_max
        (True, tensor(3., dtype=torch.float64))
    """

    window: Tensor
    t_min: Tensor
    constraints: TimeConstraints | None

    def _register_window(self, window: float, t_min: float, device: torch.device | None = None) -> None:
        check_positive("window", window)
        self.register_buffer("window", torch.tensor(window, dtype=torch.float64, device=device))
        self.register_buffer("t_min", torch.tensor(t_min, dtype=torch.float64, device=device))
        self.constraints = None

    @property
    def t_max(self) -> Tensor:
        """End of the window."""
        return self.t_min + self.window

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        window, t_min = self.window, self.t_min
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.window.dtype != window.dtype and not window.is_meta:
            self.window, self.t_min = window.to(self.window.device), t_min.to(self.t_min.device)
        return self
