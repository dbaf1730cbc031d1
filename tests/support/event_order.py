"""A small task that needs memory: tell which of two events came first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF
from lightning_snn.nn import MembraneResidual, RecurrentLIF, Sign, SynapticDelays
from tests.support.training import time_first

TIME_STEPS, CHANNELS, CLASSES = 8, 2, 2


def order_of_events(pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return sequences `[T, 2 * pairs, 2]` and classes: the event on channel 0 is before that on channel 1, or after.

    Every sequence of class 0 has its time reversal in class 1, so that sums over time say nothing about the class.
    """
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.rand(TIME_STEPS, pairs, CHANNELS, generator=generator)
    early = torch.randint(0, TIME_STEPS // 2, (pairs,), generator=generator)
    late = torch.randint(TIME_STEPS // 2, TIME_STEPS, (pairs,), generator=generator)
    x[early, torch.arange(pairs), 0] += 1
    x[late, torch.arange(pairs), 1] += 1
    shuffled = torch.randperm(2 * pairs, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(pairs)
    return torch.cat([x, x.flip(0)], 1)[:, shuffled], labels[shuffled]


def loader(x: Tensor, y: Tensor, batch_size: int = 32) -> DataLoader:
    """Load batches `(x [T, B, ...], y [B])` in the given order; the last one may be smaller."""
    return DataLoader(TensorDataset(x.transpose(0, 1), y), batch_size, collate_fn=time_first)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Linear(CHANNELS, 32), LIF(0.9), nn.Linear(32, CLASSES))


def recurrent_network() -> nn.Module:
    return nn.Sequential(nn.Linear(CHANNELS, 16), RecurrentLIF(16, 0.9), nn.Linear(16, CLASSES))


def delayed_network() -> nn.Module:
    return nn.Sequential(
        SynapticDelays(range(TIME_STEPS)), nn.Linear(TIME_STEPS * CHANNELS, 32), LIF(0.5, 0.3), nn.Linear(32, CLASSES)
    )


def binary_network() -> nn.Module:
    """Build a residual network of binary neurons, which have no memory, so it has delays."""
    return nn.Sequential(
        SynapticDelays(range(TIME_STEPS)),
        nn.Linear(TIME_STEPS * CHANNELS, 16),
        MembraneResidual(nn.Sequential(Sign(), nn.Linear(16, 16))),
        Sign(),
        nn.Linear(16, CLASSES),
    )
