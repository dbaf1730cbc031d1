from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from lightning_snn.data.augmentation import shift


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
