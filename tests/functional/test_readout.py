"""Readouts over time."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.functional import readout

OUTPUTS = torch.tensor([[[1.0, -2.0]], [[4.0, -5.0]], [[1.0, 1.0]]])  # T = 3, B = 1


@pytest.mark.parametrize(
    ("kind", "expected"), [("mean", [2.0, -2.0]), ("max", [4.0, 1.0]), ("last", [1.0, 1.0]), ("sum", [6.0, -6.0])]
)
def test_a_readout_reduces_the_first_axis(kind, expected):
    assert readout(OUTPUTS, kind).tolist() == [expected]


def test_the_mean_is_the_default():
    assert torch.equal(readout(OUTPUTS), readout(OUTPUTS, "mean"))


def test_an_unknown_readout_is_refused_by_name():
    with pytest.raises(
        ValueError, match="Expected argument `readout` to be one of 'mean', 'max', 'last', 'sum', but got 'median'"
    ):
        readout(OUTPUTS, "median")
