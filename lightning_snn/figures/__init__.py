"""Figures of a training run: pure functions from numbers to a `matplotlib.figure.Figure`.

The functions use only matplotlib's object-oriented interface: no window opens, pyplot keeps no reference, and a figure
is freed like any other object. Numbers may be arrays, tensors of any device and dtype, or nested sequences. matplotlib
is imported when the first figure is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_snn.figures.anytime import anytime_samples, anytime_scores
from lightning_snn.figures.classification import confusion_matrix, reliability_diagram
from lightning_snn.figures.comparison import accuracy_by_cost, reliability_diagrams
from lightning_snn.figures.energy import synaptic_operations
from lightning_snn.figures.estimators import bias_and_deviation
from lightning_snn.figures.firing import firing_rate_histograms
from lightning_snn.figures.membrane import membrane_traces
from lightning_snn.figures.propagation import likelihood_curves, regression_bands
from lightning_snn.figures.spikes import event_strip, spike_raster
from lightning_snn.figures.training import read_history, training_curves
from lightning_snn.figures.ttfs import accuracy_by_latency, jacobian_spectra, spike_time_histograms
from lightning_snn.figures.uncertainty import prediction_sets_over_time, risk_coverage_curve, uncertainty_histograms
from lightning_snn.figures.windows import window_errors
from lightning_snn.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_by_cost",
    "accuracy_by_latency",
    "anytime_samples",
    "anytime_scores",
    "bias_and_deviation",
    "confusion_matrix",
    "event_strip",
    "firing_rate_histograms",
    "jacobian_spectra",
    "likelihood_curves",
    "membrane_traces",
    "prediction_sets_over_time",
    "read_history",
    "regression_bands",
    "reliability_diagram",
    "reliability_diagrams",
    "risk_coverage_curve",
    "save",
    "spike_raster",
    "spike_time_histograms",
    "synaptic_operations",
    "training_curves",
    "uncertainty_histograms",
    "window_errors",
]


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a PNG file atomically, and create missing folders.

    Args:
        figure: the figure.
        path: the file, ending in `.png`; an existing file is replaced.

    Returns:
        The path.

    Raises:
        ValueError: if the path does not end in `.png`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> figure = confusion_matrix([[8, 2], [1, 9]], ["clap", "wave"])
        >>> with TemporaryDirectory() as folder:
        ...     save(figure, Path(folder) / "new" / "confusion.png").name
        'confusion.png'
    """
    target = Path(path)
    if target.suffix != ".png":
        raise ValueError(f"Expected argument `path` to end in .png, but got {target}")
    with write_atomically(target) as temporary:
        figure.savefig(temporary, format="png")
    return target
