"""Runs of a network that record the calls of modules with a rate rule: inputs and outputs, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_snn.methods.rate.neurons import MembraneRule
from lightning_snn.methods.rate.rules import RateRule, rate_refusals
from lightning_snn.methods.rate.stateless import DelaysRule, DivisiveNormalizationRule, DropoutRule
from lightning_snn.methods.rate.tape import replaced_layers
from lightning_snn.nn.folding import run
from lightning_snn.nn.inputs import first_input, map_inputs
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.phase import rate_phase
from lightning_snn.nn.run_context import forward_replaced

Rules = Mapping[nn.Module, type[RateRule]]


@dataclass
class Call:
    """One call of a module with a rate rule.

    Attributes:
        module: the module.
        neurons: whether it is a layer of neurons.
        input: its input `[T*B, ...]`, or `[B, ...]` in the rate pass, as a node of the graph of its own.
        output: its output.
    """

    module: nn.Module
    neurons: bool
    input: Tensor
    output: Tensor


@contextmanager
def calls_captured(rules: Rules, phase: str | None) -> Iterator[list[Call]]:
    """Enter a context that records the calls of modules in one pass of `rate_run`, or outside of it.

    Args:
        rules: the modules, with their rules.
        phase: the pass; None is a run outside of `rate_run`.
    """
    calls: list[Call] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if rate_phase() != phase:
            return None
        x, *rest = inputs
        # a copy, so its gradient is that of this call alone, and a module may work in place
        x = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        calls.append(Call(module, issubclass(rules[module], MembraneRule), x, x))
        return (x, *rest)

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if rate_phase() == phase:
            next(call for call in reversed(calls) if call.module is module).output = output

    hooks = [module.register_forward_pre_hook(before) for module in rules]
    hooks += [module.register_forward_hook(after) for module in rules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def run_between(
    network: nn.Module, x: Any, calls: list[Call], change: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Run a network with recorded outputs in place of the calls of some modules, so a graph ends at each of them.

    Args:
        network: the network.
        x: its input `[T, B, ...]`.
        calls: recorded calls of a run, in order.
        change: function that changes the input and the recorded outputs, `[T, B, ...]` to `[T, B, ...]`.

    Returns:
        The inputs `[T*B, ...]` of the calls, and the outputs `[T, B, ...]` of the network.
    """
    steps = len(first_input(x))
    found: list[Tensor] = []

    def call(module: nn.Module, current: Tensor) -> Tensor:
        recorded = calls[len(found)].output.detach()
        found.append(current)
        return change(recorded.unflatten(0, (steps, -1))).flatten(0, 1)

    with forward_replaced({each.module for each in calls}, call):
        output: Tensor = run(network, map_inputs(change, x))
    return found, output


def decomposition_refusals(network: nn.Module) -> list[Refusal]:
    """Return the modules that `gradient_decomposition` cannot treat, with the reasons.

    Those are the modules that `rate_run` refuses, among them neurons that receive each other's spikes, delays and
    divisive normalization, whose memory is not that of a neuron, and dropout in training mode.

    Example:
        >>> [refusal.name for refusal in decomposition_refusals(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))]
        ['1']
    """
    names = {module: name for name, module in network.named_modules()}
    unknown = [
        Refusal(names[module], module, reason)
        for module, rule in replaced_layers(network).items()
        if (reason := _reason(module, rule)) is not None
    ]
    return [*rate_refusals(network, one_step_windows=False), *unknown]


def _reason(module: nn.Module, rule: type[RateRule]) -> str | None:
    if issubclass(rule, DropoutRule) and module.training:
        return "it draws a mask per step through time, and one mask for all steps with rates: call `.eval()` first"
    if issubclass(rule, (DelaysRule, DivisiveNormalizationRule)):
        return "its memory is not that of a neuron: compare gradients by `gradient_alignment`"
    return None
