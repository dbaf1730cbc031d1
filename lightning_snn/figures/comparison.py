"""Learning rules side by side: accuracy against costs, and reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from lightning_snn.figures.classification import Bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, INK)
_LINES, _MARKERS = ("-", "--", ":"), ("o", "s", "^", "D", "v", "P")
_COLUMNS = 4
Pairs = Mapping[str, Sequence[tuple[float, float]]]


@styled
def accuracy_by_cost(by_steps: Pairs, by_seconds: Pairs, memory: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw validation accuracy against steps and seconds of training, and test accuracy against peak memory.

    Args:
        by_steps: (step, validation accuracy) pairs of each rule, by its name.
        by_seconds: (seconds, validation accuracy) pairs of each rule.
        memory: peak memory of a training step in MB and test accuracy of each rule.

    Returns:
        The figure; a rule has the same color, line and marker in all panels. Seconds and memory are on logarithmic
        axes.

    Raises:
        ValueError: if there is no rule, or pairs are not pairs of numbers.

    Example:
        >>> curve = {"SLTT": [(100, 0.5), (200, 0.7)]}
        >>> figure = accuracy_by_cost(curve, curve, {"SLTT": (3.2, 0.68)})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['same steps', 'same seconds', 'memory']
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    names = list(dict.fromkeys([*by_steps, *by_seconds, *memory]))
    if not names:
        raise ValueError("Expected argument `by_steps` to hold at least one rule, but got none")
    styles: dict[str, dict[str, Any]] = {
        name: {
            "color": _COLORS[index % len(_COLORS)],
            "linestyle": _LINES[index // len(_COLORS) % len(_LINES)],
            # another one for each line of the same color, because points have no line
            "marker": _MARKERS[(index + index // len(_COLORS)) % len(_MARKERS)],
        }
        for index, name in enumerate(names)
    }
    rows = math.ceil(len(names) / _COLUMNS)
    figure = new_figure(9.6, 3.3 + 0.2 * rows)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for argument, axes, curves in (("by_steps", left, by_steps), ("by_seconds", middle, by_seconds)):
        for name, series in curves.items():
            pairs = _pairs(f"{argument}[{name!r}]", series)
            axes.plot(pairs[:, 0], pairs[:, 1], linewidth=1.3, markersize=3.5, label=name, **styles[name])
    for name, point in memory.items():
        ((size, accuracy),) = _pairs(f"memory[{name!r}]", [point])
        # on white, so that points that nearly coincide can be told apart
        style = styles[name] | {"linestyle": "", "markeredgecolor": "white", "markersize": 8, "markeredgewidth": 0.8}
        right.plot(size, accuracy, label=name, **style)
    for axes, title, label in (
        (left, "same steps", "optimizer steps"),
        (middle, "same seconds", "seconds of training steps"),
        (right, "memory", "peak memory of a training step (MB)"),
    ):
        axes.set_title(title, fontweight="bold")
        axes.set_xlabel(label)
        axes.grid(color=GRID, linewidth=0.7)
    left.set_ylabel("validation accuracy")
    right.set_ylabel("test accuracy")
    right.tick_params(labelleft=True)
    for axes in (middle, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=_COLUMNS, handlelength=2.4)
    return figure


@styled
def reliability_diagrams(bins: Mapping[str, tuple[Any, Any, Any]]) -> Figure:
    r"""Draw the reliability diagrams of several predictions side by side.

    Args:
        bins: confidence, accuracy and number of samples of equal-width bins of each prediction, by its name; see
            `reliability_diagram`.

    Returns:
        The figure, with the expected calibration error in the title of each panel.

    Raises:
        ValueError: if there is no prediction, or its bins are not those of `reliability_diagram`.

    Example:
        >>> figure = reliability_diagrams({"SLTT": ([0.3, 0.9], [0.4, 0.8], [10, 30])})
        >>> figure.axes[0].get_title(loc="left")
        'SLTT\nECE 0.100'
    """
    if not bins:
        raise ValueError("Expected argument `bins` to hold at least one prediction, but got none")
    columns = min(_COLUMNS, len(bins))
    rows = math.ceil(len(bins) / columns)
    figure = new_figure(2.3 * columns + 0.3, 2.35 * rows + 0.5)
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, (name, given) in zip(grid, bins.items(), strict=False):
        found = Bins.of(*given)
        found.draw(axes)
        # the share of the samples in each bin
        axes.plot(found.centers, found.sizes / found.sizes.sum(), ".-", color=FAINT, linewidth=0.8, label="samples")
        axes.set_title(f"{name}\nECE {found.error:.3f}", fontweight="bold", fontsize=8)
    for index, axes in enumerate(grid[: len(bins)]):
        if index % columns == 0:
            axes.set_ylabel("accuracy")
        if index + columns >= len(bins):
            axes.set_xlabel("confidence")
            axes.tick_params(labelbottom=True)
    for axes in grid[len(bins) :]:
        axes.remove()
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), handlelength=1.4, columnspacing=1.2)
    return figure


def _pairs(name: str, series: Any) -> np.ndarray:
    expected = "pairs of numbers"
    pairs = numbers(name, series, expected, finite=False)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got shape {pairs.shape}")
    return pairs
