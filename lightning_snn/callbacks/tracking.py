"""Output of callbacks: figures, tables, texts, pages and tensors in files and loggers, and occasional scalars.

Every function except `log_scalars` and `save_tensors` writes only in the process for which `may_write` is true. In
others it checks its arguments and does nothing else. So callbacks may call them in all processes and in a
`fast_dev_run`, and need `may_write` only to avoid the cost of preparing output. All loggers of the trainer are used:
those of Weights & Biases and TensorBoard take every kind, under ``report/NAME``, at the trainer's step. Other loggers
take none, so figures and tables are written to files too.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.packages import is_a
from lightning_snn.checkpoint_io import write_torch
from lightning_snn.figures._style import numbers
from lightning_snn.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_BINS = 512  # limit of Weights & Biases
# by trainer, the files that its run wrote into its own folder, by name
_FILES: WeakKeyDictionary[pl.Trainer, dict[str, Path]] = WeakKeyDictionary()
# by trainer, the figures of its run, in the order in which they were first written
_FIGURES: WeakKeyDictionary[pl.Trainer, dict[Path, None]] = WeakKeyDictionary()


def may_write(trainer: pl.Trainer) -> bool:
    """Return whether this process writes files: the first one, unless the run is a `fast_dev_run`."""
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def output_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a run, without creating it: that of its first logger, or else its `default_root_dir`.

    The folder of a logger is where Lightning puts the checkpoints of the run too, `save_dir/name/version`. It is
    `default_root_dir` if the logger writes elsewhere than into the file system.
    """
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root
    logger = trainer.loggers[0]
    saved = root if logger.save_dir is None else logger.save_dir
    if "://" in str(saved):
        return root
    version = logger.version
    numbered = f"version_{version}" if isinstance(version, int) else version
    return Path(saved, logger.name or "", numbered or "")


def log_scalars(trainer: pl.Trainer, values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Send scalars of the current step to the loggers, once, and store them in the trainer's `callback_metrics`.

    `LightningModule.log` would write the last value of an occasional measurement again in each step of the epoch.

    Args:
        trainer: trainer with the loggers and the step.
        values: scalars by name. All processes have to call this function with the same names.

    Returns:
        Means over processes, by name.
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


def log_figure(trainer: pl.Trainer, name: str, figure: Figure, folder: Path | None = None) -> Path | None:
    """Save a figure as ``folder/name.png`` and send it to the loggers.

    Args:
        trainer: trainer with the loggers and the step.
        name: name of the file, without its extension, and of the logger's key.
        figure: figure of matplotlib.
        folder: output folder, created if needed, whose file of this name is replaced. None uses that of the run, see
            `output_folder`, where files of other runs are kept: the name then ends with a number, such as ``name-1``.

    Returns:
        Path of the file; None in a process or a run that writes none.
    """
    if not may_write(trainer):
        return None
    path = _path_of(trainer, folder, name, ".png")
    figures.save(figure, path)
    _FIGURES.setdefault(trainer, {})[path] = None
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, [wandb.Image(str(path))])
        elif is_a(logger, TensorBoardLogger):
            # not closed: the figure belongs to the caller
            logger.experiment.add_figure(_key(name), figure, trainer.global_step, close=False)
    return path


def logged_figures(trainer: pl.Trainer) -> list[Path]:
    """Return the files that `log_figure` wrote for a trainer, in the order in which they were first written."""
    return list(_FIGURES.get(trainer, {}))


def log_histogram(trainer: pl.Trainer, name: str, counts: Any, edges: Any) -> None:
    """Send a histogram of given counts to the loggers.

    Loggers other than those of Weights & Biases and TensorBoard have no histograms, and no file is written. Use
    `log_figure` too for a figure that every run has.

    Args:
        trainer: trainer with the loggers and the step.
        name: name of the logger's key.
        counts: number or fraction of values in each bin, `[N]`, at least 0; N is at most 512. An array, a tensor of any
            device and dtype, or a sequence.
        edges: edges of the bins, increasing, `[N + 1]`.

    Raises:
        ValueError: if counts or edges are not such numbers, in every process and with any logger.
    """
    counted, limits = numbers("counts", counts, "numbers [N]"), numbers("edges", edges, "numbers [N + 1]")
    if counted.ndim != 1 or len(counted) > _MAX_BINS or (counted < 0).any():
        raise ValueError(
            f"Expected argument `counts` to be at most {_MAX_BINS} numbers of at least 0, but got shape "
            f"{counted.shape} and minimum {counted.min():g}"
        )
    if limits.shape != (len(counted) + 1,) or (np.diff(limits) <= 0).any():
        raise ValueError(
            f"Expected argument `edges` to be {len(counted) + 1} increasing numbers, one more than `counts`, but got "
            f"shape {limits.shape}, from {limits.flat[0]:g} to {limits.flat[-1]:g}"
        )
    if not may_write(trainer):
        return
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Histogram(np_histogram=(counted.tolist(), limits.tolist())))
        elif is_a(logger, TensorBoardLogger):
            centers = (limits[:-1] + limits[1:]) / 2
            logger.experiment.add_histogram_raw(
                _key(name),
                min=limits[0],
                max=limits[-1],
                num=counted.sum(),
                sum=counted @ centers,
                sum_squares=counted @ centers**2,
                # TensorBoard takes right edges only: an empty bin at the left supplies the first edge
                bucket_limits=limits.tolist(),
                bucket_counts=[0.0, *counted.tolist()],
                global_step=trainer.global_step,
            )


def log_table(
    trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], folder: Path | None = None
) -> Path | None:
    """Save a table as ``folder/name.csv`` and send it to the loggers; TensorBoard shows it as text.

    Args:
        trainer: trainer with the loggers and the step.
        name: name of the file, without its extension, and of the logger's key.
        columns: names of the columns.
        rows: rows of texts, numbers (also arrays and tensors of one number), and None, which is left empty.
        folder: output folder, created if needed, whose file of this name is replaced. None uses that of the run, see
            `output_folder`, where files of other runs are kept: the name then ends with a number, such as ``name-1``.

    Returns:
        Path of the file; None in a process or a run that writes none.

    Raises:
        ValueError: if the number of cells in a row differs from the number of columns, in every process.
    """
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"Expected argument `rows` to have {len(columns)} cells per row, one per column, but got {len(row)} in "
                f"row {index}"
            )
    if not may_write(trainer):
        return None
    path = _path_of(trainer, folder, name, ".csv")
    header: list[Any] = list(columns)
    cells = [[cell.item() if hasattr(cell, "item") else cell for cell in row] for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    write_text(path, text.getvalue())
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Table(columns=header, data=cells, allow_mixed_types=True))
        elif is_a(logger, TensorBoardLogger):
            logger.experiment.add_text(_key(name), markdown_table(header, cells), trainer.global_step)
    return path


def save_tensors(trainer: pl.Trainer, name: str, tensors: Mapping[str, Tensor], folder: Path | None = None) -> Path:
    """Save tensors as ``folder/name.pt``, a dict of plain tensors that ``torch.load(path, weights_only=True)`` reads.

    Unlike the other functions it writes in every process, and sends nothing to the loggers.

    Args:
        trainer: trainer of the run.
        name: name of the file, without its extension.
        tensors: tensors by name.
        folder: as in `log_figure`.

    Returns:
        Path of the file.
    """
    path = _path_of(trainer, folder, name, ".pt")
    return write_torch(path, dict(tensors))


def log_text(trainer: pl.Trainer, name: str, text: str) -> None:
    """Send a text to the loggers, which show it in a monospaced font, line by line; no file is written.

    Args:
        trainer: trainer with the loggers and the step.
        name: name of the logger's key.
        text: plain text without markup.
    """
    if not may_write(trainer):
        return
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False))
        elif is_a(logger, TensorBoardLogger):
            indented = "\n".join(f"    {line}" for line in text.splitlines())  # code in Markdown
            logger.experiment.add_text(_key(name), indented, trainer.global_step)


def log_page(trainer: pl.Trainer, name: str, page: str, folder: Path | None = None) -> Path | None:
    """Save an HTML page as ``folder/name.html``, and send it to the loggers of Weights & Biases.

    Args:
        trainer: trainer with the loggers and the step.
        name: name of the file, without its extension, and of the logger's key.
        page: the whole page, which loads nothing.
        folder: as in `log_figure`.

    Returns:
        Path of the file; None in a process or a run that writes none.
    """
    if not may_write(trainer):
        return None
    path = write_text(_path_of(trainer, folder, name, ".html"), page)
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            import wandb

            _to_wandb(logger, trainer, name, wandb.Html(page, inject=False))
    return path


def _path_of(trainer: pl.Trainer, folder: Path | None, name: str, suffix: str) -> Path:
    """Return the path of a file to write: in a run's own folder one that no other run wrote."""
    if folder is not None:
        return folder / f"{name}{suffix}"
    of_run = _FILES.setdefault(trainer, {})
    own = of_run.get(name + suffix)
    if own is None:
        names = (name if number == 0 else f"{name}-{number}" for number in count())
        paths = (output_folder(trainer) / f"{each}{suffix}" for each in names)
        own = of_run[name + suffix] = next(path for path in paths if not path.exists())
    return own


def _key(name: str) -> str:
    return f"report/{name}"


def _to_wandb(logger: WandbLogger, trainer: pl.Trainer, name: str, value: Any) -> None:
    # `step` becomes "trainer/global_step", the x axis; W&B's own step must not be set in addition
    logger.log_metrics({_key(name): value}, trainer.global_step)


def markdown_table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; cells that are None are empty.

    Example:
        >>> print(markdown_table(["class", "accuracy"], [["clap", 0.9], ["wave", None]]))
        | class | accuracy |
        | --- | --- |
        | clap | 0.9 |
        | wave |  |
    """

    def line(cells: Sequence[Any]) -> str:
        texts = ("" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
