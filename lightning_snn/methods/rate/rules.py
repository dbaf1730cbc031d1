"""What a module is in the two passes of rate-based backpropagation: a rule a module type, open to users."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_snn.nn.layer_rules import LayerRules, Refusal


@dataclass(frozen=True)
class Plan:
    """How a sequence is cut and walked through.

    Attributes:
        steps: T.
        windows: K, a divisor of T; rates are means over windows.
        streaming: whether the spiking pass calls the network once a step on `[B, ...]`, rather than once on all steps
            `[T*B, ...]`.
    """

    steps: int
    windows: int = 1
    streaming: bool = False

    @property
    def length(self) -> int:
        """Steps of a window."""
        return self.steps // self.windows


class RateRule:
    """What one call of a module does in the spiking pass and in the rate pass of one training step.

    An instance lives for one training step and serves one place where the network calls the module. A subclass
    registers itself for module types by `register_rate_rule`.

    Args:
        module: the module that is called.
        plan: windows and steps.

    Example:
        >>> class Scale(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> register_rate_rule(Scale, Commutes)  # a linear map of every step: it acts on rates as on spikes
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module, self.plan = module, plan

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        """Why this module cannot be represented, None if it can. With one-step windows every rate is a spike."""
        return None

    def collect(self, x: Tensor) -> Tensor:
        """The module's spiking output, without autograd, and whatever the rate pass will need.

        Called once with all steps `[T*B, ...]`, or when streaming T times with `[B, ...]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no collect")

    def replay(self, x: Tensor) -> Tensor:
        """The module's output on rates `[K*B, ...]`, with the gradient that training follows. Called once."""
        raise NotImplementedError(f"{type(self).__name__} defines no replay")

    def plain(self, x: Tensor) -> Tensor:
        """What the module itself makes of `x`; the module must not be called within a rule."""
        return type(self.module).forward(self.module, x)


class Commutes(RateRule):
    """A module that acts on every step alone and linearly: its output on the mean is the mean of its outputs."""

    def collect(self, x: Tensor) -> Tensor:
        return self.plain(x)

    def replay(self, x: Tensor) -> Tensor:
        return self.plain(x)


RATE_RULES: LayerRules[type[RateRule]] = LayerRules(unknown="no rate rule: see `register_rate_rule`")


def register_rate_rule(kind: type[nn.Module], rule: type[RateRule]) -> None:
    """Set how rate-based backpropagation treats modules of a type, and of its subclasses that compute the same.

    Args:
        kind: module type. One with children is then treated as a whole.
        rule: a subclass of `RateRule`; `Commutes` for a module that acts on every step alone and linearly.

    Raises:
        TypeError: if an argument is of another kind.
    """
    if not (isinstance(rule, type) and issubclass(rule, RateRule)):
        raise TypeError(f"Expected argument `rule` to be a subclass of RateRule, but got {rule!r}")
    RATE_RULES.register(kind, rule)


def rate_refusals(network: nn.Module, one_step_windows: bool) -> list[Refusal]:
    """Return the modules that rate-based backpropagation cannot represent, with the reasons.

    Args:
        network: a plain module.
        one_step_windows: whether every time step is a window of its own, in which recurrence can be represented.
    """
    names = {module: name for name, module in network.named_modules()}
    found = RATE_RULES.found_in(network)
    refused = [
        Refusal(names[module], module, reason)
        for module, rule in found.items()
        if (reason := rule.refusal(module, one_step_windows)) is not None
    ]
    order = list(names.values())
    return sorted([*refused, *RATE_RULES.refusals(network)], key=lambda refusal: order.index(refusal.name))


class WindowMean:
    """The mean over each window of what a place in the network gives chunk by chunk.

    Args:
        plan: windows and steps.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._means: list[Tensor] = []
        self._sum: Tensor | None = None
        self._steps = 0

    def add(self, y: Tensor) -> None:
        """The next chunk: all steps `[T*B, ...]`, or one `[B, ...]` when streaming; not kept."""
        wide = torch.promote_types(y.dtype, torch.float32)
        if not self.plan.streaming:
            windows = y.unflatten(0, (self.plan.windows, self.plan.length, -1))
            self._means.append(windows.mean(1, dtype=wide).flatten(0, 1))
            return
        self._sum = y.to(wide, copy=True) if self._sum is None else self._sum.add_(y)
        self._steps += 1
        if self._steps == self.plan.length:
            self._means.append(self._sum / self._steps)
            self._sum, self._steps = None, 0

    @property
    def value(self) -> Tensor:
        """The means, `[K*B, ...]`, in float32 or wider."""
        return joined(self._means)


def joined(parts: list[Tensor]) -> Tensor:
    """The records of windows along dimension 0; of a single one without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
