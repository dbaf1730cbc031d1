"""Confusion matrix and reliability diagram of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_snn.figures._style import BLUE, FAINT, INK, ORANGE, SKY, new_figure, numbers, plain, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CLASSES_WITH_NUMBERS = 20
_MAX_CLASS_NAMES = 50


@styled
def confusion_matrix(matrix: Any, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: numbers are samples, colors are fractions of the true class on a square-root scale.

    Args:
        matrix: numbers of samples, shape `(C, C)`, with one row per true class and one column per predicted class, as
            returned by torchmetrics' `ConfusionMatrix`.
        class_names: C names.

    Returns:
        The figure, with the accuracy in its title. The row of a class without samples is empty. Above 20 classes there
        are no numbers, and above 50 classes only every second, third, ... name is written.

    Raises:
        ValueError: if `matrix` is not square or has a negative entry, or the number of names is not C.

    Example:
        >>> figure = confusion_matrix([[8, 2], [1, 9]], ["clap", "wave"])
        >>> figure.axes[0].get_title(loc="left")
        'accuracy 0.850 on 20 samples'
    """
    from matplotlib.colors import PowerNorm

    expected = "a square matrix of sample counts"
    counts = numbers("matrix", matrix, expected)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.min() < 0:
        raise ValueError(
            f"Expected argument `matrix` to be {expected}, "
            f"but got shape {counts.shape} with smallest entry {counts.min():g}"
        )
    classes = len(counts)
    if len(class_names) != classes:
        raise ValueError(f"Expected argument `class_names` to hold {classes} names, but got {len(class_names)}")

    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    few = classes <= _MAX_CLASSES_WITH_NUMBERS
    side = float(np.clip(0.42 * classes, 2.5, 9))
    figure = new_figure(side + 2.2, side + 1.4)
    axes = figure.subplots()
    # The square root makes rare confusions visible next to the diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in np.argwhere(counts) if few else ():
        color = "white" if shares[row, column] > 0.35 else INK
        axes.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", color=color, fontsize=8)
    if few:
        between = np.arange(classes - 1) + 0.5
        axes.hlines(between, -0.5, classes - 0.5, color="white", linewidth=1.2)
        axes.vlines(between, -0.5, classes - 0.5, color="white", linewidth=1.2)
    named = range(0, classes, math.ceil(classes / _MAX_CLASS_NAMES))
    names = [plain(class_names[label]) for label in named]
    axes.set_xticks(named, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(named, names)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    samples = counts.sum()
    title = f"accuracy {counts.trace() / samples:.3f} on {samples:.0f} samples" if samples else "no samples"
    axes.set_title(title, fontweight="bold")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


class Bins(NamedTuple):
    """Bins of confidence with samples.

    Attributes:
        centers: their centers.
        width: width of a bin.
        confidence: mean confidence of each.
        accuracy: accuracy of each.
        sizes: number of samples of each.
    """

    centers: np.ndarray
    width: float
    confidence: np.ndarray
    accuracy: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, confidence: Any, accuracy: Any, count: Any) -> Bins:
        """Return the bins with samples among equal-width bins; arguments and errors of `reliability_diagram`."""
        expected = "one number for each bin"
        means = numbers("confidence", confidence, expected, finite=False)
        shares = numbers("accuracy", accuracy, expected, finite=False)
        counts = numbers("count", count, expected)
        if not means.shape == shares.shape == counts.shape or counts.ndim != 1:
            raise ValueError(
                f"Expected arguments `confidence`, `accuracy` and `count` to be {expected}, "
                f"but got shapes {means.shape}, {shares.shape} and {counts.shape}"
            )
        if counts.min() < 0 or counts.sum() == 0:
            raise ValueError(
                f"Expected argument `count` to be bin sizes with a positive sum, but got {counts.tolist()}"
            )
        filled = counts > 0
        centers = (np.arange(len(counts)) + 0.5) / len(counts)
        for name, values in (("confidence", means[filled]), ("accuracy", shares[filled])):
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(
                    f"Expected argument `{name}` to be within [0, 1] where `count` > 0, but got {values.tolist()}"
                )
        return cls(centers[filled], 1 / len(counts), means[filled], shares[filled], counts[filled])

    @property
    def error(self) -> float:
        """Expected calibration error."""
        return float((self.sizes * np.abs(self.accuracy - self.confidence)).sum() / self.sizes.sum())

    def draw(self, axes: Axes) -> None:
        """Draw accuracy against confidence, and the gap between the two."""
        axes.bar(self.centers, self.accuracy, self.width, color=SKY, edgecolor="white", linewidth=0.8, label="accuracy")
        axes.bar(
            self.centers,
            np.abs(self.accuracy - self.confidence),
            0.94 * self.width,
            bottom=np.minimum(self.confidence, self.accuracy),
            facecolor="none",
            edgecolor=ORANGE,
            hatch="////",
            linewidth=0.8,
            label="gap to the confidence",
        )
        axes.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=1, label="perfect calibration")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))


@styled
def reliability_diagram(confidence: Any, accuracy: Any, count: Any) -> Figure:
    """Draw accuracy against confidence in equal-width bins, above the number of samples in each bin.

    ``ECE = sum_b count_b / N |accuracy_b - confidence_b|``

    Args:
        confidence: mean probability of the predicted class in each bin, shape `(n_bins,)`; nan for empty bins.
        accuracy: fraction of correct predictions in each bin, shape `(n_bins,)`; nan for empty bins.
        count: number of samples in each bin, shape `(n_bins,)`. `lightning_snn.metrics.functional.reliability_bins`
            returns all three.

    Returns:
        The figure, with the expected calibration error in its title.

    Raises:
        ValueError: if the shapes differ, a count is negative, all bins are empty, or the confidence or accuracy of a
            bin with samples is outside [0, 1].

    Example:
        >>> figure = reliability_diagram([0.3, 0.9], [0.4, 0.8], [10, 30])
        >>> figure.axes[0].get_title(loc="left")
        'ECE 0.100'
    """
    bins = Bins.of(confidence, accuracy, count)
    sizes, samples = bins.sizes, bins.sizes.sum()

    figure = new_figure(4.6, 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    bins.draw(top)
    top.set_ylabel("accuracy")
    top.set_title(f"ECE {bins.error:.3f}", fontweight="bold")
    bottom.bar(bins.centers, sizes, bins.width, color=FAINT, edgecolor="white", linewidth=0.8)
    bottom.axvline((sizes * bins.confidence).sum() / samples, color=ORANGE, linewidth=1.4, label="mean confidence")
    bottom.axvline((sizes * bins.accuracy).sum() / samples, color=BLUE, linewidth=1.4, linestyle=":", label="accuracy")
    bottom.set(xlabel="confidence", ylabel="samples")
    # The legends are outside because bars may be anywhere.
    for axes, edge in ((top, "upper"), (bottom, "lower")):
        handles, names = axes.get_legend_handles_labels()
        place: Any = f"outside {edge} left"
        figure.legend(handles, names, loc=place, ncols=len(names), handlelength=1.4, columnspacing=1.2)
    return figure
