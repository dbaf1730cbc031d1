"""The membrane that never spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.lif import leaky_integrate
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons.base import widened
from lightning_snn.nn.stateful import PerChannel, StatefulLayer


class LeakyIntegrator(StatefulLayer):
    r"""A membrane potential that never spikes, ``u_t = beta u_{t-1} + x_t``: the usual last layer before a readout.

    Args:
        beta: decay of the membrane potential per step, in [0, 1], in (0, 1) if it is learned; a number, or one per
            channel.
        learn_beta: train the decay (its logit).
        channels: number of channels if a number should become one value per channel.

    Shape:
        input and output `[T*B, C, ...]`; of `Moments`, mean and variance.

    Example:
        >>> lightning_snn.run(LeakyIntegrator(0.5), torch.ones(3, 1, 1)).flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """

    def __init__(self, beta: PerChannel = 0.9, learn_beta: bool = False, channels: int | None = None) -> None:
        super().__init__()
        self.declare("beta", beta, learn_beta, channels)

    @property
    def beta(self) -> float | Tensor:
        """Decay of the membrane potential per step, in [0, 1]: a number, or a tensor of shape `[]` or `[channels]`."""
        return self.value("beta")

    def forward(self, x: Tensor | Moments) -> Tensor | Moments:
        if not isinstance(x, Moments):
            return super().forward(x)  # type: ignore[no-any-return]
        beta = self.value("beta", x.expectation)
        return Moments(self._integrate(x.expectation, beta), self._integrate(x.variance, beta * beta))

    def initial_state(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=widened(x).dtype)

    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the integrator over a sequence `[T, B, ...]`; the state is the membrane potential `[B, ...]`."""
        trace = leaky_integrate(widened(x), self.value("beta", x[0]), state)
        return trace.to(x.dtype), trace[-1]

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run one time step `[B, ...]`; the membrane potential is output and, in float32 or wider, state."""
        current = widened(x)
        potential = current.clone() if state is None else self.value("beta", x) * state + current
        return potential.to(x.dtype), potential

    def _integrate(self, x: Tensor, beta: float | Tensor) -> Tensor:
        return leaky_integrate(unfold(x, self), beta).flatten(0, 1)
