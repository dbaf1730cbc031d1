"""Synaptic operations of a spiking network by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_snn.figures._style import BLUE, FAINT, GRID, INK, ORANGE, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SERIES = {
    "effective_acs": ("effective accumulates", BLUE),
    "effective_macs": ("effective multiply-accumulates", ORANGE),
    "dense": ("dense, all time steps", FAINT),
    "ann_macs": ("dense, one pass: the artificial network", INK),
}


@styled
def synaptic_operations(layers: Mapping[str, Mapping[str, float]], note: str = "") -> Figure:
    """Draw the synaptic operations of one sample in each layer, for the spiking and for the dense network.

    Args:
        layers: for each layer, in order, its operations, at least 0: `effective_acs` and `effective_macs` of the
            spiking network over all time steps; `dense`, the same if no input and no weight were zero; and `ann_macs`
            of one dense pass.
        note: text below the axes.

    Returns:
        The figure. The axis is logarithmic; a value of 0 has no bar. The title gives the ratio of the whole network:
        effective operations of both kinds divided by those of one dense pass.

    Raises:
        ValueError: if there is no layer, or a layer lacks one of these numbers.

    Example:
        >>> layers = {"0": {"effective_acs": 3, "effective_macs": 2, "dense": 60, "ann_macs": 10}}
        >>> synaptic_operations(layers).axes[0].get_title(loc="left")
        'ratio: 0.5, effective operations of both kinds over those of one dense pass'
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullLocator

    if not layers:
        raise ValueError("Expected argument `layers` to hold at least one layer, but got none")
    expected = f"a mapping of {', '.join(_SERIES)} to numbers of at least 0"
    counts = np.empty((len(layers), len(_SERIES)))
    for row, (name, layer) in zip(counts, layers.items(), strict=True):
        argument = f"layers[{name!r}]"
        if not _SERIES.keys() <= layer.keys():
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got {', '.join(layer)}")
        row[:] = numbers(argument, [layer[kind] for kind in _SERIES], expected)
        if (row < 0).any():
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got {row.min():g}")

    height = 0.8 / len(_SERIES)
    figure = new_figure(7, 0.62 * len(layers) + 1.7 + (0.5 if note else 0))
    axes = figure.subplots()
    places = np.arange(len(layers))
    for index, (_, color) in enumerate(_SERIES.values()):
        busy = counts[:, index] > 0
        axes.barh(places[busy] - 0.4 + (index + 0.5) * height, counts[busy, index], height, color=color)
    if (counts > 0).any():
        axes.set_xscale("log")
        axes.set_xlim(left=counts[counts > 0].min() / 2)
    axes.set_yticks(places, list(layers))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(ylim=(len(layers) - 0.5, -0.5), xlabel="synaptic operations of a sample", ylabel="layer")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    accumulates, macs, _, ann = counts.sum(0)
    ratio = f"{(accumulates + macs) / ann:.3g}" if ann else "unknown"
    axes.set_title(f"ratio: {ratio}, effective operations of both kinds over those of one dense pass", fontsize=8)
    # A series of zeros has no bar, so the handles are created here.
    handles = [Patch(color=color, label=label) for label, color in _SERIES.values()]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7, wrap=True)
    return figure
