"""Synaptic delays: the past beside the present."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.nn.stateful import StatefulLayer


class SynapticDelays(StatefulLayer):
    """Every input heard now and some steps later, side by side, so that the next layer can compare moments.

    A neuron over delayed inputs is a Reichardt detector: it answers to one thing here now and another there a moment
    ago.

    Args:
        delays: delay of each copy in steps, integers from 0.

    Raises:
        ValueError: if there are no delays, or one is no integer from 0.

    Shape:
        `[T*B, C, ...]` to `[T*B, len(delays) * C, ...]`; before its first input has arrived a copy is 0.
    """

    def __init__(self, delays: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        if not delays:
            raise ValueError(f"Expected argument `delays` to hold at least one integer from 0, but got {delays!r}")
        for delay in delays:
            check_integer("delays", delay, 0)
        self.delays = tuple(delays)

    def scan(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a sequence `[T, B, ...]`; the state is the past inputs `[B, ...]`, the latest first."""
        longest, steps = max(self.delays), len(x)
        given = (state or ())[:longest]
        rest = [torch.zeros_like(x[:1]).expand(longest - len(given), *x.shape[1:])] if len(given) < longest else []
        history = torch.cat([*rest, *(each[None] for each in reversed(given)), x])
        delayed = [history[longest - delay : longest - delay + steps] for delay in self.delays]
        return torch.cat(delayed, 2), tuple(history.unbind(0)[: -longest - 2 : -1])

    def step(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one time step `[B, ...]`; the state is the past inputs, the latest first."""
        past = (x.clone(), *(state or ()))[: max(self.delays) + 1]
        rest = torch.zeros_like(x)
        return torch.cat([past[delay] if delay < len(past) else rest for delay in self.delays], 1), past

    def extra_repr(self) -> str:
        return f"delays={self.delays}"
