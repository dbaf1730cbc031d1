"""LightningDataModules of event recordings, simulated and real, and of still images."""

from lightning_snn.data.base import FrameDataModule, FrameDataset
from lightning_snn.data.dvs_gesture import DVSGesture
from lightning_snn.data.frames import frame_events
from lightning_snn.data.images import CIFAR10, MNIST
from lightning_snn.data.nmnist import NMNIST

__all__ = ["CIFAR10", "MNIST", "NMNIST", "DVSGesture", "FrameDataModule", "FrameDataset", "frame_events"]
