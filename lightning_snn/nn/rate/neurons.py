"""Rate rules of what has a membrane: the recorded firing rate is the value, the recorded eligibility the derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_snn.functional.eligibility import RateRecord, RateState, lif_rate
from lightning_snn.functional.rate import recorded
from lightning_snn.functional.step_eligibility import StepRecord, StepState, step_rate
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.lif import LIF, LeakyIntegrator, RecurrentLIF, over_channels
from lightning_snn.nn.rate.rules import RULES_BY_METHOD, Plan, RateRule, joined, register_rate_rule


class StepRule(RateRule):
    """Any neuron with a differentiable ``step(x, state) -> (output, state)``, by forward-mode differentiation.

    Parameters get a gradient if they are numbers or hold one entry a channel, and each neuron hears the entry of its
    channel alone.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.state: StepState | None = None
        self.records: list[StepRecord] = []
        self.steps = 0
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.step = _functional_step(module, self.names)

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                return f"parameter {name} is neither a number nor one a channel"
        return None

    def collect(self, x: Tensor) -> Tensor:
        sequence = unfold(x, self.module)
        parameters = [self.module.get_parameter(name).detach() for name in self.names]
        outputs = []
        for part in sequence.split(self.plan.length):
            output, self.state = step_rate(self.step, part, self.state, parameters)
            outputs.append(output)
            self.steps += len(part)
            if self.steps % self.plan.length == 0:
                self.records.append(self.state.record())
                self.state = self.state.next_window() if self.steps < self.plan.steps else None
        return joined(outputs).flatten(0, 1)

    def replay(self, x: Tensor) -> Tensor:
        rate = joined([record.rate for record in self.records])
        parameters = []
        for index, name in enumerate(self.names):
            parameter = over_channels(self.module.get_parameter(name), x)
            assert isinstance(parameter, Tensor)
            parameters.append((parameter, joined([record.parameters[index] for record in self.records])))
        return recorded(x, rate, joined([record.eligibility for record in self.records]), parameters)


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


class LIFRule(RateRule):
    """LIF neurons, by the closed forms of their eligibility; learned decays and thresholds get gradients."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.state: RateState | None = None
        self.records: list[RateRecord] = []
        self.steps = 0

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        return (
            None if type(module).forward is LIF.forward else "a forward of its own, so it needs a rate rule of its own"
        )

    def collect(self, x: Tensor) -> Tensor:
        sequence = unfold(x, self.module)
        return joined([self._advance(part) for part in sequence.split(self.plan.length)]).flatten(0, 1)

    def replay(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, LIF)
        derivatives = ([record.beta for record in self.records], [record.threshold for record in self.records])
        parameters = [
            (parameter, joined([each for each in derivative if each is not None]))
            for parameter, derivative, wanted in zip(
                self.module.parameters_for(x), derivatives, self._wanted, strict=True
            )
            if wanted and isinstance(parameter, Tensor)
        ]
        rate = joined([record.rate for record in self.records])
        return recorded(x, rate, joined([record.eligibility for record in self.records]), parameters)

    @property
    def _wanted(self) -> tuple[bool, bool]:
        assert isinstance(self.module, LIF)
        return (
            self.module.learn_beta and self.module.beta_logit.requires_grad,
            self.module.learn_threshold and self.module.threshold_log.requires_grad,
        )

    def _advance(self, part: Tensor) -> Tensor:
        """Spikes of further steps `[t, B, ...]` of the current window."""
        assert isinstance(self.module, LIF)
        beta, threshold = self.module.parameters_for(part[0])
        spikes, self.state = lif_rate(part, beta, threshold, self.module.dynamics, self.state, self._wanted)
        self.steps += len(part)
        if self.steps % self.plan.length == 0:
            self.records.append(self.state.record())
            self.state = self.state.next_window() if self.steps < self.plan.steps else None
        return spikes


class RecurrentLIFRule(LIFRule):
    """Recurrent LIF neurons in windows of one step, where the spikes of the step before are a given input."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.before: list[Tensor] = []
        self.last: Tensor | None = None

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        if type(module).forward is not RecurrentLIF.forward:
            return "a forward of its own, so it needs a rate rule of its own"
        return None if one_step_windows else 'recurrence, which only window="step" can represent'

    def collect(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, RecurrentLIF)
        spikes = []
        for current in unfold(x, self.module).unbind(0):
            before = torch.zeros_like(current) if self.last is None else self.last
            self.last = self._advance((current + F.linear(before, self.module.weight))[None])[0]
            self.before.append(before)
            spikes.append(self.last)
        return torch.cat(spikes)

    def replay(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, RecurrentLIF)
        return super().replay(x + F.linear(joined(self.before), self.module.weight))


register_rate_rule(LIF, LIFRule)
register_rate_rule(RecurrentLIF, RecurrentLIFRule)
register_rate_rule(LeakyIntegrator, StepRule)
RULES_BY_METHOD["step"] = StepRule
