"""Deviations of the rate pass from the spiking pass, which operations without a rate rule cause."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.rate.rules import RATE_RULES, Plan, WindowMean
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn.phase import rate_phase


class DriftMonitor:
    """Context that compares the rates of every module with the means over time of its spiking outputs.

    The two agree to rounding for linear maps and modules with a rate rule. They differ for nonlinear operations without
    a rule, such as a functional ReLU, and for random draws that differ between the passes. A deviation ends at the next
    neurons, which return the recorded rate for any input.

    Args:
        network: the network that `rate_run` runs once within the context.
        plan: windows and steps of that run.

    Attributes:
        drift: largest deviation of a rate from the mean, over the largest mean, by module name in order of the calls.

    Example:
        >>> with DriftMonitor(network, Plan(steps=10)) as monitor:
        ...     outputs = rate_run(network, x)
        >>> max(monitor.drift.values()) < 1e-5, monitor.sources
        (True, [])
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.drift: dict[str, float] = {}
        self._network, self._plan = network, plan
        # parts of a module with a rule do not run on rates
        parts = {part for module in RATE_RULES.found_in(network) for part in module.modules() if part is not module}
        self._names = {
            module: name or type(network).__name__ for name, module in network.named_modules() if module not in parts
        }
        # input and output, for every call of a module
        self._means: dict[tuple[nn.Module, int], list[WindowMean]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._sources: set[nn.Module] = set()

    def __enter__(self) -> DriftMonitor:
        self._hooks = [module.register_forward_hook(self._compare) for module in self._names]
        self._hooks.append(self._network.register_forward_pre_hook(self._start_pass))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def sources(self) -> list[str]:
        """Names of the innermost modules whose rates deviate although their inputs do not."""
        inner = [
            module
            for module in self._sources
            if not any(part in self._sources for part in module.modules() if part is not module)
        ]
        return [self._names[module] for module in self._names if module in inner]

    def _start_pass(self, network: nn.Module, inputs: Any) -> None:
        # not by a prediction in another thread
        if rate_phase() is not None:
            self._calls = dict.fromkeys(self._names, 0)

    @torch.no_grad()
    def _compare(self, module: nn.Module, inputs: Any, output: Any) -> None:
        phase = rate_phase()
        if phase is None or not isinstance(output, Tensor) or not isinstance(inputs[0], Tensor):
            return
        call = (module, self._calls[module])
        self._calls[module] += 1
        if phase == "collect":
            means = self._means.setdefault(call, [WindowMean(self._plan), WindowMean(self._plan)])
            for mean, value in zip(means, (inputs[0], output), strict=True):
                mean.add(value)
            return
        if call not in self._means:
            raise RuntimeError(
                f"Expected the network to call its modules in the same order in every pass, but {self._names[module]} "
                "is called more often in the rate pass"
            )
        before, after = (
            _deviation(value, mean.value)
            for value, mean in zip((inputs[0], output), self._means.pop(call), strict=True)
        )
        name = self._names[module]
        self.drift[name] = max(self.drift.get(name, 0.0), after)
        # in half precision every step is rounded separately
        tolerance = max(1e-3, 16 * torch.finfo(output.dtype).eps)
        if before <= tolerance and not after <= tolerance:
            self._sources.add(module)


def _deviation(value: Tensor, mean: Tensor) -> float:
    return float((value - mean).abs().amax() / mean.abs().amax().clamp(min=torch.finfo(mean.dtype).tiny))


def rate_drift(network: nn.Module, x: Tensor, window: int = 1, streaming: bool = False) -> dict[str, float]:
    """Compute the deviation of the rates of every module from the means of its spiking outputs, on a batch.

    A copy of the network is run, so running statistics do not change.

    Args:
        network: a plain module.
        x: input, shape `[T, B, ...]`.
        window: as in `rate_run`.
        streaming: as in `rate_run`.

    Returns:
        The largest deviation over the largest mean, by module name in order of the calls: rounding error (below 1e-5
        in float32) if every operation has a rate rule.

    Raises:
        ValueError: as in `rate_run`.

    Example:
        >>> max(rate_drift(network, x).values()) < 1e-5
        True
    """
    network = copy.deepcopy(network)
    with torch.enable_grad(), DriftMonitor(network, Plan(x.shape[0], window, streaming)) as monitor:
        rate_run(network, x, window, streaming)
    return monitor.drift
