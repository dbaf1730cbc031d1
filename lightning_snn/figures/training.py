"""Logged values during training."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_snn.figures._style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, SKY, new_figure, numbers, plain, styled
from lightning_snn.reading import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STAGE_COLORS = {"": BLUE, "train": BLUE, "val": ORANGE, "test": GREEN}
_OTHER_COLORS = (PURPLE, SKY, INK)
_MAX_COLUMNS = 3
_MAX_MARKERS = 40


def read_history(path: str | os.PathLike[str]) -> dict[str, list[tuple[float, float]]]:
    r"""Read the `metrics.csv` of Lightning's CSVLogger as a history for `training_curves`.

    Args:
        path: the file, with a column `step` and one column per logged name; an empty cell is a value that was not
            logged.

    Returns:
        For each logged name its (step, value) pairs in the order of the file, without the column `epoch`.

    Raises:
        OSError: if the file is missing or cannot be read.
        ValueError: if it is no table, has no column `step`, or a cell is not a number; the message names it.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "metrics.csv"
        ...     _ = path.write_text("epoch,step,val/loss\n0,9,0.25\n")
        ...     read_history(path)
        {'val/loss': [(9.0, 0.25)]}
    """
    history: dict[str, list[tuple[float, float]]] = {}
    with (
        reading(path, "a table of logged values", "Log the run again"),
        open(path, newline="", encoding="utf-8") as file,
    ):
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        table = [(rows.line_num, row) for row in rows]
    if "step" not in names:
        raise ValueError(f"Expected file {os.fspath(path)} to have a column `step`, but got {list(names)}")
    for line, row in table:
        for name in names:
            if name in ("step", "epoch") or not row[name]:
                continue
            try:
                pair = float(row["step"]), float(row[name])
            except (TypeError, ValueError) as error:  # a line that was cut has no cell
                raise ValueError(
                    f"Expected file {os.fspath(path)}, line {line}, to hold numbers, but got {row[name]!r} for "
                    f"`{name}` at step {row['step']!r}"
                ) from error
            history.setdefault(name, []).append(pair)
    return history


@styled
def training_curves(history: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Draw logged values against the step, with one panel per quantity and one line per stage.

    Args:
        history: for each logged name its (step, value) pairs. Names such as `train/loss` and `val/loss` share the panel
            `loss`; a name without a slash has its own panel. Values that are not finite leave a gap.

    Returns:
        The figure.

    Raises:
        ValueError: if `history` or one of its series is empty or is not a list of pairs.

    Example:
        >>> figure = training_curves({"train/loss": [(0, 2.0), (10, 1.0)], "val/loss": [(10, 1.5)], "lr": [(0, 0.1)]})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['loss', 'lr']
    """
    from matplotlib.ticker import MaxNLocator

    if not history:
        raise ValueError("Expected argument `history` to hold at least one series, but got none")
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, series in history.items():
        stage, _, quantity = name.rpartition("/")
        argument, expected = f"history[{name!r}]", "(step, value) pairs"
        pairs = numbers(argument, series, expected, finite=False)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"Expected argument `{argument}` to be {expected}, but got shape {pairs.shape}")
        panels.setdefault(quantity, {})[stage] = pairs[np.argsort(pairs[:, 0], kind="stable")]

    columns = min(_MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.4 * columns + 0.2, 2.3 * rows + 0.3)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for index, (quantity, stages) in enumerate(panels.items()):
        axes = grid[index]
        others = iter(_OTHER_COLORS * len(stages))
        for stage, pairs in stages.items():
            axes.plot(
                pairs[:, 0],
                pairs[:, 1],
                color=_STAGE_COLORS.get(stage) or next(others),
                linewidth=1.3,
                marker="o" if len(pairs) <= _MAX_MARKERS else "",
                markersize=3,
                label=plain(stage),
            )
        axes.set_title(plain(quantity.replace("_", " ")), fontweight="bold")
        axes.grid(color=GRID, linewidth=0.7)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if any(stages):
            axes.legend(handlelength=1.4)
        if index + columns >= len(panels):
            axes.set_xlabel("step")
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure
