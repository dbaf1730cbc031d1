"""Likelihood against training cost, and predictive bands of a regression."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


@styled
def likelihood_curves(curves: Mapping[str, Any], held_out: str = "test") -> Figure:
    """Draw the negative log-likelihood of held-out data against epochs and against seconds.

    Args:
        curves: for each learner, rows of (epochs, seconds, negative log-likelihood), numbers larger than 0; at most
            five learners.
        held_out: name of the data for the label of the axis.

    Returns:
        The figure. All axes are logarithmic, because an epoch of one learner may cost a hundred times one of another.

    Raises:
        ValueError: if there is no learner, or more than five, or a curve is not a list of such rows.

    Example:
        >>> figure = likelihood_curves({"EP": [(0.2, 20.0, 0.3), (1, 100.0, 0.15)], "Adam": [(1, 2.0, 0.3)]})
        >>> figure.axes[0].get_ylabel()
        'test negative log-likelihood (nats)'
    """
    if not 0 < len(curves) <= len(_COLORS):
        raise ValueError(f"Expected argument `curves` to hold 1 to {len(_COLORS)} learners, but got {len(curves)}")
    rows: dict[str, np.ndarray] = {}
    for name, value in curves.items():
        argument, expected = f"curves[{name!r}]", "rows of (epochs, seconds, likelihood), larger than 0"
        rows[name] = numbers(argument, value, expected)
        if rows[name].ndim != 2 or rows[name].shape[1] != 3 or rows[name].min() <= 0:
            raise ValueError(
                f"Expected argument `{argument}` to be {expected}, but got shape {rows[name].shape} with smallest "
                f"entry {rows[name].min():g}"
            )
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = new_figure(7.2, 3.3)
    panels = figure.subplots(1, 2, sharey=True)
    for column, (axes, label) in enumerate(zip(panels, ("epochs", "seconds"), strict=True)):
        for (name, values), color in zip(rows.items(), _COLORS, strict=False):
            axes.plot(values[:, column], values[:, 2], color=color, linewidth=1.3, marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.grid(color=GRID, linewidth=0.7, which="both")
        for axis, steps in ((axes.xaxis, (1, 3)), (axes.yaxis, (1, 1.5, 2, 3, 5, 7))):
            axis.set_major_locator(LogLocator(subs=steps))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel(f"{held_out} negative log-likelihood (nats)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), handlelength=1.4)
    return figure


@styled
def regression_bands(
    places: Any,
    mean: Any,
    deviation: Any,
    truth: Any,
    samples: tuple[Any, Any] | None = None,
    others: Mapping[str, Any] | None = None,
    gaps: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draw a predicted curve with a band of two standard deviations, and the true curve.

    Args:
        places: inputs of the prediction, ascending, shape `(N,)`.
        mean: predicted mean, shape `(N,)`.
        deviation: predicted standard deviation, shape `(N,)`, at least 0. The band includes only this uncertainty.
        truth: true curve without noise, shape `(N,)`.
        samples: inputs and values of the training data, each of shape `(M,)`.
        others: further predictions by name, each of shape `(N,)`; at most three.
        gaps: start and end of intervals without data, which are shaded.

    Returns:
        The figure.

    Raises:
        ValueError: if the shapes differ, a deviation is negative, or there are more than three other predictions.

    Example:
        >>> figure = regression_bands([0.0, 1.0], [0.1, 0.9], [0.2, 0.1], [0.0, 1.0])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['2 sd', 'truth', 'mean']
    """
    named = {"places": places, "mean": mean, "deviation": deviation, "truth": truth}
    named.update({f"others[{name!r}]": value for name, value in (others or {}).items()})
    drawn = {name: numbers(name, value, "numbers of shape (N,)") for name, value in named.items()}
    for name, values in drawn.items():
        if values.shape != drawn["places"].shape or values.ndim != 1:
            raise ValueError(
                f"Expected argument `{name}` to have the same shape (N,) as `places`, {drawn['places'].shape}, but got "
                f"{values.shape}"
            )
    if drawn["deviation"].min() < 0:
        raise ValueError(f"Expected argument `deviation` to be at least 0, but got {drawn['deviation'].min():g}")
    if others is not None and len(others) > 3:
        raise ValueError(f"Expected argument `others` to hold at most 3 predictions, but got {len(others)}")
    x, middle, width = drawn["places"], drawn["mean"], 2 * drawn["deviation"]

    figure = new_figure(7, 3.4)
    axes = figure.subplots()
    for number, (start, end) in enumerate(gaps):
        axes.axvspan(start, end, color=GRID, alpha=0.5, linewidth=0, zorder=0, label="no data" if number == 0 else None)
    if samples is not None:
        at, value = (numbers(f"samples[{index}]", part, "numbers of shape (M,)") for index, part in enumerate(samples))
        if at.shape != value.shape:
            raise ValueError(
                "Expected argument `samples` to hold two arrays of the same shape, "
                f"but got {at.shape} and {value.shape}"
            )
        axes.plot(at, value, ".", color=FAINT, markersize=2, alpha=0.5, label="data", zorder=1)
    axes.fill_between(x, middle - width, middle + width, color=BLUE, alpha=0.25, linewidth=0, label="2 sd", zorder=2)
    axes.plot(x, drawn["truth"], color=INK, linewidth=1.1, linestyle="--", label="truth", zorder=3)
    for name, color in zip(others or {}, (ORANGE, GREEN, PURPLE), strict=False):
        axes.plot(x, drawn[f"others[{name!r}]"], color=color, linewidth=1.2, label=name, zorder=4)
    axes.plot(x, middle, color=BLUE, linewidth=1.5, label="mean", zorder=5)
    axes.set_xlim(x[0], x[-1])
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=7, handlelength=1.4, columnspacing=1.2)
    return figure
