"""Data module of folders of images, one folder per class, as ImageNet and Places365 lie on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from lightning_snn.checks import check_integer
from lightning_snn.data.augmentation import center_crop, resized_crop
from lightning_snn.data.image_module import ImageDataModule
from lightning_snn.data.splits import split_stratified
from lightning_snn.reading import reading

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images in files, decoded by pillow when they are asked for.

    The shorter side of an image becomes `resize` pixels long, and its middle of `size` by `size` pixels is returned:
    items are ``(image (1, 3, size, size) uint8, label)``.

    Args:
        root: folder above all files.
        names: path of each file below `root`, bytes of shape ``(N,)``.
        labels: class of each file, integers of shape ``(N,)``.
        resize: shorter side before the crop, at least `size`.
        size: side of the crop.

    Raises:
        OSError: from indexing, if a file is missing or cannot be read; the message names it.
        ValueError: from indexing, if a file cannot be decoded; the message names it.
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray, resize: int, size: int) -> None:
        self.root, self.names, self.labels = root, names, labels
        self.resize, self.size = resize, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path = self.root / os.fsdecode(bytes(self.names[index]))
        with reading(path, "an image"), Image.open(path) as image:
            image.draft("RGB", (self.resize, self.resize))  # a JPEG is decoded no larger than needed
            picture = image.convert("RGB")
        width, height = picture.size
        scale = self.resize / min(width, height)
        width, height = max(round(width * scale), self.resize), max(round(height * scale), self.resize)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None], int(self.labels[index])


class ImageFolder(ImageDataModule):
    """Folders of images, one for each class, such as ImageNet and Places365: ``(T, B, 3, image_size, image_size)``.

    ``root`` holds ``train/CLASS/...`` and ``val/CLASS/...``, with images at any depth below the folder of their class.
    With ``test/CLASS/...`` as well, ``val`` is the validation set. Otherwise ``val`` is the test set, as for data whose
    test labels are secret, and `val_fraction` of each class of ``train`` is held out for validation. Classes are the
    sorted names of the folders in ``train``. Worker processes (`num_workers`) decode while the device computes.

    Args:
        root: the folder.
        image_size: height and width of inputs.
        resize: length of the shorter side of an image before its middle is cut out; None is 8/7 of `image_size`, which
            is 256 for 224.
        augmentation: cut a random part of each training image instead, 8 to 100 % of the area of the middle square,
            with sides between 3:4 and 4:3, after Szegedy et al. 2015; scale it to `image_size`, and mirror it with
            probability 1/2. On the device of the model.
        **image_options: other arguments of :class:`~lightning_snn.data.image_module.ImageDataModule`, but `train` and
            `test`.

    Raises:
        FileNotFoundError: if a folder is missing, or holds no images.
        ValueError: if an argument is out of range, or the folders have different classes.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        ...     (root / name).mkdir(parents=True)
        ...     for number in range(2):
        ...         Image.new("RGB", (40, 30)).save(root / name / f"{number}.png")
        >>> data = ImageFolder(str(root), image_size=28, val_fraction=0.5, time_steps=4)
        >>> data.class_names
        ('cat', 'dog')
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
        >>> x.shape, y
        (torch.Size([4, 4, 3, 28, 28]), tensor([0, 0, 1, 1]))
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: int = 224,
        resize: int | None = None,
        augmentation: bool = False,
        **image_options: Any,
    ) -> None:
        check_integer("image_size", image_size)
        resize = round(image_size * 8 / 7) if resize is None else resize
        check_integer("resize", resize, image_size)
        self.frame_shape = (3, image_size, image_size)
        super().__init__(root, **image_options)
        self.image_size, self.resize, self.augmentation = image_size, resize, augmentation
        self.folder = Path(root).expanduser()
        self.splits = ("train", "val", "test") if (self.folder / "test").is_dir() else ("train", "val")
        self.class_names = _classes(self.folder / "train")
        self.num_classes = len(self.class_names)
        for split in self.splits[1:]:
            _check_same(self.folder, split, self.class_names)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the images of the three sets, as paths until they are asked for."""
        cut = self.resize if self.augmentation else self.image_size
        train, *others = (self._files(split, cut if split == "train" else self.image_size) for split in self.splits)
        if len(others) == 2:
            return train, others[0], others[1]
        kept, held_out = split_stratified(train.labels, self.val_fraction, self.seed)
        val = ImageFiles(train.root, train.names, train.labels, self.resize, self.image_size)
        return Subset(train, kept.tolist()), Subset(val, held_out.tolist()), others[0]

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return pixels ``(1, B, 3, H, W)`` of uint8 images in [0, 1], the middle of `image_size` unless augmented."""
        pixels = super().preprocess(frames)
        training = self.trainer is not None and self.trainer.training
        return pixels if training and self.augmentation else center_crop(pixels, self.image_size)

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Cut and mirror pixels ``(1, B, 3, H, W)`` if configured, with an independent random draw per image."""
        return (resized_crop(x, self.image_size, mirror=True), y) if self.augmentation else (x, y)

    def _files(self, split: str, cut: int) -> ImageFiles:
        names: list[bytes] = []
        labels: list[int] = []
        title = f"Listing the images of {self.folder / split}"
        for label, name in enumerate(tqdm(self.class_names, title, unit="class", leave=False, disable=None)):
            found = _images(self.folder, self.folder / split / name)
            if not found:
                raise FileNotFoundError(
                    f"Expected folder {self.folder / split / name} to hold images ({', '.join(sorted(SUFFIXES))}), but "
                    "it holds none. Put the images of the class there, or remove the class from every split"
                )
            names += found
            labels += [label] * len(found)
        return ImageFiles(self.folder, np.array(names), np.array(labels), self.resize, cut)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected folder {folder} to hold one folder of images per class, but it does not exist. Pass the folder "
            "above it as `root`"
        )
    classes = tuple(sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")))
    if len(classes) < 2:
        raise FileNotFoundError(
            f"Expected folder {folder} to hold one folder of images for each of at least two classes, but it holds "
            f"{len(classes)} folders. Sort the images into folders named by their class"
        )
    return classes


def _check_same(root: Path, split: str, classes: Sequence[str]) -> None:
    found = _classes(root / split)
    if missing := sorted(set(classes) ^ set(found)):
        where = "train" if missing[0] in classes else split
        raise ValueError(
            f"Expected folders {root / 'train'} and {root / split} to hold the same classes, but {len(missing)} are in "
            f"one of them only, such as {missing[0]!r} in {where!r}. Give each class a folder of the same name in both"
        )


def _images(root: Path, folder: Path) -> list[bytes]:
    """Return the sorted paths of the images below a folder, relative to the root."""
    found = []
    for place, _, files in os.walk(folder):
        relative = os.path.relpath(place, root)
        found += [
            os.fsencode(os.path.join(relative, file))
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        ]
    return sorted(found)
