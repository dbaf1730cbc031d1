"""Synaptic delays: past inputs as additional channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.nn.stateful import StatefulLayer


class SynapticDelays(StatefulLayer):
    """Delayed copies of the input, concatenated along the channels, so the next layer can compare time steps.

    A neuron that receives delayed inputs can be a Reichardt detector: it responds to one input now and another input
    some steps ago.

    Args:
        delays: delay of each copy in steps, integers of at least 0.

    Raises:
        ValueError: if `delays` is empty, or a delay is not an integer of at least 0.

    Shape:
        `[T*B, C, ...]` to `[T*B, len(delays) * C, ...]`. A copy is 0 until its first input arrives.

    Example:
        >>> layer = SynapticDelays(delays=(0, 1))
        >>> run(layer, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)).flatten(1)
        tensor([[1., 0.],
                [2., 1.],
                [3., 2.]])
    """

    def __init__(self, delays: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        if not delays:
            raise ValueError(f"Expected argument `delays` to hold at least one integer, but got {delays!r}")
        for delay in delays:
            check_integer("delays", delay, 0)
        self.delays = tuple(delays)

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(x) for _ in range(max(self.delays) + 1))

    def scan(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a sequence `[T, B, ...]`; the state is a tuple of the past inputs `[B, ...]`, the latest first."""
        longest, steps = max(self.delays), len(x)
        given = (state or ())[:longest]
        rest = [torch.zeros_like(x[:1]).expand(longest - len(given), *x.shape[1:])] if len(given) < longest else []
        history = torch.cat([*rest, *(each[None] for each in reversed(given)), x])
        delayed = [history[longest - delay : longest - delay + steps] for delay in self.delays]
        return torch.cat(delayed, 2), tuple(history.unbind(0)[: -longest - 2 : -1])

    def step(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one time step `[B, ...]`; the state is a tuple of the past inputs, the latest first."""
        past = (x.clone(), *(state or ()))[: max(self.delays) + 1]
        rest = torch.zeros_like(x)
        return torch.cat([past[delay] if delay < len(past) else rest for delay in self.delays], 1), past

    def extra_repr(self) -> str:
        return f"delays={self.delays}"
