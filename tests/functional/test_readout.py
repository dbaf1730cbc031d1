"""Readouts over time."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.functional import readout
from lightning_snn.methods.tasks import Task

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


@pytest.mark.parametrize("kind", ["mean", "max", "sum"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_nan_at_any_step_is_read(kind, step):
    outputs = OUTPUTS.clone()
    outputs[step, 0, 1] = torch.nan
    assert readout(outputs, kind).isnan().tolist() == [[False, True]]
    prefixes = Task(kind).read_prefixes(outputs)[:, 0]
    assert prefixes[:, 1].isnan().tolist() == [before >= step for before in range(3)]
    assert prefixes[:, 0].isfinite().all()
