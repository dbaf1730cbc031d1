"""Max-pooling of spikes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SpikePool2d(nn.Module):
    """Max-pooling of remaining times, which is the earliest spike of each pool, or min-pooling, which is the latest.

    Pooling needs no window and no neurons. The gradient goes to the selected spike, among equal ones to the one that
    ``F.max_pool2d`` selects.

    Args:
        kernel_size: as in ``nn.MaxPool2d``.
        stride: as in ``nn.MaxPool2d``.
        padding: as in ``nn.MaxPool2d``; it is never selected.
        sign: per channel, 1 for the earliest spike and -1 for the latest, which is silence if any member is silent: the
            max-pool of activations with a negative scale. None selects the earliest everywhere.
        dilation: as in ``nn.MaxPool2d``.
        ceil_mode: as in ``nn.MaxPool2d``.

    Raises:
        ValueError: if `sign` has values other than 1 and -1.

    Example:
        >>> import torch
        >>> remaining = torch.arange(16.0).view(1, 1, 4, 4)
        >>> SpikePool2d(2)(remaining).flatten(), SpikePool2d(2, sign=torch.tensor([-1.0]))(remaining).flatten()
        (tensor([ 5.,  7., 13., 15.]), tensor([ 0.,  2.,  8., 10.]))
    """

    sign: Tensor | None

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        sign: Tensor | None = None,
        dilation: int | tuple[int, int] = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        if sign is not None and not (sign.dim() == 1 and bool((sign.abs() == 1).all())):
            raise ValueError(f"Expected argument `sign` to have values 1 and -1, one per channel, but got {sign!r}")
        self.register_buffer("sign", sign)

    def forward(self, remaining: Tensor) -> Tensor:
        """Return the selected remaining times `[B, C, H', W']` among `[B, C, H, W]`."""
        if self.sign is None:
            return self._max_pool(remaining)
        sign = self.sign.to(remaining.dtype).view(-1, 1, 1)
        return self._max_pool(remaining * sign) * sign

    def _max_pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        latest = "" if self.sign is None else f", latest={int((self.sign < 0).sum())}"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{latest}"
