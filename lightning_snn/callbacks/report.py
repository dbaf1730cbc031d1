"""Report of a run: a page as HTML, metrics as JSON, tables as CSV, and figures as PNG, in one folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.anytime import COLUMNS, AnytimePredictions, AnytimeRecorder
from lightning_snn.callbacks.model_summary import model_summary
from lightning_snn.callbacks.predictions import join_processes, loaders_of_processes
from lightning_snn.callbacks.report_page import RunContent, plain_data, run_page
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tested import PER_CLASS, Tested, classified_scores, per_class, read_tested
from lightning_snn.callbacks.tracking import log_figure, log_page, log_table, log_text, logged_figures, may_write
from lightning_snn.checks import check_integer
from lightning_snn.command_line import started_with
from lightning_snn.files import write_json, write_text
from lightning_snn.metrics.activity import Activity, record_activity
from lightning_snn.metrics.functional import reliability_bins, top_label
from lightning_snn.metrics.gathering import activity_of_processes
from lightning_snn.processes import warn_of_repeated_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_SLASHES = 2  # in the name of a metric whose curve is drawn


class Report(Stages):
    """Report of a run: figures, tables, and `metrics.json` in a folder, and most of them in the loggers too.

    The start of a fit writes `model_summary.txt`: all modules except metrics, and their numbers of parameters.

    The end of a fit draws `training_curves.png`: every metric that the module and its callbacks logged, by epoch. A
    resumed run continues the curves. Names of more than three parts, such as ``NAME/STAGE/QUANTITY/LAYER`` of single
    layers, have no curve because there would be too many.

    The end of a test writes `metrics.json`, `per_class.csv`, `confusion_matrix.png`, `reliability.png`, `raster.png`
    (spikes of the first sample), and `events.png` (frames of the first sample, if they have two polarities). A
    regression has no `per_class.csv`, no confusion matrix, and no reliability diagram. With several test loaders,
    each has its own scores, table, and diagrams, whose names end with the loader's index for all but the first.

    `report.html` is one page of all that: results, figures (those of other callbacks of the run, too), configuration,
    the commands that repeat the run, and the publication of its method. It needs no other file and no network.

    If the module has a method `predict_anytime` that returns the predictions of a batch after each time step,
    `[T, B, C]`, as `SpikingModule` does, the end of a test also writes `anytime.csv` and `anytime_scores.png`
    (accuracy, nll, ece, and entropy after each time step of the first batches), and `anytime_samples.png` (class
    probabilities and entropy of single samples). `report.html` states why a run has none.

    It works on any LightningModule whose `test_step` returns ``{"prediction": p, "target": y}``: `p` are class
    probabilities `[B, C]`, or an object with them as its attribute `mean`; `y` are classes `[B]`. Frames are expected
    as the first part of a batch, time first, `[T, B, C, H, W]`.

    `metrics.json` contains all metrics that the module logs as `test/...`, without this prefix, and under their full
    names those that callbacks log in a test. Accuracy, nll, brier, and ece (15 bins) are computed if the module does
    not log them. Spikes per neuron per step and synaptic operations per sample (`metrics.activity`) come from the first
    batches and are logged as `test/...` too. Seconds are wall-clock: `data` from the construction of this callback
    until the data are set up, `training` with its validation, `total` since the construction.

    `per_class`, in `per_class.csv` and `metrics.json`, has one row per class: its samples; accuracy, the fraction of
    them that were recognized, also called recall; precision, the fraction of the predictions of this class that are
    correct; F1, the harmonic mean of the two; and the mean confidence (highest probability) and mean negative
    log-likelihood in nats of its samples. Undefined values, such as the precision of a class that was never predicted,
    are empty.

    Loggers of Weights & Biases and TensorBoard get the figures, the tables, and `model_summary` as ``report/NAME``.
    Weights & Biases gets the page, too.

    Args:
        folder: folder of the report, created when there is something to write. A `fast_dev_run` writes nothing.
        details: more entries of `metrics.json`, plain data.
        activity_batches: number of test batches, from the first, whose activity is counted; 0 counts none.
        anytime_batches: number of batches of the first test loader that are predicted after each time step, once more
            and at the end of the test; 0 predicts none.

    Raises:
        ValueError: if a number of batches is negative; in a test, if `test_step` returns anything else.

    Example:
        >>> trainer = pl.Trainer(callbacks=[Report("report", details={"commit": "4894484"})], logger=False)
    """

    stages: tuple[Stage, ...] = ("test",)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        details: Mapping[str, Any] | None = None,
        activity_batches: int = 4,
        anytime_batches: int = 4,
    ) -> None:
        super().__init__()
        check_integer("activity_batches", activity_batches, 0)
        check_integer("anytime_batches", anytime_batches, 0)
        self.folder = Path(folder)
        self.details = dict(details or {})
        self.activity_batches, self.anytime_batches = activity_batches, anytime_batches
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._created = time.perf_counter()
        self._training_started = self._created
        self._before_epoch: dict[str, Tensor] = {}
        self._reset_test()

    def _reset_test(self) -> None:
        self.activity = Activity()
        self._batches = 0
        # of each loader: parts by batch, then all predictions and targets
        self._parts: dict[int, list[Tested]] = {}
        self._tested: dict[int, Tested] = {}
        self._recorded_samples = 0
        self._recorder = AnytimeRecorder(self.anytime_batches)
        self.anytime: AnytimePredictions | str = "the data have no classes"
        self._first_input: Tensor | None = None

    @property
    def state_key(self) -> str:
        # by name, so that a run whose folder was moved finds its history
        return self._generate_state_key(folder=self.folder.name)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {
            name: [(step, value) for step, value in series] for name, series in state_dict["history"].items()
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.seconds.setdefault("data", time.perf_counter() - self._created)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training_started = time.perf_counter()
        if may_write(trainer):
            summary = model_summary(pl_module)  # lazy parameters have their shapes only now
            write_text(self.folder / "model_summary.txt", summary + "\n")
            log_text(trainer, "model_summary", summary)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_epoch = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        for name, value in metrics.items():
            base, _, suffix = name.rpartition("_")
            is_duplicate = suffix in ("step", "epoch") and base in metrics
            if is_duplicate or name.count("/") > _MAX_SLASHES:
                continue
            # the trainer keeps old values, for example of a validation that runs every other epoch
            if self._before_epoch.get(name) is not value:
                self.history.setdefault(name, []).append((trainer.global_step, value.item()))

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._reset_test()
        warn_of_repeated_samples(trainer.test_dataloaders)

    def begin_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._batches < self.activity_batches:
            is_first = not self._batches
            self.recording.enter_context(record_activity(pl_module, self.activity, first_sample=is_first))

    def end_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        tested = read_tested(outputs, pl_module)
        if self._batches < self.activity_batches:
            self._recorded_samples += len(tested.target)
        if not self._batches:
            self._first_input = _first_sample(batch)
        if tested.classes:
            top_label(*tested)  # raises an error for values that are not probabilities and labels of no class
            if dataloader_idx == 0:
                self._recorder.add(batch, tested.target)
        self._batches += 1
        self._parts.setdefault(dataloader_idx, []).append(tested)

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        for loader in loaders_of_processes(self._parts, trainer):
            parts = self._parts.get(loader, [])
            joined = [join_processes([part[index] for part in parts], trainer) for index in range(2)]
            self._tested[loader] = Tested(*(part for part in joined if part is not None))
        if not self._tested:
            return
        # a method may run the network several times per prediction: all runs count for its sample
        self.activity.samples = self._recorded_samples
        if trainer.world_size > 1:
            self.activity = activity_of_processes(self.activity)
        classified = self._classified("/")
        if "" in classified:
            self.anytime = self._recorder.predict(trainer, pl_module)
        found = {}
        if self.activity.neuron_steps:
            found["spikes_per_neuron_per_step"] = self.activity.spikes_per_neuron_per_step()
        if self.activity.operations:
            found["synaptic_operations_per_sample"] = self.activity.synaptic_operations_per_sample()
        for suffix, tested in classified.items():
            found.update({f"{name}{suffix}": value for name, value in classified_scores(tested).items()})
        logged = trainer.callback_metrics
        new = {f"test/{name}": value for name, value in found.items() if f"test/{name}" not in logged}
        # the values are already those of all processes
        pl_module.log_dict(new, sync_dist=trainer.world_size > 1)

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "train":
            self._finish_fit(trainer)
        elif stage == "test":
            self._finish_test(trainer, pl_module)

    def _finish_fit(self, trainer: pl.Trainer) -> None:
        self.seconds["training"] = time.perf_counter() - self._training_started
        if self.history and may_write(trainer):
            log_figure(trainer, "training_curves", figures.training_curves(self.history), self.folder)

    def commands(self, trainer: pl.Trainer) -> dict[str, str]:
        """Return commands for the page by what they do: here the one that started this process, and how to resume."""
        found = {"The run was started with": started_with()}
        checkpoints: Any = trainer.checkpoint_callback
        last = getattr(checkpoints, "last_model_path", "") or getattr(checkpoints, "best_model_path", "")
        if last:
            found["Training goes on from a checkpoint with"] = f"trainer.fit(module, data, ckpt_path={last!r})"
        return {purpose: command for purpose, command in found.items() if command}

    def _finish_test(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds["total"] = time.perf_counter() - self._created
        metrics = {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}
        self.results = {**metrics, "seconds": dict(self.seconds), **self.details}
        self.results["spikes_per_neuron_per_step_by_layer"] = self.activity.spike_rates()
        if self.activity.uncounted:
            self.results["layers_without_counted_operations"] = self.activity.uncounted
        tables = {
            f"per_class{suffix}": per_class(tested, _class_names(trainer, tested.classes))
            for suffix, tested in self._classified("_").items()
        }
        self.results |= tables
        if isinstance(self.anytime, AnytimePredictions):
            self.results["anytime"] = {"samples": len(self.anytime.targets), "steps": self.anytime.scores()}
        else:
            self.results["anytime"] = {"missing": self.anytime}
        if not may_write(trainer):
            return
        self._describe_run(trainer, pl_module)
        try:
            for name, rows in tables.items():
                log_table(trainer, name, PER_CLASS, [list(row.values()) for row in rows], self.folder)
            if isinstance(self.anytime, AnytimePredictions):
                steps = [list(row.values()) for row in self.results["anytime"]["steps"]]
                log_table(trainer, "anytime", COLUMNS, steps, self.folder)
            drawn = self._test_figures(trainer)
            for name, figure in drawn.items():
                log_figure(trainer, name, figure, self.folder)
            log_page(trainer, "report", run_page(self._content(trainer, list(drawn))), self.folder)
        finally:
            # last, because a run that has this file counts as finished, and written although a figure may fail
            write_json(self.folder / "metrics.json", self.results)

    def _describe_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add hyperparameters, citation and commands to the results."""
        hyperparameters = {name: value for name, value in pl_module.hparams.items() if not name.startswith("_")}
        self.results.setdefault("hyperparameters", plain_data(hyperparameters))
        self.results.setdefault("citation", getattr(getattr(pl_module, "method", None), "citation", ""))
        self.results.setdefault("commands", self.commands(trainer))

    def _content(self, trainer: pl.Trainer, drawn: list[str]) -> RunContent:
        own = [self.folder / f"{name}.png" for name in ("training_curves", *drawn)]
        summary = self.folder / "model_summary.txt"
        return RunContent(
            str(self.folder),
            self.results,
            {path.stem: path.read_bytes() for path in (*own, *logged_figures(trainer)) if path.is_file()},
            summary.read_text(encoding="utf-8") if summary.is_file() else "",
        )

    def _test_figures(self, trainer: pl.Trainer) -> dict[str, Figure]:
        drawn = {}
        for suffix, (prediction, target) in self._classified("_").items():
            classes = prediction.shape[1]
            index = target * classes + prediction.argmax(1)
            matrix = torch.bincount(index.cpu(), minlength=classes**2).view(classes, classes)
            drawn[f"confusion_matrix{suffix}"] = figures.confusion_matrix(matrix, _class_names(trainer, classes))
            drawn[f"reliability{suffix}"] = figures.reliability_diagram(*reliability_bins(prediction, target))
        if isinstance(self.anytime, AnytimePredictions):
            drawn |= self.anytime.draw(_class_names(trainer, self.anytime.probabilities.shape[2]))
        if self.activity.raster:
            drawn["raster"] = figures.spike_raster(self.activity.first_sample())
        if self._first_input is not None:
            drawn["events"] = figures.event_strip(self._first_input)
        return drawn

    def _classified(self, separator: str) -> dict[str, Tested]:
        """Return the classifications of each loader by the suffix of its names, which is empty for the first."""
        tested = ((f"{separator}{loader}" if loader else "", found) for loader, found in self._tested.items())
        return {suffix: found for suffix, found in tested if found.classes}


def _first_sample(batch: Any) -> Tensor | None:
    """Return event frames `[T, 2, H, W]` of the first sample; None if the batch contains something else."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(x, Tensor) and x.dim() == 5 and x.shape[2] == 2 and x.shape[1] and x[:, 0].min() >= 0:
        return x[:, 0].detach()
    return None


def _class_names(trainer: pl.Trainer, classes: int) -> list[str]:
    names = getattr(trainer.datamodule, "class_names", ())  # type: ignore[attr-defined]
    return list(names) if len(names) == classes else [str(label) for label in range(classes)]
