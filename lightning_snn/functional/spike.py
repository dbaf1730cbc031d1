"""The spike of one step: Heaviside forward, surrogate derivative backward, to membrane and threshold alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.functional.surrogate import Surrogate


def spike(membrane: Tensor, threshold: float | Tensor, surrogate: Surrogate) -> Tensor:
    r"""Return the spikes of one step, differentiable by a surrogate.

    .. math:: s = H(v - \theta), \qquad \partial s / \partial v = -\partial s / \partial \theta = k(v - \theta)

    Reverse mode, forward mode and ``torch.func`` transforms give the same derivatives. Where operations are
    recorded, as by `torch.compile` and `torch.export`, the same values and derivatives come from plain operations.

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
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        distance = membrane - threshold
        slope = surrogate.derivative(distance.detach())
        finite = torch.where(distance.isinf(), 0, distance)  # the difference of infinities would be NaN
        return surrogate.spike(membrane, threshold).detach() + slope * (finite - finite.detach())
    level = threshold.detach() if isinstance(threshold, Tensor) else threshold
    # the distance carries the graph, so that second derivatives reach it too
    spikes: Tensor = _Spike.apply(membrane - threshold, membrane.detach(), level, surrogate)
    return spikes


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(distance: Tensor, membrane: Tensor, threshold: float | Tensor, surrogate: Surrogate) -> Tensor:
        return surrogate.spike(membrane, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.surrogate = inputs[-1]
        # one tensor, whatever the shape of the threshold
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (distance,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(distance), None, None, None

    @staticmethod
    def jvp(ctx: Any, distance: Tensor, *_: None) -> Tensor:
        (point,) = ctx.saved_tensors
        slope: Tensor = ctx.surrogate.derivative(point)
        return slope * distance
