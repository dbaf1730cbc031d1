"""Spike times and Jacobian spectra of time-to-first-spike networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_snn.figures._style import BLUE, FAINT, GRID, INK, ORANGE, new_figure, numbers, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def spike_time_histograms(spikes: Mapping[str, Any], windows: Mapping[str, tuple[float, float]]) -> Figure:
    """Draw histograms of spike times, in one panel per layer with a common time axis; the window is shaded.

    Args:
        spikes: for each layer, in order, spikes per neuron in equal bins of its window, shape `(bins,)`.
        windows: for each of these layers the start and the end of its window, in units of the input window.

    Returns:
        The figure. The rate in a title is the sum over the bins. One minus the rate is the fraction of silent neurons.

    Raises:
        ValueError: if there is no layer, a count is negative, or a window is missing or empty.

    Example:
        >>> figure = spike_time_histograms({"layer 1": [0.1, 0.3, 0.2]}, {"layer 1": (1.0, 4.0)})
        >>> figure.axes[0].get_title(loc="left")
        'layer 1, 0.600 spikes per neuron'
    """
    if not spikes:
        raise ValueError("Expected argument `spikes` to hold at least one layer, but got none")
    rates: dict[str, np.ndarray] = {}
    for name, value in spikes.items():
        argument, expected = f"spikes[{name!r}]", "spikes per neuron of shape (bins,), at least 0"
        rates[name] = numbers(argument, value, expected)
        if rates[name].ndim != 1 or rates[name].min() < 0:
            raise ValueError(
                f"Expected argument `{argument}` to be {expected}, but got shape {rates[name].shape} with smallest "
                f"entry {rates[name].min():g}"
            )
        if name not in windows or not windows[name][0] < windows[name][1]:
            raise ValueError(
                f"Expected argument `windows` to hold the start and the end of {name!r}, but got {windows.get(name)}"
            )
    figure = new_figure(7, 1.25 * len(rates) + 0.7)
    panels = figure.subplots(len(rates), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, rate) in zip(panels, rates.items(), strict=True):
        edges = np.linspace(*windows[name], len(rate) + 1)
        axes.axvspan(edges[0], edges[-1], color=GRID, alpha=0.5, linewidth=0)
        axes.stairs(100 * rate, edges, fill=True, color=BLUE)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("neurons (%)")
        axes.set_title(f"{name}, {rate.sum():.3f} spikes per neuron")
    panels[-1].set_xlim(min(windows[name][0] for name in rates), max(windows[name][1] for name in rates))
    panels[-1].set_xlabel("time (input windows)")
    return figure


@styled
def jacobian_spectra(panels: Mapping[str, Any]) -> Figure:
    """Draw eigenvalues of Jacobians in the complex plane, in one panel per network with a common scale.

    Distances from 0 are linear within the unit circle and logarithmic outside, where gradients explode. A row has two
    panels.

    Args:
        panels: for each title the eigenvalues, complex, of any shape.

    Returns:
        The figure. The titles give the largest modulus and the percentage of eigenvalues outside the unit circle.

    Raises:
        ValueError: if there is no panel, or a panel has no eigenvalues or some that are not finite.

    Example:
        >>> figure = jacobian_spectra({"naive": [0.5, 30j, -2, 0.1]})
        >>> print(figure.axes[0].get_title(loc="left"))
        naive
        largest 30, 50 % outside
    """
    if not panels:
        raise ValueError("Expected argument `panels` to hold at least one network, but got none")
    points: dict[str, np.ndarray] = {}
    for title, value in panels.items():
        argument, expected = f"panels[{title!r}]", "eigenvalues"
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        points[title] = (numbers(argument, array.real, expected) + 1j * numbers(argument, array.imag, expected)).ravel()
    moduli = {title: np.abs(values) for title, values in points.items()}
    decades = max(1, int(np.ceil(np.log10(max(modulus.max() for modulus in moduli.values()) + 1e-12))))

    columns = min(2, len(points))
    rows = -(-len(points) // columns)
    figure = new_figure(3.4 * columns, 3.9 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(points) :]:
        axes.set_axis_off()
    angle = np.linspace(0, 2 * np.pi, 400)
    for axes, (title, values) in zip(grid, points.items(), strict=False):
        for decade in range(decades + 1):
            radius, unit = 1 + decade, decade == 0
            axes.plot(
                radius * np.cos(angle), radius * np.sin(angle), color=INK if unit else GRID, linewidth=0.9, zorder=0
            )
            axes.annotate(f"{10**decade:g}", (0, radius), ha="center", va="bottom", fontsize=7, color=FAINT, zorder=3)
        axes.axhline(0, color=GRID, linewidth=0.8, zorder=0)
        axes.axvline(0, color=GRID, linewidth=0.8, zorder=0)
        outside = moduli[title] > 1
        # The phase does not change.
        drawn = (
            np.where(outside, (1 + np.log10(np.maximum(moduli[title], 1))) / np.maximum(moduli[title], 1), 1) * values
        )
        for chosen, color in ((~outside, BLUE), (outside, ORANGE)):
            axes.scatter(drawn[chosen].real, drawn[chosen].imag, s=6, color=color, alpha=0.6, linewidth=0, zorder=2)
        axes.set_aspect("equal")
        axes.set(xlim=(-decades - 1.15, decades + 1.15), ylim=(-decades - 1.15, decades + 1.3), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("real part")
        axes.set_ylabel("imaginary part")
        axes.set_title(f"{title}\nlargest {moduli[title].max():.3g}, {100 * outside.mean():.3g} % outside", loc="left")
    return figure
