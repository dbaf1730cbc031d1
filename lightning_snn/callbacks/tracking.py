"""What a callback keeps of a run beside scalars of every step: figures, histograms, tables and texts, in files and in
loggers, and scalars that are measured now and then.

Every function but `log_scalars` does nothing but in the process that writes, `may_write`; elsewhere it returns the
same. So callbacks may call them on all ranks and in a `fast_dev_run`, and ask `may_write` themselves only to spare the
making of what is written. All of the trainer's loggers are served: those of Weights & Biases and of TensorBoard take
every kind, under ``report/NAME``, at the trainer's step; others take none, for which figures and tables are files too.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_snn import figures
from lightning_snn.figures._style import numbers
from lightning_snn.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BINS = 512  # of a histogram of Weights & Biases


def may_write(trainer: pl.Trainer) -> bool:
    """Whether this process is the one that writes files, in a run that writes any."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def output_folder(trainer: pl.Trainer, folder: Path | None) -> Path:
    """The folder, which is not made; None takes the trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir) if folder is None else folder


def log_scalars(trainer: pl.Trainer, values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Hand scalars of this very step to the loggers, once, and keep them in the trainer's `callback_metrics`.

    `LightningModule.log` is for what every step has: of what is measured now and then it would write the last value
    again with each step of the epoch.

    Args:
        trainer: whose loggers, and whose step.
        values: by name; the same names in all processes, which all have to call this.

    Returns:
        the means over processes.
    """
    if not values:
        return {}
    device = trainer.strategy.root_device
    numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values.values()])
    means = dict(zip(values, trainer.strategy.reduce(numbers, reduce_op="mean"), strict=True))
    trainer.callback_metrics.update(means)
    found = {name: value.item() for name, value in means.items()}
    for logger in trainer.loggers:
        logger.log_metrics(found, step=trainer.global_step)
    return found


def log_figure(trainer: pl.Trainer, name: str, figure: Figure, folder: Path) -> Path:
    """Save a figure as ``folder/name.png`` and hand it to the loggers.

    Args:
        trainer: whose loggers, and whose step.
        name: of the file, without ending, and of the logger's key.
        figure: of matplotlib.
        folder: where to save it; made if need be.

    Returns:
        The path.
    """
    path = folder / f"{name}.png"
    if not may_write(trainer):
        return path
    figures.save(figure, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, [wandb.Image(str(path))])
        elif isinstance(logger, TensorBoardLogger):
            # the figure belongs to the caller, who may hand it on
            logger.experiment.add_figure(_key(name), figure, trainer.global_step, close=False)
    return path


def log_histogram(trainer: pl.Trainer, name: str, counts: Any, edges: Any) -> None:
    """Hand a histogram that was counted already to the loggers.

    Loggers other than those of Weights & Biases and TensorBoard have no histograms, and no file is written: draw a
    figure beside it, with `log_figure`, for all to see.

    Args:
        trainer: whose loggers, and whose step.
        name: of the logger's key.
        counts: how many values, or which share of them, fell into each bin, `[N]`, at least 0; N is at most 512. Array,
            tensor of any device and dtype, or sequence.
        edges: of the bins, increasing, `[N + 1]`.

    Raises:
        ValueError: if counts or edges are not such numbers; in every process, with any logger.
    """
    counted, limits = numbers("counts", counts, "numbers [N]"), numbers("edges", edges, "numbers [N + 1]")
    if counted.ndim != 1 or len(counted) > _MOST_BINS or (counted < 0).any():
        raise ValueError(
            f"Expected argument `counts` to be at most {_MOST_BINS} numbers of at least 0, but got the shape "
            f"{counted.shape} and the least {counted.min():g}"
        )
    if limits.shape != (len(counted) + 1,) or (np.diff(limits) <= 0).any():
        raise ValueError(
            f"Expected argument `edges` to be {len(counted) + 1} increasing numbers, one more than `counts`, but got "
            f"the shape {limits.shape}, from {limits.flat[0]:g} to {limits.flat[-1]:g}"
        )
    if not may_write(trainer):
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Histogram(np_histogram=(counted.tolist(), limits.tolist())))
        elif isinstance(logger, TensorBoardLogger):
            centers = (limits[:-1] + limits[1:]) / 2
            logger.experiment.add_histogram_raw(
                _key(name),
                min=limits[0],
                max=limits[-1],
                num=counted.sum(),
                sum=counted @ centers,
                sum_squares=counted @ centers**2,
                # TensorBoard knows right edges only: an empty bin at the left brings the first edge
                bucket_limits=limits.tolist(),
                bucket_counts=[0.0, *counted.tolist()],
                global_step=trainer.global_step,
            )


def log_table(
    trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], folder: Path
) -> Path:
    """Save a table as ``folder/name.csv`` and hand it to the loggers; TensorBoard shows it as a text.

    Args:
        trainer: whose loggers, and whose step.
        name: of the file, without ending, and of the logger's key.
        columns: their names.
        rows: of texts, numbers (arrays and tensors of a single one too) and None, which is left empty.
        folder: where to save it; made if need be.

    Returns:
        The path.

    Raises:
        ValueError: if a row has not as many cells as there are columns; in every process.
    """
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"Expected argument `rows` to have a cell for each of {len(columns)} columns, but row {index} has "
                f"{len(row)}"
            )
    path = folder / f"{name}.csv"
    if not may_write(trainer):
        return path
    header: list[Any] = list(columns)
    cells = [[cell.item() if hasattr(cell, "item") else cell for cell in row] for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    write_text(path, text.getvalue())
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Table(columns=header, data=cells, allow_mixed_types=True))
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(_key(name), _markdown(header, cells), trainer.global_step)
    return path


def log_text(trainer: pl.Trainer, name: str, text: str) -> None:
    """Hand a text to the loggers, which show it in letters of one width, line by line; no file is written.

    Args:
        trainer: whose loggers, and whose step.
        name: of the logger's key.
        text: as it is; no markup.
    """
    if not may_write(trainer):
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False))
        elif isinstance(logger, TensorBoardLogger):
            indented = "\n".join(f"    {line}" for line in text.splitlines())  # which markdown takes as it is
            logger.experiment.add_text(_key(name), indented, trainer.global_step)


def _key(name: str) -> str:
    return f"report/{name}"


def _to_wandb(logger: WandbLogger, trainer: pl.Trainer, name: str, value: Any) -> None:
    # `step` becomes "trainer/global_step", the x axis; W&B's own step must not be set beside Lightning's
    logger.log_metrics({_key(name): value}, trainer.global_step)


def _markdown(columns: list[Any], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        texts = ("" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
