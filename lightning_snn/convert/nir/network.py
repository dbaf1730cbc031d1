"""The network of a NIR file as a class, which the command line and checkpoints name with its options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_snn.convert.nir.files import parse_nir
from lightning_snn.convert.nir.graph import ordered
from lightning_snn.convert.nir.importer import from_nir


class NIRNetwork(nn.Sequential):
    """The network of a NIR file, see `from_nir`; recipes build it for ``--network PATH.nir``.

    A checkpoint of a recipe holds the path, so the file has to stay where it is.

    Args:
        path: the file.
        dt: length of a time step in seconds, see `from_nir`.
        reset: reset of all neurons, see `from_nir`.
        strict: whether neurons spike at ``v > v_threshold``, see `from_nir`.
        input_shape: shape of a sample of the data; None is that of the file.
        num_classes: number of outputs; None is that of the file.

    Raises:
        ImportError: if the package nir is not installed.
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file cannot be converted, or has another input or output.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(reset="zero"), nn.Linear(8, 3))
        >>> path = lightning_snn.convert.write_nir("network.nir", lightning_snn.convert.to_nir(network, (4,)))
        >>> NIRNetwork(path)[2]
        Linear(in_features=8, out_features=3, bias=True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dt: float | None = None,
        reset: Literal["subtract", "zero"] | None = None,
        strict: bool | None = None,
        input_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        network = from_nir(path, dt, reset, strict)
        _check_ends(path, input_shape, num_classes)
        if isinstance(network, nn.Sequential):
            super().__init__()
            for name, layer in network.named_children():
                self.add_module(name, layer)
        else:
            super().__init__(network)


def _check_ends(path: Any, input_shape: Sequence[int] | None, num_classes: int | None) -> None:
    if input_shape is None and num_classes is None:
        return
    steps = ordered(parse_nir(Path(path)))
    for meaning, expected, found in (
        ("inputs of shape", input_shape, steps.input_shape),
        ("outputs of shape", None if num_classes is None else (num_classes,), steps.output_shape),
    ):
        if expected is not None and found is not None and tuple(expected) != found:
            raise ValueError(
                f"Expected {path} to be a network with {meaning} {list(expected)}, as the data need, but it has "
                f"{list(found)}. Choose the size of the data accordingly, or another file"
            )
