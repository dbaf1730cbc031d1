"""Activity and Jacobians of ReLUs, and of neurons that spike at most once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.initialization.findings import Finding, judge_by_band, with_advice
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import gain, largest_singular_value, slope_statistics, spectral_radius
from lightning_snn.methods.ttfs import AlphaConv2d, AlphaLinear, FirstSpike
from lightning_snn.nn.observation import first_argument

_ALPHA = (AlphaLinear, AlphaConv2d)
RELU_LAYERS = (nn.ReLU, FirstSpike, *_ALPHA)


class ReLUCall(NamedTuple):
    """Call of a ReLU: name and layer, with the output and input."""

    name: str
    layer: nn.Module
    output: Tensor
    input: Tensor


@contextmanager
def record_calls(network: nn.Module) -> Iterator[list[ReLUCall]]:
    """Record the calls of a network's ReLUs, in their order, within this context."""
    calls: list[ReLUCall] = []

    def record(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            number = sum(each.layer is layer for each in calls)
            unique = f"{name}_{number + 1}" if number else name
            calls.append(ReLUCall(unique, layer, output, first_argument(args, kwargs)))

        return hook

    with ExitStack() as hooks:
        for name, layer in network.named_modules():
            if isinstance(layer, RELU_LAYERS):
                hook = record(name or type(layer).__name__)
                hooks.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield calls


def relu_findings(calls: list[ReLUCall], thresholds: Thresholds) -> list[Finding]:
    """Return the findings about ReLUs."""
    return [*_activity(calls, thresholds), *_jacobians(calls, thresholds)]


def _activity(calls: list[ReLUCall], thresholds: Thresholds) -> list[Finding]:
    found = []
    for name, layer, output, given in calls:
        active = output.detach().flatten(1) > 0
        silent = (~active.any(1)).double().mean().item()
        found.append(judge_by_band("active_fraction", name, active.double().mean().item(), thresholds.active_fraction))
        found.append(Finding("dead_share", name, (~active.any(0)).double().mean().item(), None))
        found.append(with_advice("silent_samples", name, silent, "warn" if silent > 0 else "ok", True))
        if isinstance(layer, _ALPHA):
            slopes = slope_statistics(layer.slope)
            found.append(with_advice("smallest_slope", name, slopes.minimum, thresholds.slope_verdict(slopes), False))
            found.append(Finding("slopes_not_positive", name, slopes.not_positive, None))
        if isinstance(layer, (FirstSpike, *_ALPHA)):
            current = given if isinstance(layer, FirstSpike) else output
            found.append(Finding("overflow", name, (current > layer.window).double().mean().item(), None))
    return found


def _jacobians(calls: list[ReLUCall], thresholds: Thresholds) -> list[Finding]:
    """Return findings about Jacobians of each layer to the one before, and of the last layer to the first."""
    found = []
    seed = torch.Generator(calls[0].output.device).manual_seed(0)
    for before, (name, _, output, _) in pairwise(calls):
        if before.output[0].numel() == output[0].numel():
            radius = spectral_radius(output, before.output, generator=seed).mean().item()
            found.append(judge_by_band("spectral_radius", name, radius, thresholds.spectral_radius))
        value = largest_singular_value(output, before.output, generator=seed).mean().item()
        found.append(Finding("singular_value", name, value, None))
    if len(calls) > 1:
        # over all samples together, so that one of them cannot hide the others
        depth = gain(calls[-1].output, calls[0].output, generator=seed).square().mean().sqrt().item()
        found.append(judge_by_band("depth_gain", "all", depth, thresholds.depth_gain))
    return found
