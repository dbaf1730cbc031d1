from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_snn.data.image_files import read_cifar10, read_cifar100, read_mnist
from lightning_snn.data.image_module import ImageDataModule
from lightning_snn.data.images import CIFAR10, CIFAR100, MNIST, FashionMNIST
from tests.support.training import trainer


def repeat(images: torch.Tensor) -> torch.Tensor:
    return images.expand(4, *images.shape)


def random_images(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, ten classes in turn."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 10


MNIST_IMAGES = {"train": random_images(50, (28, 28), 0), "t10k": random_images(20, (28, 28), 1)}
CIFAR_IMAGES = {
    **{f"data_batch_{number}": random_images(20, (3, 32, 32), number) for number in range(1, 6)},
    "test_batch": random_images(20, (3, 32, 32), 6),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, zipped: bool = False) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, (images, labels) in MNIST_IMAGES.items():
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return root


def write_cifar10(root: Path, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (images, labels) in CIFAR_IMAGES.items():
        batch = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": images.reshape(len(images), -1)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return root


def write_cifar100(root: Path, changes: dict[bytes, object] | None = None) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 200), ("test", 100)):
        images = random_images(count, (3, 32, 32), count)[0].reshape(count, -1)
        labels = (np.arange(count) % 100).tolist()
        batch = {b"filenames": [b"a"] * count, b"batch_label": b"part 1", b"fine_labels": labels, b"data": images}
        batch |= {b"coarse_labels": [label // 5 for label in labels]} | (changes or {})
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    return root


def mnist(root: Path, **arguments) -> MNIST:
    data = MNIST(str(root), **{"encoder": repeat, "time_steps": 4, **arguments})
    data.setup()
    return data


class Pictures(Dataset):
    """A data set as users have them: PIL images or tensors, with or without ``targets``."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, kind: str, targets: bool = True) -> None:
        self.images, self.labels, self.kind = images, labels, kind
        if targets:
            self.targets = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = self.images[index]
        if self.kind == "pil":
            from PIL import Image

            image = Image.fromarray(image)
        elif self.kind == "float":
            image = torch.from_numpy(image)[None].float() / 255
        elif self.kind == "uint8":
            image = torch.from_numpy(image)[None]
        return image, int(self.labels[index])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inside", ["", "MNIST", "MNIST/raw"])
def test_mnist_is_read_from_idx_files(zipped: bool, inside: str, tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped)
    for part, prefix in zip(read_mnist(tmp_path / inside), ("train", "t10k"), strict=True):
        images, labels = MNIST_IMAGES[prefix]
        assert np.array_equal(part.images, images[:, None])
        assert part.images.dtype == np.uint8
        assert np.array_equal(part.labels, labels)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_pickled_batches(protocol: int, inside: str, tmp_path: Path) -> None:
    train, test = read_cifar10(write_cifar10(tmp_path, protocol) / inside)
    assert np.array_equal(train.images, np.concatenate([CIFAR_IMAGES[f"data_batch_{n}"][0] for n in range(1, 6)]))
    assert np.array_equal(train.labels, np.tile(np.arange(20) % 10, 5))
    assert np.array_equal(test.images, CIFAR_IMAGES["test_batch"][0])


def test_fashion_mnist_is_read_from_its_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="to hold train-images-idx3-ubyte"):
        FashionMNIST(str(tmp_path)).setup()
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    data = FashionMNIST(str(tmp_path), val_fraction=0.2)
    data.setup()
    assert np.array_equal(data.test_set.frames[:, 0, 0], MNIST_IMAGES["t10k"][0])
    assert len(data.class_names) == data.num_classes == 10


@pytest.mark.parametrize("inside", ["", "cifar-100-python"])
def test_cifar100_is_read_with_its_fine_labels(inside: str, tmp_path: Path) -> None:
    train, test = read_cifar100(write_cifar100(tmp_path) / inside)
    assert np.array_equal(train.images, random_images(200, (3, 32, 32), 200)[0])
    assert np.array_equal(train.labels, np.arange(200) % 100)
    assert np.array_equal(test.images, random_images(100, (3, 32, 32), 100)[0])
    data = CIFAR100(str(tmp_path), val_fraction=0.5, time_steps=2, batch_size=20, augmentation=True)
    data.setup()
    assert sorted(int(y) for _, y in data.val_set) == list(range(100)) == sorted(set(range(data.num_classes)))
    assert len(set(data.class_names)) == 100
    assert list(data.class_names) == sorted(data.class_names)
    x, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert x.shape == (2, 20, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"fine_labels": [100] * 200}, r"train to hold 200 labels from 0 to 99, one per image, .* up to 100"),
        ({b"fine_labels": [1]}, "train to hold 200 labels from 0 to 99, one per image, but got"),
        ({b"data": np.zeros((200, 10), np.uint8)}, r"train to be of shape \(N, 3072\), but got \(200, 10\)"),
    ],
)
def test_a_damaged_file_of_cifar100_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CIFAR100(str(write_cifar100(tmp_path, changes))).setup()
    (tmp_path / "cifar-100-python" / "train").unlink()
    kind = "a pickled batch of CIFAR-100 with data and fine_labels"
    with pytest.raises(FileNotFoundError, match=f"train to be {kind}, but it does not exist"):
        read_cifar100(tmp_path)


def test_cifar10_is_not_taken_for_cifar100(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path) / "cifar-10-batches-py"
    (folder / "data_batch_1").rename(folder / "train")
    (folder / "test_batch").rename(folder / "test")
    with pytest.raises(ValueError, match=r"train to be a pickled batch of CIFAR-100.*KeyError: b'fine_labels'"):
        read_cifar100(folder)


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "train_x train_y test_x test_y"])
def test_both_are_read_from_npz(names: str, tmp_path: Path) -> None:
    images, labels = random_images(30, (28, 28), 0)
    np.savez(tmp_path / "a.npz", **dict(zip(names.split(), (images, labels, images[:10], labels[:10]), strict=True)))
    train, test = read_mnist(tmp_path / "a.npz")
    assert np.array_equal(train.images, images[:, None])
    assert np.array_equal(test.labels, labels[:10])
    images, labels = random_images(30, (32, 32, 3), 0)
    np.savez(tmp_path / "b.npz", **dict(zip(names.split(), (images, labels, images[:10], labels[:10]), strict=True)))
    train, test = read_cifar10(tmp_path / "b.npz")
    assert train.images.shape == (30, 3, 32, 32)
    assert np.array_equal(train.images[3, 2], images[3, :, :, 2])


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = write_cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 to be .*posix.mkdir is not part of an array"):
        read_cifar10(tmp_path)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "attacked").exists()


TRAIN_IMAGES, TRAIN_LABELS = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TRAIN_IMAGES, "cut", r"train-images-idx3-ubyte to hold 39216 bytes for an array of shape \(50, 28, 28\), but"),
        (
            TRAIN_LABELS,
            "cut",
            r"train-labels-idx1-ubyte to hold 58 bytes for an array of shape \(50,\), but it holds 57",
        ),
        (TRAIN_IMAGES, b"", "train-images-idx3-ubyte to start as an IDX file.*starts with nothing"),
        (TRAIN_IMAGES, b"\x00\x00\x0d\x03" + bytes(12), "to start as an IDX file.*starts with 00000d03"),
        (TRAIN_LABELS, idx(np.arange(49) % 10), "train-labels-idx1-ubyte to hold 50 labels from 0 to 9.*(49,)"),
        (TRAIN_LABELS, idx(np.arange(50)), "train-labels-idx1-ubyte to hold 50 labels from 0 to 9.* up to 49"),
        (TRAIN_IMAGES, idx(np.zeros((50, 27, 28))), "to hold uint8 images of 28 by 28 pixels.*(50, 27, 28, 1)"),
        ("cifar-10-batches-py/test_batch", "cut", "test_batch to be a pickled batch of CIFAR-10 .*truncated"),
        ("cifar-10-batches-py/data_batch_2", b"junk", "data_batch_2 to be a pickled batch of CIFAR-10"),
        ("cifar-10-batches-py/data_batch_2", pickle.dumps({b"data": 3}), "data_batch_2 to be .*KeyError: b'labels'"),
        (
            "cifar-10-batches-py/data_batch_2",
            pickle.dumps({b"data": [[1, 2]], b"labels": [1]}),
            r"data of .*data_batch_2 to be of shape \(N, 3072\), but got \(1, 2\)",
        ),
    ],
)
def test_a_damaged_file_is_named(file: str, content: bytes | str, message: str, tmp_path: Path) -> None:
    path = write_cifar10(write_mnist(tmp_path)) / file
    path.write_bytes(path.read_bytes()[:-1] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        (read_mnist if "MNIST" in file else read_cifar10)(tmp_path)


def test_a_damaged_zipped_file_is_named(tmp_path: Path) -> None:
    path = write_mnist(tmp_path, zipped=True) / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"junk", whole[:200] + bytes(20) + whole[220:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz to be a gzip file, but it is truncated or"):
            read_mnist(tmp_path)


def test_a_damaged_npz_file_is_named(tmp_path: Path) -> None:
    images, labels = random_images(30, (28, 28), 0)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    whole = path.read_bytes()
    for damaged in (
        whole[:-30],
        whole[:300],
        b"",
        whole[:1000] + bytes(50) + whole[1050:],
        whole[:70] + b"\xff" * 50 + whole[120:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a.npz to be a file with the arrays x_train, .*truncated or corrupt"):
            read_mnist(path)
    np.savez(path, x_train=images, y_train=labels)
    with pytest.raises(ValueError, match=r"a.npz to be a file with the arrays .* but it holds x_train, y_train"):
        read_mnist(path)
    with pytest.raises(FileNotFoundError, match=r"b.npz to be a file with the arrays"):
        read_cifar10(tmp_path / "b.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"to hold train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        read_mnist(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_5 to be a pickled batch of .*, but it does not exist"):
        read_cifar10(tmp_path)


def test_the_sets_are_disjoint_complete_and_balanced(tmp_path: Path) -> None:
    data = mnist(write_mnist(tmp_path), val_fraction=0.2)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [40, 10, 20]
    assert sorted(int(y) for _, y in data.val_set) == list(range(10))
    assert sorted([*data.train_set.indices, *data.val_set.indices]) == list(range(50))


def test_a_batch_is_pixels_over_255_at_every_time_step(tmp_path: Path) -> None:
    data = mnist(write_mnist(tmp_path), batch_size=20)
    x, y = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    images, labels = MNIST_IMAGES["t10k"]
    assert x.shape == (data.time_steps, 20, *data.frame_shape) == (4, 20, 1, 28, 28)
    assert torch.equal(x[0, :, 0], torch.from_numpy(images).float() / 255)
    assert y.tolist() == labels.tolist()
    assert data.on_after_batch_transfer((x, y), 0)[0] is x


def test_pixels_are_standardized_by_channel(tmp_path: Path) -> None:
    arguments = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0], "encoder": repeat, "time_steps": 4}
    data = CIFAR10(str(write_cifar10(tmp_path)), **arguments)
    data.setup()
    x, _ = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    pixels = torch.from_numpy(CIFAR_IMAGES["test_batch"][0]).double() / 255
    for channel, (mean, std) in enumerate(((0.1, 1), (0.2, 2), (0.3, 4))):
        assert torch.allclose(x[1, :, channel].double(), (pixels[:, channel] - mean) / std, atol=1e-6)


@pytest.mark.parametrize("kind", ["pil", "array", "uint8", "float"])
@pytest.mark.parametrize("targets", [True, False])
def test_any_data_set_of_images_and_labels_gives_what_files_give(kind: str, targets: bool, tmp_path: Path) -> None:
    from_files = mnist(write_mnist(tmp_path), val_fraction=0.2)
    sets = {
        name: Pictures(*MNIST_IMAGES[prefix], kind, targets) for name, prefix in (("train", "train"), ("test", "t10k"))
    }
    data = MNIST(**sets, encoder=repeat, time_steps=4, val_fraction=0.2)
    data.setup()
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        (one,), (two,) = list(getattr(from_files, loader)()), list(getattr(data, loader)())
        for first, second in zip(
            from_files.on_after_batch_transfer(one, 0), data.on_after_batch_transfer(two, 0), strict=True
        ):
            assert torch.equal(first, second)


def test_a_color_image_keeps_its_channels() -> None:
    images, labels = random_images(20, (32, 32, 3), 0)
    data = CIFAR10(train=Pictures(images, labels, "pil"), test=Pictures(images, labels, "pil"), encoder=repeat)
    data.setup()
    image, label = data.test_set[3]
    assert torch.equal(image[0], torch.from_numpy(images[3]).permute(2, 0, 1))
    assert label == 3


def test_a_data_set_that_does_not_fit_is_refused() -> None:
    images, labels = random_images(20, (28, 28), 0)
    good = Pictures(images, labels, "uint8")
    with pytest.raises(ValueError, match=r"`test` to have labels in \[0, 10\), but got labels from 0 to 19"):
        MNIST(train=good, test=Pictures(images, np.arange(20), "uint8"), encoder=repeat).setup()
    data = CIFAR10(train=good, test=good, encoder=repeat)
    data.setup()
    with pytest.raises(ValueError, match=r"image 0 to be uint8 or floats of shape \(3, 32, 32\), but got torch.uint8"):
        next(iter(data.test_dataloader()))
    integers = TensorDataset(torch.zeros(20, 1, 28, 28, dtype=torch.int64), torch.arange(20) % 10)
    data = MNIST(train=integers, test=integers, encoder=repeat)
    data.setup()
    with pytest.raises(ValueError, match=r"image 0 to be uint8 or floats .*but got torch.int64"):
        next(iter(data.test_dataloader()))


@pytest.mark.parametrize("name", ["direct", "poisson", "latency"])
def test_named_encoders_give_time_first_inputs(name: str, tmp_path: Path) -> None:
    data = mnist(write_mnist(tmp_path), encoder=name, time_steps=50)
    x, _ = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    pixels = torch.from_numpy(MNIST_IMAGES["t10k"][0])[:, None].float() / 255
    assert x.shape == (50, 20, 1, 28, 28)
    if name == "direct":
        assert torch.equal(x, pixels.expand_as(x))
        assert x.stride(0) == 0
    else:
        assert set(x.unique().tolist()) == {0, 1}
        assert x.sum(0).max() == 1 if name == "latency" else (x.mean(0) - pixels).abs().mean() < 0.1


def test_an_encoder_of_another_length_is_refused(tmp_path: Path) -> None:
    data = mnist(write_mnist(tmp_path), time_steps=5)
    with pytest.raises(
        ValueError, match=r"`encoder` to return inputs of shape \(5, 20, ...\), but got \(4, 20, 1, 28, 28"
    ):
        data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def test_augmentation_is_drawn_anew_in_training_and_absent_elsewhere(tmp_path: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {"train": [], "val": []}

    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
            seen["train"].append(batch[0])
            return self.weight.sum()

        def validation_step(self, batch: tuple, batch_idx: int) -> None:
            seen["val"].append(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(augmentation: bool) -> list[bool]:
        seen["train"].clear()
        seen["val"].clear()
        data = CIFAR10(str(root), augmentation=augmentation, encoder=repeat, time_steps=4, batch_size=200)
        data.setup()
        assert isinstance(data.train_set, Subset)
        originals = {(frames[0].float() / 255).numpy().tobytes() for frames, _ in data.train_set}
        held_out = {(frames[0].float() / 255).numpy().tobytes() for frames, _ in data.val_set}
        trainer(max_epochs=2).fit(Recorder(), data)
        assert all(image.numpy().tobytes() in held_out for x in seen["val"] for image in x[0])
        assert all(torch.equal(x[0], x[3]) for x in seen["train"])
        return [image.numpy().tobytes() in originals for x in seen["train"] for image in x[0]]

    root = write_cifar10(tmp_path)
    assert np.mean(fit(augmentation=True)) < 0.1
    assert all(fit(augmentation=False))


def test_a_hole_is_zero_once_pixels_are_standardized(tmp_path: Path) -> None:
    arguments = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0], "encoder": repeat, "time_steps": 4}
    data = CIFAR10(str(write_cifar10(tmp_path)), cutout=16, batch_size=90, **arguments)
    data.setup()
    loaded = next(iter(data.train_dataloader()))
    whole, labels = data.on_after_batch_transfer(loaded, 0)
    data.trainer = SimpleNamespace(training=True, current_epoch=0)  # type: ignore[assignment]
    x, same_labels = data.on_after_batch_transfer(loaded, 0)
    lost = (x == 0).all(2)
    assert torch.equal(labels, same_labels)
    assert torch.equal(lost, lost[:1].expand_as(lost))
    assert ((lost[0].sum((1, 2)) >= 64) & (lost[0].sum((1, 2)) <= 256)).all()
    assert torch.equal(x.movedim(2, -1)[~lost], whole.movedim(2, -1)[~lost])


def test_images_are_shifted_then_auto_augmented_then_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kornia", reason="the optional extra `augmentation` is not installed")
    order: list[str] = []
    for name in ("shift", "cutout"):
        monkeypatch.setattr(
            f"lightning_snn.data.images.{name}", lambda x, *rest, name=name, **options: order.append(name) or x
        )
    data = CIFAR10(str(write_cifar10(tmp_path)), augmentation=True, auto_augment=True, cutout=16, encoder=repeat)
    monkeypatch.setattr(data, "auto_augment", lambda images: order.append(str(images.dim())) or images)
    data.augment(torch.rand(1, 2, 3, 32, 32), torch.zeros(2))
    assert order == ["shift", "4", "cutout"]


def test_no_augmentation_needs_kornia_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    CIFAR10(str(tmp_path), augmentation=True, cutout=16)
    with pytest.raises(ImportError, match="Expected kornia to be installed"):
        CIFAR10(str(tmp_path), auto_augment=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either argument `root` or both arguments `train` and `test`, but got none"),
        ({"root": "a", "train": 1, "test": 2}, "either argument `root` or .*but got root, train, test"),
        ({"train": 1}, "either argument `root` or .*but got train"),
        ({"root": "a", "time_steps": 0}, "`time_steps` to be an integer of at least 1, but got 0"),
        ({"root": "a", "val_fraction": 0}, "`val_fraction`.*but got 0"),
        (
            {"root": "a", "encoder": "threshold"},
            "`time_steps` to be 1 with the threshold encoder, but got 8",
        ),
        (
            {"root": "a", "encoder": "threshold", "time_steps": 1, "mean": [0.1], "std": [0.3]},
            "`mean` and `std` to be None with the threshold encoder",
        ),
        (
            {"root": "a", "encoder": "rate"},
            "`encoder` to be one of 'direct', 'poisson', 'latency', 'threshold', but got 'rate'",
        ),
        ({"root": "a", "mean": [0.5]}, "`mean` and `std` to be both None or both 1 numbers"),
        ({"root": "a", "mean": [0.5, 0.1], "std": [1.0, 1.0]}, r"both 1 numbers.*got `mean` \[0.5, 0.1\]"),
        ({"root": "a", "mean": [0.5], "std": [0.0]}, r"`std` to hold numbers larger than 0, but got \[0.0\]"),
        ({"root": "a", "encoder": "poisson", "mean": [0.5], "std": [1.0]}, "None with the poisson encoder"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNIST(**{"encoder": repeat, **arguments})


def test_a_cutout_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="`cutout` to be an integer of at least 0, but got -1"):
        CIFAR10("a", encoder=repeat, cutout=-1)


def test_the_base_of_image_modules_says_what_it_lacks() -> None:
    class Bare(ImageDataModule):
        frame_shape = (1, 2, 2)

    with pytest.raises(NotImplementedError, match="Bare must implement `read_files`"):
        Bare("a", encoder=repeat).setup()


def test_real_images_are_read(shared_data: Path) -> None:
    data = CIFAR10(str(shared_data / "cifar10_subset_uint8.npz"), encoder=repeat, time_steps=4, batch_size=16)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [5400, 600, 2000]
    x, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert x.shape == (4, 16, 3, 32, 32)
    assert 0.3 < x.mean() < 0.7
