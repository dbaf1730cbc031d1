"""Input checks and accumulation shared by the functional metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_choice

# Rounding to bfloat16 changes the sum of a row by up to 0.2 %; the sum of independent sigmoids is much further from 1.
_ROW_SUM_TOLERANCE = 0.01
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Reduction = Literal["mean", "none"]


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which scores are summed on a device: float64 where the device supports it, else float32.

    Example:
        >>> accumulation_dtype(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean of the values, or the values.

    Raises:
        ValueError: if `reduction` is neither "mean" nor "none".
    """
    check_choice("reduction", reduction, ("mean", "none"))
    return values.mean() if reduction == "mean" else values


def in_order(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort values by their keys in ascending order, and average the values of equal keys.

    Returns:
        The sorted keys and the values in that order, each replaced by the mean over all values of equal key.
    """
    ascending, order = keys.sort()
    dtype = accumulation_dtype(keys.device)
    _, group, size = ascending.unique_consecutive(return_inverse=True, return_counts=True)
    total = values[order].to(dtype).cumsum(0)
    group_totals = torch.cat([total.new_zeros(1), total[size.cumsum(0) - 1]]).diff()
    return ascending.to(dtype), (group_totals / size)[group]


def check_samples(probabilities: Tensor, targets: Tensor, name: str = "probabilities", whole: bool = True) -> None:
    """Check class probabilities `(N, C)` and classes `(N,)`.

    Args:
        probabilities: the probabilities to check.
        targets: the classes to check.
        name: name of the argument that holds the probabilities, for the message.
        whole: whether the rows must sum to one.

    Raises:
        ValueError: if an argument is not as stated above.
    """
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point() or probabilities.ndim != 2:
        raise ValueError(
            f"Expected argument `{name}` to be a floating-point tensor of shape (N, C), but got "
            f"{kind_of(probabilities)}"
        )
    if not isinstance(targets, Tensor) or targets.dtype not in INTEGER_DTYPES or targets.ndim != 1:
        raise ValueError(
            f"Expected argument `targets` to be an integer tensor of shape (N,), but got {kind_of(targets)}"
        )
    samples, number_of_classes = probabilities.shape
    if targets.shape[0] != samples:
        raise ValueError(
            f"Expected argument `targets` to hold one class for each of the {samples} rows of `{name}`, "
            f"but got {targets.shape[0]}"
        )
    if number_of_classes < 2:
        raise ValueError(f"Expected argument `{name}` to have at least 2 columns, but got {number_of_classes}")
    if samples == 0:
        return
    sums = probabilities.detach().float().sum(dim=1)
    extremes = (*probabilities.detach().aminmax(), (sums - 1).abs().max(), *targets.aminmax())
    # read at once, because a GPU finishes all its work before each read
    wide = accumulation_dtype(probabilities.device)
    low, high, excess, lowest, highest = torch.stack(
        [each.to(probabilities.device, wide) for each in extremes]
    ).tolist()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Expected argument `{name}` to hold values within [0, 1], but got values from {low:g} to {high:g}"
        )
    if whole and excess > _ROW_SUM_TOLERANCE:
        raise ValueError(
            f"Expected argument `{name}` to sum to 1 over the classes, "
            f"but got a row whose sum differs from 1 by {excess:g}"
        )
    if lowest < 0 or highest >= number_of_classes:
        raise ValueError(
            f"Expected argument `targets` to hold classes from 0 to {number_of_classes - 1}, "
            f"but got values from {lowest:.0f} to {highest:.0f}. Leave out samples without a label."
        )


def check_values(name: str, values: Tensor) -> None:
    """Check for real numbers of shape `(N,)` with N of at least 1.

    Raises:
        ValueError: if the values are anything else, or one is nan.
    """
    if not isinstance(values, Tensor) or values.ndim != 1 or len(values) == 0 or values.is_complex():
        raise ValueError(
            f"Expected argument `{name}` to be a tensor of shape (N,) with N of at least 1, but got {kind_of(values)}"
        )
    check_numbers(name, values)


def check_numbers(name: str, values: Tensor) -> None:
    """Check that no value is nan: a comparison with nan is false, and the largest value would be that of any class.

    Raises:
        ValueError: if a value is nan.

    Example:
        >>> check_numbers("outputs", torch.tensor([0.5, torch.nan]))
        Traceback (most recent call last):
        ValueError: Expected argument `outputs` to hold numbers, but got 1 nan
    """
    if values.isnan().any():
        raise ValueError(f"Expected argument `{name}` to hold numbers, but got {values.isnan().sum()} nan")


def check_pairs(pairs: Sequence[tuple[int, int]]) -> None:
    """Check for disjoint pairs of class indices.

    Args:
        pairs: pairs of different classes, integers of at least 0; no class may be in two pairs.

    Raises:
        ValueError: if `pairs` is not as stated above.

    Example:
        >>> check_pairs([(1, 2), (3, 4)])
        >>> check_pairs([(1, 2), (2, 3)])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `pairs` to be disjoint pairs of class indices ..., but got [(1, 2), (2, 3)]
    """
    expectation = (
        f"Expected argument `pairs` to be disjoint pairs of class indices like [(1, 2), (3, 4)], but got {pairs!r}"
    )
    try:
        classes = [label for first, second in pairs for label in (first, second)]
    except (TypeError, ValueError) as error:
        raise ValueError(expectation) from error
    if any(isinstance(label, bool) or not isinstance(label, int) or label < 0 for label in classes):
        raise ValueError(expectation)
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(expectation)


def kind_of(value: object) -> str:
    """Describe the dtype and shape of a tensor, or the type of anything else, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    return type(value).__name__
