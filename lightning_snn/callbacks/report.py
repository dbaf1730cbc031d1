"""Report of a run: metrics as JSON, tables as CSV, and figures as PNG, in one folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricCollection

from lightning_snn import figures
from lightning_snn.callbacks.predictions import join_processes, loaders_of_processes, read_prediction, read_step_outputs
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tracking import log_figure, log_table, log_text, may_write
from lightning_snn.checks import check_integer
from lightning_snn.files import write_json, write_text
from lightning_snn.metrics.activity import Activity, record_activity
from lightning_snn.metrics.functional import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    top_label,
)
from lightning_snn.metrics.gathering import activity_of_processes
from lightning_snn.processes import warn_of_repeated_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_CLASS = ("class", "samples", "accuracy", "precision", "f1", "confidence", "nll")
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

    Loggers of Weights & Biases and TensorBoard get the figures, `per_class`, and `model_summary` as ``report/NAME``.

    Args:
        folder: folder of the report, created when there is something to write. A `fast_dev_run` writes nothing.
        details: more entries of `metrics.json`, plain data.
        activity_batches: number of test batches, from the first, whose activity is counted; 0 counts none.

    Raises:
        ValueError: if `activity_batches` is negative; in a test, if `test_step` returns anything else.

    Example:
        >>> trainer = pl.Trainer(callbacks=[Report("report", details={"commit": "4894484"})], logger=False)
    """

    stages: tuple[Stage, ...] = ("test",)

    def __init__(
        self, folder: str | os.PathLike[str], details: Mapping[str, Any] | None = None, activity_batches: int = 4
    ) -> None:
        super().__init__()
        check_integer("activity_batches", activity_batches, 0)
        self.folder = Path(folder)
        self.details = dict(details or {})
        self.activity_batches = activity_batches
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
        self._parts: dict[int, list[_Tested]] = {}
        self._tested: dict[int, _Tested] = {}
        self._recorded_samples = 0
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
            summary = _model_summary(pl_module)  # lazy parameters have their shapes only now
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
        tested = _read_outputs(outputs, pl_module)
        if self._batches < self.activity_batches:
            self._recorded_samples += len(tested.target)
        if not self._batches:
            self._first_input = _first_sample(batch)
        if tested.classes:
            top_label(*tested)  # raises an error for values that are not probabilities and labels of no class
        self._batches += 1
        self._parts.setdefault(dataloader_idx, []).append(tested)

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        for loader in loaders_of_processes(self._parts, trainer):
            parts = self._parts.get(loader, [])
            joined = [join_processes([part[index] for part in parts], trainer) for index in range(2)]
            self._tested[loader] = _Tested(*(part for part in joined if part is not None))
        if not self._tested:
            return
        # a method may run the network several times per prediction: all runs count for its sample
        self.activity.samples = self._recorded_samples
        if trainer.world_size > 1:
            self.activity = activity_of_processes(self.activity)
        found = {}
        if self.activity.neuron_steps:
            found["spikes_per_neuron_per_step"] = self.activity.spikes_per_neuron_per_step()
        if self.activity.operations:
            found["synaptic_operations_per_sample"] = self.activity.synaptic_operations_per_sample()
        for suffix, tested in self._classified("/").items():
            found.update({f"{name}{suffix}": value for name, value in _scores(tested).items()})
        logged = trainer.callback_metrics
        new = {f"test/{name}": value for name, value in found.items() if f"test/{name}" not in logged}
        # the values are already those of all processes
        pl_module.log_dict(new, sync_dist=trainer.world_size > 1)

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "train":
            self._finish_fit(trainer)
        elif stage == "test":
            self._finish_test(trainer)

    def _finish_fit(self, trainer: pl.Trainer) -> None:
        self.seconds["training"] = time.perf_counter() - self._training_started
        if self.history and may_write(trainer):
            log_figure(trainer, "training_curves", figures.training_curves(self.history), self.folder)

    def _finish_test(self, trainer: pl.Trainer) -> None:
        self.seconds["total"] = time.perf_counter() - self._created
        metrics = {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}
        self.results = {**metrics, "seconds": dict(self.seconds), **self.details}
        self.results["spikes_per_neuron_per_step_by_layer"] = self.activity.spike_rates()
        if self.activity.uncounted:
            self.results["layers_without_counted_operations"] = self.activity.uncounted
        tables = {
            f"per_class{suffix}": _per_class(tested, _class_names(trainer, tested.classes))
            for suffix, tested in self._classified("_").items()
        }
        self.results |= tables
        if not may_write(trainer):
            return
        try:
            for name, rows in tables.items():
                log_table(trainer, name, _PER_CLASS, [list(row.values()) for row in rows], self.folder)
            for name, figure in self._test_figures(trainer).items():
                log_figure(trainer, name, figure, self.folder)
        finally:
            # last, because a run that has this file counts as finished, and written although a figure may fail
            write_json(self.folder / "metrics.json", self.results)

    def _test_figures(self, trainer: pl.Trainer) -> dict[str, Figure]:
        drawn = {}
        for suffix, (prediction, target) in self._classified("_").items():
            classes = prediction.shape[1]
            index = target * classes + prediction.argmax(1)
            matrix = torch.bincount(index.cpu(), minlength=classes**2).view(classes, classes)
            drawn[f"confusion_matrix{suffix}"] = figures.confusion_matrix(matrix, _class_names(trainer, classes))
            drawn[f"reliability{suffix}"] = figures.reliability_diagram(*reliability_bins(prediction, target))
        if self.activity.raster:
            drawn["raster"] = figures.spike_raster(self.activity.first_sample())
        if self._first_input is not None:
            drawn["events"] = figures.event_strip(self._first_input)
        return drawn

    def _classified(self, separator: str) -> dict[str, _Tested]:
        """Return the classifications of each loader by the suffix of its names, which is empty for the first."""
        tested = ((f"{separator}{loader}" if loader else "", found) for loader, found in self._tested.items())
        return {suffix: found for suffix, found in tested if found.classes}


class _Tested(NamedTuple):
    """Predictions and targets of a test."""

    prediction: Tensor
    target: Tensor

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a regression."""
        prediction, target = self
        is_classification = prediction.dim() == 2 and target.dim() == 1 and not target.is_floating_point()
        return prediction.shape[1] if is_classification else 0


def _read_outputs(outputs: Any, pl_module: pl.LightningModule) -> _Tested:
    found = read_step_outputs(outputs)
    prediction = None if found is None else read_prediction(found.prediction)
    if found is None or prediction is None or not isinstance(found.target, Tensor):
        got = f"a dict with the keys {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"Expected `test_step` of {type(pl_module).__name__} to return "
            '{"prediction": class probabilities [B, C], "target": classes [B]} for the report, but got ' + got
        )
    # small integer types would overflow as indices of classes
    target = found.target if found.target.is_floating_point() else found.target.long()
    return _Tested(prediction.mean.detach(), target.detach())


def _scores(tested: _Tested) -> dict[str, float]:
    probabilities, targets = tested
    return {
        "accuracy": top_label(probabilities, targets)[1].double().mean().item(),
        "nll": negative_log_likelihood(probabilities, targets).item(),
        "brier": brier_score(probabilities, targets).item(),
        "ece": expected_calibration_error(probabilities, targets).item(),
    }


def _per_class(tested: _Tested, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return `_PER_CLASS` for each class; undefined values are None."""
    classes = len(names)
    probabilities, targets = (part.cpu() for part in tested)
    confidence, predicted = probabilities.max(1)
    nll = negative_log_likelihood(probabilities, targets, reduction="none")
    labels = targets[predicted == targets], targets, predicted
    correct, samples, predictions = (torch.bincount(chosen, minlength=classes).double() for chosen in labels)
    confidences, losses = (torch.bincount(targets, values.double(), classes) for values in (confidence, nll))
    f1 = 2 * correct / (samples + predictions)
    quantities = [correct / samples, correct / predictions, f1, confidences / samples, losses / samples]
    measured = torch.stack(quantities, 1).tolist()
    rows = (
        (name, int(count), *(None if math.isnan(value) else value for value in row))
        for name, count, row in zip(names, samples.tolist(), measured, strict=True)
    )
    return [dict(zip(_PER_CLASS, row, strict=True)) for row in rows]


def _model_summary(pl_module: pl.LightningModule) -> str:
    """Return a table of all modules except metrics, with their numbers of parameters; the network is not run."""
    metrics = [part for part in pl_module.modules() if isinstance(part, (Metric, MetricCollection))]
    left_out = {id(part) for metric in metrics for part in metric.modules()}
    rows = [("module", "type", "parameters")]
    for name, part in pl_module.named_modules():
        if name and id(part) not in left_out:
            rows.append((name, type(part).__name__, _count(part.parameters())))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}" for name, kind, count in rows]
    trained = _count(part for part in pl_module.parameters() if part.requires_grad)
    lines += ["", f"{_count(pl_module.parameters())} parameters, of which {trained} are trained by gradients"]
    return "\n".join(lines)


def _count(parameters: Iterable[Tensor]) -> str:
    listed = list(parameters)
    return "?" if any(map(is_lazy, listed)) else f"{sum(part.numel() for part in listed):,}"


def _first_sample(batch: Any) -> Tensor | None:
    """Return event frames `[T, 2, H, W]` of the first sample; None if the batch contains something else."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(x, Tensor) and x.dim() == 5 and x.shape[2] == 2 and x.shape[1] and x[:, 0].min() >= 0:
        return x[:, 0].detach()
    return None


def _class_names(trainer: pl.Trainer, classes: int) -> list[str]:
    names = getattr(trainer.datamodule, "class_names", ())  # type: ignore[attr-defined]
    return list(names) if len(names) == classes else [str(label) for label in range(classes)]
