"""The callback: training at full precision first, then under the limits of a chip."""

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
from lightning_snn.callbacks.hardware.training import forget_best, scale_learning_rates, validate, values
from lightning_snn.callbacks.tracking import log_scalars
from lightning_snn.checks import check_integer, check_positive
from lightning_snn.methods.ttfs.layers import first_spike_layers

_STAGES = ("val", "valid", "validation")


class HardwareFineTuning(pl.Callback):
    """Trains at full precision, and from an epoch on under the constraints of hardware, with a lower learning rate.

    At the begin of epoch `start_epoch` it validates as the network is, sets windows to the largest drives that it saw
    and divides them by the latency factor, switches the constraints on, validates again, and lowers the learning rates.
    When training ends it validates a third time. These validations are extra: no callback and no logger sees them, and
    random numbers go on as if they had not been. Logged are, for a metric `val/accuracy`,
    `hardware/accuracy_unconstrained`, `hardware/accuracy_before` and `hardware/accuracy_after` fine-tuning, with a test
    once more; they are printed in the end. Of other names only a first part `val`, `valid` or `validation` is left out,
    and not even that where two metrics would become one. From the switch on `ModelCheckpoint` and `EarlyStopping` look
    for the best epoch anew.

    Optimizers, checkpoints and averages of weights hold plain weights in full precision: constraints act within the
    forward of layers, in training, validation and tests of the trainer that has this callback, and are taken off when
    it is done. A checkpoint has the windows, and that they have been shortened. A `fast_dev_run` fine-tunes from
    epoch 0.

    It works on any LightningModule with linear or convolutional layers; constraints on times need `FirstSpike` neurons.
    Weights of recurrent, attention and Bayesian layers are not constrained.

    Args:
        constraints: what the hardware does; None is weights of 8 bits.
        start_epoch: the first epoch under constraints, from 0; None takes the last fifth of the trainer's epochs, at
            least one.
        learning_rate_factor: what all learning rates are multiplied by, larger than 0; schedules go on from there.
        metric: what is to be compared of what validation logs, "all" or a name; None validates nothing, for modules
            without validation data.
        calibrate: set windows to the largest drives of the validation data before dividing them; they are much longer
            while they adapt. Needs a metric, and without one windows are divided as they are.

    Attributes:
        results: by logged name, the values of metrics so far.

    Raises:
        ValueError: if an argument is outside its range; when the fit starts, if constraints have nothing to act on, if
            `start_epoch` is beyond the run, or None where the run has no number of epochs, or if there is no
            validation; after the first validation, if `metric` is not logged.

    Example:
        >>> hardware = HardwareFineTuning(HardwareConstraints(weight_bits=4), start_epoch=10)
        >>> Trainer(max_epochs=12, callbacks=[hardware]).fit(module, data)
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
        self._acting: Constrained | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "switched": self.switched,
            "latency_factor": self.constraints.latency_factor,
            "results": dict(self.results),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.switched = state_dict["switched"]
        # a checkpoint of the last epoch is older than the last validation
        self.results.update(state_dict["results"])
        if self.switched and state_dict["latency_factor"] != self.constraints.latency_factor:
            raise ValueError(
                "Expected argument `latency_factor` to be that of the checkpoint, whose windows are divided by "
                f"{state_dict['latency_factor']:g}, but got {self.constraints.latency_factor:g}"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not in `setup`, which comes before `configure_model`; refuses what has nothing to act on
        Constrained(pl_module, self.constraints).close()
        dev_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not dev_run:
            self._first_epoch = self._chosen_epoch(trainer.max_epochs)
        if self.metric is not None and not trainer.enable_validation:
            raise ValueError(
                f"Expected argument `metric` to be None for a run without validation, but got {self.metric!r}"
            )
        self._act(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._act(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._act(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._act(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._act(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # said after one epoch rather than at the switch
        if self.metric not in (None, "all") and trainer.state.fn == "fit" and not trainer.sanity_checking:
            values(trainer, self.metric)

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
        self._act(pl_module)
        self._measure(trainer, "before")
        scale_learning_rates(trainer, self.learning_rate_factor)
        forget_best(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._acting is None or self._warned:
            return
        self._warned = True
        if self._acting.never_called:
            warnings.warn(
                "The weights of these layers are not constrained, because training does not call them as layers: "
                f"{', '.join(self._acting.never_called)}",
                stacklevel=2,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.switched:
            warnings.warn(
                f"Training ended before epoch {self._first_epoch}, so that nothing was fine-tuned for hardware",
                stacklevel=2,
            )
            return
        self._measure(trainer, "after")
        if self.results:
            # lines of their own, below the progress bar
            rank_zero_info("\n" + "\n".join(f"{name:<36} {value:.4f}" for name, value in self.results.items()))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # for reports
        pl_module.log_dict(self.results, sync_dist=trainer.world_size > 1)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._rest()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._rest()

    def _chosen_epoch(self, max_epochs: int | None) -> int:
        if max_epochs is None or max_epochs < 0:
            if self.start_epoch is None:
                raise ValueError("Expected argument `start_epoch` for a run without max_epochs, but got None")
            return self.start_epoch
        chosen = max_epochs - max(1, max_epochs // 5) if self.start_epoch is None else self.start_epoch
        if chosen >= max_epochs:
            raise ValueError(
                f"Expected argument `start_epoch` to be smaller than the trainer's max_epochs = {max_epochs}, "
                f"but got {chosen}"
            )
        return chosen

    def _act(self, pl_module: pl.LightningModule) -> None:
        if self.switched and self._acting is None:
            self._acting = Constrained(pl_module, self.constraints)

    def _rest(self) -> None:
        if self._acting is not None:
            self._acting.close()
        self._acting = None

    def _measure(self, trainer: pl.Trainer, moment: str) -> None:
        if self.metric is None:
            return
        found = validate(trainer, self.metric)
        names = _short_names(found)
        measured = {f"hardware/{names[metric]}_{moment}": value for metric, value in found.items()}
        self.results.update(log_scalars(trainer, measured))


def _short_names(metrics: Iterable[str]) -> dict[str, str]:
    """Names of metrics without the stage; whole where two would become one."""
    names = {}
    for metric in metrics:
        stage, _, rest = metric.partition("/")
        names[metric] = rest if rest and stage in _STAGES else metric
    return names if len({*names.values()}) == len(names) else {metric: metric for metric in names}


@contextmanager
def _recorded_peaks(module: nn.Module, peaks: dict[str, Tensor]) -> Iterator[None]:
    """Keep the largest drive of all `FirstSpike` neurons by their names while this lasts."""

    def record(name: str, drive: Tensor) -> None:
        peak = drive.detach().amax()
        peaks[name] = peak.maximum(peaks[name]) if name in peaks else peak

    with ExitStack() as stack:
        for name, neurons in first_spike_layers(module).items():
            hook = neurons.register_forward_pre_hook(lambda _, drives, name=name: record(name, drives[0]))
            stack.enter_context(hook)
        yield
