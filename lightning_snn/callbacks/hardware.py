"""Fine-tuning for hardware: training at full precision first, then under the limits of a chip.

Gradients stay exact but for rounding and clipping, which are straight-through. Spike times are those of networks of
time to first spike, after Stanojevic et al. 2024, arXiv 2306.08744; weights are those of any network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_snn.checks import check_between, check_integer, check_positive
from lightning_snn.functional.quantisation import (
    IntegerWeights,
    check_bits,
    check_percentile,
    integer_weights,
    quantise_weight,
)
from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.nn.ttfs import FirstSpike, SpikeEncoder, TimeWindow
from lightning_snn.nn.ttfs_windows import cascade


@dataclass(frozen=True)
class HardwareConstraints:
    """What a chip does to weights and spike times; the defaults do nothing.

    Weights are those of every linear and convolutional layer, each layer by itself; biases, that is thresholds, keep
    full precision. Times are those of `FirstSpike` neurons and, but for their slopes, of the `SpikeEncoder`. What is
    random is drawn anew with every batch: training meets many chips, and a measurement is the mean over some.

    Args:
        jitter: standard deviation of spike times, in units of the input window, at least 0.
        jitter_silent: whether silent neurons are jittered too, so that some of them spike; for comparison.
        time_bits: spike times are rounded to 2^time_bits instants of their window, 1 to 16; None leaves them
            continuous.
        weight_bits: weights are rounded to 2^weight_bits levels over their layer's range, 1 to 16; None leaves them
            continuous.
        weight_percentile: percentage of a layer's weights that make up its range, larger than 50 and at most 100; the
            others are clipped to it.
        latency_factor: what windows are divided by, at least 1. Spikes that would come before their window come as it
            begins.
        slope_mismatch: standard deviation of the slopes of membrane potentials around 1, from 0 to 1.
        weight_noise: standard deviation of weights, as a fraction of the layer's largest magnitude, at least 0.

    Raises:
        ValueError: if an argument is outside its range, or refines another that is not set.
    """

    jitter: float = 0.0
    jitter_silent: bool = False
    time_bits: int | None = None
    weight_bits: int | None = None
    weight_percentile: float = 100.0
    latency_factor: float = 1.0
    slope_mismatch: float = 0.0
    weight_noise: float = 0.0

    def __post_init__(self) -> None:
        _ = self.times  # which checks its part
        check_between("latency_factor", self.latency_factor, 1, float("inf"))
        check_between("weight_noise", self.weight_noise, 0, float("inf"))
        check_percentile("weight_percentile", self.weight_percentile)
        if self.weight_bits is not None:
            check_bits("weight_bits", self.weight_bits)
        elif self.weight_percentile != 100:
            raise ValueError("Expected argument `weight_bits` to be set where `weight_percentile` is, but got None")
        if self.jitter_silent and self.jitter == 0:
            raise ValueError("Expected argument `jitter` to be larger than 0 where `jitter_silent` is set, but got 0")

    @property
    def times(self) -> TimeConstraints:
        """The part that neurons of time to first spike apply themselves."""
        return TimeConstraints(self.jitter, self.jitter_silent, self.time_bits, self.slope_mismatch)

    @property
    def on_times(self) -> list[str]:
        """Names of the constraints on spike times that are set."""
        names, neutral = ("jitter", "time_bits", "latency_factor", "slope_mismatch"), HardwareConstraints
        return [name for name in names if getattr(self, name) != getattr(neutral, name)]

    @property
    def on_weights(self) -> list[str]:
        """Names of the constraints on weights that are set."""
        names, neutral = ("weight_bits", "weight_noise"), HardwareConstraints
        return [name for name in names if getattr(self, name) != getattr(neutral, name)]

    def weight(self, weight: Tensor) -> Tensor:
        """What a chip computes with instead of a layer's weights: they are quantised, then noisy."""
        if self.weight_bits is not None:
            weight = quantise_weight(weight, self.weight_bits, self.weight_percentile)
        if self.weight_noise > 0:
            weight = weight + self.weight_noise * weight.detach().abs().amax() * torch.randn_like(weight)
        return weight


class Constrained(ExitStack):
    """Constraints that act on a module from now until `close`, or within a ``with`` block.

    A layer's weight is the constrained one while its forward runs; else it is the plain parameter, so that optimisers,
    checkpoints, copies and averages of weights know of nothing. Neurons of time to first spike take
    ``overflow="clip"``, and their windows are frozen. Windows are not shortened: see `shorten_windows`.

    Args:
        module: any module.
        constraints: what acts on it.

    Attributes:
        never_called: names of the layers with constrained weights that were not called so far. Whoever reads their
            weights without a call reads the plain ones.

    Raises:
        ValueError: if the module has nothing that a constraint acts on, or layers that it cannot act on; names them.

    Example:
        >>> with Constrained(network, HardwareConstraints(weight_bits=4)), torch.no_grad():
        ...     logits = network(x)
    """

    def __init__(self, module: nn.Module, constraints: HardwareConstraints) -> None:
        super().__init__()
        layers = _weight_layers(module) if constraints.on_weights else {}
        windows = _windows(module, constraints)
        self.never_called = dict.fromkeys(layers)
        for name, layer in layers.items():
            hooks = _WeightHooks(name, constraints, self.never_called)
            self.enter_context(layer.register_forward_pre_hook(hooks.before))
            # a forward that raises leaves the plain weight, too
            self.enter_context(layer.register_forward_hook(hooks.after, always_call=True))
        for window in windows:
            if isinstance(window, FirstSpike):
                self._set(window, constraints=constraints.times, overflow="clip")
            else:
                # inputs have no potential whose slope could differ
                self._set(window, constraints=replace(constraints.times, slope_mismatch=0.0))
        for neurons in _first_spikes(module).values():
            self._set(neurons, adaptive=False)

    def _set(self, module: nn.Module, **values: Any) -> None:
        for name, value in values.items():
            self.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)


class _WeightHooks:
    """Shadow a layer's weight during its forward; methods, so that copies of the layer need nothing of this one."""

    def __init__(self, name: str, constraints: HardwareConstraints, never_called: dict[str, None]) -> None:
        self.name, self.constraints, self.never_called = name, constraints, never_called

    def before(self, layer: nn.Module, arguments: Any) -> None:
        self.never_called.pop(self.name, None)
        # an entry of the instance comes before the module's parameter of the same name
        layer.__dict__["weight"] = self.constraints.weight(layer.get_parameter("weight"))

    def after(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        layer.__dict__.pop("weight", None)


def shorten_windows(module: nn.Module, factor: float, peaks: dict[str, Tensor] | None = None) -> None:
    """Divide the windows of all neurons of time to first spike, for good.

    Args:
        module: holds `FirstSpike` neurons.
        factor: what windows are divided by, at least 1.
        peaks: by name, the largest drives, to which windows are set before they are divided; neurons that are not
            named, or never spike, keep theirs.

    Raises:
        ValueError: if `factor` is outside its range.
    """
    check_between("factor", factor, 1, float("inf"))
    for name, neurons in _first_spikes(module).items():
        peak = (peaks or {}).get(name, neurons.window)
        neurons.window.copy_(torch.where(peak > 0, peak, neurons.window) / factor)
    cascade(module)


def export_weights(module: nn.Module, constraints: HardwareConstraints) -> dict[str, IntegerWeights]:
    """The integers that a chip stores for every linear and convolutional layer, by the layer's name.

    Args:
        module: any module.
        constraints: with `weight_bits`, as in the fine-tuning.

    Returns:
        codes, scale and offset of each layer: ``weight = offset + scale * codes``. Biases stay as they are.

    Raises:
        ValueError: if `weight_bits` is not set, or the module has no such layer.

    Example:
        >>> integers = export_weights(module, HardwareConstraints(weight_bits=4))["network.0"]
    """
    if constraints.weight_bits is None:
        raise ValueError("Expected argument `constraints` to have weight_bits for an export, but got None")
    return {
        name: integer_weights(layer.get_parameter("weight"), constraints.weight_bits, constraints.weight_percentile)
        for name, layer in _weight_layers(module).items()
    }


class HardwareFineTuning(pl.Callback):
    """Trains at full precision, and from an epoch on under the constraints of hardware, with a lower learning rate.

    At the begin of epoch `start_epoch` it validates as the network is, sets windows to the largest drives that it saw
    and divides them by the latency factor, switches the constraints on, validates again, and lowers the learning rates.
    When training ends it validates a third time. These validations are extra: no callback and no logger sees them, and
    random numbers go on as if they had not been. Logged are, for the metric `val/accuracy`,
    `hardware/accuracy_unconstrained`, `hardware/accuracy_before` and `hardware/accuracy_after` fine-tuning, with a test
    once more; Lightning prints them in the end. From the switch on a `ModelCheckpoint` looks for the best epoch anew.

    Optimisers, checkpoints and averages of weights hold plain weights in full precision: constraints act within the
    forward of layers, in training, validation and tests of the trainer that has this callback, and are taken off when
    it is done. A checkpoint has the windows, and that they have been shortened. A `fast_dev_run` fine-tunes from
    epoch 0.

    It works on any LightningModule with linear or convolutional layers; constraints on times need `FirstSpike` neurons.
    Weights of recurrent, attention and Bayesian layers are not constrained.

    Args:
        constraints: what the hardware does.
        start_epoch: the first epoch under constraints, from 0.
        learning_rate_factor: what all learning rates are multiplied by, larger than 0; schedules go on from there.
        metric: what `validation_step` logs and is to be compared; None validates nothing, for modules without
            validation data.
        calibrate: set windows to the largest drives of the validation data before dividing them; they are much longer
            while they adapt. Needs a metric, and without one windows are divided as they are.

    Attributes:
        results: by logged name, the values of the metric so far.

    Raises:
        ValueError: if an argument is outside its range; when the fit starts, if constraints have nothing to act on, if
            `start_epoch` is beyond the run or there is no validation; after the first validation, if `metric` is not
            logged.

    Example:
        >>> hardware = HardwareFineTuning(HardwareConstraints(weight_bits=4), start_epoch=10)
        >>> Trainer(max_epochs=12, callbacks=[hardware]).fit(module, data)
    """

    def __init__(
        self,
        constraints: HardwareConstraints,
        start_epoch: int,
        learning_rate_factor: float = 0.1,
        metric: str | None = "val/accuracy",
        calibrate: bool = True,
    ) -> None:
        if not isinstance(constraints, HardwareConstraints):
            raise ValueError(f"Expected argument `constraints` to be HardwareConstraints, but got {constraints!r}")
        check_integer("start_epoch", start_epoch, 0)
        check_positive("learning_rate_factor", learning_rate_factor)
        self.constraints, self.start_epoch = constraints, start_epoch
        self.learning_rate_factor = learning_rate_factor
        self.metric, self.calibrate = metric, calibrate
        self.results: dict[str, float] = {}
        self.switched = False
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
        if not dev_run and trainer.max_epochs is not None and 0 <= trainer.max_epochs <= self.start_epoch:
            raise ValueError(
                f"Expected argument `start_epoch` to be smaller than the trainer's max_epochs = {trainer.max_epochs}, "
                f"but got {self.start_epoch}"
            )
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
        if self.metric is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            _value(trainer, self.metric)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = trainer.fast_dev_run or trainer.current_epoch >= self.start_epoch  # type: ignore[attr-defined]
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
        _scale_learning_rates(trainer, self.learning_rate_factor)
        _forget_best(trainer)

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
                f"Training ended before epoch {self.start_epoch}, so that nothing was fine-tuned for hardware",
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
        name = f"hardware/{self.metric.rpartition('/')[2]}_{moment}"
        value = _validate(trainer, self.metric)
        self.results[name] = value.item()
        trainer.callback_metrics[name] = value
        for logger in trainer.loggers:
            logger.log_metrics({name: self.results[name]}, step=trainer.global_step)


def _validate(trainer: pl.Trainer, metric: str) -> Tensor:
    """A metric of the validation data, within a fit; callbacks, loggers and random numbers notice nothing."""
    loop, stage = trainer.fit_loop.epoch_loop.val_loop, trainer.state.stage
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    known = [(values, dict(values)) for values in _logged(trainer)]
    try:
        trainer.callbacks, trainer.loggers = [], []  # type: ignore[attr-defined]
        trainer.validating = True
        trainer.callback_metrics.clear()
        with isolate_rng():
            # the same noise whenever a network is measured
            torch.manual_seed(0)
            loop.run()
        # where a module logs without `sync_dist` every process has its own
        return trainer.strategy.reduce(_value(trainer, metric).clone(), reduce_op="mean")
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        trainer.state.stage = stage
        for values, before in known:
            values.clear()
            values.update(before)


def _forget_best(trainer: pl.Trainer) -> None:
    """Let checkpoints of the best epoch begin anew: under constraints scores are those of another network."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.kth_value = None  # type: ignore[assignment]


def _logged(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics]


def _value(trainer: pl.Trainer, metric: str) -> Tensor:
    if metric not in trainer.callback_metrics:
        found = ", ".join(trainer.callback_metrics) or "nothing"
        raise ValueError(f"Expected argument `metric` to be what validation logs, which is {found}, but got {metric!r}")
    return trainer.callback_metrics[metric]


@contextmanager
def _recorded_peaks(module: nn.Module, peaks: dict[str, Tensor]) -> Iterator[None]:
    """Keep the largest drive of all `FirstSpike` neurons by their names while this lasts."""

    def record(name: str, drive: Tensor) -> None:
        peak = drive.detach().amax()
        peaks[name] = peak.maximum(peaks[name]) if name in peaks else peak

    with ExitStack() as stack:
        for name, neurons in _first_spikes(module).items():
            hook = neurons.register_forward_pre_hook(lambda _, drives, name=name: record(name, drives[0]))
            stack.enter_context(hook)
        yield


def _scale_learning_rates(trainer: pl.Trainer, factor: float) -> None:
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if name in group:
                    group[name] = group[name] * factor
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    while schedulers:
        scheduler = schedulers.pop()
        for name in ("base_lrs", "max_lrs"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
        # those that chain others
        schedulers += getattr(scheduler, "_schedulers", [])


def _first_spikes(module: nn.Module) -> dict[str, FirstSpike]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, FirstSpike)}


def _weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolutional layers by name."""
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, _ConvNd))
    }
    if not layers:
        raise ValueError(
            f"Expected {type(module).__name__} to have linear or convolutional layers for constraints on weights, but "
            "got none"
        )
    computed = [name for name, layer in layers.items() if "weight" not in layer._parameters]
    if computed:
        raise ValueError(
            "Expected the weights of linear and convolutional layers to be parameters, but got some that are computed "
            f"from others (parametrised): {', '.join(computed)}"
        )
    return layers


def _windows(module: nn.Module, constraints: HardwareConstraints) -> list[TimeWindow]:
    """Layers that constraints on times act on; without such constraints there are none."""
    if not constraints.on_times:
        return []
    windows = {name: layer for name, layer in module.named_modules() if isinstance(layer, TimeWindow)}
    if not _first_spikes(module):
        raise ValueError(
            f"Expected {type(module).__name__} to have FirstSpike neurons for {', '.join(constraints.on_times)}, but "
            "got none"
        )
    others = [name for name, layer in windows.items() if not isinstance(layer, (FirstSpike, SpikeEncoder))]
    if others:
        raise ValueError(
            f"Expected spiking layers of unit slope for {', '.join(constraints.on_times)}, but got {', '.join(others)}"
        )
    return list(windows.values())
