"""The spike of one step: Heaviside forward, surrogate derivative backward, to membrane and threshold alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.functional.surrogate import Surrogate


def spike(membrane: Tensor, threshold: float | Tensor, surrogate: Surrogate) -> Tensor:
    r"""Return the spikes of one step, differentiable by a surrogate.

    .. math:: s = H(v - \theta), \qquad \partial s / \partial v = -\partial s / \partial \theta = k(v - \theta)

    Reverse mode, forward mode and ``torch.func`` transforms give the same derivatives. Under `torch.compile` the same
    values and derivatives come from plain operations, because the compiler breaks its graph at a Function with a `jvp`.

    Args:
        membrane: membrane potential, any shape, floating point.
        threshold: firing threshold, a number or a tensor that broadcasts to `membrane`.
        surrogate: the derivative k of the spike.

    Returns:
        spikes in {0, 1} of the shape and dtype of `membrane`; NaN where membrane potential or threshold are NaN.

    Example:
        >>> from lightning_snn.functional import Triangular
        >>> membrane = torch.tensor([0.5, 1.5], requires_grad=True)
        >>> spike(membrane, 1.0, Triangular()).tolist()
        [0.0, 1.0]
    """
    if torch.compiler.is_compiling():
        distance = membrane - threshold
        slope = surrogate.derivative(distance.detach())
        finite = torch.where(distance.isinf(), 0, distance)  # the difference of infinities would be NaN
        return surrogate.spike(membrane, threshold).detach() + slope * (finite - finite.detach())
    spikes: Tensor = _Spike.apply(membrane, threshold, surrogate)
    return spikes


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(membrane: Tensor, threshold: float | Tensor, surrogate: Surrogate) -> Tensor:
        return surrogate.spike(membrane, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        membrane, threshold, surrogate = inputs
        distance = membrane - threshold
        ctx.surrogate = surrogate
        ctx.threshold_shape = threshold.shape if isinstance(threshold, Tensor) else None
        # one tensor, whatever the shape of the threshold
        ctx.save_for_backward(distance)
        ctx.save_for_forward(distance)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (distance,) = ctx.saved_tensors
        grad = grad * ctx.surrogate.derivative(distance)
        return grad, None if ctx.threshold_shape is None else -grad.sum_to_size(ctx.threshold_shape), None

    @staticmethod
    def jvp(ctx: Any, membrane: Tensor | None, threshold: Tensor | None, _: None) -> Tensor:
        (distance,) = ctx.saved_tensors
        slope: Tensor = ctx.surrogate.derivative(distance)
        if threshold is None:
            assert membrane is not None
            return slope * membrane
        return slope * (-threshold if membrane is None else membrane - threshold)
