r"""Eligibility traces of synapses, and errors that reach hidden neurons by weights of their own.

A neuron whose state h and spikes z follow from its current :math:`I_t = \sum_i W_i p_{i,t}` and its state before, has
for each synapse i the eligibility vector and trace

.. math:: \epsilon_{i,t} = \frac{\partial h_t}{\partial h_{t-1}} \epsilon_{i,t-1} +
    \frac{\partial h_t}{\partial I_t} p_{i,t}, \qquad
    e_{i,t} = \frac{\partial z_t}{\partial h_{t-1}} \epsilon_{i,t-1} + \frac{\partial z_t}{\partial I_t} p_{i,t}

After Bellec et al. 2020 (doi 10.1038/s41467-020-17236-y), equations 13 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable


class Sensitivity(NamedTuple):
    """Derivatives of one step of independent neurons, each `[B, N]`.

    Attributes:
        spikes_by_current: derivative of the spikes with respect to the current.
        state_by_current: that of each tensor of the state.
        spikes_by_state: derivative of the spikes with respect to each tensor of the state before.
        state_by_state: that of each tensor of the state, by tensor of the state before.
    """

    spikes_by_current: Tensor
    state_by_current: tuple[Tensor, ...]
    spikes_by_state: tuple[Tensor, ...]
    state_by_state: tuple[tuple[Tensor, ...], ...]


def sensitivity(
    step: Callable[..., tuple[Tensor, ...]], current: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...], Sensitivity]:
    """Run one step of independent neurons and return its derivatives, by forward-mode differentiation.

    Args:
        step: from a current and the tensors of a state to spikes and the tensors of the next state; neuron i reads and
            writes entry i alone.
        current: `[B, N]`.
        state: tensors `[B, N]`.

    Returns:
        spikes, the tensors of the next state, and the derivatives.

    Example:
        >>> def leaky(x, u):
        ...     return x, 0.5 * u + x
        >>> spikes, state, found = sensitivity(leaky, torch.ones(1, 1), [torch.ones(1, 1)])
        >>> found.state_by_state[0][0]
        tensor([[0.5000]])
    """
    inputs = (current, *state)
    columns = [_column(step, inputs, direction) for direction in range(len(inputs))]
    spikes, *after = columns[0][0]
    by_current, *by_state = (tangents for _, tangents in columns)
    return (
        spikes,
        tuple(after),
        Sensitivity(
            by_current[0],
            by_current[1:],
            tuple(tangents[0] for tangents in by_state),
            tuple(tangents[1:] for tangents in by_state),
        ),
    )


def _column(
    step: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], direction: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the results of a step and their derivatives with respect to one of its inputs."""
    with forward_ad.dual_level():
        duals = list(inputs)
        duals[direction] = forward_ad.make_dual(inputs[direction], torch.ones_like(inputs[direction]))
        unpacked = [forward_ad.unpack_dual(result) for result in step(*duals)]
        primals = tuple(each.primal for each in unpacked)
        tangents = tuple(
            torch.zeros_like(each.primal) if each.tangent is None else each.tangent.clone() for each in unpacked
        )
    return primals, tangents


class Eligibility(NamedTuple):
    """State of the eligibility traces of a layer of N neurons with P synapses each.

    Attributes:
        vectors: eligibility vectors, one `[B, N, P]` per tensor of the state of the neurons.
        trace: eligibility trace, filtered by the decay of the readout, `[B, N, P]`.
    """

    vectors: tuple[Tensor, ...]
    trace: Tensor


def next_eligibility(
    inputs: Tensor, found: Sensitivity, before: Eligibility | None = None, decay: float | Tensor = 0.0
) -> Eligibility:
    """Return the eligibility traces after a step.

    Args:
        inputs: presynaptic activity p of the step, `[B, P]`.
        found: derivatives of the step.
        before: traces before the step; None is 0.
        decay: decay per step of the readout, by which it filters spikes: a number or a scalar tensor.

    Example:
        >>> def leaky(x, u):
        ...     return x, 0.5 * u + x
        >>> spikes, state, found = sensitivity(leaky, torch.ones(1, 1), [torch.ones(1, 1)])
        >>> first = next_eligibility(torch.tensor([[1.0, 2.0]]), found)
        >>> next_eligibility(torch.tensor([[1.0, 0.0]]), found, first).vectors[0]
        tensor([[[1.5000, 1.0000]]])
    """
    rows = inputs[:, None]
    trace = found.spikes_by_current[..., None] * rows
    vectors = [by_current[..., None] * rows for by_current in found.state_by_current]
    if before is not None:
        for vector, of_spikes, of_state in zip(
            before.vectors, found.spikes_by_state, found.state_by_state, strict=True
        ):
            trace.addcmul_(of_spikes[..., None], vector)
            for sum_, derivative in zip(vectors, of_state, strict=True):
                sum_.addcmul_(derivative[..., None], vector)
        trace.add_(decay * before.trace)
    return Eligibility(tuple(vectors), trace)


def broadcast_errors(output: Tensor, signals: Sequence[Tensor], feedback: Sequence[Tensor]) -> Tensor:
    r"""Return an output whose error reaches hidden activity by weights of its own, :math:`\delta z = \delta o B`.

    Args:
        output: output of the readout weights `[R, C]`, which see the activity without a gradient.
        signals: activity of hidden layers, each `[R, ...]`.
        feedback: weights B `[C, N]`, one per layer, with N the number of entries of its activity. Their gradient is
            that of readout weights, :math:`\delta o^\top z`.

    Example:
        >>> spikes = torch.zeros(1, 2, requires_grad=True)
        >>> output = broadcast_errors(torch.zeros(1, 1), [spikes], [torch.tensor([[1.0, 2.0]])])
        >>> output.sum().backward()
        >>> spikes.grad
        tensor([[1., 2.]])
    """
    same: Tensor = _BroadcastErrors.apply(output, *signals, *feedback)
    return same


class _BroadcastErrors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *rest: Tensor) -> Tensor:
        ctx.save_for_backward(*rest)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest = ctx.saved_tensors
        signals, feedback = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        errors: list[Tensor | None] = [
            (grad @ weight.to(grad.dtype)).view_as(signal).to(signal.dtype)
            for signal, weight in zip(signals, feedback, strict=True)
        ]
        of_feedback = [
            (grad.t() @ signal.flatten(1).to(grad.dtype)).to(weight.dtype) if needed else None
            for signal, weight, needed in zip(signals, feedback, ctx.needs_input_grad[1 + len(signals) :], strict=True)
        ]
        return grad, *errors, *of_feedback
