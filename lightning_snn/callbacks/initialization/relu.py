"""Activity and Jacobians of rectifiers, and of neurons that spike at most once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.initialization.findings import Finding, advised, judged
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import gain, largest_singular_value, slope_statistics, spectral_radius
from lightning_snn.methods.ttfs.layers import AlphaConv2d, AlphaLinear, FirstSpike
from lightning_snn.nn.observation import first_argument

_ALPHA = (AlphaLinear, AlphaConv2d)
RECTIFIERS = (nn.ReLU, FirstSpike, *_ALPHA)


class Call(NamedTuple):
    """A call of a rectifier: its name, the module, what it returned and what it was given."""

    name: str
    layer: nn.Module
    output: Tensor
    heard: Tensor


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Call]]:
    """A context that gives the calls of a network's rectifiers, in their order."""
    calls: list[Call] = []

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            number = sum(each.layer is layer for each in calls)
            heard = first_argument(args, kwargs)
            calls.append(Call(f"{name}_{number + 1}" if number else name, layer, output, heard))

        return hook

    with ExitStack() as hooks:
        for name, layer in network.named_modules():
            if isinstance(layer, RECTIFIERS):
                hook = keep(name or type(layer).__name__)
                hooks.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield calls


def rectifier_findings(calls: list[Call], thresholds: Thresholds) -> list[Finding]:
    """What is found of rectifiers."""
    return [*_activity(calls, thresholds), *_jacobians(calls, thresholds)]


def _activity(calls: list[Call], thresholds: Thresholds) -> list[Finding]:
    found = []
    for name, layer, output, heard in calls:
        active = output.detach().flatten(1) > 0
        silent = (~active.any(1)).double().mean().item()
        found.append(judged("active_fraction", name, active.double().mean().item(), thresholds.active_fraction))
        found.append(Finding("dead_share", name, (~active.any(0)).double().mean().item(), None))
        found.append(advised("silent_samples", name, silent, "warn" if silent > 0 else "ok", True))
        if isinstance(layer, _ALPHA):
            slopes = slope_statistics(layer.slope)
            found.append(advised("smallest_slope", name, slopes.minimum, thresholds.slope_verdict(slopes), False))
            found.append(Finding("slopes_not_positive", name, slopes.not_positive, None))
        if isinstance(layer, (FirstSpike, *_ALPHA)):
            drive = heard if isinstance(layer, FirstSpike) else output
            found.append(Finding("overflow", name, (drive > layer.window).double().mean().item(), None))
    return found


def _jacobians(calls: list[Call], thresholds: Thresholds) -> list[Finding]:
    """Jacobians of each layer with respect to the one before, and of the last with respect to the first."""
    found = []
    seed = torch.Generator(calls[0].output.device).manual_seed(0)
    for before, (name, _, output, _) in pairwise(calls):
        if before.output[0].numel() == output[0].numel():
            radius = spectral_radius(output, before.output, generator=seed).mean().item()
            found.append(judged("spectral_radius", name, radius, thresholds.spectral_radius))
        value = largest_singular_value(output, before.output, generator=seed).mean().item()
        found.append(Finding("singular_value", name, value, None))
    if len(calls) > 1:
        # of all samples together, so that one of them may not hide the others
        depth = gain(calls[-1].output, calls[0].output, generator=seed).square().mean().sqrt().item()
        found.append(judged("depth_gain", "all", depth, thresholds.depth_gain))
    return found
