r"""Firing rates and eligibilities of any neuron that defines a differentiable step, by forward-mode differentiation.

`functional.eligibility` has closed forms for LIF neurons; this module covers all other neurons. The derivative of the
mean output with respect to a constant shift of the input is the tangent of the whole recurrence in direction
``(1, ..., 1)``. Cost: one call of the step per direction and time step; memory of one step, independent of T. The
closed forms of Yu et al. 2024, arXiv 2410.11488, are special cases.
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
    """State of `step_rate` between calls.

    Attributes:
        state: state that the neuron's step returned last.
        steps: number of steps since the start of the window.
        output: sum of the outputs, `[B, ...]`; None at the start of a window.
        tangents: tangents of the state along the input and along each parameter, each with the structure of the state.
        totals: sums of the tangents of the output, in the same order.
    """

    state: Any
    steps: int = 0
    output: Tensor | None = None
    tangents: tuple[Any, ...] = ()
    totals: tuple[Tensor, ...] = ()

    def record(self) -> StepRecord:
        """Return means over the steps since the start of the window, in new tensors.

        Raises:
            RuntimeError: if the window has no step yet.
        """
        if self.output is None:
            raise RuntimeError("Expected the window to have at least one step before its record, but got none")
        along_input, *along_parameters = (total / self.steps for total in self.totals)
        return StepRecord(self.output / self.steps, along_input, along_parameters)

    def next_window(self) -> StepState:
        """Return the state at the start of a new window: the neuron's state as a constant, no tangents and sums."""
        return StepState(self.state)


@torch.no_grad()
def step_rate(
    step: Callable[..., tuple[Tensor, Any]],
    x: Tensor,
    state: StepState | None = None,
    parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, StepState]:
    """Compute outputs and derivatives of their rate, as `lif_rate` does, for any neuron with a differentiable step.

    The tangent is 1 for the input of every step, or 1 for every entry of a parameter. Each of these directions takes
    one call of `step`. Neurons must be independent: neuron i reads only its own entry of the input and of each
    parameter. Otherwise the derivative along ones is not that of each neuron.

    Args:
        step: the neuron, ``step(x, state, *parameters) -> (output, next state)``: a pure, deterministic function that
            supports forward-mode differentiation (a spike Function defines `jvp`). Its state is a tensor, None or a
            tuple, list or dict of states; None is the resting neuron. Its output need not be spikes.
        x: input of the next t steps, shape `[t, B, ...]`, any floating dtype. The step receives it in float32 or wider.
        state: state that the previous call returned; None is the resting neuron.
        parameters: tensors that broadcast to `[B, ...]`.

    Returns:
        outputs `[t, B, ...]` of the dtype of `x`, and the state, whose `record` covers all steps of the window.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, or if the number of parameters changes within a
            window.

    Example:
        >>> def leaky(x, state, decay):
        ...     state = x if state is None else decay * state + x
        ...     return state, state
        >>> x, decay = torch.ones(2, 1), torch.tensor([0.5])
        >>> step_rate(leaky, x, parameters=[decay])[1].record()
        StepRecord(rate=tensor([1.2500]), eligibility=tensor([1.2500]), parameters=[tensor([0.5000])])
    """
    check_input(x)
    state = StepState(None) if state is None else state
    directions = 1 + len(parameters)
    if state.steps > 0 and len(state.tangents) != directions:
        raise ValueError(
            f"Expected argument `parameters` to hold {len(state.tangents) - 1} tensors until the next window, "
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
    """Return output and next state of a step, and the tangents of both, with tangent 1 for one of the inputs."""
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
