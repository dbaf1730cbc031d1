"""Batches are known by what they hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_snn.methods.ep import fingerprint

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.bool]


def batch(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (20, 3, 4)) -> tuple[Tensor, Tensor]:
    return (torch.rand(shape) < 0.5).to(dtype), torch.arange(len(torch.empty(shape))) % 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_samples_does_not_matter(dtype):
    x, y = batch(dtype)
    for _ in range(5):
        order = torch.randperm(20)
        assert fingerprint(x[order], y[order]) == fingerprint(x, y)


def test_labels_belong_to_their_samples():
    x, y = batch()
    order = torch.randperm(20)
    assert fingerprint(x[order], y) != fingerprint(x, y)
    assert fingerprint(x, y[order]) != fingerprint(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_matters(dtype):
    x, y = batch(dtype, (4, 6))
    found = {fingerprint(x, y)}
    for sample in range(4):
        for place in range(6):
            other = x.clone()
            other[sample, place] = 1 - other[sample, place].int()
            found.add(fingerprint(other, y))
    assert len(found) == 25


def test_the_last_bit_of_a_value_matters():
    x, y = torch.rand(4, 6), torch.rand(4, 1)
    assert fingerprint(torch.nextafter(x, x + 1), y) != fingerprint(x, y)
    moved = y.clone()
    moved[2] = torch.nextafter(y[2], y[2] + 1)
    assert fingerprint(x, moved) != fingerprint(x, y)


def test_single_bits_of_values_with_few_bits_matter():
    # of 1.0 in float64, which has 52 low bits of 0, a product with a key keeps 12 bits
    x = torch.zeros(1, 300).double()
    found = {fingerprint(torch.eye(300)[[place]].double(), torch.zeros(1)) for place in range(300)}
    assert len(found | {fingerprint(x, torch.zeros(1))}) == 301
    x, pairs = torch.zeros(1, 300), set()
    for place in range(0, 299):
        x.zero_()[0, place : place + 2] = 1
        pairs.add(fingerprint(x, torch.zeros(1)))
    assert len(pairs) == 299


def test_the_place_of_a_batch_in_memory_does_not_matter():
    x, y = batch(shape=(20, 6))
    held = torch.zeros(1 + x.numel())
    held[1:] = x.flatten()
    assert fingerprint(held[1:].view(20, 6), y) == fingerprint(x, y)


def test_every_label_matters():
    x, y = batch()
    found = {fingerprint(x, torch.where(torch.arange(20) == sample, y + 1, y)) for sample in range(20)}
    assert len(found | {fingerprint(x, y)}) == 21


def test_types_sizes_and_numbers_of_samples_are_told_apart():
    x, y = batch()
    zeros = torch.zeros(20, 5)
    found = [
        fingerprint(x, y),
        fingerprint(x.double(), y),
        fingerprint(x[:19], y[:19]),
        fingerprint(torch.cat([x, x[:1]]), torch.cat([y, y[:1]])),
        fingerprint(zeros, y),
        fingerprint(zeros[:, :4], y),
        fingerprint(x.roll(1, 2), y),
    ]
    assert len(set(found)) == len(found)


def test_a_sample_that_comes_twice_does_not_cancel():
    x, y = batch()
    one, other = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    found = [fingerprint(x[chosen], y[chosen]) for chosen in (one, other, torch.tensor([1]), torch.tensor([2, 2, 1]))]
    assert len(set(found)) == 4


def test_many_batches_of_few_pixels_have_fingerprints_of_their_own():
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)
    found = {fingerprint(patterns[[i, j]], torch.zeros(2)) for i in range(32) for j in range(i, 32)}
    assert len(found) == 32 * 33 // 2


def test_values_that_lie_apart_in_memory_are_read_as_they_stand():
    x, y = batch(shape=(20, 6))
    assert fingerprint(x.T.contiguous().T, y) == fingerprint(x, y)
    assert fingerprint(x[:, ::2], y) == fingerprint(x[:, ::2].clone(), y)
