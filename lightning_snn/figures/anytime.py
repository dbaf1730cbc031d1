"""Anytime prediction: scores after each time step, and class probabilities and entropy of single samples over time."""

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
    plain,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIVALS = (ORANGE, BLUE, PURPLE)
_MAX_COLUMNS = 2
_MAX_MARKERS = 40
_ROUNDING = 0.01  # of sums of probabilities in half precision


@styled
def anytime_scores(scores: Mapping[str, Any]) -> Figure:
    """Draw scores of the predictions after each time step, in one panel per score.

    Args:
        scores: for each name its values after the steps 1 to T, shape `(T,)`. Values that are not finite leave a gap.

    Returns:
        The figure, with the last value of each score in the title of its panel.

    Raises:
        ValueError: if `scores` is empty, or its values are not of one length.

    Example:
        >>> figure = anytime_scores({"accuracy": [0.5, 0.75, 0.9], "nll": [0.7, 0.5, 0.3]})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['accuracy: 0.9 after 3 steps', 'nll: 0.3 after 3 steps']
    """
    from matplotlib.ticker import MaxNLocator

    if not scores:
        raise ValueError("Expected argument `scores` to hold at least one score, but got none")
    expected = "one number per time step"
    curves = {name: numbers(f"scores[{name!r}]", given, expected, finite=False) for name, given in scores.items()}
    shapes = {curve.shape for curve in curves.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"Expected argument `scores` to hold {expected}, equally many of each, but got {shapes}")
    steps = 1 + np.arange(len(next(iter(curves.values()))))
    figure = new_figure(4.8, 1.7 * len(curves) + 0.4)
    rows = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, curve) in zip(rows, curves.items(), strict=True):
        marker = "o" if len(steps) <= _MAX_MARKERS else ""
        axes.plot(steps, curve, color=BLUE, linewidth=1.4, marker=marker, markersize=3)
        axes.set_title(f"{plain(name)}: {curve[-1]:.3g} after {len(steps)} steps", fontweight="bold")
        axes.grid(color=GRID, linewidth=0.7)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    rows[-1].set_xlabel("time steps seen")
    rows[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


@styled
def anytime_samples(
    probabilities: Any, targets: Sequence[int], class_names: Sequence[str], expected_entropy: Any = None
) -> Figure:
    """Draw class probabilities and entropy of single samples after each time step.

    The entropy of a mixture `p = mean_k p_k` is `H[p] = mean_k H[p_k] + I`: what is left if the model were known, and
    the mutual information of class and model, which is shaded.

    Args:
        probabilities: class probabilities of N samples after each of T time steps, shape `(N, T, C)`.
        targets: true classes of the samples.
        class_names: C names.
        expected_entropy: mean entropy of the predictions of which `probabilities` is the mixture, in nats, shape
            `(N, T)`; None if there is only one.

    Returns:
        The figure, with probabilities above the entropy of each sample. The true class is green; of the others, the
        three that become most probable have a color, and the rest is gray. A title ends with "(missed)" if the true
        class is not the most probable one after the last step.

    Raises:
        ValueError: if the shapes differ, a row is no distribution, or a target is no class.

    Example:
        >>> figure = anytime_samples([[[0.5, 0.5], [0.2, 0.8]]], [1], ["clap", "wave"])
        >>> figure.axes[0].get_title(loc="left")
        'sample 1: wave'
    """
    from matplotlib.ticker import MaxNLocator

    given = _checked(probabilities, targets, class_names)
    samples, time_steps, classes = given.shape
    information = None
    if expected_entropy is not None:
        information = numbers("expected_entropy", expected_entropy, "one number per sample and time step")
        if information.shape != (samples, time_steps):
            raise ValueError(
                f"Expected argument `expected_entropy` to be of shape {(samples, time_steps)}, but got "
                f"{information.shape}"
            )
    columns = min(_MAX_COLUMNS, samples)
    blocks = -(-samples // columns)
    figure = new_figure(3.9 * columns + 0.2, 3.1 * blocks)
    grid = figure.subplots(2 * blocks, columns, squeeze=False, height_ratios=[1.7, 1] * blocks)
    steps = 1 + np.arange(time_steps)
    for sample in range(samples):
        row, column = 2 * (sample // columns), sample % columns
        top, bottom = grid[row, column], grid[row + 1, column]
        _draw_probabilities(top, steps, given[sample], int(targets[sample]), class_names)
        wrong = given[sample, -1].argmax() != targets[sample]
        title = f"sample {sample + 1}: {_short(class_names[int(targets[sample])])}"
        top.set_title(f"{title}{' (missed)' if wrong else ''}", fontweight="bold")
        entropy = -(given[sample] * np.log(np.maximum(given[sample], 1e-300))).sum(-1)
        bottom.plot(steps, entropy, color=INK, linewidth=1.3, label="entropy")
        if information is not None:
            bottom.plot(steps, information[sample], color=FAINT, linewidth=1, linestyle="--", label="of the data")
            bottom.fill_between(steps, information[sample], entropy, color=SKY, alpha=0.5, label="of the model")
        bottom.set(ylim=(0, 1.45 * np.log(classes)), xlabel="time steps seen")  # the legend is above log C
        for axes in (top, bottom):
            axes.grid(color=GRID, linewidth=0.7)
            axes.set_xlim(1, max(2, time_steps))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        top.set_xticklabels([])
        if column == 0:
            top.set_ylabel("probability")
            bottom.set_ylabel("nats")
        if sample == 0:
            bottom.legend(loc="upper right", ncols=3, handlelength=1.2, columnspacing=0.9, borderaxespad=0.2)
    for axes in grid.reshape(blocks, 2, columns).swapaxes(1, 2).reshape(-1, 2)[samples:].flat:
        axes.remove()
    return figure


def _draw_probabilities(
    axes: Axes, steps: np.ndarray, probabilities: np.ndarray, target: int, class_names: Sequence[str]
) -> None:
    order = [label for label in np.argsort(-probabilities.max(0), kind="stable") if label != target]
    for label in order[len(_RIVALS) :]:
        axes.plot(steps, probabilities[:, label], color=FAINT, linewidth=0.7, alpha=0.6)
    for label, color in zip(order, _RIVALS, strict=False):
        axes.plot(steps, probabilities[:, label], color=color, linewidth=1.2, label=_short(class_names[label]))
    axes.plot(steps, probabilities[:, target], color=GREEN, linewidth=2.2, label=_short(class_names[target]))
    axes.set_ylim(-0.02, 1.02)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.1, borderaxespad=0.2)


def _checked(probabilities: Any, targets: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    expected = "class probabilities (N, T, C)"
    given = numbers("probabilities", probabilities, expected)
    if given.ndim != 3 or given.shape[0] != len(targets) or given.shape[2] != len(class_names):
        raise ValueError(
            f"Expected argument `probabilities` to be {expected} of {len(targets)} targets and {len(class_names)} "
            f"class names, but got shape {given.shape}"
        )
    if given.min() < 0 or np.abs(given.sum(-1) - 1).max() > _ROUNDING:
        raise ValueError(
            "Expected argument `probabilities` to be at least 0 and to sum to 1 over the classes, but got a smallest "
            f"value of {given.min():g} and sums from {given.sum(-1).min():g} to {given.sum(-1).max():g}"
        )
    if not all(0 <= target < len(class_names) for target in targets):
        raise ValueError(
            f"Expected argument `targets` to be classes from 0 to {len(class_names) - 1}, but got {list(targets)}"
        )
    return given


def _short(name: str, most: int = 20) -> str:
    return plain(name if len(name) <= most else f"{name[: most - 1]}…")
