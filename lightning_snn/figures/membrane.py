"""Membrane potentials of a few neurons of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_snn.checks import check_integer, check_positive
from lightning_snn.figures._style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, evenly, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
MAX_TRACES = len(_COLORS)


@styled
def membrane_traces(
    membranes: Mapping[str, Any],
    spikes: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    neurons: int = 5,
    time_step_ms: float | None = None,
) -> Figure:
    """Draw membrane potentials of one sample over time, in one panel per layer.

    Each neuron has a line and, above the lines, a row of ticks at its spikes. The threshold is dashed. The neurons are
    evenly spaced in the order from the most to the least active of those that spiked. If too few spiked, the neurons
    that came nearest to their threshold are added. Ties go to the first neuron.

    Args:
        membranes: for each layer, in order, its membrane potentials before the reset, shape `(T, N)`; values that are
            not finite are omitted.
        spikes: for each layer its spikes, of the same shape; any nonzero value is a spike.
        thresholds: for each layer its threshold, a number, of shape `(N,)`, or `(T, N)` if it varies over time; None if
            unknown. If the drawn neurons have different thresholds, each is drawn in the color of its neuron.
        neurons: number of neurons to draw per layer, 1 to 5.
        time_step_ms: duration of a time step in ms; None labels the axis in time steps.

    Returns:
        The figure. The titles give the number of neurons that spiked, including those that are not drawn.

    Raises:
        ValueError: if there is no layer, the membrane potentials, spikes or thresholds of a layer are missing or have
            other shapes, or another argument is outside its range.

    Example:
        >>> figure = membrane_traces({"lif": [[0.5, 0.1], [1.2, 0.3]]}, {"lif": [[0, 0], [1, 0]]}, {"lif": 1.0})
        >>> figure.axes[0].get_title(loc="left")
        'lif: 1 of 2 neurons spiked'
    """
    from matplotlib.ticker import MaxNLocator

    check_integer("neurons", neurons)
    if neurons > MAX_TRACES:
        raise ValueError(f"Expected argument `neurons` to be at most {MAX_TRACES}, but got {neurons}")
    if time_step_ms is not None:
        check_positive("time_step_ms", time_step_ms)
    layers = {name: _layer(name, membranes, spikes, thresholds) for name in membranes}
    if not layers:
        raise ValueError("Expected argument `membranes` to hold at least one layer, but got none")

    step = 1.0 if time_step_ms is None else time_step_ms
    share_time = len({len(membrane) for membrane, _, _ in layers.values()}) == 1
    figure = new_figure(8, 1.75 * len(layers) + 0.5)
    panels = figure.subplots(len(layers), 1, sharex=share_time, squeeze=False)[:, 0]
    for axes, (name, (membrane, fired, threshold)) in zip(panels, layers.items(), strict=True):
        time = (np.arange(len(membrane)) + 0.5) * step
        chosen = _chosen(membrane, fired, threshold, neurons)
        alike = threshold is not None and len(np.unique(threshold[:, chosen])) == 1
        if threshold is not None and alike:
            axes.axhline(threshold[0, chosen[0]], color=INK, linestyle="--", linewidth=0.8, label="threshold")
        drawn = np.append(membrane[:, chosen], [] if threshold is None else threshold[:, chosen])
        drawn = drawn[np.isfinite(drawn)]
        low, high = (drawn.min(), drawn.max()) if drawn.size else (0.0, 1.0)
        row = (high - low or 1.0) * 0.07
        for index, (neuron, color) in enumerate(zip(chosen, _COLORS, strict=False)):
            axes.plot(time, membrane[:, neuron], color=color, linewidth=0.9, label=f"neuron {neuron}")
            if threshold is not None and not alike:
                _draw_threshold(axes, time, threshold[:, neuron], color)
            times = time[fired[:, neuron]]
            axes.vlines(times, high + row * (len(chosen) - index), high + row * (len(chosen) - index + 0.8), color)
        spiked = int(fired.any(0).sum())
        axes.set_title(f"{name}: {spiked} of {membrane.shape[1]} neurons spiked")
        axes.set(
            xlim=(0, len(membrane) * step),
            ylim=(low - row, high + row * (len(chosen) + 1.5)),
            ylabel="membrane potential",
        )
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=time_step_ms is None))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.2)
    panels[-1].set_xlabel("time step" if time_step_ms is None else "time (ms)")
    return figure


def _layer(
    name: str, membranes: Mapping[str, Any], spikes: Mapping[str, Any], thresholds: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    for argument, given in (("spikes", spikes), ("thresholds", thresholds)):
        if name not in given:
            raise ValueError(f"Expected argument `{argument}` to hold the layer {name!r}, but got {list(given)}")
    argument, expected = f"membranes[{name!r}]", "membrane potentials of shape (T, N)"
    membrane = numbers(argument, membranes[name], expected, finite=False)
    if membrane.ndim != 2:
        raise ValueError(f"Expected argument `{argument}` to be {expected}, but got shape {membrane.shape}")
    fired = numbers(f"spikes[{name!r}]", spikes[name], f"spikes of shape {membrane.shape}") != 0
    if fired.shape != membrane.shape:
        raise ValueError(
            f"Expected argument `spikes[{name!r}]` to be spikes of shape {membrane.shape}, but got shape {fired.shape}"
        )
    if thresholds[name] is None:
        return membrane, fired, None
    neurons = membrane.shape[1]
    expected = f"a number or of shape ({neurons},) or {membrane.shape}"
    threshold = numbers(f"thresholds[{name!r}]", thresholds[name], expected)
    if threshold.shape not in ((), (neurons,), membrane.shape):
        raise ValueError(f"Expected argument `thresholds[{name!r}]` to be {expected}, but got shape {threshold.shape}")
    return membrane, fired, np.broadcast_to(threshold, membrane.shape)


def _draw_threshold(axes: Axes, time: np.ndarray, threshold: np.ndarray, color: str) -> None:
    style = {"color": color, "linestyle": "--", "linewidth": 0.8}
    if (threshold == threshold[0]).all():
        axes.axhline(threshold[0], **style)
    else:
        axes.plot(time, threshold, **style)


def _chosen(membrane: np.ndarray, fired: np.ndarray, threshold: np.ndarray | None, most: int) -> np.ndarray:
    """Return the indices of the neurons to draw, in the order of their activity."""
    count = fired.sum(0)
    nearest = (np.nan_to_num(membrane) - (0 if threshold is None else threshold)).max(0)
    order = np.lexsort((-nearest, -count))
    spiked = int((count > 0).sum())
    return order[evenly(spiked, most)] if spiked >= most else order[:most]
