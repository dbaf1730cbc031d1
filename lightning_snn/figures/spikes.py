"""Event frames and spike rasters of one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_snn.checks import check_positive
from lightning_snn.figures._style import INK, evenly, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Red and blue are distinguishable with all common forms of color blindness, unlike red and green.
_ON, _OFF, _PAPER = (0.79, 0.13, 0.15), (0.10, 0.36, 0.70), (0.96, 0.96, 0.95)
_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_MAX_NEURONS = 100
_MAX_FRAMES = 16
_MAX_COLUMNS = 8


@styled
def spike_raster(spikes: Mapping[str, Any], time_step_ms: float | None = None) -> Figure:
    """Draw the spikes of one sample over time, in one panel per layer.

    Args:
        spikes: for each layer, in order, its spikes, shape `(T, N)`, all with the same T; any nonzero value is a spike.
            If a layer has more than 100 neurons, 100 of them, evenly spaced, are drawn, and the title states this.
        time_step_ms: duration of a time step in ms; None labels the axis in time steps.

    Returns:
        The figure. The rate in a title is the mean over all neurons of the layer, including those that are not drawn.

    Raises:
        ValueError: if there is no layer, a layer has no spike matrix, T differs, or the time step is not positive.

    Example:
        >>> figure = spike_raster({"hidden": [[1, 0], [0, 0], [1, 1]]}, time_step_ms=2.0)
        >>> figure.axes[0].get_title(loc="left")
        'hidden (neurons: 2), 0.500 spikes per neuron and step'
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    if not spikes:
        raise ValueError("Expected argument `spikes` to hold at least one layer, but got none")
    if time_step_ms is not None:
        check_positive("time_step_ms", time_step_ms)
    layers: dict[str, np.ndarray] = {}
    for name, value in spikes.items():
        argument, expected = f"spikes[{name!r}]", "spikes of shape (T, N)"
        layers[name] = numbers(argument, value, expected) != 0
        if layers[name].ndim != 2:
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got shape {layers[name].shape}")
    length, *others = (len(layer) for layer in layers.values())
    if any(other != length for other in others):
        raise ValueError(f"Expected argument `spikes` to have the same T in each layer, but got {[length, *others]}")

    step = 1.0 if time_step_ms is None else time_step_ms
    # The width of a spike is most of its time step, and at least about one pixel.
    width = max(0.6, length / 800)
    shown = {name: evenly(layer.shape[1], _MAX_NEURONS) for name, layer in layers.items()}
    heights = [0.45 + 1.5 * math.sqrt(len(index) / _MAX_NEURONS) for index in shown.values()]
    figure = new_figure(8, sum(heights) + 0.35 * len(layers) + 0.5)
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        index = shown[name]
        time, row = layer[:, index].nonzero()
        corners = np.empty((len(time), 4, 2))
        corners[:, :, 0] = (time[:, None] + 0.5 + width * _CORNERS[:, 0]) * step
        corners[:, :, 1] = row[:, None] + 0.9 * _CORNERS[:, 1]
        axes.add_collection(PolyCollection(list(corners), facecolors=INK, edgecolors="none"))
        neurons = _count_label(len(index), layer.shape[1])
        axes.set_title(f"{name} (neurons: {neurons}), {layer.mean():.3f} spikes per neuron and step")
        axes.set(xlim=(0, length * step), ylim=(len(index) - 0.5, -0.5), ylabel="neuron")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=time_step_ms is None))
        labeled = evenly(len(index), 5)
        axes.set_yticks(labeled, [str(neuron) for neuron in index[labeled]])
    panels[-1].set_xlabel("time step" if time_step_ms is None else "time (ms)")
    return figure


@styled
def event_strip(frames: Any, time_step_ms: float | None = None) -> Figure:
    """Draw the event frames of one sample in a row: ON events are red, OFF events blue.

    Args:
        frames: event counts, shape `(T, 2, H, W)`, at least 0; channel 0 is OFF (darker), channel 1 ON (brighter). If
            there are more than 16 frames, 16 of them, evenly spaced, are drawn, and the title states this.
        time_step_ms: duration of a frame in ms; None labels frames by their index.

    Returns:
        The figure. All frames have the same color scale: full color is the 98th percentile of the pixels with events.

    Raises:
        ValueError: if the shape is different, a count is negative, or the time step is not positive.

    Example:
        >>> figure = event_strip(np.ones((3, 2, 4, 5)), time_step_ms=10)
        >>> [axes.get_title() for axes in figure.axes]
        ['0 to 10 ms', '10 to 20 ms', '20 to 30 ms']
    """
    from matplotlib.patches import Patch

    expected = "event counts of shape (T, 2, H, W)"
    counts = numbers("frames", frames, expected)
    if counts.ndim != 4 or counts.shape[1] != 2 or counts.min() < 0:
        raise ValueError(
            f"Expected argument `frames` to be {expected}, "
            f"but got shape {counts.shape} with smallest entry {counts.min():g}"
        )
    if time_step_ms is not None:
        check_positive("time_step_ms", time_step_ms)

    index = evenly(len(counts), _MAX_FRAMES)
    rows = math.ceil(len(index) / _MAX_COLUMNS)
    columns = math.ceil(len(index) / rows)
    aspect = counts.shape[2] / counts.shape[3]
    figure = new_figure(max(3.0, 1.25 * columns + 0.3), (1.25 * aspect + 0.25) * rows + 0.5)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    pictures = _event_colors(counts)
    for axes in grid:
        axes.set_axis_off()
    for axes, frame in zip(grid, index, strict=False):
        axes.imshow(pictures[frame], interpolation="nearest")
        start, end = (f"{edge * (time_step_ms or 0):g}" for edge in (frame, frame + 1))
        label = f"frame {frame}" if time_step_ms is None else f"{start} to {end} ms"
        axes.set_title(label, fontsize=8, loc="center", pad=3)
    title = f"frames: {_count_label(len(index), len(counts))}, events: {counts.sum():.0f}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    patches = [Patch(color=_ON, label="ON (brighter)"), Patch(color=_OFF, label="OFF (darker)")]
    figure.legend(handles=patches, loc="outside lower left", ncols=2)
    return figure


def _count_label(shown: int, total: int) -> str:
    return f"{shown} of {total}" if shown < total else f"{total}"


def _event_colors(counts: np.ndarray) -> np.ndarray:
    """Convert event counts `(T, 2, H, W)` to RGB images `(T, H, W, 3)`: hue from polarity, saturation from count."""
    number = counts.sum(axis=1)
    busy = number[number > 0]
    scale = np.percentile(busy, 98) if busy.size else 1.0
    # The smallest strength is well above zero, so that a single event is visible.
    strength = np.where(number > 0, 0.25 + 0.75 * np.minimum(number / scale, 1), 0)[..., None]
    share_on = np.divide(counts[:, 1], number, out=np.zeros_like(number), where=number > 0)[..., None]
    hue = share_on * np.array(_ON) + (1 - share_on) * np.array(_OFF)
    colors: np.ndarray = (1 - strength) * np.array(_PAPER) + strength * hue
    return colors
