"""Rate rules: the behavior of each module type in the two passes of rate-based backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_snn.nn.layer_rules import LayerRules, Refusal, is_compiled, refuse
from lightning_snn.nn.lengths import over_steps


@dataclass(frozen=True)
class Plan:
    """Windows and steps of a training step.

    Attributes:
        steps: number of time steps T.
        windows: number of windows K, a divisor of T; rates are means over windows.
        streaming: True if the spiking pass calls the network once per step on `[B, ...]`, False if it calls it once on
            all steps `[T*B, ...]`.
        link: True if errors pass from window to window through the state of neurons.
        lengths: number of valid steps of each sample, integers `[B]`, whose mean is the rate of the only window; None
            if all steps are valid.

    Example:
        >>> Plan(steps=10, windows=5).length
        2
    """

    steps: int
    windows: int = 1
    streaming: bool = False
    link: bool = False
    lengths: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of steps of a window."""
        return self.steps // self.windows

    @cached_property
    def ends(self) -> list[int] | None:
        """Different lengths, the shortest first; None if all steps are valid. Read once: it waits for a device."""
        return None if self.lengths is None else self.lengths.unique().tolist()

    def valid_counts(self, samples: int) -> Tensor | None:
        """Return the lengths of the rows of a step, of which a layer may have several for a sample; None for T."""
        if self.lengths is None:
            return None
        return self.lengths.repeat_interleave(samples // len(self.lengths))

    def step_weights(self, step: int, samples: int, dtype: torch.dtype) -> Tensor | None:
        """Return the share of a step in the mean of each row `[samples]`, 0 where it is padding; None for 1 / T."""
        counts = self.valid_counts(samples)
        return None if counts is None else (step < counts).to(dtype) / counts


class RateRule:
    """Base of the rules for one call of a module in the spiking pass and the rate pass of one training step.

    There is one instance per training step and per call of the module in the network. A subclass is registered for
    module types by `register_rate_rule`.

    Attributes:
        masks_padding: whether steps that are padding, by `Plan.lengths`, count neither in records nor in gradients.

    Args:
        module: the module that is called.
        plan: windows and steps.

    Example:
        >>> class Scale(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> register_rate_rule(Scale, Commutes)  # linear and stateless, so it acts on rates as on spikes
    """

    masks_padding: ClassVar[bool] = False

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module, self.plan = module, plan

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        """Return why this module cannot be represented, None if it can.

        Args:
            module: the module.
            one_step_windows: True if every step is a window, so every rate is a spike.
        """
        return None

    def collect(self, x: Tensor) -> Tensor:
        """Return the spiking output of the module and record what the rate pass needs, without autograd.

        Called once with all steps `[T*B, ...]`, or T times with `[B, ...]` when streaming.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no collect")

    def replay(self, x: Tensor) -> Tensor:
        """Return the output of the module on rates `[K*B, ...]`, with the gradient of training. Called once."""
        raise NotImplementedError(f"{type(self).__name__} defines no replay")

    def plain(self, x: Tensor) -> Tensor:
        """Return the output of the module itself. A rule must not call the module."""
        output: Tensor = type(self.module).forward(self.module, x)
        return output


class Commutes(RateRule):
    """Rule of linear modules without a state: the output on the mean is the mean of the outputs.

    Example:
        >>> layer = nn.Linear(4, 3)
        >>> rule = Commutes(layer, Plan(steps=10))
        >>> torch.equal(rule.replay(x[0]), layer(x[0]))
        True
    """

    masks_padding = True

    def collect(self, x: Tensor) -> Tensor:
        return self.plain(x)

    def replay(self, x: Tensor) -> Tensor:
        return self.plain(x)


RATE_RULES: LayerRules[type[RateRule]] = LayerRules(unknown="no rate rule: see `register_rate_rule`")


def register_rate_rule(kind: type[nn.Module], rule: type[RateRule]) -> None:
    """Set how rate-based backpropagation treats modules of a type, and of its subclasses that compute the same.

    Args:
        kind: module type. The rule also covers the children of such a module.
        rule: a subclass of `RateRule`; `Commutes` for linear modules without a state.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`, or `rule` not one of `RateRule`.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2
        >>> register_rate_rule(Halve, Commutes)
        >>> rate_refusals(Halve(), one_step_windows=False)
        []
    """
    if not (isinstance(rule, type) and issubclass(rule, RateRule)):
        raise TypeError(f"Expected argument `rule` to be a subclass of RateRule, but got {rule!r}")
    RATE_RULES.register(kind, rule)


def rate_refusals(network: nn.Module, one_step_windows: bool) -> list[Refusal]:
    """Return the modules that rate-based backpropagation cannot represent, with the reasons.

    Args:
        network: a plain module.
        one_step_windows: True if every time step is a window, so recurrence can be represented.

    Example:
        >>> [str(refusal) for refusal in rate_refusals(nn.LayerNorm(4), one_step_windows=False)]
        ['the network: LayerNorm (no rate rule: see `register_rate_rule`)']
    """
    refused = list(RATE_RULES.refusals(network, lambda rule, layer: rule.refusal(layer, one_step_windows)))
    return [each._replace(reason=_COMPILED) if _is_compiled(each.layer) else each for each in refused]


def padding_refusals(network: nn.Module) -> list[Refusal]:
    """Return the modules whose rates would count the padding of sequences of different lengths, with the reasons.

    Example:
        >>> class Own(nn.Module):
        ...     def forward(self, x):
        ...         return x.sqrt()
        >>> register_rate_rule(Own, RateRule)
        >>> [str(refusal) for refusal in padding_refusals(nn.Sequential(Own()))]
        ['0: Own (its rates would count padding)']
    """
    names = {module: name for name, module in network.named_modules()}
    return [
        Refusal(names[module], module, "its rates would count padding")
        for module, rule in RATE_RULES.found_in(network).items()
        if not rule.masks_padding
    ]


def check_not_compiled(network: nn.Module) -> None:
    """Raise a ValueError that names the modules of a network that are the result of `torch.compile`, if there are any.

    The passes set the `forward` of modules for a while, which compiled code does not see.
    """
    compiled = [(name, layer) for name, layer in network.named_modules() if is_compiled(layer)]
    refuse("RateBackprop", [Refusal(name, layer, _COMPILED) for name, layer in compiled])


_COMPILED = (
    "it is compiled, but RateBackprop replaces the calls of its layers: train it without `torch.compile`, or compile "
    "whole steps by `SpikingModule.compile()`"
)


def _is_compiled(layer: nn.Module | str) -> bool:
    return isinstance(layer, nn.Module) and is_compiled(layer)


class WindowMean:
    """Mean over the valid steps of each window of a tensor of the network that is added in one or several parts.

    Args:
        plan: windows and steps.

    Example:
        >>> mean = WindowMean(Plan(steps=4, windows=2))
        >>> mean.add(torch.tensor([[1.0], [2.0], [3.0], [5.0]]))
        >>> mean.value
        tensor([[1.5000],
                [4.0000]])
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._means: list[Tensor] = []
        self._sum: Tensor | None = None
        self._steps = 0

    def add(self, y: Tensor) -> None:
        """Add all steps `[T*B, ...]`, or the next step `[B, ...]` when streaming; `y` is not stored."""
        wide = torch.promote_types(y.dtype, torch.float32)
        if self.plan.lengths is not None:
            self._add_valid(y.to(wide))
            return
        if not self.plan.streaming:
            windows = y.unflatten(0, (self.plan.windows, self.plan.length, -1))
            self._means.append(windows.mean(1, dtype=wide).flatten(0, 1))
            return
        self._sum = y.to(wide, copy=True) if self._sum is None else self._sum.add_(y)
        self._steps += 1
        if self._steps == self.plan.length:
            self._means.append(self._sum / self._steps)
            self._sum, self._steps = None, 0

    def _add_valid(self, y: Tensor) -> None:
        steps = y.unflatten(0, (1 if self.plan.streaming else self.plan.steps, -1))
        counts = self.plan.valid_counts(steps.shape[1])
        assert counts is not None
        numbers = torch.arange(self._steps, self._steps + len(steps), device=y.device)
        valid = over_steps(numbers.unsqueeze(1) < counts, steps)
        found = torch.where(valid, steps, 0).sum(0) / counts.view(-1, *(1,) * (y.dim() - 1))
        self._means = [self._means[0] + found] if self._means else [found]
        self._steps += len(steps)

    @property
    def value(self) -> Tensor:
        """Means `[K*B, ...]`, in float32 or wider."""
        return concatenated(self._means)


def concatenated(parts: list[Tensor]) -> Tensor:
    """Concatenate the records of windows along dimension 0, without a copy if there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
