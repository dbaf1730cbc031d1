"""The accuracy of single outputs; its class over batches and processes is tested with the other metrics."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.metrics import BitAccuracy
from lightning_snn.metrics.functional import bit_accuracy, expected_calibration_error


def test_each_output_counts_by_itself():
    p = torch.tensor([[0.9, 0.6, 0.1], [0.2, 0.4, 0.3]])
    # of the first sample the second output is wrong, of the second sample the third
    assert bit_accuracy(p, torch.tensor([0, 2])).item() == pytest.approx(4 / 6)
    torch.testing.assert_close(
        bit_accuracy(p, torch.tensor([0, 2]), reduction="none"), torch.tensor([2 / 3, 2 / 3], dtype=torch.float64)
    )


def test_it_equals_a_count_in_loops():
    generator = torch.Generator().manual_seed(0)
    p, y = torch.rand(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    right = sum((p[n, c].item() > 0.5) == (y[n].item() == c) for n in range(50) for c in range(7))
    assert bit_accuracy(p, y).item() == pytest.approx(right / 350, abs=1e-15)


def test_outputs_that_never_spike_are_right_in_all_but_one_and_one_half_is_no_spike():
    y = torch.arange(10)
    for value in (0.0, 0.5):
        assert bit_accuracy(torch.full((10, 10), value), y).item() == pytest.approx(0.9)


def test_it_is_no_accuracy_among_classes():
    p = torch.tensor([[0.3, 0.4, 0.1]])
    assert p.argmax(1).item() != 0
    assert bit_accuracy(p, torch.tensor([0])).item() == pytest.approx(2 / 3)


def test_rows_need_not_sum_to_one_but_must_be_probabilities():
    metric = BitAccuracy()
    metric.update(torch.ones(2, 3), torch.tensor([0, 1]))
    assert metric.compute().item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"`spike_probabilities` to hold values within \[0, 1\]"):
        bit_accuracy(torch.tensor([[1.5, 0.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="`targets` to hold classes from 0 to 1"):
        bit_accuracy(torch.rand(1, 2), torch.tensor([2]))


def test_the_calibration_error_is_the_gap_that_was_built_in():
    # confidence 0.8 in all samples, right in 60 of 100
    p = torch.tensor([0.8, 0.2], dtype=torch.float64).repeat(100, 1)
    y = (torch.arange(100) >= 60).long()
    assert expected_calibration_error(p, y).item() == pytest.approx(0.2)
    assert expected_calibration_error(p, (torch.arange(100) >= 80).long()).item() == pytest.approx(0, abs=1e-12)
