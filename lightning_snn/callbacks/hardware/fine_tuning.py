"""Callback that trains at full precision first, then under the constraints of a chip."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_snn.callbacks.hardware.constrained import Constrained, shorten_windows
from lightning_snn.callbacks.hardware.constraints import HardwareConstraints
from lightning_snn.callbacks.hardware.training import logged_metrics, reset_best_scores, scale_learning_rates, validate
from lightning_snn.callbacks.tracking import log_scalars
from lightning_snn.checks import check_integer, check_positive
from lightning_snn.methods.ttfs import first_spike_layers

_STAGES = ("val", "valid", "validation")


class HardwareFineTuning(pl.Callback):
    """Fine-tuning for hardware: full precision first, then the constraints of a chip and a lower learning rate.

    At the start of epoch `start_epoch` it validates the network as it is, sets windows to the largest input currents of
    that validation and divides them by the latency factor, enables the constraints, validates again, and lowers the
    learning rates. At the end of training it validates a third time. These validations are additional: callbacks and
    loggers do not see them, and they do not change random numbers. From the switch on, `ModelCheckpoint` and
    `EarlyStopping` search for a new best epoch.

    For a metric `val/accuracy` it logs `hardware/accuracy_unconstrained`, `hardware/accuracy_before`, and
    `hardware/accuracy_after` fine-tuning, and again with a test, and prints them at the end. A first part `val`,
    `valid`, or `validation` is removed from the name of the metric, unless two names would become equal. With several
    validation loaders, the names of all but the first end with the loader's index, such as `hardware/accuracy_after/1`.

    Optimizers, checkpoints, and weight averages have plain weights in full precision. Constraints act during the
    forward pass of layers, in training, validation, and tests of the trainer that has this callback, and are removed at
    the end of a run. A checkpoint contains the windows and the information that they have been shortened. A
    `fast_dev_run` fine-tunes from epoch 0.

    It works on any LightningModule with linear or convolutional layers. Constraints on times need `FirstSpike` neurons.
    Weights of recurrent, attention, and Bayesian layers are not constrained.

    Args:
        constraints: constraints of the hardware; None is weights of 8 bits.
        start_epoch: first epoch under constraints, from 0; None uses the last fifth of the trainer's epochs, at least
            one.
        learning_rate_factor: factor of all learning rates, larger than 0. Schedules continue from there.
        metric: metric of the validation to compare, by name, or "all"; None does not validate, for modules without
            validation data.
        calibrate: whether to set windows to the largest input currents of the validation data before dividing them;
            windows are much longer while they adapt. Without a metric, windows are divided as they are.

    Attributes:
        results: values of the metrics so far, by logged name.

    Raises:
        ValueError: if an argument is out of range; at the start of a fit, if constraints have nothing to act on, if
            `start_epoch` is beyond the run, or None in a run without a number of epochs, or if there is no validation;
            after the first validation, if `metric` is not logged.

    Example:
        >>> hardware = HardwareFineTuning(HardwareConstraints(weight_bits=4), start_epoch=10)
        >>> trainer = pl.Trainer(max_epochs=12, callbacks=[hardware], logger=False)
    """

    def __init__(
        self,
        constraints: HardwareConstraints | None = None,
        start_epoch: int | None = None,
        learning_rate_factor: float = 0.1,
        metric: str | None = "all",
        calibrate: bool = True,
    ) -> None:
        constraints = HardwareConstraints(weight_bits=8) if constraints is None else constraints
        if not isinstance(constraints, HardwareConstraints):
            raise ValueError(f"Expected argument `constraints` to be HardwareConstraints, but got {constraints!r}")
        if start_epoch is not None:
            check_integer("start_epoch", start_epoch, 0)
        check_positive("learning_rate_factor", learning_rate_factor)
        self.constraints, self.start_epoch = constraints, start_epoch
        self.learning_rate_factor = learning_rate_factor
        self.metric, self.calibrate = metric, calibrate
        self.results: dict[str, float] = {}
        self.switched = False
        self._first_epoch = 0
        self._constrained: Constrained | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "switched": self.switched,
            "latency_factor": self.constraints.latency_factor,
            "results": dict(self.results),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.switched = state_dict["switched"]
        # a checkpoint of the last epoch was saved before the last validation
        self.results.update(state_dict["results"])
        if self.switched and state_dict["latency_factor"] != self.constraints.latency_factor:
            raise ValueError(
                "Expected argument `latency_factor` to be that of the checkpoint, "
                f"{state_dict['latency_factor']:g}, but got {self.constraints.latency_factor:g}"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # raises if there is nothing to act on; not in `setup`, which comes before `configure_model`
        Constrained(pl_module, self.constraints).close()
        dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not dev_run:
            self._first_epoch = self._chosen_epoch(trainer.max_epochs)
        if self.metric is not None and not trainer.enable_validation:
            raise ValueError(
                f"Expected argument `metric` to be None for a run without validation, but got {self.metric!r}"
            )
        self._apply_constraints(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply_constraints(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply_constraints(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply_constraints(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply_constraints(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # an unknown metric raises after one epoch and not at the switch
        if self.metric not in (None, "all") and trainer.state.fn == "fit" and not trainer.sanity_checking:
            logged_metrics(trainer, self.metric)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = trainer.fast_dev_run or trainer.current_epoch >= self._first_epoch  # type: ignore[attr-defined]
        if self.switched or not due:
            return
        peaks: dict[str, Tensor] = {}
        with _recorded_peaks(pl_module, peaks):
            self._measure(trainer, "unconstrained")
        if self.constraints.on_times:
            peaks = {name: trainer.strategy.reduce(peak, reduce_op="max") for name, peak in peaks.items()}
            shorten_windows(pl_module, self.constraints.latency_factor, peaks if self.calibrate else None)
        self.switched = True
        self._apply_constraints(pl_module)
        self._measure(trainer, "before")
        scale_learning_rates(trainer, self.learning_rate_factor)
        reset_best_scores(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._constrained is None or self._warned:
            return
        self._warned = True
        if self._constrained.never_called:
            warnings.warn(
                "HardwareFineTuning does not constrain the weights of layers that training does not call: "
                f"{', '.join(self._constrained.never_called)}",
                stacklevel=2,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.switched:
            warnings.warn(
                f"Training ended before epoch {self._first_epoch}, so the network was not fine-tuned for hardware",
                stacklevel=2,
            )
            return
        self._measure(trainer, "after")
        if self.results:
            # starts a new line after the progress bar
            rank_zero_info("\n" + "\n".join(f"{name:<36} {value:.4f}" for name, value in self.results.items()))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # for the results of the test
        pl_module.log_dict(self.results, sync_dist=trainer.world_size > 1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._remove_constraints()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._remove_constraints()

    def _chosen_epoch(self, max_epochs: int | None) -> int:
        if max_epochs is None or max_epochs < 0:
            if self.start_epoch is None:
                raise ValueError("Expected argument `start_epoch` to be set for a run without max_epochs, but got None")
            return self.start_epoch
        chosen = max_epochs - max(1, max_epochs // 5) if self.start_epoch is None else self.start_epoch
        if chosen >= max_epochs:
            raise ValueError(
                f"Expected argument `start_epoch` to be smaller than the trainer's max_epochs = {max_epochs}, "
                f"but got {chosen}"
            )
        return chosen

    def _apply_constraints(self, pl_module: pl.LightningModule) -> None:
        if self.switched and self._constrained is None:
            self._constrained = Constrained(pl_module, self.constraints)

    def _remove_constraints(self) -> None:
        if self._constrained is not None:
            self._constrained.close()
        self._constrained = None

    def _measure(self, trainer: pl.Trainer, moment: str) -> None:
        if self.metric is None:
            return
        found = validate(trainer, self.metric)
        names = _short_names(found)
        measured = {f"hardware/{_of_loader(names[metric], moment)}": value for metric, value in found.items()}
        self.results.update(log_scalars(trainer, measured))


def _of_loader(metric: str, moment: str) -> str:
    """Return ``metric_moment``, for all but the first of several loaders with the loader's index: ``metric_moment/1``.

    Lightning calls the metrics of several loaders ``metric/dataloader_idx_1`` and does not log such names again.
    """
    name, _, index = metric.partition("/dataloader_idx_")
    return f"{name}_{moment}" + (f"/{index}" if int(index or 0) else "")


def _short_names(metrics: Iterable[str]) -> dict[str, str]:
    """Return names of metrics without the stage, or the full names if two would become equal."""
    names = {}
    for metric in metrics:
        stage, _, rest = metric.partition("/")
        names[metric] = rest if rest and stage in _STAGES else metric
    return names if len({*names.values()}) == len(names) else {metric: metric for metric in names}


@contextmanager
def _recorded_peaks(module: nn.Module, peaks: dict[str, Tensor]) -> Iterator[None]:
    """Record the largest input current of each layer of `FirstSpike` neurons, by its name, within this context."""

    def record(name: str, current: Tensor) -> None:
        peak = current.detach().amax()
        peaks[name] = peak.maximum(peaks[name]) if name in peaks else peak

    with ExitStack() as stack:
        for name, neurons in first_spike_layers(module).items():
            hook = neurons.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[0]))
            stack.enter_context(hook)
        yield
