"""The suite of random networks that the estimators are compared on, and its figure."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lightning_snn import figures
from lightning_snn.figures.estimators import bias_and_deviation
from tests.support.scripts import load_script

PANELS = {
    "g = 0.35": {"straight-through": [(0.03, 0.2), (0.04, 0.3)], "lambda 0": [(0.004, 0.3), (0.03, 0.6)]},
    "g = 5.6": {"straight-through": [(0.7, 0.3), (0.9, 1.2)]},
}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script(Path(__file__).parents[1] / "benchmarks" / "estimators.py")


@pytest.fixture(scope="module")
def medians(benchmark) -> np.ndarray:
    """Of 60 networks of one layer, `[scale, estimator, kind]`."""
    patch = pytest.MonkeyPatch()
    patch.setattr(benchmark, "DEPTHS", (1,))
    patch.setattr(benchmark, "SCALES", benchmark.SCALES[:2])
    patch.setattr(benchmark, "ESTIMATORS", dict(list(benchmark.ESTIMATORS.items())[:5]))
    found = benchmark.measure(60, seed=0)
    patch.undo()
    return np.median(found, -1)[:, :, 0]


def test_a_lower_lambda_means_less_bias_and_more_deviation(medians):
    straight_through, half, reinmax = medians[1, :3]
    assert straight_through[0] > 1.1 * half[0] > 1.1**2 * reinmax[0]
    assert straight_through[1] < half[1] / 1.1 < reinmax[1] / 1.1**2


def test_more_noise_means_less_bias_for_every_member_of_the_family(medians):
    assert (4 * medians[0, :4, 0] < medians[1, :4, 0]).all()


def test_analytical_gumbel_rao_at_unit_temperature_shrinks_by_a_third(medians):
    bias, _, cosine = medians[0, 4]
    assert bias == pytest.approx(1 / 3, abs=0.03)
    assert cosine > 0.995
    assert medians[0, 0, 0] < 0.05


def test_networks_follow_the_recorded_ones_in_the_bulk(benchmark, medians):
    recorded = benchmark.recorded()
    assert recorded.shape == (3, 6, 4, 3)
    ratio = medians[..., :2] / recorded[:2, :5, 0, :2]
    assert 0.85 < np.median(ratio) < 1.15


def test_medians_scatter_less_the_more_networks_there_are(benchmark):
    found = np.random.default_rng(0).lognormal(size=(1, 400))
    assert benchmark.resampled(found).std(0)[0] < 0.7 * benchmark.resampled(found[:, :50]).std(0)[0]


def test_the_figure_has_one_panel_a_network_and_one_line_an_estimator(tmp_path):
    figure = bias_and_deviation(PANELS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(PANELS)
    assert [len(axes.collections) for axes in figure.axes] == [2, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["straight-through", "lambda 0"]
    assert figures.save(figure, tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "`panels` to hold at least one series each, but got none"),
        ({"g": {}}, "`panels` to hold at least one series each"),
        ({"g": {"a": [(0.1, 0.0)]}}, r"`panels\['g'\]\['a'\]` to be \(bias, deviation\) pairs larger than 0"),
        ({"g": {"a": [0.1, 0.2]}}, r"`panels\['g'\]\['a'\]` to be \(bias, deviation\) pairs"),
        ({"g": {"a": [(0.1, float("nan"))]}}, r"`panels\['g'\]\['a'\]` to be finite"),
    ],
)
def test_the_figure_refuses_by_name_what_it_cannot_draw(panels, message):
    with pytest.raises(ValueError, match=message):
        bias_and_deviation(panels)
