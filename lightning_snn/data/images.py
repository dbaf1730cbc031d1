"""Still images as input to spiking networks: MNIST and CIFAR-10, encoded over time on the model's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from lightning_snn.checks import check_choice, check_fraction, check_integer
from lightning_snn.data.augmentation import AutoAugment, cutout, shift
from lightning_snn.data.base import FrameDataModule, FrameDataset, LoadedBatch, split_stratified
from lightning_snn.data.image_files import Images, read_cifar10, read_mnist

# A module is callable, but only by its own name can a configuration file give one by its class.
Encoder = nn.Module | Callable[[Tensor], Tensor]
ENCODERS = ("direct", "poisson", "latency", "threshold")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Any ``(image, label)`` data set, its images as tensors with a time axis of length 1.

    Args:
        dataset: gives an image, as a PIL image, an array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``, of
            uint8 or, if a tensor, of floats; and a label, an integer.
        shape: ``(C, H, W)`` that every image must have.

    Items are ``(image (1, C, H, W), label)``; one of another shape or type raises a ValueError.
    """

    def __init__(self, dataset: Any, shape: tuple[int, int, int]) -> None:
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
        """Label of every image: the data set's ``targets`` if it has them, else read one by one."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None or len(targets) != len(self):
            targets = [int(self.dataset[index][1]) for index in range(len(self))]
        return np.asarray(targets, dtype=np.int64)


class ImageDataModule(FrameDataModule):
    """Base of the data modules of still images; see :class:`MNIST` and :class:`CIFAR10`.

    A batch is ``encoder((image - mean) / std)``, shape ``(T, B, C, H, W)``, with uint8 images divided by 255 and
    floating-point ones taken as they are.

    Args:
        root: where the files lie; None takes ``train`` and ``test``.
        train: any data set of ``(image, label)``, images uint8 or float, to use in place of files.
        test: likewise, for the test.
        time_steps: time steps of the encoded input, T.
        encoder: ``"direct"`` repeats the image at every step, ``"poisson"`` draws a spike with the pixel as its
            probability, ``"latency"`` gives one spike, the earlier the brighter, ``"threshold"`` gives the bright
            pixels one spike at the only step, and needs ``time_steps`` of 1; or any callable, such as a module, that
            maps images ``(B, C, H, W)`` to ``(T, B, C, H, W)`` on their device. One with parameters to train belongs
            in the network instead.
        mean: subtracted from each channel, of pixels in [0, 1]; needs ``std``. None leaves them as they are.
        std: divides each channel.
        val_fraction: share of the training images, of every class alike, that the validation set takes.
        batch_size: samples a batch.
        num_workers: worker processes of each loader.
        seed: of the validation split and the order of the training samples.
        fixed_batches: make training batches of the same samples in every epoch, in another order.

    Raises:
        ValueError: if an argument is out of range or arguments contradict each other.

    ``setup`` raises a FileNotFoundError for a missing file and a ValueError for a damaged one, by name. Nothing is
    downloaded.
    """

    num_classes = 10

    def __init__(
        self,
        root: str | None = None,
        *,
        train: Dataset | None = None,
        test: Dataset | None = None,
        time_steps: int = 8,
        encoder: str | Encoder = "direct",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        fixed_batches: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, fixed_batches=fixed_batches)
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
                    f"Expected arguments `mean` and `std` to be both None or both {channels} numbers, one a channel, "
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
        self.encoder = self._build_encoder(encoder) if isinstance(encoder, str) else encoder

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Training and test images from the files under ``root``."""
        raise NotImplementedError(f"{type(self).__name__} must implement `read_files`")

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        """Training and validation images, both of the training part, and test images."""
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
        """Pixels ``(1, B, C, H, W)`` as floats, uint8 ones divided by 255."""
        pixels = frames.transpose(0, 1)
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a loaded batch into ``(x, y)``: pixels, augmented while training, standardized, encoded over time."""
        if not isinstance(batch, LoadedBatch):
            return batch
        (pixels,), labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.mean is not None and self.std is not None:
            mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            pixels = (pixels - mean) / std
        x = self.encoder(pixels)
        if x.shape[0] != self.time_steps or x.shape[1] != len(pixels):
            raise ValueError(
                f"Expected argument `encoder` to give inputs of shape ({self.time_steps}, {len(pixels)}, ...), but got "
                f"{tuple(x.shape)}"
            )
        return x, labels

    def _build_encoder(self, name: str) -> Encoder:
        from lightning_snn.nn import encoders

        if name == "threshold":
            return encoders.ThresholdEncoder()
        classes = {
            "direct": encoders.DirectEncoder,
            "poisson": encoders.PoissonEncoder,
            "latency": encoders.LatencyEncoder,
        }
        return classes[name](self.time_steps)


class MNIST(ImageDataModule):
    """MNIST: handwritten digits, ``(T, B, 1, 28, 28)``. Arguments are those of :class:`ImageDataModule`.

    ``root`` is an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
    torchvision's ``MNIST/raw``.
    """

    class_names = tuple(str(digit) for digit in range(10))
    frame_shape = (1, 28, 28)

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Training and test images from the files under ``root``."""
        return read_mnist(root)


class CIFAR10(ImageDataModule):
    """CIFAR-10: photographs of ten classes, ``(T, B, 3, 32, 32)``. Arguments are those of :class:`ImageDataModule`.

    ``root`` is an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
    torchvision's ``cifar-10-batches-py``.

    Args:
        augmentation: shift each training image by up to 4 pixels, black at the rim, and mirror every other one, at
            random. The image stays still over the time steps.
        auto_augment: then apply the AutoAugment policy for CIFAR-10, which needs kornia.
        cutout: then blank a square of this many pixels a side, to the mean where there is one; 0 leaves images whole.

    Raises:
        ImportError: if ``auto_augment`` is set and kornia is not installed.
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    frame_shape = (3, 32, 32)

    def __init__(
        self,
        root: str | None = None,
        *,
        train: Dataset | None = None,
        test: Dataset | None = None,
        time_steps: int = 8,
        encoder: str | Encoder = "direct",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        val_fraction: float = 0.1,
        augmentation: bool = False,
        auto_augment: bool = False,
        cutout: int = 0,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        fixed_batches: bool = False,
    ) -> None:
        super().__init__(
            root,
            train=train,
            test=test,
            time_steps=time_steps,
            encoder=encoder,
            mean=mean,
            std=std,
            val_fraction=val_fraction,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            fixed_batches=fixed_batches,
        )
        check_integer("cutout", cutout, minimum=0)
        self.augmentation = augmentation
        self.auto_augment = AutoAugment() if auto_augment else None
        self.cutout = cutout

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Training and test images from the files under ``root``."""
        return read_cifar10(root)

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(1, B, C, H, W)`` changed as the arguments say, each image by its own draw."""
        if self.augmentation:
            x = shift(x, 4, mirror=True)
        if self.auto_augment is not None:
            x = self.auto_augment(x[0])[None]
        if self.cutout:
            x = cutout(x, self.cutout, self.mean)  # the mean becomes zero when pixels are standardized
        return x, y
