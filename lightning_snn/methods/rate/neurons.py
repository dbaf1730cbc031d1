"""Rate rules of neurons: the value is the recorded firing rate, the derivative the recorded eligibility."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from lightning_snn.functional.eligibility import RateState, lif_rate
from lightning_snn.functional.linked_windows import WindowLink, linked
from lightning_snn.functional.rate import recorded
from lightning_snn.functional.step_eligibility import StepState, forward_derivatives, step_rate
from lightning_snn.methods.rate.rules import RATE_RULES, Plan, RateRule, concatenated, register_rate_rule
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, Neuron, Recurrent, RecurrentLIF
from lightning_snn.nn.neurons.firing import step_of
from lightning_snn.nn.neurons.probes import elementwise_refusal
from lightning_snn.nn.stateful import over_channels

RECURRENCE = 'neurons that receive each other\'s spikes, which only window="step" can represent'


class MembraneRule(RateRule):
    """Base of the rules of layers with a state, which scan and record one window after another."""

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.state: Any = None
        self.records: list[Any] = []
        self.links: list[WindowLink] = []
        self.steps = 0

    def collect(self, x: Tensor) -> Tensor:
        sequence = unfold(x, self.module)
        return concatenated([self.advance(part) for part in self._parts(sequence)]).flatten(0, 1)

    def _parts(self, sequence: Tensor) -> Sequence[Tensor]:
        if self.plan.streaming:
            return [sequence]
        if self.plan.ends is None:  # not by length, which would make the number of parts depend on T
            windows: Sequence[Tensor] = sequence.unflatten(0, (self.plan.windows, -1)).unbind(0)
            return windows
        ends = [0, *self.plan.ends, *([] if self.plan.ends[-1] == len(sequence) else [len(sequence)])]
        parts: Sequence[Tensor] = sequence.split([after - before for before, after in pairwise(ends)])
        return parts

    def replay(self, x: Tensor) -> Tensor:
        rate = concatenated([record.rate for record in self.records])
        slope = concatenated([record.eligibility for record in self.records])
        if self.plan.link:
            return linked(x, rate, slope, self.links, self.parameters(x))
        return recorded(x, rate, slope, self.parameters(x))

    def advance(self, part: Tensor) -> Tensor:
        """Run the next steps `[t, B, ...]` of the current window."""
        outputs, self.state = self.scan(part)
        self.steps += len(part)
        if self.plan.ends is not None:
            self._record_ended(part.shape[1])
        elif self.steps % self.plan.length == 0:
            self.records.append(self.state.record())
            if self.plan.link:
                self.links.append(self.state.link_record())
            self.state = self.state.next_window() if self.steps < self.plan.steps else None
        return outputs

    def _record_ended(self, samples: int) -> None:
        """Record the means of the samples whose last valid step was the present one."""
        assert self.plan.ends is not None
        if self.steps in self.plan.ends:
            counts, found = self.plan.valid_counts(samples), self.state.record()
            assert counts is not None
            ended = counts == self.steps

            def of_ended(before: Tensor | None, now: Tensor | None) -> Tensor | None:
                if before is None or now is None:  # a derivative that is not requested
                    return None
                return torch.where(ended.view(-1, *(1,) * (now.dim() - 1)), now, before)

            self.records = [tree_map(of_ended, self.records[0], found) if self.records else found]
        if self.steps == self.plan.steps:
            self.state = None

    def scan(self, part: Tensor) -> tuple[Tensor, Any]:
        """Return the outputs of steps `[t, B, ...]` that follow `state`, and the state after them."""
        raise NotImplementedError(f"{type(self).__name__} defines no scan")

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the trained parameters, shaped to broadcast to rates `x`, and the derivatives of the rate."""
        raise NotImplementedError(f"{type(self).__name__} defines no parameters")


class StepRule(MembraneRule):
    """Rule of any neuron with a differentiable ``step(x, state) -> (output, state)``: forward-mode differentiation.

    Parameters get a gradient if they are numbers or have one entry per channel, of which each neuron uses only that of
    its channel.
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
        differentiate = None
        if isinstance(self.module, Neuron) and self.module.compiles_steps:
            differentiate = step_of(self.module, forward_derivatives, part, static=True)
        return step_rate(self.step, part, self.state, parameters, differentiate, self.plan.link)

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = []
        for index, name in enumerate(self.names):
            parameter = over_channels(self.module.get_parameter(name), x)
            assert isinstance(parameter, Tensor)
            found.append((parameter, concatenated([record.parameters[index] for record in self.records])))
        return found


def _functional_step(module: nn.Module, names: list[str]) -> Callable[..., Any]:
    """Return ``step(x, state, *parameters)`` of a module."""
    if not names:
        return module.step  # type: ignore[return-value]
    caller = _StepCaller(module)

    def step(x: Tensor, state: Any, *parameters: Tensor) -> Any:
        named = {f"neuron.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        return functional_call(caller, named, (x, state))

    return step


class _StepCaller(nn.Module):
    """Module whose `forward` is the step of a neuron, because `functional_call` calls `forward` only."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.neuron.step(x, state)  # type: ignore[operator]


class LIFRule(MembraneRule):
    """Rule of LIF neurons: closed forms of the eligibility; learned decays and thresholds get gradients."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, LIF)
        self.neurons = module
        with torch.enable_grad():  # of a parametrized value, too
            learned = [module.parameter_of(name) for name in ("beta", "threshold")]
        beta, threshold = (parameter is not None and parameter.requires_grad for parameter in learned)
        self.trained = (beta, threshold)

    def scan(self, part: Tensor) -> tuple[Tensor, RateState]:
        beta, threshold = self.neurons.parameters_for(part[0])
        return lif_rate(part, beta, threshold, self.neurons.dynamics, self.state, self.trained, self.plan.link)

    def parameters(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        derivatives = ([record.beta for record in self.records], [record.threshold for record in self.records])
        return [
            (parameter, concatenated(derivative))
            for parameter, derivative, trained in zip(
                self.neurons.parameters_for(x), derivatives, self.trained, strict=True
            )
            if trained and isinstance(parameter, Tensor)
        ]


class _Recurrence:
    """Mixin for recurrent neurons in windows of one step, in which the spikes of the last step are a given input."""

    module: nn.Module
    layer: Recurrent | RecurrentLIF

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)  # type: ignore[call-arg]
        self.before: list[Tensor] = []
        self.last: Tensor | None = None

    def advance(self, part: Tensor) -> Tensor:
        (current,) = part
        before = torch.zeros_like(current) if self.last is None else self.last
        spikes: Tensor = super().advance((current + F.linear(before, self.layer.weight))[None])  # type: ignore[misc]
        self.last = spikes[0]
        self.before.append(before)
        return spikes

    def replay(self, x: Tensor) -> Tensor:
        rates: Tensor = super().replay(x + F.linear(concatenated(self.before), self.layer.weight))  # type: ignore[misc]
        return rates


class RecurrentLIFRule(_Recurrence, LIFRule):
    """Rule of `RecurrentLIF` in windows of one step."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, RecurrentLIF)
        self.layer = module

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        return None if one_step_windows else RECURRENCE


class RecurrentRule(_Recurrence, StepRule):
    """Rule of `Recurrent` in windows of one step: that of its neuron, on currents that include the recurrence."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        assert isinstance(module, Recurrent)
        super().__init__(module.neuron, plan)
        self.layer = module

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
