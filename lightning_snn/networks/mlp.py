"""Fully connected spiking networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_snn.checks import check_integer
from lightning_snn.networks.inputs import input_features
from lightning_snn.nn.neurons import LIF


class MLP(nn.Sequential):
    """Linear layers with LIF neurons between them; the last Linear is read out.

    Args:
        input_shape: number of inputs, or the shape of an input, which is flattened.
        num_classes: number of outputs.
        hidden: sizes of the hidden layers.
        lif: options of every `LIF`.

    Shape:
        `[T*B, *input_shape]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...] = 784,
        num_classes: int = 10,
        hidden: Sequence[int] = (256, 256),
        lif: dict[str, Any] | None = None,
    ) -> None:
        check_integer("num_classes", num_classes)
        features = input_features(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            check_integer("hidden", size)
            layers += [nn.Linear(features, size), LIF(**(lif or {}))]
            features = size
        super().__init__(*layers, nn.Linear(features, num_classes))
