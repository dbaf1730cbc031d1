r"""Windows of rate-based backpropagation that are linked: errors pass from window to window through the neuron's state.

A neuron with the state u before window k, the mean current c and the mean output r obeys, to first order,

.. math::
    dr_k = e_k\, dc_k + f_k\, du_{k-1}, \qquad du_k = A_k\, dc_k + B_k\, du_{k-1} ,

and parameters enter both. The backward pass is the adjoint recursion, from the last window to the first. With one
window it is the gradient of firing rates, with one window per step that of backpropagation through time.

After Yu et al. 2024, arXiv 2410.11488, whose method has one window; the link is an addition of this library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

Factor = float | Tensor


class WindowLink(NamedTuple):
    """Derivatives that link a window with its neighbors, for S parts of a state and P parameters.

    Each is a number or `[B, ...]`.

    Attributes:
        rate: f, derivatives of the mean output with respect to each part of the state before the window, `[S]`; empty
            if that state is at rest.
        current: A, derivatives of each part of the state after the window with respect to a constant shift of the input
            current, `[S]`.
        state: B, for each part of the state before the window the derivatives of each part after it, `[S][S]`; empty
            as `rate` is.
        parameters: for each parameter the derivatives of each part of the state after the window, `[P][S]`.
    """

    rate: tuple[Factor, ...]
    current: tuple[Factor, ...]
    state: tuple[tuple[Factor, ...], ...]
    parameters: tuple[tuple[Factor, ...], ...] = ()


def linked(
    x: Tensor,
    value: Tensor,
    slope: Tensor,
    links: Sequence[WindowLink],
    parameters: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Return recorded mean outputs of K windows, with gradients that pass from window to window.

    Args:
        x: mean input currents of the windows, `[K*B, ...]`; only their gradient is used.
        value: mean outputs to return, of the shape of `x`; cast to its dtype.
        slope: derivative of `value` with respect to a constant shift of the current of the same window, of the shape of
            `x`.
        links: the links of the K windows. What the first one has of a state before it is not used, nor what the last
            one has of the state after it.
        parameters: pairs of a parameter, of a shape that broadcasts to `[B, ...]`, and the derivative of `value` with
            respect to its entry, of the shape of `x`.

    Returns:
        `value` with gradients of `x` and the parameters.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> link = WindowLink(rate=(0.5,), current=(1.0,), state=((0.25,),))
        >>> linked(x, torch.ones(2), torch.full((2,), 2.0), [link, link]).sum().backward()
        >>> x.grad
        tensor([2.5000, 2.0000])
    """
    tensors = [tensor for tensor, _ in parameters]
    derivatives = [derivative for _, derivative in parameters]
    first, last = links[0], links[-1]
    used = [first._replace(rate=(), state=()), *links[1:]]
    used[-1] = last._replace(current=(), state=(), parameters=())
    factors, structure = tree_flatten([tuple(link) for link in used])
    result: Tensor = _Linked.apply(x, value, slope, len(tensors), structure, *tensors, *derivatives, *factors)
    return result


class _Linked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor, count: int, structure: Any, *rest: Any) -> Tensor:
        parameters, derivatives, factors = rest[:count], rest[count : 2 * count], rest[2 * count :]
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in parameters]
        ctx.dtype, ctx.structure = x.dtype, structure
        ctx.numbers = [None if isinstance(factor, Tensor) else factor for factor in factors]
        ctx.save_for_backward(slope, *derivatives, *(each for each in factors if isinstance(each, Tensor)))
        return value.view_as(x) if value.dtype == x.dtype else value.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        count = len(ctx.parameters)
        slope, *saved = ctx.saved_tensors
        tensors = iter(saved[count:])
        factors = [next(tensors) if number is None else number for number in ctx.numbers]
        links = [WindowLink(*link) for link in tree_unflatten(factors, ctx.structure)]
        grads, slopes, *derivatives = (
            each.unflatten(0, (len(links), -1)) for each in (grad.to(slope.dtype), slope, *saved[:count])
        )
        along_x = grads * slopes
        along_parameters = [
            (grads * derivative).sum(0).sum_to_size(shape)
            for (shape, _), derivative in zip(ctx.parameters, derivatives, strict=True)
        ]
        errors: list[Tensor] = []  # of each part of the state after the window
        for window in range(len(links) - 1, -1, -1):
            link = links[window]
            for error, factor in zip(errors, link.current, strict=bool(errors)):
                along_x[window] += error * factor
            for index, (shape, _) in enumerate(ctx.parameters) if errors else ():
                for error, factor in zip(errors, link.parameters[index], strict=True):
                    along_parameters[index] = along_parameters[index] + (error * factor).sum_to_size(shape)
            before = [grads[window] * factor for factor in link.rate]
            if errors:
                for part, along in enumerate(link.state):
                    for error, factor in zip(errors, along, strict=True):
                        before[part] = before[part] + error * factor
            errors = before
        return (
            along_x.flatten(0, 1).to(ctx.dtype),
            None,
            None,
            None,
            None,
            *(each.to(dtype) for each, (_, dtype) in zip(along_parameters, ctx.parameters, strict=True)),
            *(None for _ in range(count + len(factors))),
        )
