"""Independent loops over time of the neurons under plain autograd, and what tests compare them by.

Nothing here calls a step, a scan or a spike function of the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Loop(NamedTuple):
    """Result of a loop: all `[T, B, ...]` but the state, which is that after the last step."""

    spikes: Tensor
    potentials: Tensor
    thresholds: Tensor
    state: tuple[Tensor, ...]


def arctangent(distance: Tensor) -> Tensor:
    return 1 / (1 + (math.pi * distance) ** 2)


def fast_sigmoid(distance: Tensor) -> Tensor:
    return 1 / (1 + 2 * distance.abs()) ** 2


def sigmoid(distance: Tensor) -> Tensor:
    p = torch.sigmoid(4 * distance)
    return 4 * p * (1 - p)


def triangular(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


# by the names that neurons take
SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "arctangent": arctangent,
    "fast_sigmoid": fast_sigmoid,
    "sigmoid": sigmoid,
    "triangular": triangular,
}


def fire(potential: Tensor, threshold: float | Tensor, surrogate: Callable[[Tensor], Tensor] = arctangent) -> Tensor:
    """Heaviside forward, surrogate derivative backward."""
    distance = potential - threshold
    return (potential > threshold).to(potential.dtype) + surrogate(distance).detach() * (distance - distance.detach())


def lif_loop(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    reset: str = "subtract",
    detach: bool = False,
    order: str = "reset_then_leak",
    surrogate: Callable[[Tensor], Tensor] = arctangent,
    weight: Tensor | None = None,
) -> Loop:
    """LIF neurons, which receive their own last spikes through `weight` if it is given."""
    pending = order == "leak_then_reset" and reset == "subtract"
    carried = fed_back = spiked = torch.zeros_like(x[0])
    spikes, potentials = [], []
    for current in x:
        potential = beta * carried + current
        if weight is not None:
            potential = potential + fed_back @ weight.t()
        if pending:
            potential = potential - threshold * spiked
        fired = fire(potential, threshold, surrogate)
        spiked = fired.detach() if detach else fired
        fed_back = fired
        if pending:
            carried = potential
        else:
            carried = potential - threshold * spiked if reset == "subtract" else potential * (1 - spiked)
        spikes.append(fired)
        potentials.append(potential)
    found = torch.stack(potentials)
    return Loop(torch.stack(spikes), found, torch.as_tensor(threshold).expand_as(found), (carried, spiked))


def adaptive_loop(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    rho: float | Tensor,
    strength: float | Tensor,
    reset: str,
    detach: bool,
) -> Loop:
    """LIF neurons with an adaptive threshold."""
    carried, adaptation = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    spikes, potentials, thresholds = [], [], []
    for current in x:
        potential = beta * carried + current
        raised = threshold + strength * adaptation
        fired = fire(potential, raised)
        resetting = fired.detach() if detach else fired
        carried = potential - threshold * resetting if reset == "subtract" else (1 - resetting) * potential
        adaptation = rho * adaptation + fired
        spikes.append(fired)
        potentials.append(potential)
        thresholds.append(raised.expand_as(potential))
    return Loop(*map(torch.stack, (spikes, potentials, thresholds)), (carried, adaptation))


def synaptic_loop(
    x: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    reset: str,
    detach: bool,
    order: str,
) -> Loop:
    """LIF neurons that receive the synaptic current: the input of a LIF loop, filtered."""
    synaptic, filtered = torch.zeros_like(x[0]), []
    for current in x:
        synaptic = alpha * synaptic + current
        filtered.append(synaptic)
    loop = lif_loop(torch.stack(filtered), beta, threshold, reset, detach, order)
    return loop._replace(state=(*loop.state, synaptic))


def gradients(outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random function of outputs."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(17)
    weights = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in outputs]
    return torch.autograd.grad(outputs, list(inputs), weights)


def assert_equal(got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    """Equality up to rounding, relative to the largest entry of each tensor; none of them may vanish."""
    for one, other in zip(got, expected, strict=True):
        scale = other.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)
