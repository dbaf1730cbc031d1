"""LightningDataModules of event recordings, simulated and real, of still images, and of a simulated curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn.data.base import FrameDataModule, FrameDataset
    from lightning_snn.data.curve import NoisyCurve
    from lightning_snn.data.dvs_gesture import DVSGesture
    from lightning_snn.data.fixed_batches import FixedBatches
    from lightning_snn.data.frames import frame_events
    from lightning_snn.data.gestures import Gestures
    from lightning_snn.data.images import CIFAR10, MNIST
    from lightning_snn.data.nmnist import NMNIST
    from lightning_snn.data.shd import SHD

__all__ = [
    "CIFAR10",
    "MNIST",
    "NMNIST",
    "SHD",
    "DVSGesture",
    "FixedBatches",
    "FrameDataModule",
    "FrameDataset",
    "Gestures",
    "NoisyCurve",
    "frame_events",
]

# Lazy, so that the processes that simulate gestures start with numpy alone.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CIFAR10": "lightning_snn.data.images",
        "DVSGesture": "lightning_snn.data.dvs_gesture",
        "FixedBatches": "lightning_snn.data.fixed_batches",
        "FrameDataModule": "lightning_snn.data.base",
        "FrameDataset": "lightning_snn.data.base",
        "Gestures": "lightning_snn.data.gestures",
        "MNIST": "lightning_snn.data.images",
        "NMNIST": "lightning_snn.data.nmnist",
        "NoisyCurve": "lightning_snn.data.curve",
        "SHD": "lightning_snn.data.shd",
        "frame_events": "lightning_snn.data.frames",
    },
)
