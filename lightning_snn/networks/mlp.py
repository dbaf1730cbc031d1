"""Fully connected spiking networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_snn.checks import check_integer
from lightning_snn.nn.lif import LIF


class MLP(nn.Sequential):
    """Linear layers with LIF neurons between them; the last Linear is read out.

    Args:
        in_features: number of inputs; inputs of more dimensions are flattened.
        num_classes: number of outputs.
        hidden: sizes of the hidden layers.
        lif: options of every `LIF`.

    Shape:
        `[T*B, ...]` to `[T*B, num_classes]`.
    """

    def __init__(
        self, in_features: int = 784, num_classes: int = 10, hidden: Sequence[int] = (256, 256), lif: dict[str, Any] | None = None
    ) -> None:
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            check_integer(name, value)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            check_integer("hidden", size)
            layers += [nn.Linear(in_features, size), LIF(**(lif or {}))]
            in_features = size
        super().__init__(*layers, nn.Linear(in_features, num_classes))
