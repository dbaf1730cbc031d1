"""Fluctuation-driven neurons."""

from __future__ import annotations

import pytest

from lightning_snn.functional.fluctuation import fluctuation_factor


@pytest.mark.parametrize(("mean", "deviation", "xi", "threshold"), [(0.0, 0.2, 2.0, 1.0), (-0.1, 3.0, 1.0, 0.5)])
def test_the_threshold_is_xi_deviations_above_the_mean_of_what_is_scaled(
    mean: float, deviation: float, xi: float, threshold: float
):
    factor = fluctuation_factor(mean, deviation, xi, threshold)
    assert (threshold - factor * mean) / (factor * deviation) == pytest.approx(xi)
    assert factor > 0


def test_a_mean_that_no_factor_brings_near_the_threshold_is_refused():
    with pytest.raises(ValueError, match="`mean` to be larger than -2, but got -2.5"):
        fluctuation_factor(-2.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="`std` to be .* larger than 0"):
        fluctuation_factor(0.0, 0.0, 2.0)
