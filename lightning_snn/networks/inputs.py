"""Checks of the inputs that networks are built for."""

from __future__ import annotations

import math

from lightning_snn.checks import check_integer


def input_features(input_shape: int | tuple[int, ...]) -> int:
    """Return the number of inputs of a network that flattens them: the number itself, or the product of a shape.

    Raises:
        ValueError: if a size is not an integer of at least 1.
    """
    sizes = (input_shape,) if isinstance(input_shape, int) else input_shape
    for size in sizes:
        check_integer("input_shape", size)
    return math.prod(sizes)


def check_frames(input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Check that an input is channels, height and width, and that there is at least 1 class."""
    if len(input_shape) != 3:
        raise ValueError(
            f"Expected argument `input_shape` to be channels, height and width, but got {tuple(input_shape)}"
        )
    for size in input_shape:
        check_integer("input_shape", size)
    check_integer("num_classes", num_classes)
