"""A folder that tells how a run went: its numbers as JSON and its figures as PNG."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricCollection

from lightning_snn import figures
from lightning_snn.callbacks.tracking import log_figure, log_table, log_text, may_write, write_whole
from lightning_snn.checks import check_integer
from lightning_snn.metrics.activity import Activity, record_activity
from lightning_snn.metrics.functional import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_CLASS = ("class", "samples", "accuracy", "precision", "f1", "confidence", "nll")
_MOST_SLASHES = 2  # of a name whose curve is drawn


class Report(pl.Callback):
    """Writes figures, tables and `metrics.json` of a run into a folder, and what of it they take to its loggers.

    `model_summary.txt` comes with the beginning of a fit: the modules, metrics apart, and their parameters. Its end
    brings `training_curves.png`: every metric that the module and its callbacks logged, by epoch; a resumed run
    continues the curves. A name of more than three parts, as ``NAME/STAGE/QUANTITY/LAYER`` of single layers, has no
    curve, whoever logs it: there would be too many. The end of a test brings
    `metrics.json`, `per_class.csv`, `confusion_matrix.png`, `reliability.png`, `raster.png` (spikes of the first
    sample) and `events.png` (its frames, if they have two polarities). A regression has no classes: no `per_class.csv`,
    no confusion and no reliability.

    It works on any LightningModule whose `test_step` returns ``{"prediction": p, "target": y}``: `p` are class
    probabilities `[B, C]`, or an object with them as its attribute `mean`; `y` are classes `[B]`. The frames are
    expected as the first part of a batch, time first, `[T, B, C, H, W]`.

    `metrics.json` holds, without their prefix, all metrics that the module logs as `test/...`, and by their names those
    that callbacks log in a test; accuracy, nll, brier and ece (15 bins) are computed where the module logs none. Of the
    first batches come spikes per neuron per step and synaptic operations per sample (`metrics.activity`), logged as
    `test/...` too. Seconds are wall-clock: `data` from the making of this callback until the data are set up,
    `training` with its validation, `total` since the making.

    `per_class`, in `per_class.csv` and `metrics.json`, has for each class its samples, its accuracy (the share of them
    that were found, also called recall), its precision (the share of what was taken for it that belongs to it), F1,
    the harmonic mean of the two, and of its samples the mean confidence (the highest probability) and the mean negative
    log-likelihood in nats. What is undefined, such as the precision of a class that was never predicted, is empty.

    Loggers of Weights & Biases and TensorBoard get the figures, `per_class` and `model_summary` as ``report/NAME``.

    Args:
        folder: where to write; it is made when there is something to write. Nothing is written in a `fast_dev_run`.
        details: more entries of `metrics.json`, plain data.
        activity_batches: number of test batches, from the first, whose activity is counted; 0 counts none.

    Raises:
        ValueError: if `activity_batches` is negative, or a `test_step` returns anything else.

    Example:
        >>> trainer = Trainer(callbacks=[Report("report")])
        >>> trainer.fit(module, data)
        >>> trainer.test(module, data)
    """

    def __init__(
        self, folder: str | os.PathLike[str], details: Mapping[str, Any] | None = None, activity_batches: int = 4
    ) -> None:
        check_integer("activity_batches", activity_batches, 0)
        self.folder = Path(folder)
        self.details = dict(details or {})
        self.activity_batches = activity_batches
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._made = time.perf_counter()
        self._training_since = self._made
        self._before_epoch: dict[str, Tensor] = {}
        self._recording = ExitStack()
        self._begin_test()

    def _begin_test(self) -> None:
        self.activity = Activity()
        self._predictions: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._recorded_samples = 0
        self._first_input: Tensor | None = None

    @property
    def state_key(self) -> str:
        # by name, so that a run whose folder was moved still finds its history
        return self._generate_state_key(folder=self.folder.name)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {
            name: [(step, value) for step, value in series] for name, series in state_dict["history"].items()
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.seconds.setdefault("data", time.perf_counter() - self._made)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training_since = time.perf_counter()
        if may_write(trainer):
            summary = _model_summary(pl_module)  # not earlier: lazy parameters have their shapes by now
            write_whole(self.folder / "model_summary.txt", summary + "\n")
            log_text(trainer, "model_summary", summary)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_epoch = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        for name, value in metrics.items():
            fork_of, _, fork = name.rpartition("_")
            is_fork = fork in ("step", "epoch") and fork_of in metrics
            if is_fork or name.count("/") > _MOST_SLASHES:
                continue
            # the trainer keeps old values, such as those of a validation that runs every other epoch
            if self._before_epoch.get(name) is not value:
                self.history.setdefault(name, []).append((trainer.global_step, value.item()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds["training"] = time.perf_counter() - self._training_since
        if self.history and may_write(trainer):
            log_figure(trainer, "training_curves", figures.training_curves(self.history), self.folder)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_test()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if len(self._targets) < self.activity_batches:
            first = not self._targets
            self._recording.enter_context(record_activity(pl_module, self.activity, first_sample=first))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._recording.close()
        prediction, target = _read_outputs(outputs, pl_module)
        if len(self._targets) < self.activity_batches:
            self._recorded_samples += len(target)
        if not self._targets:
            self._first_input = _first_sample(batch)
            if _is_classification(prediction, target):
                _scores(prediction, target)  # refuses what are no probabilities while little work is lost
        self._predictions.append(prediction.detach())
        self._targets.append(target.detach())

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._targets:
            return
        self._prediction = _gather(torch.cat(self._predictions), pl_module)
        self._target = _gather(torch.cat(self._targets), pl_module)
        # a method may run the network several times for one prediction: what counts is the prediction's cost
        self.activity.samples = self._recorded_samples
        found = {}
        if self.activity.neuron_steps:
            found["spikes_per_neuron_per_step"] = self.activity.spikes_per_neuron_per_step()
        if self.activity.operations:
            found["synaptic_operations_per_sample"] = self.activity.synaptic_operations_per_sample()
        if _is_classification(self._prediction, self._target):
            found.update(_scores(self._prediction, self._target))
        logged = trainer.callback_metrics
        new = {f"test/{name}": value for name, value in found.items() if f"test/{name}" not in logged}
        pl_module.log_dict(new, sync_dist=trainer.world_size > 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds["total"] = time.perf_counter() - self._made
        metrics = {name.removeprefix("test/"): value.item() for name, value in trainer.callback_metrics.items()}
        self.results = {**metrics, "seconds": dict(self.seconds), **self.details}
        self.results["spikes_per_neuron_per_step_by_layer"] = self.activity.spike_rates()
        if self.activity.uncounted:
            self.results["layers_without_counted_operations"] = self.activity.uncounted
        if self._targets and _is_classification(self._prediction, self._target):
            classes = _class_names(trainer, self._prediction.shape[1])
            self.results["per_class"] = _per_class(self._prediction, self._target, classes)
        if not may_write(trainer):
            return
        write_json(self.folder / "metrics.json", self.results)
        if "per_class" in self.results:
            rows = [list(row.values()) for row in self.results["per_class"]]
            log_table(trainer, "per_class", _PER_CLASS, rows, self.folder)
        for name, figure in self._test_figures(trainer).items():
            log_figure(trainer, name, figure, self.folder)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recording.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._recording.close()

    def _test_figures(self, trainer: pl.Trainer) -> dict[str, Figure]:
        if not self._targets:
            return {}
        drawn = {}
        if _is_classification(self._prediction, self._target):
            classes = self._prediction.shape[1]
            index = self._target * classes + self._prediction.argmax(1)
            matrix = torch.bincount(index.cpu(), minlength=classes**2).view(classes, classes)
            drawn["confusion_matrix"] = figures.confusion_matrix(matrix, _class_names(trainer, classes))
            drawn["reliability"] = figures.reliability_diagram(*reliability_bins(self._prediction, self._target))
        if self.activity.raster:
            drawn["raster"] = figures.spike_raster(self.activity.first_sample())
        if self._first_input is not None:
            drawn["events"] = figures.event_strip(self._first_input)
        return drawn


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write values as JSON, whole or not at all; numbers that are not finite become null, which JSON has."""
    return write_whole(path, json.dumps(_finite(values), indent=2) + "\n")


def _read_outputs(outputs: Any, pl_module: pl.LightningModule) -> tuple[Tensor, Tensor]:
    found = outputs if isinstance(outputs, Mapping) else {}
    prediction, target = found.get("prediction"), found.get("target")
    if not isinstance(prediction, Tensor):
        prediction = getattr(prediction, "mean", None)
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        got = f"a dict with the keys {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"Expected `test_step` of {type(pl_module).__name__} to return "
            '{"prediction": class probabilities [B, C], "target": classes [B]} for the report, but got ' + got
        )
    # in small integers indices of classes would overflow
    return prediction, target if target.is_floating_point() else target.long()


def _is_classification(prediction: Tensor, target: Tensor) -> bool:
    return prediction.dim() == 2 and target.dim() == 1 and not target.is_floating_point()


def _scores(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    return {
        "accuracy": (probabilities.argmax(1) == targets).double().mean().item(),
        "nll": negative_log_likelihood(probabilities, targets).item(),
        "brier": brier_score(probabilities, targets).item(),
        "ece": expected_calibration_error(probabilities, targets).item(),
    }


def _per_class(probabilities: Tensor, targets: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """`_PER_CLASS` of each class; None is what is undefined."""
    classes = len(names)
    probabilities, targets = probabilities.cpu(), targets.cpu()
    confidence, predicted = probabilities.max(1)
    nll = negative_log_likelihood(probabilities, targets, reduction="none")
    labels = targets[predicted == targets], targets, predicted
    found, samples, taken = (torch.bincount(chosen, minlength=classes).double() for chosen in labels)
    confidences, losses = (torch.bincount(targets, values.double(), classes) for values in (confidence, nll))
    f1 = 2 * found / (samples + taken)
    measured = torch.stack([found / samples, found / taken, f1, confidences / samples, losses / samples], 1).tolist()
    rows = (
        (name, int(count), *(None if math.isnan(value) else value for value in row))
        for name, count, row in zip(names, samples.tolist(), measured, strict=True)
    )
    return [dict(zip(_PER_CLASS, row, strict=True)) for row in rows]


def _model_summary(pl_module: pl.LightningModule) -> str:
    """Every module but metrics, with its parameters; the network is not run for it."""
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


def _gather(values: Tensor, pl_module: pl.LightningModule) -> Tensor:
    """Values of all processes, one after the other."""
    gathered = pl_module.all_gather(values)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1) if pl_module.trainer.world_size > 1 else gathered


def _first_sample(batch: Any) -> Tensor | None:
    """Event frames `[T, 2, H, W]` of the first sample; None if the batch holds something else."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(x, Tensor) and x.dim() == 5 and x.shape[2] == 2 and x.shape[1] and x[:, 0].min() >= 0:
        return x[:, 0].detach()
    return None


def _class_names(trainer: pl.Trainer, classes: int) -> list[str]:
    names = getattr(trainer.datamodule, "class_names", ())  # type: ignore[attr-defined]
    return list(names) if len(names) == classes else [str(label) for label in range(classes)]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
