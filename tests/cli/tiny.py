"""A recipe that runs in a second, and its classes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_snn.cli import RecipeCLI, main
from lightning_snn.data import FrameDataModule, FrameDataset
from lightning_snn.nn import LIF

HERE = "tests.cli.tiny"
DEFAULTS = {
    "data": f"{HERE}.TinyEvents",
    "network": "MLP",
    "method": "SpikingBayes",
    "model.learning_rate": 0.01,
    "model.lr_scheduler": "cosine",
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "TinyEvents": {"data.rate": 0.25},
    "MLP": {"network.hidden": [16]},
    "SpikingBayes": {"method.lam": 0.25, "method.kl_weight": 0.01},
}


class TinyEvents(FrameDataModule):
    """Events in the left, the right or both halves of a tiny sensor."""

    num_classes = 3
    class_names = ("left", "right", "both")
    frame_shape = (2, 4, 6)
    time_steps = 4
    pairs = ((0, 1),)

    def __init__(self, rate: float = 0.5, batch_size: int = 8) -> None:
        super().__init__(batch_size=batch_size)
        self.rate = rate

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        rng = np.random.default_rng(0)
        sets = []
        for samples in (24, 12, 12):
            labels = np.arange(samples) % 3
            frames = (rng.random((samples, self.time_steps, *self.frame_shape)) < self.rate).astype(np.uint8)
            frames[labels == 0, ..., 3:] = 0
            frames[labels == 1, ..., :3] = 0
            sets.append(FrameDataset(frames, labels))
        return tuple(sets)


class OtherEvents(TinyEvents):
    frame_shape = (1, 5, 5)
    num_classes = 4
    pairs = ()

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        frames = np.zeros((8, self.time_steps, *self.frame_shape), np.uint8)
        part = FrameDataset(frames, np.arange(8) % 4)
        return part, part, part


class ConvolutionalNetwork(nn.Sequential):
    """A network whose mapping to spike times needs the shape of its inputs."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 4, 3))


class VGG(nn.Identity):
    """A class of another library with the name of a network of ours."""


class SelfMadeNetwork(nn.Sequential):
    def __init__(self, width: int = 5) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(width), LIF(), nn.Linear(width, 3))


class Clipped(nn.Module):
    """A network whose option has a default other than None, and may be None."""

    def __init__(self, cutoff: float | None = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
        self.cutoff = cutoff

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if self.cutoff is None else x.clamp(max=self.cutoff))


class SilentNetwork(nn.Sequential):
    """A network without spikes."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 3))


VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"trainer.max_epochs": 1, "network.hidden": [3], "method.lam": 0.75},
    "other": {"data": f"{HERE}.OtherEvents", "data.rate": 0.125, "trainer.max_epochs": 7},
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return main("recipes/tiny.py", DEFAULTS, PRESETS)


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return RecipeCLI("recipes/tiny.py", DEFAULTS, PRESETS, VARIANTS)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Press Ctrl-C when the training batch of this number arrives, counted from 0 over all epochs; once."""
    arrived = 0

    def augment(self: TinyEvents, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal arrived
        arrived += 1
        if arrived == batch + 1:
            raise KeyboardInterrupt
        return x, y

    monkeypatch.setattr(TinyEvents, "augment", augment)


if __name__ == "__main__":
    main(__file__, DEFAULTS, PRESETS)
