"""Figures that compare learning rules."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgb

from lightning_snn import figures

BINS = ([0.1, 0.4, None, 0.9], [0.2, 0.3, None, 0.8], [5, 10, 0, 25])
NAMES = [f"rule {index}" for index in range(11)]
CURVES = {name: [(10, 0.2), (20, 0.3 + index / 50)] for index, name in enumerate(NAMES)}
MEMORY = {name: (3.0 + index, 0.4) for index, name in enumerate(NAMES)}


def test_a_rule_looks_the_same_in_all_panels_and_like_no_other_rule():
    figure = figures.accuracy_by_cost(CURVES, {name: CURVES[name] for name in NAMES[::-1]}, MEMORY)
    panels = [
        {line.get_label(): (to_rgb(line.get_color()), line.get_marker(), line.get_linestyle()) for line in axes.lines}
        for axes in figure.axes
    ]
    assert set(panels[0]) == set(NAMES)
    assert panels[0] == panels[1]
    assert len(set(panels[0].values())) == len(NAMES)
    assert len({look[:2] for look in panels[2].values()}) == len(NAMES)  # points have no line
    assert {name: look[0] for name, look in panels[2].items()} == {name: look[0] for name, look in panels[0].items()}
    assert {name: look[1] for name, look in panels[2].items()} == {name: look[1] for name, look in panels[0].items()}


def test_points_are_those_that_were_given():
    steps, seconds, memory = figures.accuracy_by_cost(CURVES, {"rule 1": [(0.5, 0.9)]}, MEMORY).axes
    assert steps.lines[2].get_xydata().tolist() == [[10, 0.2], [20, CURVES["rule 2"][1][1]]]
    assert [line.get_xydata().tolist() for line in seconds.lines] == [[[0.5, 0.9]]]
    assert memory.lines[3].get_xydata().tolist() == [[6.0, 0.4]]
    assert (steps.get_xscale(), seconds.get_xscale(), memory.get_xscale()) == ("linear", "log", "log")


def test_reliability_is_that_of_the_single_diagram():
    figure = figures.reliability_diagrams(dict.fromkeys(NAMES[:5], BINS))
    single = figures.reliability_diagram(*BINS)
    bars = [bar.get_bbox().bounds for bar in single.axes[0].patches]
    assert len(figure.axes) == 5
    for name, axes in zip(NAMES, figure.axes, strict=False):
        assert [bar.get_bbox().bounds for bar in axes.patches] == bars
        # 5 * .1 + 10 * .1 + 25 * .1 of 40
        assert axes.get_title(loc="left") == f"{name}\nECE 0.100"
        assert axes.lines[-1].get_ydata() == pytest.approx([0.125, 0.25, 0.625])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.accuracy_by_cost({}, {}, {}), "at least one rule"),
        (lambda: figures.accuracy_by_cost({"a": [1, 2]}, {}, {}), r"`by_steps\['a'\]` to be pairs of numbers"),
        (lambda: figures.accuracy_by_cost({"a": [(1, 2)]}, {}, {"a": (1, 2, 3)}), r"`memory\['a'\]`"),
        (lambda: figures.reliability_diagrams({}), "at least one prediction"),
        (lambda: figures.reliability_diagrams({"a": ([0.5], [1.5], [3])}), "`accuracy` to be within"),
    ],
)
def test_bad_numbers_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
