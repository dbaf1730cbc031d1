"""Bias and variance of gradient estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_snn.figures._style import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    new_figure,
    numbers,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, SKY, GREEN, ORANGE, PURPLE, INK, FAINT)
_BATCH = 128
_ERRORS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


@styled
def bias_and_deviation(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Draw relative bias against relative standard deviation of one sample, in one panel per network.

    There is one line per estimator. Dashed arcs join points of equal root mean square error over a batch of 128
    samples. Where an arc is vertical, the bias dominates and more samples would not help. Both axes are logarithmic.

    Args:
        panels: for each panel, by title, the (bias, deviation) pairs of each estimator in order of depth; all larger
            than 0. Along a line the points grow from the first to the last depth.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no panel, or a series is not a list of pairs of numbers larger than 0.

    Example:
        >>> figure = bias_and_deviation({"MLP": {"IW-ST": [(0.01, 1.0), (0.02, 2.0)], "STE": [(0.1, 0.5)]}})
        >>> figure.axes[0].get_title(loc="left")
        'MLP'
    """
    if not panels or not all(panels.values()):
        raise ValueError("Expected argument `panels` to hold at least one series each, but got none")
    series: dict[str, dict[str, np.ndarray]] = {}
    for title, given in panels.items():
        for name, points in given.items():
            argument, expected = f"panels[{title!r}][{name!r}]", "(bias, deviation) pairs larger than 0"
            pairs = numbers(argument, points, expected)
            if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min() <= 0:
                raise ValueError(f"Expected argument `{argument}` to be {expected}, but got {points!r}")
            series.setdefault(title, {})[name] = pairs
    every = np.concatenate([pairs for lines in series.values() for pairs in lines.values()])
    low, high = every.min(0) / 1.5, every.max(0) * 1.5
    names = list(dict.fromkeys(name for lines in series.values() for name in lines))
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}

    figure = new_figure(3.1 * len(series) + 1.3, 3.4)
    grid = figure.subplots(1, len(series), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (title, lines) in zip(grid, series.items(), strict=True):
        for error in _ERRORS:
            angle = np.linspace(1e-4, np.pi / 2 - 1e-4, 2000)
            height = error * _BATCH**0.5
            axes.plot(
                error * np.sin(angle), height * np.cos(angle), color=GRID, linewidth=0.8, linestyle="--", zorder=0
            )
            if axes is grid[0] and low[1] * 1.2 < height < high[1] / 1.3 and error > low[0]:
                axes.annotate(f"{100 * error:g} %", (low[0] * 1.15, height * 1.05), color=FAINT, fontsize=7)
        for name, pairs in lines.items():
            axes.plot(pairs[:, 0], pairs[:, 1], color=colors[name], linewidth=1.1, alpha=0.8)
            sizes = np.linspace(10, 55, len(pairs)) if len(pairs) > 1 else np.array([30.0])
            axes.scatter(pairs[:, 0], pairs[:, 1], s=sizes, color=colors[name], linewidth=0, label=name, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel("relative bias")
    grid[0].set_ylabel("relative deviation of one sample")
    # one handle per name, from any panel that contains it
    found = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([found[name] for name in names], names, loc="outside right center")
    figure.suptitle(
        f"small to large: first to last depth; dashed: equal error over a batch of {_BATCH}",
        x=0.01,
        ha="left",
        fontsize=8,
        color=FAINT,
    )
    return figure
