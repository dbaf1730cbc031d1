"""Predictions of a checkpoint for data: computed by its module, written as CSV, and scored."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.cli.choices import GROUPS, import_from_working_folder, import_path
from lightning_snn.cli.command import ignore_messages
from lightning_snn.cli.folders import CONFIG
from lightning_snn.cli.load import build_data, saved_input_shape
from lightning_snn.cli.parser import option_names
from lightning_snn.cli.reading import check_checkpoint, read_options
from lightning_snn.cli.results import score_rows
from lightning_snn.cli.resume import run_of_checkpoint
from lightning_snn.data import FrameDataModule
from lightning_snn.data.npz import read_npz
from lightning_snn.files import write_text
from lightning_snn.functional.entropy import predictive_entropy
from lightning_snn.import_paths import check_import_paths
from lightning_snn.methods import Classification
from lightning_snn.metrics.functional import expected_calibration_error, negative_log_likelihood
from lightning_snn.module import SpikingModule


class Predictions(NamedTuple):
    """Predictions for the samples of a data set, in order.

    Attributes:
        mean: class probabilities `[N, C]`, or the predictions `[N, ...]` of a regression.
        targets: classes `[N]`, or targets `[N, ...]`; None if there are none.
        class_names: name of each class; empty for a regression.
        source: what the samples are, for people to read.
    """

    mean: Tensor
    targets: Tensor | None
    class_names: tuple[str, ...]
    source: str


class _Collect(pl.Callback):
    """Callback that keeps predictions and targets on the CPU."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.targets: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.means.append(outputs.mean.cpu())
        self.targets.append(batch[1].cpu())


def predict(options: argparse.Namespace) -> Predictions:
    """Return the predictions of a checkpoint for data.

    Args:
        options: those of `lightning_snn.cli.commands.predict`.

    Raises:
        FileExistsError: if the file of the predictions exists, and is not to be overwritten.
        ImportError: if a library is missing that reads the data.
        OSError: if a file cannot be read; the message names it.
        ValueError: if a file is damaged, the checkpoint is not one of a recipe, or network and data do not fit.
    """
    if os.path.lexists(options.output) and not options.overwrite:
        raise FileExistsError(
            f"Expected option --output to be a new file, but {options.output} exists. Choose another name, or pass "
            "--overwrite"
        )
    if options.batch_size is not None:
        check_integer("batch_size", options.batch_size)
    ignore_messages()
    import_from_working_folder()
    check_checkpoint(options.checkpoint)
    module = SpikingModule.load_from_checkpoint(options.checkpoint, "cpu", allow=options.allow)
    is_array = options.data.endswith(".npz") and "x" in _names(Path(options.data))
    data, labeled = _arrays(options, module) if is_array else (_data_of_run(options), True)
    _check_fit(data, module, saved_input_shape(options.checkpoint), options.data)
    data.setup()
    data.test_set = {"train": data.train_set, "val": data.val_set, "test": data.test_set}[options.set]
    collected = _Collect()
    pl.seed_everything(options.seed, verbose=False)
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        callbacks=[collected],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
    )
    trainer.predict(module, data, return_predictions=False)
    return Predictions(
        torch.cat(collected.means),
        torch.cat(collected.targets) if labeled else None,
        tuple(data.class_names),
        options.data if is_array else f"the {options.set} set of {options.data}",
    )


def write_csv(path: Path, found: Predictions) -> None:
    """Write predictions as a table: one row per sample, with its target if there is one.

    A classification has the columns `sample`, `target`, `prediction`, and the probability `p_NAME` of each class; a
    regression `sample`, the targets `target_0`, ..., and the predictions `mean_0`, ....
    """
    mean = found.mean.flatten(1)
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    if found.class_names:
        names = np.asarray(found.class_names, object)
        predicted = names[mean.argmax(1).numpy()]
        columns = {"prediction": predicted}
        if found.targets is not None:
            columns = {"target": names[found.targets.numpy()], **columns}
        labels = [f"p_{name}" for name in names]
    else:
        targets = () if found.targets is None else tuple(found.targets.flatten(1).T.tolist())
        columns = {f"target_{index}": [f"{value:.6g}" for value in part] for index, part in enumerate(targets)}
        labels = [f"mean_{index}" for index in range(mean.shape[1])]
    table.writerow(["sample", *columns, *labels])
    for index, row in enumerate(mean.tolist()):
        table.writerow([index, *(column[index] for column in columns.values()), *(f"{value:.6g}" for value in row)])
    write_text(path, file.getvalue())


def summary(found: Predictions, path: Path) -> str:
    """Return the number of predictions, and their scores as far as there are targets, as text."""
    mean, targets = found.mean, found.targets
    scores: dict[str, float] = {}
    if not found.class_names and targets is not None:
        scores["mse"] = float((mean - targets).square().mean())
    elif found.class_names and targets is not None:
        scores["accuracy"] = float((mean.argmax(1) == targets).double().mean())
        scores["nll"] = float(negative_log_likelihood(mean, targets))
        scores["ece"] = float(expected_calibration_error(mean, targets))
    rows = score_rows(scores)
    if found.class_names:
        rows.append(("mean confidence", f"{float(mean.amax(1).double().mean()):.4f}"))
        rows.append(("mean predictive entropy (nats)", f"{float(predictive_entropy(mean).double().mean()):.4f}"))
    width = max((len(label) for label, _ in rows), default=0)
    lines = [f"{len(mean)} predictions for {found.source}", *(f"  {label:<{width}}  {value}" for label, value in rows)]
    return "\n".join([*lines, f"Wrote {path}"])


def _names(path: Path) -> list[str]:
    """Return the names of the arrays of a file; none if it is no such file, which its reader reports."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except (OSError, ValueError, AttributeError):
        return []


def _arrays(options: argparse.Namespace, module: SpikingModule) -> tuple[FrameDataModule, bool]:
    """Return the data of a file of arrays, and whether they have targets."""
    path = Path(options.data)
    if options.set != "test":
        raise ValueError(f"Expected no option --set, because {path} is one set, but got {options.set}")
    labeled = "y" in _names(path)
    x, *given = read_npz(path, ("x", "y") if labeled else ("x",))
    is_classification = isinstance(module.method.task, Classification)
    classes = module.num_classes if is_classification else None
    if given:
        (y,) = given
    else:
        y = np.zeros(len(x) if x.ndim else 0, int) if is_classification else np.zeros((len(x), 1), np.float32)
    names = _class_names(options, classes)
    data = FrameDataModule.from_arrays(
        x,
        y,
        val=(x[:1], y[:1]),
        test=(x, y),
        task="classification" if is_classification else "regression",
        num_classes=classes,
        class_names=names,
        batch_size=options.batch_size or 64,
    )
    return data, labeled


def _class_names(options: argparse.Namespace, classes: int | None) -> tuple[str, ...] | None:
    """Return the names of the classes of the run's data, if they are of the library and as many."""
    chosen = _options_of_data(options)
    kind = None if chosen is None else GROUPS["data"].classes().get(str(chosen["class_path"]).rpartition(".")[2])
    names = tuple(getattr(kind, "class_names", ()))
    return names if len(names) == classes else None


def _data_of_run(options: argparse.Namespace) -> FrameDataModule:
    """Return the data of the class that the run used, read from the given place."""
    chosen = _options_of_data(options)
    if chosen is None:
        raise ValueError(
            f"Expected option --config, because there is no {CONFIG} beside {options.checkpoint} that says how its "
            "data are read. Give that of its run, or inputs as an .npz file with the array x"
        )
    check_import_paths(chosen, options.allow, str(options.config or CONFIG))
    kind = GROUPS["data"].find(chosen["class_path"])
    given = dict(chosen.get("init_args") or {})
    if options.data != kind.__name__:
        if "root" not in option_names(kind):
            raise ValueError(
                f"Expected DATA to be {kind.__name__}, the data of the run, which are not read from files, or an .npz "
                f"file with the array x, but got {options.data}"
            )
        if not os.path.exists(options.data):
            raise FileNotFoundError(
                f"Expected DATA to be files of {kind.__name__}, an .npz file with the array x, or {kind.__name__} for "
                f"the data of the run, but {options.data} does not exist"
            )
        given["root"] = options.data
    if options.batch_size is not None:
        given["batch_size"] = options.batch_size
    return build_data({"class_path": import_path(kind), "init_args": given})


def _options_of_data(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return class and options of the data of the run; None if they are not known."""
    run = run_of_checkpoint(options.checkpoint)
    path = options.config or (None if run is None else run.config)
    if path is None:
        return None
    chosen = read_options(path).get("data")
    chosen = {"class_path": chosen} if isinstance(chosen, str) else chosen
    if not isinstance(chosen, dict) or not isinstance(chosen.get("class_path"), str):
        raise ValueError(f"Expected {path} to name the class of the data, such as `data: NMNIST`, but got {chosen!r}")
    return chosen


def _check_fit(data: FrameDataModule, module: SpikingModule, shape: tuple[int, ...] | None, source: str) -> None:
    """Raise a ValueError unless inputs and classes are those of the network."""
    if shape is not None and tuple(data.frame_shape) != shape:
        raise ValueError(
            f"Expected inputs of shape [N, T, {', '.join(map(str, shape))}], for which the network was built, but "
            f"{source} has [N, T, {', '.join(map(str, data.frame_shape))}]"
        )
    if module.num_classes is not None and data.num_classes != module.num_classes:
        raise ValueError(
            f"Expected data of {module.num_classes} classes, as the network has, but {source} has {data.num_classes}"
        )
