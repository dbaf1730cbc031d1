"""LightningDataModules: recordings of events and of speech, simulated and real, still images, and small problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn.data.aedat import read_aedat
    from lightning_snn.data.base import FrameDataModule
    from lightning_snn.data.batches import pad_sequences, time_first
    from lightning_snn.data.curve import NoisyCurve
    from lightning_snn.data.datasets import FrameDataset
    from lightning_snn.data.dvs_gesture import DVSGesture
    from lightning_snn.data.event_folders import CIFAR10DVS, NCaltech101
    from lightning_snn.data.events import Events, cut_by_count, cut_by_duration
    from lightning_snn.data.fixed_batches import FixedBatches
    from lightning_snn.data.frames import frame_events
    from lightning_snn.data.gesture_files import find_recordings, read_gestures
    from lightning_snn.data.gestures import Gestures
    from lightning_snn.data.image_folder import ImageFolder
    from lightning_snn.data.images import CIFAR10, CIFAR100, MNIST, FashionMNIST
    from lightning_snn.data.nmnist import NMNIST, read_nmnist
    from lightning_snn.data.shd import SHD, SSC
    from lightning_snn.data.shd_files import SHDFile
    from lightning_snn.data.splits import split_by_group, split_stratified
    from lightning_snn.data.spoken_digits import SpokenDigits
    from lightning_snn.data.yin_yang import YinYang

__all__ = [
    "CIFAR10",
    "CIFAR10DVS",
    "CIFAR100",
    "MNIST",
    "NMNIST",
    "SHD",
    "SSC",
    "DVSGesture",
    "Events",
    "FashionMNIST",
    "FixedBatches",
    "FrameDataModule",
    "FrameDataset",
    "Gestures",
    "ImageFolder",
    "NCaltech101",
    "NoisyCurve",
    "SHDFile",
    "SpokenDigits",
    "YinYang",
    "cut_by_count",
    "cut_by_duration",
    "find_recordings",
    "frame_events",
    "pad_sequences",
    "read_aedat",
    "read_gestures",
    "read_nmnist",
    "split_by_group",
    "split_stratified",
    "time_first",
]

# Lazy, so that the processes that simulate recordings start with numpy alone.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CIFAR10": "lightning_snn.data.images",
        "CIFAR100": "lightning_snn.data.images",
        "CIFAR10DVS": "lightning_snn.data.event_folders",
        "NCaltech101": "lightning_snn.data.event_folders",
        "DVSGesture": "lightning_snn.data.dvs_gesture",
        "Events": "lightning_snn.data.events",
        "FashionMNIST": "lightning_snn.data.images",
        "FixedBatches": "lightning_snn.data.fixed_batches",
        "FrameDataModule": "lightning_snn.data.base",
        "FrameDataset": "lightning_snn.data.datasets",
        "Gestures": "lightning_snn.data.gestures",
        "ImageFolder": "lightning_snn.data.image_folder",
        "MNIST": "lightning_snn.data.images",
        "NMNIST": "lightning_snn.data.nmnist",
        "NoisyCurve": "lightning_snn.data.curve",
        "SHD": "lightning_snn.data.shd",
        "SSC": "lightning_snn.data.shd",
        "SHDFile": "lightning_snn.data.shd_files",
        "SpokenDigits": "lightning_snn.data.spoken_digits",
        "YinYang": "lightning_snn.data.yin_yang",
        "cut_by_count": "lightning_snn.data.events",
        "cut_by_duration": "lightning_snn.data.events",
        "find_recordings": "lightning_snn.data.gesture_files",
        "frame_events": "lightning_snn.data.frames",
        "read_aedat": "lightning_snn.data.aedat",
        "read_gestures": "lightning_snn.data.gesture_files",
        "read_nmnist": "lightning_snn.data.nmnist",
        "split_by_group": "lightning_snn.data.splits",
        "split_stratified": "lightning_snn.data.splits",
        "pad_sequences": "lightning_snn.data.batches",
        "time_first": "lightning_snn.data.batches",
    },
)
