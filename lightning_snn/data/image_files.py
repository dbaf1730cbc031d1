"""Readers of the files of MNIST, CIFAR and data sets like them, in the layouts of torchvision and as ``.npz``."""

from __future__ import annotations

import gzip
import math
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_snn.data.npz import read_npz
from lightning_snn.reading import reading

NPZ_LAYOUTS = (("x_train", "y_train", "x_test", "y_test"), ("train_x", "train_y", "test_x", "test_y"))
IDX_UINT8 = 8
# names that a pickled NumPy array refers to; a file cannot run any other code
PICKLED_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Images:
    """Images of one split: ``images`` uint8 of shape ``(N, C, H, W)`` and ``labels`` int64 of shape ``(N,)``."""

    images: np.ndarray
    labels: np.ndarray


def read_mnist(root: str | os.PathLike[str], name: str = "MNIST") -> tuple[Images, Images]:
    """Read the training and test images of MNIST or a data set in its format, shape ``(N, 1, 28, 28)``.

    Args:
        root: an ``.npz`` file; or the folder that holds ``MNIST/raw/train-images-idx3-ubyte`` and its three
            companions, each plain or as ``.gz``; or ``MNIST/raw`` itself.
        name: of the folder, "MNIST" or that of another data set.

    Raises:
        OSError: if a file is missing or cannot be read; the message names it.
        ValueError: if a file is truncated, corrupt or of another format; the message names it.
    """
    root = Path(root).expanduser()
    if root.suffix == ".npz":
        return _read_npz_images(root, (1, 28, 28))
    folder = next((folder for folder in (root / name / "raw", root / "raw") if folder.is_dir()), root)
    splits = []
    for prefix in ("train", "t10k"):
        images_path, images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", dimensions=3)
        labels_path, labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1)
        splits.append(_checked(images, labels, (1, 28, 28), images_path, labels_path))
    return splits[0], splits[1]


def read_cifar10(root: str | os.PathLike[str]) -> tuple[Images, Images]:
    """Read the training and test images of CIFAR-10, shape ``(N, 3, 32, 32)``.

    Args:
        root: an ``.npz`` file; or the folder that holds ``cifar-10-batches-py/data_batch_1`` to ``data_batch_5`` and
            ``test_batch``; or ``cifar-10-batches-py`` itself.

    Raises:
        OSError: if a file is missing or cannot be read; the message names it.
        ValueError: if a file is truncated, corrupt or of another format; the message names it.
    """
    root = Path(root).expanduser()
    if root.suffix == ".npz":
        return _read_npz_images(root, (3, 32, 32))
    folder = root / "cifar-10-batches-py" if (root / "cifar-10-batches-py").is_dir() else root
    batches = [_read_cifar_batch(folder / f"data_batch_{number}") for number in range(1, 6)]
    train = Images(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))
    return train, _read_cifar_batch(folder / "test_batch")


def read_cifar100(root: str | os.PathLike[str]) -> tuple[Images, Images]:
    """Read the training and test images of CIFAR-100, shape ``(N, 3, 32, 32)``, with their 100 fine labels.

    Args:
        root: an ``.npz`` file; or the folder that holds ``cifar-100-python/train`` and ``test``; or
            ``cifar-100-python`` itself.

    Raises:
        OSError: if a file is missing or cannot be read; the message names it.
        ValueError: if a file is truncated, corrupt or of another format; the message names it.
    """
    root = Path(root).expanduser()
    if root.suffix == ".npz":
        return _read_npz_images(root, (3, 32, 32), 100)
    folder = root / "cifar-100-python" if (root / "cifar-100-python").is_dir() else root
    train, test = (_read_cifar_batch(folder / name, b"fine_labels", 100) for name in ("train", "test"))
    return train, test


def _read_npz_images(path: Path, shape: tuple[int, int, int], classes: int = 10) -> tuple[Images, Images]:
    """Read images ``(N, H, W)`` or ``(N, H, W, C)``, under either naming of the four arrays."""
    train_images, train_labels, test_images, test_labels = read_npz(path, *NPZ_LAYOUTS)
    return _checked(train_images, train_labels, shape, path, path, classes), _checked(
        test_images, test_labels, shape, path, path, classes
    )


def _checked(
    images: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, int, int],
    images_path: Path,
    labels_path: Path,
    classes: int = 10,
) -> Images:
    """Check images ``(N, H, W)`` or ``(N, H, W, C)`` and their labels, and return them as ``(N, C, H, W)``."""
    channels, height, width = shape
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels) or len(images) == 0:
        raise ValueError(
            f"Expected {images_path} to hold uint8 images of {height} by {width} pixels and {channels} channels, but "
            f"got {images.dtype} of shape {images.shape}"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Expected {labels_path} to hold {len(images)} labels from 0 to {classes - 1}, one per image, but got "
            f"{labels.dtype} of shape {labels.shape}" + (f" up to {labels.max()}" if labels.size else "")
        )
    return Images(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64))


def _read_idx(folder: Path, name: str, dimensions: int) -> tuple[Path, np.ndarray]:
    """Read path and array of an IDX file: 0, 0, type, number of dimensions; their sizes, big-endian uint32; data."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    if not path.exists():
        raise FileNotFoundError(f"Expected folder {folder} to hold {name} or {name}.gz, but got neither")
    with reading(path, "a gzip file" if path.suffix == ".gz" else "an IDX file"):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    start = 4 + 4 * dimensions
    if len(data) < start or tuple(data[:4]) != (0, 0, IDX_UINT8, dimensions):
        raise ValueError(
            f"Expected {path} to start as an IDX file of uint8 in {dimensions} dimensions, but it starts with "
            f"{data[:4].hex() or 'nothing'}"
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, offset=4))
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(
            f"Expected {path} to hold {expected} bytes for an array of shape {shape}, but it holds {len(data)}"
        )
    return path, np.frombuffer(data, np.uint8, offset=start).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays and plain values only, because a pickle can otherwise call any function."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return super().find_class(module, name)


def _read_cifar_batch(path: Path, key: bytes = b"labels", classes: int = 10) -> Images:
    """Read a pickled dict of ``data``, uint8 rows of 3072 (channel, row, column), and labels, a list."""
    kind = f"a pickled batch of CIFAR-{classes} with data and {key.decode()}"
    with reading(path, kind), open(path, "rb") as file:
        batch = _ArrayUnpickler(file, encoding="bytes").load()
        data, labels = np.asarray(batch[b"data"]), np.asarray(batch[key])
    if data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise ValueError(f"Expected the data of {path} to be of shape (N, 3072), but got {data.shape}")
    return _checked(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, (3, 32, 32), path, path, classes)
