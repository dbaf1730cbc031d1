"""Folders of images: classes, splits, decoding, random crops, and what is wrong with files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule
from lightning_snn.data import ImageFolder
from lightning_snn.data.augmentation import center_crop, resized_crop
from lightning_snn.methods import SurrogateGradient
from lightning_snn.nn import LIF
from tests.support.training import trainer

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
COLORS = {"ant": (250, 10, 20), "bee": (10, 240, 30), "cow": (20, 30, 230)}


def write(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 4, deep: bool = True) -> Path:
    """Images of one color per class, of different sizes, formats and modes, some in a subfolder."""
    for split in splits:
        for name, color in COLORS.items():
            folder = root / split / name
            (folder / "more").mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (40 + number, 30 + 20 * (number % 2)), color)
                suffix = ("jpeg", "JPG", "png", "bmp")[number % 4]
                picture.save(folder / ("more" if deep and number == 1 else "") / f"{number}.{suffix}")
            (folder / "notes.txt").write_text("not an image")
            (folder / ".hidden.png").write_bytes(b"")
    return root


def folder(root: Path, **options: object) -> ImageFolder:
    data = ImageFolder(str(root), **{"image_size": 28, "time_steps": 2, "val_fraction": 0.25, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def test_a_class_is_a_folder_and_its_images_are_those_below(tmp_path: Path):
    data = folder(write(tmp_path))
    assert data.class_names == ("ant", "bee", "cow")
    assert (data.num_classes, data.frame_shape) == (3, (3, 28, 28))
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [9, 3, 12]
    x, y = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert x.shape == (2, 12, 3, 28, 28)
    for image, label in zip(x[0], y.tolist(), strict=True):
        color = torch.tensor(list(COLORS.values())[label]) / 255
        assert (image.mean((1, 2)) - color).abs().max() < 0.02  # JPEG rounds


def test_held_out_images_are_those_of_no_training(tmp_path: Path):
    data = folder(write(tmp_path))
    assert sorted([*data.train_set.indices, *data.val_set.indices]) == list(range(12))
    assert sorted(label for _, label in data.val_set) == [0, 1, 2]


def test_with_a_test_folder_validation_is_its_own_folder(tmp_path: Path):
    data = folder(write(tmp_path, ("train", "val", "test")))
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [12, 12, 12]
    assert bytes(data.val_set.names[0]).startswith(b"val")
    assert bytes(data.test_set.names[0]).startswith(b"test")


def test_an_image_is_the_middle_of_its_shorter_side(tmp_path: Path):
    write(tmp_path)
    rows, columns = np.mgrid[0:64, 0:128]
    pixels = np.stack([rows * 4, columns * 2, np.zeros_like(rows)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "val" / "ant" / "0.png")
    (tmp_path / "val" / "ant" / "0.jpeg").unlink()
    data = folder(tmp_path, image_size=32, resize=64)
    names = [bytes(name).decode() for name in data.test_set.names]
    image, label = data.test_set[names.index("val/ant/0.png")]
    assert label == 0
    assert np.array_equal(image[0].movedim(0, -1).numpy(), pixels[16:48, 48:80])
    # at half the size every pixel is between its neighbors
    image, _ = folder(tmp_path, image_size=32, resize=32).test_set[names.index("val/ant/0.png")]
    assert np.abs(image[0, 0].numpy().astype(int) - 8 * np.arange(32)[:, None] - 2)[2:-2].max() <= 2


def test_gray_images_and_palettes_become_colors(tmp_path: Path):
    write(tmp_path)
    Image.new("L", (50, 60), 100).save(tmp_path / "val" / "ant" / "a.png")
    Image.new("RGBA", (50, 60), (9, 8, 7, 255)).save(tmp_path / "val" / "ant" / "b.png")
    data = folder(tmp_path)
    names = [bytes(name).decode() for name in data.test_set.names]
    assert (data.test_set[names.index("val/ant/a.png")][0] == 100).all()
    assert data.test_set[names.index("val/ant/b.png")][0][0, :, 0, 0].tolist() == [9, 8, 7]


def test_it_trains_with_random_crops_that_a_seed_and_workers_leave_the_same(tmp_path: Path):
    class Recorder(SpikingModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    runs = []
    for workers in (0, 1):
        torch.manual_seed(workers)
        seen: list[torch.Tensor] = []
        data = folder(write(tmp_path / str(workers)), augmentation=True, num_workers=workers, batch_size=5)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8), LIF(), nn.Linear(8, 3))
        stock = trainer(max_epochs=2)
        stock.fit(Recorder(network, SurrogateGradient(), num_classes=3), data)
        assert all(x.shape[2:] == (3, 28, 28) for x in seen)
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_crop_is_a_rectangle_of_the_image_within_the_stated_areas_and_aspects():
    torch.manual_seed(0)
    count, side = 4000, 64
    ramps = torch.linspace(0, 1, side, dtype=torch.float64)
    x = torch.stack([ramps.expand(side, side), ramps[:, None].expand(side, side)])[None, None].expand(
        2, count, -1, -1, -1
    )
    cut = resized_crop(x, 16, mirror=True)
    assert cut.shape == (2, count, 2, 16, 16)
    assert torch.equal(cut[0], cut[1])
    across, down = cut[0, :, 0], cut[0, :, 1]
    assert (across - across[:, :1]).abs().max() < 1e-6  # rows see the same columns
    assert (down - down[:, :, :1]).abs().max() < 1e-6
    # the middles of the first and the last of 16 pixels are 15/16 of the side apart
    scale = 16 / 15 * (side - 1) / side
    width, height = scale * (across[:, 0, -1] - across[:, 0, 0]), scale * (down[:, -1, 0] - down[:, 0, 0])
    assert 0.45 < (width < 0).double().mean() < 0.55
    area, aspect = width.abs() * height, width.abs() / height
    inside = (width.abs() < 0.9) & (height < 0.9)  # pixels beyond the middle of the last are not interpolated
    assert area.min() > 0.08 * 0.97
    assert area.max() < 1.01
    assert aspect[inside].min() > 3 / 4 * 0.99
    assert aspect[inside].max() < 4 / 3 * 1.01
    assert 0.3 < area[inside].mean() < 0.5
    assert (resized_crop(x[:, :50], 16)[0, :, 0, 0].diff() > 0).all()


def test_the_middle_is_a_view():
    x = torch.arange(36.0).view(1, 1, 1, 6, 6)
    assert center_crop(x, 2).flatten().tolist() == [14, 15, 20, 21]
    assert center_crop(x, 6).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("content", [b"", b"junk", "cut"])
def test_a_damaged_image_is_named(content: bytes | str, tmp_path: Path):
    path = write(tmp_path) / "val" / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:40] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"val/bee/2.png to be an image, but it is truncated or corrupt"):
        list(folder(tmp_path).test_dataloader())
    path.unlink()


def test_a_missing_image_is_named(tmp_path: Path):
    data = folder(write(tmp_path))
    (tmp_path / "val" / "bee" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"val/bee/2.png to be an image, but it does not exist"):
        list(data.test_dataloader())


def test_folders_that_do_not_fit_are_named_before_anything_is_read(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="train to hold one folder of images per class, but it does not exist"):
        ImageFolder(str(tmp_path))
    write(tmp_path, ("train",))
    with pytest.raises(FileNotFoundError, match="val to hold one folder of images per class, but it does not exist"):
        ImageFolder(str(tmp_path))
    (tmp_path / "val").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(FileNotFoundError, match="val to hold one folder of images for each of at least two classes"):
        ImageFolder(str(tmp_path))
    for name in ("ant", "bee", "elk"):
        (tmp_path / "val" / name).mkdir()
    with pytest.raises(ValueError, match=r"the same classes, but 2 are in one of them only, such as 'cow' in 'train'"):
        ImageFolder(str(tmp_path))
    (tmp_path / "val" / "elk").rename(tmp_path / "val" / "cow")
    with pytest.raises(FileNotFoundError, match=r"val/ant to hold images \(.bmp, .jpeg, .* but it holds none"):
        ImageFolder(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "`image_size` to be an integer of at least 1, but got 0"),
        ({"resize": 20}, "`resize` to be an integer of at least 28, but got 20"),
        ({"val_fraction": 1.5}, "`val_fraction`"),
        ({"train": 1, "test": 1}, "either argument `root` or both arguments"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        folder(write(tmp_path), **options)
