"""Errors of the gradient of firing rates by the number of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_snn.figures._style import BLUE, GREEN, GRID, ORANGE, PURPLE, SKY, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


@styled
def window_errors(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]]) -> Figure:
    """Draw the relative error of a gradient against the number of windows, in one panel per network.

    Lines are predictions, and circles measurements of the same color.

    Args:
        panels: for each panel, by title, the (number of windows, predicted error, measured error) of each series, such
            as those of `methods.rate.LayerDecomposition.curves`; numbers of windows at least 1, errors at least 0, and
            nan for what was not measured.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no panel, or a series is not a list of such triples.

    Example:
        >>> figure = window_errors({"decay 0.8": {"linked": [(1, 0.5, 0.5), (10, 0.1, 0.12)]}})
        >>> figure.axes[0].get_title(loc="left")
        'decay 0.8'
    """
    if not panels or not all(panels.values()):
        raise ValueError("Expected argument `panels` to hold at least one series each, but got none")
    series: dict[str, dict[str, np.ndarray]] = {}
    for title, given in panels.items():
        for name, points in given.items():
            argument, expected = f"panels[{title!r}][{name!r}]", "triples of K, predicted and measured error"
            rows = numbers(argument, points, expected, finite=False)
            valid = rows.ndim == 2 and rows.shape[1] == 3 and np.isfinite(rows[:, :2]).all()
            if not valid or rows[:, 0].min() < 1 or (rows[:, 1:] < 0).any():
                raise ValueError(f"Expected argument `{argument}` to be {expected}, but got {points!r}")
            series.setdefault(title, {})[name] = rows
    names = list(dict.fromkeys(name for lines in series.values() for name in lines))
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    top = max(float(np.nanmax(rows[:, 1:])) for lines in series.values() for rows in lines.values())

    figure = new_figure(2.6 * len(series) + 1.2, 2.9)
    grid = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(grid, series.items(), strict=True):
        for name, rows in lines.items():
            axes.plot(rows[:, 0], rows[:, 1], color=colors[name], linewidth=1.2, label=name)
            axes.plot(rows[:, 0], rows[:, 2], color=colors[name], linestyle="", marker="o", markersize=4)
        counts = sorted({float(count) for rows in lines.values() for count in rows[:, 0]})
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:g}" for count in counts])
        axes.minorticks_off()
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel("windows")
    grid[0].set_ylim(0, 1.05 * top if top else 1)
    grid[0].set_ylabel("relative error of the gradient")
    handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside right center", title="line: predicted\no: measured"
    )
    return figure
