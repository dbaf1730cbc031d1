"""Histograms of firing rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_snn.checks import check_integer
from lightning_snn.figures._style import BLUE, FAINT, ORANGE, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def firing_rate_histograms(rates: Mapping[str, Any], bins: int = 40) -> Figure:
    """Draw histograms of firing rates, in one panel per layer with a common axis.

    Neurons that never fire are not in the histogram; a separate orange bar to the left of rate 0 shows them.

    Args:
        rates: for each layer, in order, the firing rates of its neurons in spikes per time step, within [0, 1], of any
            shape.
        bins: number of bins of each histogram, from rate 0 to the largest of all rates.

    Returns:
        The figure. The titles give the number of neurons, their mean rate and the percentage that never fires.

    Raises:
        ValueError: if there is no layer, a rate is outside [0, 1], or `bins` is less than 1.

    Example:
        >>> figure = firing_rate_histograms({"lif1": [0.0, 0.2, 0.4, 0.4]})
        >>> figure.axes[0].get_title(loc="left")
        'lif1 (neurons: 4), mean rate 0.250, 25 % never fire'
    """
    check_integer("bins", bins)
    if not rates:
        raise ValueError("Expected argument `rates` to hold at least one layer, but got none")
    layers: dict[str, np.ndarray] = {}
    for name, value in rates.items():
        argument = f"rates[{name!r}]"
        layers[name] = numbers(argument, value, "firing rates").ravel()
        low, high = layers[name].min(), layers[name].max()
        if low < 0 or high > 1:
            raise ValueError(f"Expected argument `{argument}` to be within [0, 1], but got {low:g} to {high:g}")
    largest = max(layer.max() for layer in layers.values()) or 1.0
    edges = np.linspace(0, largest, bins + 1)
    figure = new_figure(7, 1.35 * len(layers) + 0.7)
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        dead = (layer == 0).mean()
        share = 100 * np.histogram(layer[layer > 0], edges)[0] / len(layer)
        axes.stairs(share, edges, fill=True, color=BLUE)
        axes.bar(-0.04 * largest, 100 * dead, 0.04 * largest, color=ORANGE)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("neurons (%)")
        axes.set_title(f"{name} (neurons: {len(layer)}), mean rate {layer.mean():.3f}, {100 * dead:.3g} % never fire")
    panels[-1].set_xlim(-0.07 * largest, 1.02 * largest)
    panels[-1].set_xlabel("spikes per time step (orange: neurons without spikes)")
    return figure
