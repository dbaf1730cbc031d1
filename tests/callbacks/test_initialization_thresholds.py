from __future__ import annotations

import pytest
import torch

from lightning_snn.callbacks.initialization.thresholds import Band, Thresholds
from lightning_snn.functional.jacobian import slope_statistics


@pytest.mark.parametrize(
    ("slopes", "verdict"),
    [
        ([0.9, 1.1], "ok"),
        ([0.09, 0.1], "warn"),
        ([0.2, 4.0], "warn"),
        ([0.0, 1.0], "fail"),
        ([-0.1, 1.0], "fail"),
        ([float("nan"), 1.0], "fail"),
    ],
)
def test_verdicts_on_slopes(slopes: list[float], verdict: str):
    assert Thresholds().slope_verdict(slope_statistics(torch.tensor(slopes))) == verdict


def test_bands_pass_warn_and_fail():
    band = Thresholds().spectral_radius
    values = [0.4, 0.5, 0.79, 0.8, 1.06, 1.25, 1.3, 2.0, 2.1, float("inf"), float("nan")]
    expected = ["fail", "warn", "warn", "ok", "ok", "ok", "warn", "warn", "fail", "fail", "fail"]
    assert [band.verdict(value) for value in values] == expected
    with pytest.raises(ValueError, match=r"`passes` to be a range within \(0.8, 1.25\), but got \(0.5, 2.0\)"):
        Band((0.5, 2.0), (0.8, 1.25))
