from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import pad

from lightning_snn.data.augmentation import AutoAugment, cutout, shift


def found_shifts(x: torch.Tensor, moved: torch.Tensor, pixels: int) -> list[tuple[int, int, bool]]:
    """For each sample the one window of the zero-padded input, as row, column and whether mirrored, that it is."""
    height, width = x.shape[3:]
    padded = pad(x, (pixels,) * 4)
    found = []
    for sample in range(x.shape[1]):
        matches = [
            (row, column, mirrored)
            for row in range(2 * pixels + 1)
            for column in range(2 * pixels + 1)
            for mirrored in (False, True)
            for window in [padded[:, sample, :, row : row + height, column : column + width]]
            if torch.equal(window.flip(-1) if mirrored else window, moved[:, sample])
        ]
        assert len(matches) == 1
        found += matches
    return found


@pytest.mark.parametrize("mirror", [False, True])
def test_a_sample_becomes_one_window_of_its_padded_self_at_all_time_steps_and_channels(mirror: bool) -> None:
    x = torch.rand(3, 400, 2, 6, 5)
    before = x.clone()
    moved = shift(x, 2, mirror=mirror)
    assert torch.equal(x, before)
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    found = found_shifts(x, moved, 2)
    # Of 50 equally likely outcomes, 400 draws miss one with probability 0.015; the seed is fixed.
    assert len(set(found)) == (50 if mirror else 25)
    assert {mirrored for *_, mirrored in found} == ({False, True} if mirror else {False})


def test_a_still_image_is_moved_like_a_recording() -> None:
    x = torch.rand(1, 20, 3, 8, 8)
    assert len(set(found_shifts(x, shift(x, 4, mirror=True), 4))) > 10


def test_no_shift_and_no_mirror_change_nothing() -> None:
    x = torch.rand(3, 4, 2, 6, 5)
    assert torch.equal(shift(x, 0), x)
    mirrored = shift(x, 0, mirror=True)
    assert all(torch.equal(mirrored[:, b], x[:, b]) or torch.equal(mirrored[:, b], x[:, b].flip(-1)) for b in range(4))


def test_a_shift_by_the_whole_image_leaves_zeros() -> None:
    moved = shift(torch.rand(2, 300, 1, 3, 3), 3)
    empty = moved.flatten(2).sum((0, 2)) == 0
    # Of 7 * 7 shifts 24 lead out of an image of 3 by 3.
    assert empty.float().mean() == pytest.approx(24 / 49, abs=0.1)


def test_inputs_may_be_views_and_integers() -> None:
    still = torch.rand(1, 5, 1, 6, 6)
    state = torch.get_rng_state()
    expected = shift(still.repeat(4, 1, 1, 1, 1), 2, mirror=True)
    torch.set_rng_state(state)
    assert torch.equal(shift(still.expand(4, -1, -1, -1, -1), 2, mirror=True), expected)
    counts = torch.randint(0, 9, (5, 4, 2, 6, 6), dtype=torch.uint8).transpose(0, 1)
    torch.set_rng_state(state)
    moved = shift(counts, 2)
    torch.set_rng_state(state)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, shift(counts.contiguous(), 2))


def test_draws_follow_the_seed() -> None:
    x = torch.rand(2, 50, 1, 8, 8)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return shift(x, 2, mirror=True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (-1, "`pixels` to be an integer of at least 0, but got -1"),
        (1.5, "`pixels` to be an integer of at least 0, but got 1.5"),
        (6, "`pixels` to be a number from 0 to 5, but got 6"),
    ],
)
def test_a_shift_out_of_range_is_named(pixels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shift(torch.zeros(2, 3, 1, 5, 7), pixels)


def holes(x: torch.Tensor, size: int) -> list[tuple[int, int, int, int]]:
    """First and past-the-last row and column of the square that each sample has lost."""
    lost = cutout(x, size) == 0
    assert torch.equal(lost, lost[:1, :, :1].expand_as(lost)), "all time steps and channels lose the same pixels"
    found = []
    for plane in lost[0, :, 0]:
        rows, columns = (plane.any(dim).nonzero()[:, 0].tolist() for dim in (1, 0))
        found.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        assert plane.sum() == len(rows) * len(columns), "what is lost is a rectangle"
    return found


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_hole_is_a_square_around_any_pixel_cut_off_at_the_rim(size: int) -> None:
    expected = {
        (max(row, 0), min(row + size, 7), max(column, 0), min(column + size, 5))
        for row in range(-(size // 2), 7 - size // 2)
        for column in range(-(size // 2), 5 - size // 2)
    }
    # Of 35 equally likely centers, 600 draws miss one with probability 1e-6.
    assert set(holes(torch.rand(3, 600, 2, 7, 5) + 0.1, size)) == expected


def test_the_center_of_a_hole_is_uniform() -> None:
    rows = torch.tensor([top for top, *_ in holes(torch.ones(1, 4000, 1, 8, 8), 1)])
    assert (torch.bincount(rows, minlength=8) / 4000 - 1 / 8).abs().max() < 0.03


def test_a_hole_is_filled_with_a_number_a_channel_and_nothing_else_changes() -> None:
    x = torch.rand(2, 50, 3, 8, 8) + 1
    before = x.clone()
    state = torch.get_rng_state()
    lost = cutout(x, 4) == 0
    torch.set_rng_state(state)
    filled = cutout(x, 4, [0.25, 0.5, 0.75])
    assert torch.equal(x, before)
    assert torch.equal(filled[~lost], x[~lost])
    for channel, value in enumerate((0.25, 0.5, 0.75)):
        assert (filled[:, :, channel][lost[:, :, channel]] == value).all()
    assert torch.equal(cutout(x, 0), x)


def test_a_cutout_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="`size` to be an integer of at least 0, but got -1"):
        cutout(torch.rand(1, 2, 3, 8, 8), -1)
    with pytest.raises(ValueError, match=r"`fill` to hold 3 numbers, one per channel, but got \[0.5\]"):
        cutout(torch.rand(1, 2, 3, 8, 8), 2, [0.5])


class TestAutoAugment:
    @pytest.fixture(autouse=True)
    def _needs_kornia(self) -> None:
        pytest.importorskip("kornia", reason="the optional extra `augmentation` is not installed")

    def test_images_keep_their_shape_and_range_and_most_of_them_change(self) -> None:
        images = torch.rand(300, 3, 32, 32)
        before = images.clone()
        changed = AutoAugment()(images)
        assert torch.equal(images, before)
        assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
        assert 0 <= changed.min() < changed.max() <= 1
        same = (changed == images).flatten(1).all(1).float().mean()
        assert 0.02 < same < 0.4  # no change is drawn for some

    def test_every_image_has_a_sub_policy_of_its_own(self) -> None:
        augment = AutoAugment()
        assert len(augment.sub_policies) == 25
        drawn: list[tuple[int, int]] = []
        augment.sub_policies = [
            lambda x, number=number: drawn.append((number, len(x))) or x + number for number in range(25)
        ]
        images = torch.rand(500, 3, 2, 2)
        added = (augment(images) - images).mean((1, 2, 3)).round().int()
        assert sum(count for _, count in drawn) == 500
        assert sorted(added.unique().tolist()) == list(range(25))
        assert all((added == number).sum() == count for number, count in drawn)

    def test_draws_follow_the_seed(self) -> None:
        images, augment = torch.rand(20, 3, 32, 32), AutoAugment()
        torch.manual_seed(3)
        first = augment(images)
        torch.manual_seed(3)
        assert torch.equal(augment(images), first)
        assert not torch.equal(augment(images), first)


def test_without_kornia_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-snn\[augmentation\]'"):
        AutoAugment()
