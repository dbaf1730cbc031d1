"""Errors of torch about shapes, in the words of a user: which layer, and what the axes of the input were taken for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lightning_snn.nn.inputs import named_inputs

# torch has no type for these errors
_OF_SHAPES = re.compile(
    r"shapes cannot be multiplied|to have \d+ channels|input to conv|[Ss]izes? of tensor|size mismatch|running_mean "
    r"should contain|expected input with shape|input of size|must match the size"
)


def explained_shapes(network: nn.Module, x: Any) -> AbstractContextManager[None]:
    """Return a context in which an error of torch about shapes names the layer of the network and the axes of `x`.

    The number of features does not show that axes were exchanged, because time is folded into the batch. Other errors
    pass as they are.

    Args:
        network: the network that runs.
        x: its input `[T, B, ...]`, or several in a tuple, list or dict.

    Raises:
        ValueError: within the context, in place of such an error, which is its cause.

    Example:
        >>> network, x = nn.Linear(4, 3), torch.rand(10, 2, 5)
        >>> with explained_shapes(network, x):
        ...     network(x.flatten(0, 1))
        Traceback (most recent call last):
        ValueError: Expected argument `x` of shape [T, B, ...] with samples that the network takes, but got (10, 2, 5):
        10 time steps, 2 samples, each of shape (5,) in a step. The network, a Linear, failed: mat1 and mat2 shapes
        cannot be multiplied (20x5 and 4x3). Change the order of the axes of `x`, or the layer
    """
    return nullcontext() if torch.compiler.is_compiling() else _explained(network, x)


@contextmanager
def _explained(network: nn.Module, x: Any) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError or not _OF_SHAPES.search(str(error)):
            raise
        described = "; ".join(_described(name, part.shape) for name, part in named_inputs(x).items())
        raise ValueError(
            f"Expected argument `x` of shape [T, B, ...] with samples that the network takes, but got {described}. "
            f"{_failed(network, error.__traceback__)} failed: {str(error).rstrip('.')}. Change the order of the axes "
            "of `x`, or the layer"
        ) from error


def _described(name: str, shape: torch.Size) -> str:
    steps, samples, *sample = shape
    axes = f"each of shape {tuple(sample)} in a step" if sample else "each a single number in a step"
    prefix = "" if name == "x" else f"{name} of "
    return f"{prefix}{tuple(shape)}: {steps} time steps, {samples} samples, {axes}"


def _failed(network: nn.Module, traceback: TracebackType | None) -> str:
    """Return the innermost module of the network in whose forward an error was raised."""
    names = {module: name for name, module in network.named_modules()}
    found = network
    while traceback is not None:
        own = traceback.tb_frame.f_locals.get("self")
        if isinstance(own, nn.Module) and own in names:
            found = own
        traceback = traceback.tb_next
    return f"{'Layer ' + names[found] if names[found] else 'The network'}, a {type(found).__name__},"
