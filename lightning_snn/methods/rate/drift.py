"""Where the rate pass says something else than the spikes did: operations that no rule covers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.rate.rules import Plan, WindowMean
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn.phase import rate_phase


class DriftWatch:
    """Compares, within its context, every module's rates with the means over time of its spiking outputs.

    Linear maps and ruled modules agree to rounding. What does not is a nonlinear operation outside a ruled module, such
    as a functional ReLU, or a random draw that differs between the passes. It drifts no further than the next neurons,
    which give the recorded rate whatever drives them.

    Args:
        network: the network that `rate_run` is to run within the context, once.
        plan: windows and steps of that run.

    Attributes:
        drift: by the names of modules, in order of their calls, the largest deviation of a rate from the mean over
            the largest mean.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.drift: dict[str, float] = {}
        self._network, self._plan = network, plan
        self._names = {module: name or type(network).__name__ for name, module in network.named_modules()}
        # input and output, for every call of a module
        self._means: dict[tuple[nn.Module, int], list[WindowMean]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._at_fault: set[nn.Module] = set()

    def __enter__(self) -> DriftWatch:
        self._hooks = [module.register_forward_hook(self._see) for module in self._names]
        self._hooks.append(self._network.register_forward_pre_hook(self._begin))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def at_fault(self) -> list[str]:
        """The names of the modules whose rates drift though their inputs' do not, the innermost alone."""
        inner = [
            module
            for module in self._at_fault
            if not any(part in self._at_fault for part in module.modules() if part is not module)
        ]
        return [self._names[module] for module in self._names if module in inner]

    def _begin(self, network: nn.Module, inputs: Any) -> None:
        self._calls = dict.fromkeys(self._names, 0)

    @torch.no_grad()
    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
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
                "is called more often among rates"
            )
        before, after = (
            _deviation(value, mean.value)
            for value, mean in zip((inputs[0], output), self._means.pop(call), strict=True)
        )
        name = self._names[module]
        self.drift[name] = max(self.drift.get(name, 0.0), after)
        # half precision rounds every step by itself
        tolerance = max(1e-3, 16 * torch.finfo(output.dtype).eps)
        if before <= tolerance and not after <= tolerance:
            self._at_fault.add(module)


def _deviation(value: Tensor, mean: Tensor) -> float:
    return float((value - mean).abs().amax() / mean.abs().amax().clamp(min=torch.finfo(mean.dtype).tiny))


def rate_drift(network: nn.Module, x: Tensor, window: int = 1, streaming: bool = False) -> dict[str, float]:
    """How far the rates of every module are from the means of its spiking outputs, on a batch.

    The network is run on a copy, so that running statistics stay as they are.

    Args:
        network: a plain module.
        x: input, shape `[T, B, ...]`.
        window, streaming: as in `rate_run`.

    Returns:
        by the names of modules, in order of their calls, the largest deviation over the largest mean: rounding (below
        1e-5 in float32) where the rate pass says what the spikes said.

    Raises:
        ValueError: as in `rate_run`.
    """
    network = copy.deepcopy(network)
    with torch.enable_grad(), DriftWatch(network, Plan(x.shape[0], window, streaming)) as watch:
        rate_run(network, x, window, streaming)
    return watch.drift
