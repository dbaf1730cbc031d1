"""Variants of the scans as the schemas of operators hold them: tensors, numbers and names only."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.surrogate import ArcTangent, FastSigmoid, Sigmoid, Surrogate, Triangular

BuiltIn = ArcTangent | FastSigmoid | Sigmoid | Triangular
BUILT_IN: dict[str, type[BuiltIn]] = {
    "arctangent": ArcTangent,
    "fast_sigmoid": FastSigmoid,
    "sigmoid": Sigmoid,
    "triangular": Triangular,
}
NAMES = {kind: name for name, kind in BUILT_IN.items()}

# the strides of the outputs follow those of the inputs, so the compiler must not change them
TAGS = (torch.Tag.pt2_compliant_tag, getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order))


def built_in(surrogate: Surrogate) -> tuple[str, float] | None:
    """Return name and width of a surrogate that the operators know, by its exact type; None for any other.

    Example:
        >>> built_in(ArcTangent(width=0.5))
        ('arctangent', 0.5)
    """
    if type(surrogate) not in NAMES:
        return None
    assert isinstance(surrogate, BuiltIn)
    return NAMES[type(surrogate)], surrogate.width


def tensor_and_number(value: float | Tensor) -> tuple[Tensor | None, float]:
    """Return a parameter as the operators take it: a tensor, or None and a number."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)
