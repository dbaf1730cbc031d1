"""Initial weights that keep spiking layers active."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_snn.checks import check_positive
from lightning_snn.nn.neurons import Recurrent, RecurrentLIF


def draw_weights(layers: Iterable[nn.Module], gain: float) -> None:
    """Draw the weights of linear, convolutional and recurrent layers from N(0, gain^2 / fan-in), in place.

    Biases become 0. Other modules stay as they are.

    Args:
        layers: modules, such as ``network.modules()``.
        gain: standard deviation of the weights times sqrt(fan-in), larger than 0.

    Raises:
        ValueError: if `gain` is outside its range.

    Example:
        >>> layer = nn.Linear(400, 100)
        >>> draw_weights([layer], gain=2.0)
        >>> 0.09 < layer.weight.std().item() < 0.11
        True
    """
    check_positive("gain", gain)
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (Recurrent, RecurrentLIF)):
            nn.init.normal_(layer.weight, std=gain / layer.features**0.5)
