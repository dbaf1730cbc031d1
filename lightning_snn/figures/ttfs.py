"""Spike times, latency and Jacobian spectra of time-to-first-spike networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_snn.figures._style import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    new_figure,
    numbers,
    plain,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES, _MARKERS = ("--", "-", ":"), ("", "o", "s")


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
def accuracy_by_latency(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw accuracy by latency for one or more choices of windows.

    Args:
        curves: for each choice of windows, by its name, its latencies in units of the input window, larger than 0,
            under "latency", and accuracies of these under any other names, such as "predicted" and "measured". All
            have the shape `(rows,)`; accuracies that were not measured are NaN. `LatencyReport.curves` returns these.

    Returns:
        The figure. A choice of windows has one color, and a kind of accuracy one line style. Latency is on a
        logarithmic axis.

    Raises:
        ValueError: if there is no choice, or one has no latencies, no accuracies, or numbers of them that differ.

    Example:
        >>> figure = accuracy_by_latency({"largest / k": {"latency": [9.0, 3.0], "measured": [0.95, 0.9]}})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['largest / k, measured']
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not curves:
        raise ValueError("Expected argument `curves` to hold at least one choice of windows, but got none")
    figure = new_figure(5.4, 3.4)
    axes = figure.subplots()
    kinds = list(dict.fromkeys(kind for curve in curves.values() for kind in curve if kind != "latency"))
    for name, color in zip(curves, itertools.cycle((BLUE, ORANGE, GREEN, PURPLE)), strict=False):
        argument, expected = f"curves[{name!r}]", "latencies and accuracies of the same shape (rows,)"
        curve = {kind: numbers(argument, values, expected, kind == "latency") for kind, values in curves[name].items()}
        shapes = {values.shape for values in curve.values()}
        if "latency" not in curve or len(curve) < 2 or len(shapes) > 1 or curve["latency"].ndim != 1:
            found = {kind: values.shape for kind, values in curve.items()}
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got {found}")
        for kind in kinds:
            if kind in curve:
                place, known = kinds.index(kind), np.isfinite(curve[kind])
                axes.plot(
                    curve["latency"][known],
                    100 * curve[kind][known],
                    color=color,
                    linestyle=_LINES[place % len(_LINES)],
                    marker=_MARKERS[place % len(_MARKERS)],
                    markersize=3.5,
                    linewidth=1.3,
                    label=plain(f"{name}, {kind}"),
                )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency (input windows)")
    axes.set_ylabel("accuracy (%)")
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(loc="lower right")
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
