"""Rate rules of what has a membrane: the recorded firing rate is the value, the recorded eligibility the derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_snn.functional.eligibility import RateState, lif_rate
from lightning_snn.functional.rate import recorded
from lightning_snn.functional.step_eligibility import StepState, step_rate
from lightning_snn.methods.rate.rules import RATE_RULES, Plan, RateRule, joined, register_rate_rule
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, Neuron, Recurrent, RecurrentLIF
from lightning_snn.nn.neurons.probes import elementwise_refusal
from lightning_snn.nn.stateful import over_channels

RECURRENCE = 'neurons that receive each other\'s spikes, which only window="step" can represent'


class MembraneRule(RateRule):
    """What all layers with a state over time share: windows that are scanned, recorded and closed one after another."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.state: Any = None
        self.records: list[Any] = []
        self.steps = 0

    def collect(self, x: Tensor) -> Tensor:
        parts = unfold(x, self.module).split(self.plan.length)
        return joined([self.advance(part) for part in parts]).flatten(0, 1)

    def replay(self, x: Tensor) -> Tensor:
        rate = joined([record.rate for record in self.records])
        return recorded(x, rate, joined([record.eligibility for record in self.records]), self.parameters(x))

    def advance(self, part: Tensor) -> Tensor:
        """Outputs of further steps `[t, B, ...]` of the current window."""
        outputs, self.state = self.scan(part)
        self.steps += len(part)
        if self.steps % self.plan.length == 0:
            self.records.append(self.state.record())
            self.state = self.state.next_window() if self.steps < self.plan.steps else None
        return outputs

    def scan(self, part: Tensor) -> tuple[Tensor, Any]:
        """Outputs of steps `[t, B, ...]` that follow on `state`, and the state after them."""
        raise NotImplementedError(f"{type(self).__name__} defines no scan")

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Trained parameters, shaped to broadcast to rates `x`, and the recorded derivatives of the rate."""
        raise NotImplementedError(f"{type(self).__name__} defines no parameters")


class StepRule(MembraneRule):
    """Any neuron with a differentiable ``step(x, state) -> (output, state)``, by forward-mode differentiation.

    Parameters get a gradient if they are numbers or hold one entry a channel, and each neuron hears the entry of its
    channel alone.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.step = _functional_step(module, self.names)

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        if isinstance(module, Neuron) and not module.independent and not one_step_windows:
            return RECURRENCE
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                return f"parameter {name} is neither a number nor one per channel"
        return elementwise_refusal(module)

    def scan(self, part: Tensor) -> tuple[Tensor, StepState]:
        parameters = [self.module.get_parameter(name).detach() for name in self.names]
        return step_rate(self.step, part, self.state, parameters)

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = []
        for index, name in enumerate(self.names):
            parameter = over_channels(self.module.get_parameter(name), x)
            assert isinstance(parameter, Tensor)
            found.append((parameter, joined([record.parameters[index] for record in self.records])))
        return found


def _functional_step(module: nn.Module, names: list[str]) -> Callable[..., Any]:
    """``step(x, state, *parameters)`` of a module."""
    caller = _StepCaller(module)

    def step(x: Tensor, state: Any, *parameters: Tensor) -> Any:
        named = {f"neuron.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return functional_call(caller, named, (x, state))

    return step


class _StepCaller(nn.Module):
    """`functional_call` calls forward alone."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.neuron.step(x, state)  # type: ignore[operator]


class LIFRule(MembraneRule):
    """LIF neurons, by the closed forms of their eligibility; learned decays and thresholds get gradients."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, LIF)
        self.neurons = module
        learned = [module.parameter_of(name) for name in ("beta", "threshold")]
        beta, threshold = (parameter is not None and parameter.requires_grad for parameter in learned)
        self.wanted = (beta, threshold)

    def scan(self, part: Tensor) -> tuple[Tensor, RateState]:
        beta, threshold = self.neurons.parameters_for(part[0])
        return lif_rate(part, beta, threshold, self.neurons.dynamics, self.state, self.wanted)

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        derivatives = ([record.beta for record in self.records], [record.threshold for record in self.records])
        return [
            (parameter, joined(derivative))
            for parameter, derivative, wanted in zip(
                self.neurons.parameters_for(x), derivatives, self.wanted, strict=True
            )
            if wanted and isinstance(parameter, Tensor)
        ]


class _Recurrence:
    """Recurrent neurons in windows of one step, where the spikes of the step before are a given input."""

    module: nn.Module
    weight: nn.Parameter

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)  # type: ignore[call-arg]
        self.before: list[Tensor] = []
        self.last: Tensor | None = None

    def advance(self, part: Tensor) -> Tensor:
        (current,) = part
        before = torch.zeros_like(current) if self.last is None else self.last
        spikes: Tensor = super().advance((current + F.linear(before, self.weight))[None])  # type: ignore[misc]
        self.last = spikes[0]
        self.before.append(before)
        return spikes

    def replay(self, x: Tensor) -> Tensor:
        rates: Tensor = super().replay(x + F.linear(joined(self.before), self.weight))  # type: ignore[misc]
        return rates


class RecurrentLIFRule(_Recurrence, LIFRule):
    """`RecurrentLIF` in windows of one step."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, RecurrentLIF)
        self.weight = module.weight

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        return None if one_step_windows else RECURRENCE


class RecurrentRule(_Recurrence, StepRule):
    """`Recurrent` in windows of one step: the rule of the wrapped neuron, on currents that include the recurrence."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        assert isinstance(module, Recurrent)
        super().__init__(module.neuron, plan)
        self.weight = module.weight

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        assert isinstance(module, Recurrent)
        return super().refusal(module.neuron, one_step_windows) if one_step_windows else RECURRENCE


register_rate_rule(Neuron, StepRule)
register_rate_rule(LIF, LIFRule)
register_rate_rule(RecurrentLIF, RecurrentLIFRule)
register_rate_rule(Recurrent, RecurrentRule)
register_rate_rule(LeakyIntegrator, StepRule)
RATE_RULES.register_method("step", StepRule)
