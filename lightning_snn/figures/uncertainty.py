"""Risk-coverage curves, and histograms of uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_snn.figures._style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SKY, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, INK)
_LINES = ("-", "--", "-.", ":")
_BINS = 40


@styled
def risk_coverage_curve(curves: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Draw the risk of answering only the most certain samples against the fraction of samples that are answered.

    Args:
        curves: for each name its coverage, ascending within (0, 1], and risk, at least 0, both of shape `(N,)`, as
            returned by `lightning_snn.metrics.functional.risk_coverage`. There are 24 distinct line styles, so at most
            24 curves.

    Returns:
        The figure, with the area under each curve in the legend: the sum of its risks times the steps of the coverage.

    Raises:
        ValueError: if `curves` is empty or holds more than 24, or one of them is not as stated above.

    Example:
        >>> figure = risk_coverage_curve({"entropy": ([0.5, 1.0], [0.0, 0.2])})
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'entropy, area 0.1'
    """
    _check_number("curves", curves, len(_COLORS) * len(_LINES))
    figure = new_figure(4.8, 3.6)
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        coverage, risk = _curve(f"curves[{name!r}]", curve)
        area = (risk * np.diff(coverage, prepend=0)).sum()
        axes.plot(
            coverage,
            risk,
            color=_COLORS[index % len(_COLORS)],
            linestyle=_LINES[index // len(_COLORS)],
            linewidth=1.4,
            label=f"{name}, area {area:.2g}",
        )
    axes.set(xlim=(0, 1), xlabel="coverage: share of the samples answered", ylabel="risk: mean error of those answered")
    axes.set_ylim(bottom=0)
    axes.set_title("risk and coverage", fontweight="bold")
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(loc="upper left", handlelength=1.8)
    return figure


@styled
def uncertainty_histograms(groups: Mapping[str, Any], label: str = "uncertainty [nats]") -> Figure:
    """Draw the distribution of an uncertainty in groups of samples, in one panel per group with a common axis.

    Args:
        groups: for each name the uncertainties of its samples, shape `(N,)`. The median of the first group is drawn in
            all panels.
        label: name of the uncertainty, and its unit.

    Returns:
        The figure. Bars are fractions of the group, so groups of different size are comparable. The axis includes 0.

    Raises:
        ValueError: if `groups` is empty or holds more than 6, or a group is not as stated above.

    Example:
        >>> figure = uncertainty_histograms({"known": [0.1, 0.2, 0.3], "unknown": [0.9]})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['known: 3 samples, median 0.2', 'unknown: 1 samples, median 0.9']
    """
    _check_number("groups", groups, len(_COLORS))
    values = {}
    for name, group in groups.items():
        argument, expected = f"groups[{name!r}]", "one number per sample"
        values[name] = numbers(argument, group, expected)
        if values[name].ndim != 1:
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got shape {values[name].shape}")
    everything = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(everything, _BINS, (min(0, everything.min()), everything.max()))
    reference = np.median(next(iter(values.values())))

    figure = new_figure(4.8, 1.25 * len(values) + 0.9)
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, color, (name, group) in zip(panels, _COLORS, values.items(), strict=False):
        axes.hist(group, edges, weights=np.full(len(group), 1 / len(group)), color=color, edgecolor="white")
        axes.axvline(reference, color=INK, linestyle="--", linewidth=1, label=f"median of {next(iter(values))}")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share")
        axes.set_title(f"{name}: {len(group)} samples, median {np.median(group):.2g}", fontweight="bold")
    panels[0].legend(loc="upper right")
    panels[-1].set(xlabel=label, xlim=(edges[0], edges[-1]))
    return figure


@styled
def prediction_sets_over_time(coverage: Any, size: Any, target: float, interval: tuple[float, float]) -> Figure:
    """Draw the coverage and the mean size of prediction sets after each time step.

    Args:
        coverage: share of the sets that contain the true class, after each of T time steps, within [0, 1].
        size: mean number of classes in a set, after each of T time steps, at least 0.
        target: chosen coverage, within [0, 1].
        interval: smallest and largest coverage that chance gives, drawn as a band.

    Returns:
        The figure, with the coverage above the size and a common axis of time steps from 1.

    Raises:
        ValueError: if `coverage` and `size` are not as stated above.

    Example:
        >>> figure = prediction_sets_over_time([0.91, 0.9], [3.2, 1.4], target=0.9, interval=(0.87, 0.92))
        >>> figure.axes[1].get_ylabel()
        'classes in a set'
    """
    expected = "one number for each time step"
    covered, classes = numbers("coverage", coverage, expected), numbers("size", size, expected)
    if covered.ndim != 1 or not len(covered) or covered.min() < 0 or covered.max() > 1:
        raise ValueError(
            f"Expected argument `coverage` to be one number within [0, 1] for each time step, but got shape "
            f"{covered.shape}{_range(covered)}"
        )
    if classes.shape != covered.shape or classes.min() < 0:
        raise ValueError(
            f"Expected argument `size` to be one number of at least 0 for each of the {len(covered)} time steps, but "
            f"got shape {classes.shape}{_range(classes)}"
        )
    steps = np.arange(1, len(covered) + 1)
    figure = new_figure(4.8, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    above.axhspan(*interval, color=GRID, zorder=0, label="by chance, at one step")
    above.axhline(target, color=INK, linestyle="--", linewidth=1, label=f"chosen, {target:g}")
    above.plot(steps, covered, color=BLUE, marker="o", markersize=3, linewidth=1.4, label="test data")
    low, high = min(covered.min(), interval[0], target), max(covered.max(), interval[1], target)
    room = max(high - low, 0.02)
    above.set(ylabel="coverage", ylim=(low - 0.7 * room, high + 0.1 * room))  # the legend lies below
    above.set_title("prediction sets after each time step", fontweight="bold")
    above.legend(loc="lower right")
    below.plot(steps, classes, color=ORANGE, marker="o", markersize=3, linewidth=1.4)
    below.set(xlabel="time step", ylabel="classes in a set")
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.grid(color=GRID, linewidth=0.7)
    return figure


def _range(values: np.ndarray) -> str:
    return f" and values from {values.min():g} to {values.max():g}" if values.size else ""


def _check_number(name: str, given: Mapping[str, Any], most: int) -> None:
    if not 0 < len(given) <= most:
        raise ValueError(f"Expected argument `{name}` to hold 1 to {most} names, but got {len(given)}")


def _curve(argument: str, curve: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    try:
        coverage, risk = curve
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected argument `{argument}` to be coverage and risk, but got {curve!r}") from error
    coverage = numbers(f"{argument}[0]", coverage, "the coverages of a curve")
    risk = numbers(f"{argument}[1]", risk, "the risks of a curve")
    ascending = coverage.ndim == 1 and coverage.min() > 0 and coverage.max() <= 1 and (np.diff(coverage) > 0).all()
    if coverage.shape != risk.shape or not ascending or risk.min() < 0:
        raise ValueError(
            f"Expected argument `{argument}` to be coverages, ascending within (0, 1], and as many risks of at least "
            f"0, but got shapes {coverage.shape} and {risk.shape}, coverages from {coverage.min():g} to "
            f"{coverage.max():g} and risks from {risk.min():g}"
        )
    return coverage, risk
