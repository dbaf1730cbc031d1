"""Variants of the scans as the schemas of operators hold them: tensors, numbers and names only."""

from __future__ import annotations

from functools import lru_cache

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
NAMES: dict[type[Surrogate], str] = {kind: name for name, kind in BUILT_IN.items()}

# the strides of the outputs follow those of the inputs, so the compiler must not change them
TAGS = (torch.Tag.pt2_compliant_tag, getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order))


def built_in(surrogate: Surrogate) -> tuple[str, float] | None:
    """Return name and width of a surrogate that the operators know, by its exact type; None for any other.

    Example:
        >>> built_in(ArcTangent(width=0.5))
        ('arctangent', 0.5)
    """
    name = NAMES.get(type(surrogate))
    return None if name is None else (name, surrogate.width)  # type: ignore[attr-defined]


@lru_cache
def surrogate_of(name: str, width: float) -> Surrogate:
    """Return the surrogate of that name and width; made once, because operators ask for it in each call.

    Example:
        >>> surrogate_of("arctangent", 0.5)
        ArcTangent(width=0.5)
    """
    return BUILT_IN[name](width)


def tensor_and_number(value: float | Tensor) -> tuple[Tensor | None, float]:
    """Return a parameter as the operators take it: a tensor, or None and a number."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)
