"""Base class of the data modules of still images, which are encoded over time on the model's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from lightning_snn.checks import check_choice, check_fraction, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.batches import LoadedBatch
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.image_files import Images
from lightning_snn.data.splits import split_stratified

# a module is callable too, but a configuration file can give it by its class only if the type names it
Encoder = nn.Module | Callable[[Tensor], Tensor]
ENCODERS = ("direct", "poisson", "latency", "threshold")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Wrapper of any ``(image, label)`` data set that returns images as tensors with a time axis of length 1.

    Args:
        dataset: data set of images and integer labels. An image is a PIL image, an array ``(H, W)`` or ``(H, W, C)``,
            or a tensor ``(C, H, W)``, of uint8 or, if a tensor, of floats.
        shape: ``(C, H, W)`` that each image must have.

    Items are ``(image (1, C, H, W), label)``; one of another shape or type raises a ValueError.
    """

    def __init__(self, dataset: Any, shape: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.shape = shape

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        if not isinstance(image, Tensor):
            array = np.array(image)
            image = torch.from_numpy(array if array.ndim == 3 else array[..., None]).movedim(-1, 0)
        if image.shape != self.shape or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise ValueError(
                f"Expected image {index} to be uint8 or floats of shape {self.shape}, but got {image.dtype} of shape "
                f"{tuple(image.shape)}"
            )
        return image[None], int(label)

    def labels(self) -> np.ndarray:
        """Return the label of each image: the ``targets`` of the data set if it has them, else read one by one."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None or len(targets) != len(self):
            targets = [int(self.dataset[index][1]) for index in range(len(self))]
        return np.asarray(targets, dtype=np.int64)


class ImageDataModule(FrameDataModule):
    """Base class of the data modules of still images, such as :class:`~lightning_snn.data.MNIST`.

    A batch is ``encoder((image - mean) / std)``, shape ``(T, B, C, H, W)``. uint8 images are divided by 255 first,
    floating-point images are used unchanged.

    Args:
        root: path of the files; None takes ``train`` and ``test``.
        train: any data set of ``(image, label)``, images uint8 or float, to use instead of files.
        test: the same for the test set.
        time_steps: time steps of the encoded input, T.
        encoder: ``"direct"`` repeats the image at each time step, ``"poisson"`` draws spikes with the pixel as their
            probability, ``"latency"`` emits one spike per pixel, earlier for brighter ones, and ``"threshold"`` emits
            one spike per bright pixel at the only time step (``time_steps`` must be 1). Or any callable, such as a
            module, that maps images ``(B, C, H, W)`` to ``(T, B, C, H, W)`` on their device; an encoder with
            parameters to train belongs in the network instead.
        mean: per channel, subtracted from pixels in [0, 1]; needs ``std``. None leaves them unchanged.
        std: per channel, divides the pixels.
        val_fraction: share of the training images of each class in the validation set.
        batch_size: samples per batch.
        **loader_options: ``num_workers``, ``seed`` and ``fixed_batches`` of
            :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the validation split.

    Raises:
        ValueError: if an argument is out of range or arguments contradict each other.

    ``setup`` raises a FileNotFoundError if a file is missing and a ValueError if one is damaged; the message names it.
    Nothing is downloaded.
    """

    num_classes = 10

    def __init__(
        self,
        root: str | None = None,
        *,
        train: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        time_steps: int = 8,
        encoder: str | Encoder = "direct",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        **loader_options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_count=None, **loader_options)
        if (train is None) != (test is None) or (root is None) == (train is None):
            raise ValueError(
                "Expected either argument `root` or both arguments `train` and `test`, but got "
                + (
                    ", ".join(n for n, v in (("root", root), ("train", train), ("test", test)) if v is not None)
                    or "none"
                )
            )
        check_integer("time_steps", time_steps)
        check_fraction("val_fraction", val_fraction)
        channels = self.frame_shape[0]
        for name, value in (("mean", mean), ("std", std)):
            if (mean is None) != (std is None) or (value is not None and len(value) != channels):
                raise ValueError(
                    f"Expected arguments `mean` and `std` to be both None or both {channels} numbers, one per channel, "
                    f"but got `{name}` {value}"
                )
        if std is not None and min(std) <= 0:
            raise ValueError(f"Expected argument `std` to hold numbers larger than 0, but got {std}")
        if isinstance(encoder, str) or not callable(encoder):
            check_choice("encoder", encoder, ENCODERS)
        if encoder == "threshold" and time_steps != 1:
            raise ValueError(f"Expected argument `time_steps` to be 1 with the threshold encoder, but got {time_steps}")
        if mean is not None and encoder in ("poisson", "latency", "threshold"):
            raise ValueError(
                f"Expected arguments `mean` and `std` to be None with the {encoder} encoder, which needs pixels in "
                f"[0, 1], but got {mean} and {std}"
            )
        self.root = root
        self.train_images = train
        self.test_images = test
        self.time_steps = time_steps
        self.mean = mean
        self.std = std
        self.val_fraction = val_fraction
        self.encoder = named_encoder(encoder, time_steps) if isinstance(encoder, str) else encoder

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Return the training and test images of the files at ``root``."""
        raise NotImplementedError(f"{type(self).__name__} must implement `read_files`")

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return training and validation images, both of the training part, and test images."""
        train: FrameDataset | ImageDataset
        test: FrameDataset | ImageDataset
        if self.root is not None:
            train, test = (FrameDataset(part.images[:, None], part.labels) for part in self.read_files(self.root))
            labels = train.labels.numpy()
        else:
            train = ImageDataset(self.train_images, self.frame_shape)
            test = ImageDataset(self.test_images, self.frame_shape)
            labels = train.labels()
            for name, values in (("train", labels), ("test", test.labels())):
                if len(values) and not (values.min() >= 0 and values.max() < self.num_classes):
                    raise ValueError(
                        f"Expected argument `{name}` to have labels in [0, {self.num_classes}), but got labels from "
                        f"{values.min()} to {values.max()}"
                    )
        kept, held_out = split_stratified(labels, self.val_fraction, self.seed)
        return Subset(train, kept.tolist()), Subset(train, held_out.tolist()), test

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return pixels ``(1, B, C, H, W)`` as floats; uint8 ones are divided by 255."""
        pixels = frames.transpose(0, 1)
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert a loaded batch to ``(x, y)``: pixels, augmented while training, standardized, encoded over time."""
        if not isinstance(batch, LoadedBatch):
            return batch
        (pixels,), labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.mean is not None and self.std is not None:
            mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            pixels = (pixels - mean) / std
        x = self.encoder(pixels)
        if x.shape[0] != self.time_steps or x.shape[1] != len(pixels):
            raise ValueError(
                f"Expected argument `encoder` to return inputs of shape ({self.time_steps}, {len(pixels)}, ...), but "
                f"got {tuple(x.shape)}"
            )
        return x, labels


def named_encoder(name: str, time_steps: int) -> Encoder:
    """Return the encoder of that name, one of `ENCODERS`, from values ``(B, ...)`` to ``(time_steps, B, ...)``."""
    from lightning_snn.nn import encoders

    if name == "threshold":
        return encoders.ThresholdEncoder()
    classes = {
        "direct": encoders.DirectEncoder,
        "poisson": encoders.PoissonEncoder,
        "latency": encoders.LatencyEncoder,
    }
    return classes[name](time_steps)
