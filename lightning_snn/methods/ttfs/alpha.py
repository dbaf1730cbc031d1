"""Neurons whose slope depends on their weights: the baseline that unit slopes improve on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.functional.ttfs import relu_from_two_phase, remaining_time, two_phase_from_relu
from lightning_snn.methods.ttfs.time_window import TimeWindow


class _AlphaNeurons(TimeWindow):
    r"""Neurons with slopes A = 1 and B = 1 + sum_j W_j, and threshold :math:`\theta = \Delta + \Delta' + D`."""

    weight: Tensor
    bias: Any  # nn.Linear and nn.Conv2d declare different types

    @property
    def slope(self) -> Tensor:
        """B = 1 + sum_j W_j, shape `[out]`. Neurons with ``B <= 0`` never spike."""
        return 1 + self.weight.flatten(1).sum(1)

    def _fire(self, weighted: Tensor) -> Tensor:
        # A times the inputs' window is part of both V and the threshold
        per_channel = (-1, *(1,) * (weighted.dim() - 2))
        offset = 0 if self.bias is None else self.bias.view(per_channel)
        window = self.window.to(weighted.dtype)
        return remaining_time(weighted, window + offset, self.slope.view(per_channel), window)

    def copy_relu(self, layer: nn.Linear | nn.Conv2d) -> None:
        r"""Set the parameters that compute ``relu(layer(x))`` with this window, with :math:`B = 1 / (1 - \sum_j w_j)`.

        Args:
            layer: of the shape of this layer.

        Raises:
            ValueError: if a neuron's weights sum to 1 or more, which has no TTFS equivalent (see `bound_row_sums`), or
                this layer has no bias for the threshold offsets.
        """
        if self.bias is None:
            raise ValueError(f"Expected {type(self).__name__} to have a bias for the threshold offsets, but got none")
        weight = layer.weight.detach()
        sums = weight.flatten(1).sum(1)
        if bool((sums >= 1).any()):
            raise ValueError(
                f"Expected the incoming weights of every neuron to sum to less than 1, but got {sums.max().item():g}"
            )
        bias = torch.zeros_like(sums) if layer.bias is None else layer.bias.detach()
        efficacies, thresholds = two_phase_from_relu(weight, bias, 0.0, 1 / (1 - sums), self.window, 0.0)
        with torch.no_grad():
            self.weight.copy_(efficacies)
            self.bias.copy_(thresholds - self.window)

    def relu_parameters(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the equivalent ReLU layer, for neurons with a slope larger than 0."""
        window = self.window.to(self.weight.dtype)
        threshold = window.expand(len(self.weight)) if self.bias is None else window + self.bias
        return relu_from_two_phase(self.weight, threshold, 0.0, self.slope, window, 0.0)


class AlphaLinear(_AlphaNeurons, nn.Linear):
    r"""Synapses and neurons of the naive baseline, which trains badly because its slopes are random.

    .. math:: B_i = 1 + \sum_j W_{ij}, \quad
        \hat x_i = \max(0, (\sum_j W_{ij} \hat x_j + B_i \Delta - \Delta - D_i) / B_i)

    Its parameters are W (`weight`) and D (`bias`), and the function depends on the window.

    Args:
        in_features: as in ``nn.Linear``.
        out_features: as in ``nn.Linear``.
        bias: as in ``nn.Linear``.
        window: length of the window, in units of the input window, larger than 0.
        **kind: `device` and `dtype`, as in ``nn.Linear``.

    Raises:
        ValueError: if `window` is not positive.

    Example:
        >>> layer = AlphaLinear(4, 3, window=2.0)
        >>> layer(torch.rand(2, 4)).shape, layer.slope.shape
        (torch.Size([2, 3]), torch.Size([3]))
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, window: float = 1.0, **kind: Any
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, **kind)
        self._register_window(window, 1.0)

    def forward(self, remaining: Tensor) -> Tensor:
        """Return remaining times `[B, out]`, given remaining times `[B, in]`."""
        return self._fire(F.linear(remaining, self.weight))


class AlphaConv2d(_AlphaNeurons, nn.Conv2d):
    """Convolutional `AlphaLinear`, with one slope per channel: that of a kernel entirely within the image.

    Args:
        *args: as in ``nn.Conv2d``.
        window: length of the window, in units of the input window, larger than 0.
        **kwargs: as in ``nn.Conv2d``; padding is with zeros.

    Raises:
        ValueError: if `window` is not positive.

    Example:
        >>> AlphaConv2d(1, 3, kernel_size=3, window=2.0)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 3, 6, 6])
    """

    def __init__(self, *args: Any, window: float = 1.0, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self._register_window(window, 1.0, self.weight.device)

    def forward(self, remaining: Tensor) -> Tensor:
        """Return remaining times `[B, out, H', W']`, given remaining times `[B, in, H, W]`."""
        return self._fire(self._conv_forward(remaining, self.weight, None))


def bound_row_sums(layers: Sequence[nn.Linear], low: float = -10.0, high: float = 0.99) -> None:
    """Rescale hidden neurons in place so that incoming weights sum to [low, high]; the ReLU network is the same.

    If a neuron's weights sum to c outside of this range, they and its bias are multiplied by ``bound / c`` and its
    outgoing weights are divided by that: only sums below 1 have an `AlphaLinear` equivalent.

    Args:
        layers: successive ``nn.Linear`` layers with ReLU in between; the last one is the readout, which has no bound.
        low: smallest sum, smaller than 0.
        high: largest sum, between 0 and 1.

    Example:
        >>> layers = [nn.Linear(4, 3), nn.Linear(3, 2)]
        >>> nn.init.constant_(layers[0].weight, 1.0).sum(1).tolist()
        [4.0, 4.0, 4.0]
        >>> bound_row_sums(layers)
        >>> bool((layers[0].weight.sum(1) < 1).all())
        True
    """
    for layer, following in pairwise(layers):
        sums = layer.weight.detach().sum(1)
        factor = torch.where(sums > high, high / sums, torch.where(sums < low, low / sums, 1))
        with torch.no_grad():
            layer.weight.mul_(factor[:, None])
            if layer.bias is not None:
                layer.bias.mul_(factor)
            following.weight.div_(factor)
