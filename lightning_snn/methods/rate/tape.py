"""The two passes of rate-based backpropagation: `rate_run` is `run` with the gradient of firing rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer
from lightning_snn.functional.rate import expand_over_steps
from lightning_snn.methods.rate.rules import RATE_RULES, Commutes, Plan, RateRule, WindowMean, check_not_compiled
from lightning_snn.nn.folding import as_input, run
from lightning_snn.nn.inputs import first_input, map_inputs, named_inputs, split_inputs
from lightning_snn.nn.lengths import later_steps, lengths_of
from lightning_snn.nn.phase import in_phase
from lightning_snn.nn.run_context import forward_replaced


class Tape:
    """Records of the modules of a network in the spiking pass, which the rate pass reads in the same order.

    There is one tape per training step.

    Args:
        network: a plain module.
        plan: windows and steps.

    Raises:
        ValueError: if a part of the network is compiled.

    Example:
        >>> tape = Tape(network, Plan(steps=len(x)))
        >>> spiking = tape.collect(x)
        >>> rates = tape.replay(x.mean(0, keepdim=True))
        >>> torch.allclose(rates[0], spiking.mean(0), atol=1e-5)
        True
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        check_not_compiled(network)
        self.network, self.plan = network, plan
        self._rules = replaced_layers(network)
        # one per call of a module with a rule, in order; a rule is released after its call in the rate pass
        self._slots: list[tuple[nn.Module, RateRule | None]] = []
        self._next = 0
        self._collected = 0
        self._replayed = False

    def collect(self, x: Tensor) -> Tensor:
        """Run the spiking pass over all steps, or over one part of them when streaming.

        It uses `torch.no_grad` because tensors of `inference_mode` cannot be saved for a backward pass.

        Args:
            x: input `[t, B, ...]`.

        Returns:
            Outputs `[t, B, ...]`.

        Raises:
            ValueError: if the network returns anything but one tensor.
            RuntimeError: if the network calls its modules in another order than before.
        """
        first = self._collected == 0
        self._next = 0

        def call(module: nn.Module, x: Tensor) -> Tensor:
            if first:
                self._slots.append((module, self._rules[module](module, self.plan)))
            rule = self._next_rule(module)
            assert rule is not None
            return rule.collect(x)

        with torch.no_grad(), forward_replaced(self._rules, call), in_phase("collect"), later_steps(self._collected):
            outputs = run(self.network, x)
        self._check_all_taken()
        self._collected += len(first_input(x))
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"Expected a network that returns one tensor for rate-based backpropagation, but got {type(outputs)}"
            )
        return outputs

    def replay(self, rates: Tensor) -> Tensor:
        """Run the rate pass.

        Args:
            rates: mean inputs of the windows, `[K, B, ...]`.

        Returns:
            Outputs `[K, B, ...]`.

        Raises:
            RuntimeError: if the tape was replayed before or does not hold all steps yet, or the network calls its
                modules in another order than in the spiking pass.
        """
        if self._replayed or self._collected != self.plan.steps:
            state = "was replayed before" if self._replayed else f"holds {self._collected} of {self.plan.steps} steps"
            raise RuntimeError(f"Expected a tape that holds a whole spiking pass, but this one {state}")
        self._replayed = True
        self._next = 0

        def call(module: nn.Module, x: Tensor) -> Tensor:
            place = self._next
            rule = self._next_rule(module)
            assert rule is not None
            self._slots[place] = (module, None)
            return rule.replay(x)

        with forward_replaced(self._rules, call), in_phase("replay"):
            outputs: Tensor = run(self.network, rates)
        self._check_all_taken()
        return outputs

    def _next_rule(self, module: nn.Module) -> RateRule | None:
        """Return the rule of the next call, which must be a call of this module."""
        expected, rule = self._slots[self._next] if self._next < len(self._slots) else (None, None)
        if expected is not module:
            raise RuntimeError(
                f"Expected the network to call its modules in the same order in every pass, but call {self._next} is "
                f"of {type(module).__name__} and was of {type(expected).__name__ if expected is not None else 'none'}"
            )
        self._next += 1
        return rule

    def _check_all_taken(self) -> None:
        if self._next < len(self._slots):
            raise RuntimeError(
                f"Expected the network to call its modules in the same order in every pass, but it left out "
                f"{type(self._slots[self._next][0]).__name__} at call {self._next}"
            )


def replaced_layers(network: nn.Module) -> dict[nn.Module, type[RateRule]]:
    """Return the modules of a network whose calls both passes replace, with their rules."""
    return {module: rule for module, rule in RATE_RULES.found_in(network).items() if rule is not Commutes}


def rate_run(network: nn.Module, x: Tensor, window: int = 1, streaming: bool = False, scale: float = 1.0) -> Tensor:
    """Run a network over a sequence, with the gradient of rate-based backpropagation.

    The values are those of `run`. The gradient is that of a second run on the mean over time of the input, in which
    neurons return their recorded firing rates and their derivatives are the recorded eligibilities. The memory that it
    saves does not depend on T. Without autograd this is `run`. Other threads may run
    the network at the same time. Within `nn.sequence_lengths` the means are over the valid steps of each sample.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`, one tensor.
        x: input, shape `[T, B, ...]`, time first.
        window: number K of windows, a divisor of T; the gradient is that of rates within each window, and membrane
            potentials pass between windows without a gradient. Memory grows with K.
        streaming: call the network once per step, so the memory of the spiking pass does not grow with T either.
        scale: factor of the gradient.

    Returns:
        outputs `[T, B, ...]`.

    Raises:
        ValueError: if `window` does not divide T, or is neither 1 nor T for sequences of different lengths, or the
            network returns anything but one tensor.
        RuntimeError: if the network calls its modules in another order from pass to pass.

    Example:
        >>> outputs = rate_run(network, x)
        >>> torch.equal(outputs, run(network, x))
        True
        >>> outputs.sum().backward()
    """
    if not torch.is_grad_enabled():
        plain: Tensor = run(network, x)
        return plain
    x = as_input(network, x)
    for name, part in named_inputs(x).items():
        if not part.is_floating_point():
            raise ValueError(
                f"Expected argument `{name}` in floating point for rate-based backpropagation, which averages inputs "
                f"over time, but got {part.dtype}. Convert it with `{name}.float()`"
            )
    check_integer("window", window)
    steps, samples = first_input(x).shape[:2]
    if steps % window:
        raise ValueError(f"Expected argument `window` to divide the number of time steps {steps}, but got {window}")
    lengths = None if window == steps else lengths_of(samples)  # a window of one step is valid or is not
    if lengths is not None and window > 1:
        raise ValueError(
            f"Expected argument `window` to be 1 or the number of time steps {steps} for sequences of different "
            f"lengths, but got {window}"
        )
    plan = Plan(steps, window, streaming, lengths)
    tape = Tape(network, plan)
    if streaming:
        outputs = torch.cat([tape.collect(step) for step in split_inputs(x, 1)])
    else:
        outputs = tape.collect(x)

    def mean(part: Tensor) -> Tensor:
        if lengths is None:
            means: Tensor = part.unflatten(0, (window, -1)).mean(1)
            return means
        found = WindowMean(Plan(steps, lengths=lengths))
        found.add(part.flatten(0, 1))
        return found.value.to(part.dtype)[None]

    rates = tape.replay(map_inputs(mean, x))
    return expand_over_steps(rates, outputs, scale)
