"""Decays and thresholds between libraries: read and written without a change of digits, where that is possible."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.nn.stateful import StatefulLayer

_SEARCHED = 8  # neighbors of a logit or logarithm, on either side


def floating_dtype(function: str, network: nn.Module) -> torch.dtype:
    """Return the dtype of parameters and buffers of a network, the default dtype without any.

    Raises:
        ValueError: if they are of several dtypes, or neither float32 nor float64, in which membrane potentials of this
            library are held.
    """
    found = {value.dtype for value in (*network.parameters(), *network.buffers()) if value.is_floating_point()}
    if not found:
        return torch.get_default_dtype()
    if len(found) > 1 or found - {torch.float32, torch.float64}:
        names = ", ".join(sorted(map(str, found)))
        raise ValueError(
            f"Expected argument `network` of {function} to have all parameters in float32 or all in float64, but got "
            f"{names}. Convert it with `network.float()`"
        )
    return found.pop()


def device_of(network: nn.Module) -> torch.device | None:
    """Return the device of the first parameter or buffer of a network; None without any."""
    return next((value.device for value in (*network.parameters(), *network.buffers())), None)


def next_below(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of a dtype that is smaller than `value` in that dtype.

    A neuron that spikes at a potential of at least theta spikes above the number below theta.

    Example:
        >>> next_below(1.0, torch.float64)
        0.9999999999999999
    """
    return _next(value, -math.inf, dtype)


def next_above(value: float, dtype: torch.dtype) -> float:
    """Return the smallest number of a dtype that is larger than `value` in that dtype.

    Example:
        >>> next_above(next_below(1.0, torch.float32), torch.float32)
        1.0
    """
    return _next(value, math.inf, dtype)


def _next(value: float, toward: float, dtype: torch.dtype) -> float:
    number = torch.tensor(value, dtype=dtype)
    return torch.nextafter(number, torch.tensor(toward, dtype=dtype)).item()


def given(value: Tensor) -> float | list[float]:
    """Return a value as neurons of this library take it: a number, or a list of one per channel.

    Example:
        >>> given(torch.tensor([0.5])), given(torch.tensor([[[0.5]], [[0.25]]]))
        (0.5, [0.5, 0.25])
    """
    values = value.detach().double().flatten().tolist()
    return values[0] if len(values) == 1 else values


def write_exactly(layer: StatefulLayer, values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, float]:
    """Set declared values of a layer to those of another library, in a dtype.

    A learned decay is stored as its logit and a learned threshold as its logarithm, so not every number can be read
    back. The nearest one that can is taken.

    Args:
        layer: the layer, which is converted to `dtype`.
        values: by name, a number or one per channel each; a parameter is learned if it requires a gradient.
        dtype: float32 or float64.

    Returns:
        the largest relative differences of learned values that cannot be read back, by name.
    """
    layer.to(dtype)
    differences = {}
    for name, value in values.items():
        stored = layer.parameter_of(name)
        if stored is None:
            if name not in layer.fixed_numbers:
                layer.get_buffer(f"{name}_channels").copy_(value.detach().flatten())
            continue
        target = value.detach().to(stored).view(stored.shape)
        with torch.no_grad():
            stored.copy_(_stored(layer, name, target))
            stored.requires_grad_(value.requires_grad)
            read = torch.as_tensor(layer.value(name)).detach()
        difference = ((read - target).abs() / target.abs()).max().item()
        if difference > 0:
            differences[name] = difference
    return differences


def _stored(layer: StatefulLayer, name: str, target: Tensor) -> Tensor:
    """Return the logit or logarithm from which the number nearest to each target is read."""
    parameter = layer.parameter_of(name)
    assert parameter is not None
    wide = target.double()
    start = (wide.log() if layer.range_of(name) == "positive" else torch.logit(wide)).to(target.dtype)
    best, distance = start, torch.full_like(start, math.inf)
    for toward in (-math.inf, math.inf):
        candidate = start
        for _ in range(_SEARCHED):
            parameter.copy_(candidate)
            miss = (torch.as_tensor(layer.value(name)) - target).abs()
            best = torch.where(miss < distance, candidate, best)
            distance = torch.minimum(miss, distance)
            candidate = torch.nextafter(candidate, torch.full_like(candidate, toward))
    return best


def check_learned_decay(name: str, value: Tensor) -> None:
    """Raise an Unconvertible if a learned decay is 0 or 1 or outside, which no logit represents."""
    low, high = value.min().item(), value.max().item()
    if isinstance(value, nn.Parameter) and not (low > 0 and high < 1):
        raise Unconvertible(
            f"its learned {name} reaches {low if low <= 0 else high:g}, but a learned decay is stored as its logit, in "
            f"(0, 1): clamp it, such as by `layer.{name}.data.clamp_(1e-4, 1 - 1e-4)`, or make it a buffer"
        )


def warn_of_differences(function: str, differences: Iterable[tuple[str, float]]) -> None:
    """Warn of learned values that are not read back to the last digit."""
    found = list(differences)
    if found:
        listed = ", ".join(f"{name} by {difference:.1e}" for name, difference in found)
        warnings.warn(
            f"{function}: learned decays and thresholds are stored as logits and logarithms, from which these are read "
            f"back with a relative difference: {listed}. A potential within that of a threshold may spike or not",
            stacklevel=3,
        )
