"""Inputs of a network: one tensor, or several with the same time steps and samples, in a tuple, a list or a dict."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def is_several(x: Any) -> bool:
    """Return whether inputs are several: a tuple, list or dict that is not empty."""
    return isinstance(x, (tuple, list, Mapping)) and len(x) > 0


def named_inputs(x: Any) -> dict[str, Any]:
    """Return each input by its name in messages, such as `x`, `x[0]` or `x['audio']`.

    Example:
        >>> list(named_inputs({"audio": torch.zeros(5, 2, 3), "video": torch.zeros(5, 2, 4)}))
        ["x['audio']", "x['video']"]
    """
    if not is_several(x):
        return {"x": x}
    parts = x.items() if isinstance(x, Mapping) else enumerate(x)
    return {f"x[{key!r}]": part for key, part in parts}


def first_input(x: Any) -> Any:
    """Return the first input, whose time steps and samples are those of all."""
    return next(iter(named_inputs(x).values()))


def map_inputs(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """Return inputs with a function applied to each, in a tuple or dict as they came.

    Example:
        >>> map_inputs(lambda part: 2 * part, (torch.ones(1), torch.zeros(1)))
        (tensor([2.]), tensor([0.]))
    """
    if not is_several(x):
        return function(x)
    if isinstance(x, Mapping):
        return {key: function(part) for key, part in x.items()}
    return tuple(function(part) for part in x)


def split_inputs(x: Any, size: int) -> list[Any]:
    """Return pieces of at most `size` time steps of inputs `[T, B, ...]`."""
    steps = len(first_input(x))
    return [map_inputs(lambda part, at=at: part[at : at + size], x) for at in range(0, steps, size)]  # type: ignore[misc]


def call_with_inputs(network: nn.Module, x: Any) -> Any:
    """Return the output of a network: a tuple or list becomes its arguments by position, a dict those by name."""
    if not is_several(x):
        return network(x)
    return network(**x) if isinstance(x, Mapping) else network(*x)


def check_several(network: nn.Module, x: Any) -> None:
    """Raise a ValueError if a network does not take these several inputs."""
    if not is_several(x):
        return
    given, named = ((), x) if isinstance(x, Mapping) else (x, {})
    try:
        signature = inspect.signature(network.forward)
        signature.bind(*given, **named)
    except TypeError as error:
        kind = f"the keys {', '.join(map(repr, x))}" if named else f"{len(x)} tensors"
        raise ValueError(
            f"Expected argument `x` to be a tensor of shape [T, B, ...], or several that the forward of "
            f"{type(network).__name__} takes, {signature}, but got a {type(x).__name__} of {kind}. A tuple or list "
            "becomes its arguments by position, a dict those by name"
        ) from error
