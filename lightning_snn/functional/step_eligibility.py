r"""Firing rates and eligibilities of any neuron that defines a differentiable step, by forward-mode differentiation.

What `functional.eligibility` has in closed form for LIF neurons, this has for all others: the derivative of the mean
output with respect to a constant shift of the input is the tangent of the whole recurrence in direction ``(1, ...,
1)``. One call of the step a direction; memory one step, whatever T is. The closed forms of Yu et al. 2024, arXiv
2410.11488, are instances of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from lightning_snn.functional.lif import check_input


class StepRecord(NamedTuple):
    """Means over the steps of a window, each `[B, ...]`, in float32 or wider.

    Attributes:
        rate: mean output.
        eligibility: derivative of the rate with respect to a constant shift of the input.
        parameters: derivatives of the rate of each neuron with respect to its entry of each parameter.
    """

    rate: Tensor
    eligibility: Tensor
    parameters: list[Tensor]


class StepState(NamedTuple):
    """Where a pass of `step_rate` stands.

    Attributes:
        state: what the neuron's step returned, and takes next.
        steps: number of steps since the window began.
        output: sum of the outputs, `[B, ...]`; None at the start of a window.
        tangents: of the state, along the input and along each parameter, each with the structure of the state.
        totals: sums of the tangents of the output, in the same order.
    """

    state: Any
    steps: int = 0
    output: Tensor | None = None
    tangents: tuple[Any, ...] = ()
    totals: tuple[Tensor, ...] = ()

    def record(self) -> StepRecord:
        """Means over the steps since the window began, in tensors of their own.

        Raises:
            RuntimeError: if the window has no step yet.
        """
        if self.output is None:
            raise RuntimeError("Expected at least one step in the window before its record is taken, but it has none")
        along_input, *along_parameters = (total / self.steps for total in self.totals)
        return StepRecord(self.output / self.steps, along_input, along_parameters)

    def next_window(self) -> StepState:
        """The state of a new window: that of the neuron stays, as a constant; all else starts anew."""
        return StepState(self.state)


@torch.no_grad()
def step_rate(
    step: Callable[..., tuple[Tensor, Any]],
    x: Tensor,
    state: StepState | None = None,
    parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, StepState]:
    """What `lif_rate` gives, for any neuron with a differentiable step, by forward-mode automatic differentiation.

    The direction is 1 into the input of every step, or 1 in every entry of a parameter. Each direction is one more
    call of `step`. The neurons must be independent of each other, neuron i reading its own entry of the input and of
    every parameter: only then is the derivative along ones that of each neuron.

    Args:
        step: the neuron, ``step(x, state, *parameters) -> (output, next state)``: a pure, deterministic function that
            forward-mode differentiation goes through (a spike Function defines `jvp`). Its state is a tensor, None or
            a tuple, list or dict of states, and None is the resting neuron. Its output need not be spikes.
        x: input of t further steps, shape `[t, B, ...]`, any floating dtype. The step sees it in float32 or wider.
        state: what the previous call returned; None is the resting neuron.
        parameters: tensors that broadcast to `[B, ...]`.

    Returns:
        outputs of the dtype of `x`, `[t, B, ...]`, and the state, whose `record` is of all steps of the window.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, or the number of parameters changes within a
            window.
    """
    check_input(x)
    state = StepState(None) if state is None else state
    directions = 1 + len(parameters)
    if state.steps > 0 and len(state.tangents) != directions:
        raise ValueError(
            f"Expected argument `parameters` to stay {len(state.tangents) - 1} tensors until the next window, "
            f"but got {len(parameters)}"
        )
    neuron, steps, total, tangents, totals = state
    outputs = []
    for current in x.to(torch.promote_types(x.dtype, torch.float32)):
        inputs = (current, *parameters)
        results = [
            _differentiate(step, inputs, direction, neuron, tangents[direction] if tangents else None)
            for direction in range(directions)
        ]
        output, neuron = results[0][:2]
        changes, tangents = tuple(result[2] for result in results), tuple(result[3] for result in results)
        outputs.append(output.to(x.dtype))
        total = output.clone() if total is None else total + output
        totals = tuple(map(torch.add, totals, changes)) if totals else changes
    return torch.stack(outputs), StepState(neuron, steps + len(x), total, tangents, totals)


def _differentiate(
    step: Callable[..., tuple[Tensor, Any]], inputs: tuple[Tensor, ...], direction: int, state: Any, tangent: Any
) -> tuple[Tensor, Any, Tensor, Any]:
    """Output and next state of a step, and the tangents of both, with 1 as the tangent of one of the inputs."""
    with forward_ad.dual_level():
        duals = list(inputs)
        duals[direction] = forward_ad.make_dual(inputs[direction], torch.ones_like(inputs[direction]))
        if tangent is not None:
            state = tree_map(_dual, state, tangent)
        output, after = step(duals[0], state, *duals[1:])
        value, change = _undual(output)
        if change is None:
            change = torch.zeros_like(value)
        return (
            value,
            tree_map(lambda leaf: _undual(leaf)[0], after),
            change,
            tree_map(lambda leaf: _undual(leaf)[1], after),
        )


def _dual(value: Any, tangent: Tensor | None) -> Any:
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def _undual(value: Any) -> tuple[Any, Tensor | None]:
    return tuple(forward_ad.unpack_dual(value)) if isinstance(value, Tensor) else (value, None)
