"""Synaptic operations per sample of a spiking network, compared with the dense network of the same connections."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.stages import SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, log_table, log_text, may_write
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.energy import ENERGY_CONSTANTS, EnergyConstants
from lightning_snn.metrics.activity import Activity, record_activity

ConstantsName = Literal["horowitz_float32", "horowitz_int32", "loihi"]

_COUNTED = ("effective_acs", "effective_macs", "dense", "ann_macs", "spikes")
_QUANTITIES = (*_COUNTED[:-1], "ratio", "spikes")


class EnergyMonitor(SpikingStages):
    """Logger of the synaptic operations per sample of a spiking network, with a figure and a table after a test.

    Logged after each epoch, validation, and test, per sample and over all processes, as `energy/STAGE/QUANTITY` for the
    whole network and as `energy/STAGE/QUANTITY/LAYER`, with STAGE `train`, `val`, or `test`:

    - `effective_acs` and `effective_macs`: effective synaptic operations by NeuroBench's definitions, see
      `metrics.activity`, for inputs that are spikes (accumulates) and others (multiply-accumulates), over all time
      steps;
    - `dense`: the operations if no input and no weight were zero;
    - `ann_macs`: multiply-accumulates of one dense pass, as in an artificial network with the same connections. A layer
      that is used in several places with shared weights counts once;
    - `ratio`: effective operations of both kinds divided by `ann_macs`. Below 1 the spiking network does less;
    - `spikes`;
    - for the whole network, if `constants` are given, `joules` of the effective operations and `joules_ann` of one
      dense pass.

    Joules contain no more information than the operations they are computed from. Every set of constants has a caveat,
    which is printed once, sent to the loggers as `report/energy_caveat`, and shown below the figure. In training,
    dropout scales spikes, so they count as multiply-accumulates; use `val` and `test` for the cost of a network.

    The end of a test writes `energy_test.png` and `energy_test.csv`, with one entry per layer. Modules that multiply
    tensors themselves, as the spikes of attention by each other, have an entry too; NeuroBench does not count these
    products. Layers with weights whose operations are not counted, and modules with products that cannot be counted,
    such as `scaled_dot_product_attention`, are named once in a warning. Products in a compiled network are not seen. If
    a prediction runs its network several times, for
    example with K noisy samples, all runs count.

    It works on any LightningModule with spiking layers that `nn.registry` knows.

    Args:
        batches: number of batches of each validation and test loader to measure, from the first, at least 1.
        every_n_batches: measure the first training batch of an epoch and then every n-th; 0 measures none.
        constants: name of a set in `functional.energy`, or your own; None logs no joules.
        samples: function from a batch to its number of samples. None infers the number from the calls of spiking layers
            and from the first two dimensions of the tensors of a batch, one of which they share. It is needed if a
            network runs several times over inputs without time and no other tensor of the batch has the number.
        folder: output folder; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        name: first part of all keys and files; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is out of range; at the start of a fit, validation, or test, if the module has no
            spiking layers.

    Example:
        >>> monitor = EnergyMonitor(batches=4, constants="horowitz_float32")
        >>> trainer = pl.Trainer(callbacks=[monitor], logger=False)
    """

    def __init__(
        self,
        batches: int = 2,
        every_n_batches: int = 100,
        constants: ConstantsName | EnergyConstants | None = None,
        samples: Callable[[Any], int] | None = None,
        folder: str | os.PathLike[str] | None = None,
        name: str = "energy",
    ) -> None:
        super().__init__()
        check_integer("batches", batches)
        check_integer("every_n_batches", every_n_batches, 0)
        if not isinstance(constants, EnergyConstants):
            check_choice("constants", constants, (None, *ENERGY_CONSTANTS))
            constants = None if constants is None else ENERGY_CONSTANTS[constants]
        self.batches, self.every_n_batches = batches, every_n_batches
        self.constants: EnergyConstants | None = constants
        self.samples = samples
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self._activities: dict[Stage, Activity] = {}
        self._tested: dict[str, dict[str, float]] = {}
        self._caveat_logged = False
        self._uncounted: set[str] = set()

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().begin_run(trainer, pl_module)
        if self.constants is not None and not self._caveat_logged:
            self._caveat_logged = True
            caveat = f"Joules of {type(self).__name__} are based on {_caveat(self.constants)}"
            rank_zero_info(caveat)
            log_text(trainer, f"{self.name}_caveat", caveat)

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._activities[stage] = Activity()

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if stage == "train":
            is_due = self.every_n_batches > 0 and batch_idx % self.every_n_batches == 0
        else:
            is_due = batch_idx < self.batches
        if not is_due:
            return
        # a run that resumes within an epoch does not begin it
        activity = self._activities.setdefault(stage, Activity())
        before = activity.samples

        def finish() -> None:
            run_samples = activity.samples - before
            number = _samples(batch, run_samples, activity.steps) if self.samples is None else self.samples(batch)
            activity.samples = before + number
            self._warn_uncounted(activity.uncounted)

        self.recording.callback(finish)
        self.recording.enter_context(record_activity(pl_module, activity))

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "train" and not self.every_n_batches:
            return
        found = self._log(trainer, pl_module, stage)
        if stage == "test":
            self._tested = found

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage != "test":
            return
        layers = {name: values for name, values in self._tested.items() if name and values.get("dense")}
        if not layers or not may_write(trainer):
            return
        name = f"{self.name}_test"
        log_figure(trainer, name, figures.synaptic_operations(layers, self._note()), self.folder)
        rows = [[layer or "all", *map(values.get, _QUANTITIES)] for layer, values in self._tested.items()]
        log_table(trainer, name, ("layer", *_QUANTITIES), rows, self.folder)

    def _warn_uncounted(self, uncounted: list[str]) -> None:
        if not self._uncounted.issuperset(uncounted):
            self._uncounted.update(uncounted)
            rank_zero_warn(
                f"{type(self).__name__} does not count the synaptic operations of {', '.join(uncounted)}. Its totals "
                "are those of the other layers."
            )

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> dict[str, dict[str, float]]:
        """Log all quantities and return them by layer, those of the whole network under the empty name."""
        found = self._quantities(trainer, pl_module, self._activities.pop(stage, Activity()))
        values = {
            f"{self.name}/{stage}/{quantity}" + (f"/{layer}" if layer else ""): value
            for layer, quantities in found.items()
            for quantity, value in quantities.items()
            if not math.isnan(value)
        }
        # the values are already those of all processes
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1)
        return found

    def _quantities(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, activity: Activity
    ) -> dict[str, dict[str, float]]:
        # all layers, also those that did not run, so that all processes reduce the same table
        layers = [name or type(module).__name__ for name, module in pl_module.named_modules()]
        counts = torch.zeros(len(layers) + 1, 6, dtype=torch.long, device=pl_module.device)
        for row, name in zip(counts, layers, strict=False):
            if name in activity.dense:
                row[0] = activity.accumulates[name]
                row[1] = activity.operations[name] - activity.accumulates[name]
                row[2], row[3] = activity.dense[name], activity.rows[name]
            if name in activity.spikes:
                row[4], row[5] = activity.spikes[name], activity.neuron_steps[name]
        counts[-1, 0] = activity.samples
        *table, (samples, *_) = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        if not samples:
            return {}
        found: dict[str, dict[str, float]] = {}
        for name, (accumulates, macs, dense, rows, spikes, neuron_steps) in zip(layers, table, strict=True):
            if rows:
                found[name] = _operations(accumulates / samples, macs / samples, dense / samples, dense / rows)
            if neuron_steps:
                found.setdefault(name, {})["spikes"] = spikes / samples
        totals = [sum(layer.get(quantity, 0) for layer in found.values()) for quantity in _COUNTED]
        whole = _operations(*totals[:-1]) | {"spikes": totals[-1]}
        if self.constants is not None:
            whole["joules"] = self.constants.joules(whole["effective_acs"], whole["effective_macs"])
            whole["joules_ann"] = self.constants.joules(0, whole["ann_macs"])
        return {"": whole, **found}

    def _note(self) -> str:
        if self.constants is None:
            return ""
        whole, joules = self._tested[""], {}
        for key in ("joules", "joules_ann"):
            joules[key] = "unknown" if math.isnan(whole[key]) else f"{whole[key]:.3g} J"
        caveat = _caveat(self.constants)
        return f"Per sample: {joules['joules']}; one dense pass: {joules['joules_ann']}. Based on {caveat}"


def _operations(accumulates: float, macs: float, dense: float, ann: float) -> dict[str, float]:
    ratio = (accumulates + macs) / ann if ann else math.nan
    return {"effective_acs": accumulates, "effective_macs": macs, "dense": dense, "ann_macs": ann, "ratio": ratio}


def _caveat(constants: EnergyConstants) -> str:
    return f"{constants.name} ({constants.source}): {constants.caveat}"


def _samples(batch: Any, run_samples: int, steps: int) -> int:
    """Infer the number of samples of a batch.

    Args:
        batch: the batch.
        run_samples: samples of all runs of the network, perhaps a multiple of the number.
        steps: length of the sequences that ran, 0 if it is not known.
    """
    shapes: list[set[int]] = []
    apply_to_collection(batch, Tensor, lambda tensor: shapes.append(set(tensor.shape[:2])))
    shared = set.intersection(*filter(None, shapes)) if any(shapes) else set()
    shared = shared - {steps} or shared
    if run_samples in shared:
        return run_samples
    fitting = [size for size in (shared - {1} or shared) if run_samples % size == 0]
    return fitting[0] if len(fitting) == 1 else run_samples
