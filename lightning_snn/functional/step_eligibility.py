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
from torch.utils._pytree import tree_leaves, tree_map

from lightning_snn.functional.lif import check_input
from lightning_snn.functional.linked_windows import Factor, WindowLink

Step = Callable[..., tuple[Tensor, Any]]
Derivatives = tuple[Tensor, Any, tuple[Tensor, ...], tuple[Any, ...]]
Differentiate = Callable[[Step, tuple[Tensor, ...], Any, tuple[Any, ...]], Derivatives]


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
        tangents: tangents of the state along the input, along each parameter and, if windows are linked, along each
            part of the state before the window; each with the structure of the state.
        totals: sums of the tangents of the output, in the same order.
        parts: number of parts of the state before the window; None if windows are not linked.
    """

    state: Any
    steps: int = 0
    output: Tensor | None = None
    tangents: tuple[Any, ...] = ()
    totals: tuple[Tensor, ...] = ()
    parts: int | None = None

    def record(self) -> StepRecord:
        """Return means over the steps since the start of the window, in new tensors.

        Raises:
            RuntimeError: if the window has no step yet.
        """
        if self.output is None:
            raise RuntimeError("Expected the window to have at least one step before its record, but got none")
        along_input, *others = (total / self.steps for total in self.totals)
        return StepRecord(self.output / self.steps, along_input, others[: len(others) - (self.parts or 0)])

    def link_record(self) -> WindowLink:
        """Return the derivatives that link the window with its neighbors, in new tensors.

        Raises:
            RuntimeError: if they were not requested, or the window has no step yet.
        """
        if self.parts is None or self.output is None:
            raise RuntimeError("Expected steps of a window that is linked before its record, but got none")
        current, *tangents = (self._parts_along(tangent) for tangent in self.tangents)
        count = len(tangents) - self.parts
        rates = tuple(total / self.steps for total in self.totals[1 + count :])
        return WindowLink(rates, current, tuple(tangents[count:]), tuple(tangents[:count]))

    def _parts_along(self, tangent: Any) -> tuple[Factor, ...]:
        """Return the tangent of each part of the state that has one."""
        return tuple(_as_parts(_dense(self.state, tangent)))

    def next_window(self) -> StepState:
        """Return the state at the start of a new window: the neuron's state as a constant, no tangents and sums."""
        return StepState(self.state)


def forward_derivatives(step: Step, inputs: tuple[Tensor, ...], state: Any, tangents: tuple[Any, ...]) -> Derivatives:
    """Return output and next state of a step, and the derivatives of both along each input.

    One function without data-dependent branches, which `torch.compile` turns into one graph.

    Args:
        step: the neuron, ``step(x, state, *parameters) -> (output, next state)``.
        inputs: the current `[B, ...]` and the parameters. The derivative along an input is that along 1 for each of its
            entries.
        state: state before the step, a tensor or a tuple, list or dict of states.
        tangents: derivatives of the state along each input, each with the structure of the state.

    Returns:
        output, next state, derivatives of the output and tangents of the next state.

    Example:
        >>> def leaky(x, state, decay):
        ...     return (after := decay * state + x), after
        >>> x, decay, state = torch.ones(1), torch.tensor(0.5), torch.full((1,), 4.0)
        >>> rest = torch.zeros(1)
        >>> forward_derivatives(leaky, (x, decay), state, (rest, rest))[2]
        (tensor([1.]), tensor([4.]))
    """
    results = []
    # the compiler cannot differentiate views of variable size
    inputs, state = tree_map(torch.clone, (inputs, state))
    for direction, tangent in enumerate(tangents):
        along = [torch.ones_like(each) if k == direction else torch.zeros_like(each) for k, each in enumerate(inputs)]
        primals = (inputs[0], state, *inputs[1:])
        values, derivatives = torch.func.jvp(step, primals, (along[0], tangent, *along[1:]))  # type: ignore[misc]
        results.append((values, derivatives))
    (output, after), _ = results[0]
    changes, tangents = zip(*(derivatives for _, derivatives in results), strict=True)
    return output, after, changes, tangents


@torch.no_grad()
def step_rate(
    step: Step,
    x: Tensor,
    state: StepState | None = None,
    parameters: Sequence[Tensor] = (),
    differentiate: Differentiate | None = None,
    link: bool = False,
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
        differentiate: `forward_derivatives`, compiled, for steps from a state of tensors; None differentiates step by
            step.
        link: whether to compute the derivatives that link windows, with one more call of `step` per part of the state;
            constant within a window.

    Returns:
        outputs `[t, B, ...]` of the dtype of `x`, and the state, whose `record` covers all steps of the window.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, if the number of parameters changes within a
            window, or if windows are linked and a part of the state has another shape than a step of `x`.

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
    if link and state.steps == 0:
        state = _linked_start(state, directions, x[0])
    directions += state.parts or 0
    if state.steps > 0 and len(state.tangents) != directions:
        raise ValueError(
            f"Expected argument `parameters` to hold {len(state.tangents) - 1} tensors until the next window, "
            f"but got {len(parameters)}"
        )
    neuron, steps, total, tangents, totals, parts = state
    outputs = []
    for current in x.to(torch.promote_types(x.dtype, torch.float32)):
        inputs = (current, *parameters)
        tangents = tangents or (None,) * directions
        if differentiate is None or neuron is None:  # the state of rest is made by the step
            output, neuron, changes, tangents = _dual_derivatives(step, inputs, neuron, tangents)
        else:
            given = tuple(_dense(neuron, tangent) for tangent in tangents)
            output, neuron, changes, tangents = differentiate(step, inputs, neuron, given)
        outputs.append(output.to(x.dtype))
        total = output.clone() if total is None else total + output
        totals = tuple(map(torch.add, totals, changes)) if totals else changes
    return torch.stack(outputs), StepState(neuron, steps + len(x), total, tangents, totals, parts)


def _linked_start(state: StepState, directions: int, step: Tensor) -> StepState:
    """Return the state at the start of a linked window: the tangent along each part of the state is 1 for that part."""
    parts = _as_parts(state.state)
    for part in parts:
        if part.shape != step.shape:
            raise ValueError(
                "Expected argument `state` to have one entry per neuron in each part if windows are linked, "
                f"{tuple(step.shape)}, but got a part of shape {tuple(part.shape)}"
            )
    along = tuple(
        tree_map(lambda leaf: torch.ones_like(leaf) if leaf is part else _zero_like(leaf), state.state)  # noqa: B023
        for part in parts
    )
    return state._replace(tangents=(*(None,) * directions, *along) if parts else (), parts=len(parts))


def _as_parts(state: Any) -> list[Tensor]:
    """Return the parts of a state that have derivatives."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _zero_like(leaf: Any) -> Tensor | None:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else None


def _dual_derivatives(step: Step, inputs: tuple[Tensor, ...], state: Any, tangents: tuple[Any, ...]) -> Derivatives:
    """Return what `forward_derivatives` returns, also from the state of rest None and tangents None, which are 0."""
    results = [_along(step, inputs, direction, state, tangent) for direction, tangent in enumerate(tangents)]
    output, after = results[0][:2]
    return output, after, tuple(result[2] for result in results), tuple(result[3] for result in results)


def _dense(state: Any, tangent: Any) -> Any:
    """Return the tangent of a state of tensors, with zeros where it is None."""
    if tangent is None:
        return tree_map(torch.zeros_like, state)
    return tree_map(lambda leaf, along: torch.zeros_like(leaf) if along is None else along, state, tangent)


def _along(
    step: Step, inputs: tuple[Tensor, ...], direction: int, state: Any, tangent: Any
) -> tuple[Tensor, Any, Tensor, Any]:
    """Return output and next state of a step, and the tangents of both, with tangent 1 for one input or none."""
    with forward_ad.dual_level():
        duals = list(inputs)
        if direction < len(inputs):  # the others are along the state
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
