"""Callback that checks a network's initialization on the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import Run, check_training_step, training_run
from lightning_snn.callbacks.initialization.findings import STRONGER, WEAKER, Finding, findings_table, overall
from lightning_snn.callbacks.initialization.measurement import check_layers, folded_loss, measure_initialization
from lightning_snn.callbacks.initialization.rescaling import XI, Rescaling, rescale, rescalings_table
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.callbacks.initialization.trial import TRIAL_STEPS, Trial, needs_trial, try_training, with_trial
from lightning_snn.callbacks.modules import first_samples, method_of, network_of, read_batch, task_loss
from lightning_snn.callbacks.tracking import log_text
from lightning_snn.checks import check_choice, check_integer, check_positive
from lightning_snn.methods.tasks import Loss
from lightning_snn.nn.observation import named_spiking_layers
from lightning_snn.nn.registry import remedy_for_missing_layers


class InitializationCheck(pl.Callback):
    """Check that activity and gradients pass through the network, on the first batch of a fit.

    It measures the quantities of `measure_initialization` before the first step, on copies, in training mode and in the
    precision of the parameters, so training is bit-identical with and without this callback. It prints a table with
    verdicts, reasons, and remedies at once, and logs `initialization/QUANTITY/LAYER`, one record at the end of the
    first epoch. A fit that resumes from a checkpoint is not measured. With several processes, each measures its own
    part of the first batch; the mean is logged, the table of the first process is printed, and a failure in one process
    is a failure of all.

    It works on any LightningModule with spiking layers or ReLUs. The loss is the first of these that is available:
    `loss`; the loss of the task of the module's `method`, which a `SpikingModule` has; the module's own
    `training_step`, run on a copy with the whole first batch and without its logging. The first two run a network alone
    on `samples` samples; it maps `[T*B, ...]` to one tensor `[T*B, ...]`. Setting `network` or `read_batch` selects
    this too, with the cross-entropy of the mean over time. A network without time takes a batch of one time step.

    If a quantity fails, or a layer is entirely silent, a trial decides: 60 steps of Adam on the first batch, on copies
    (`try_training`). If the loss falls by a tenth, failures are warnings, because networks with silent layers may learn
    all the same; otherwise silent outputs fail too. With `thresholds` of your own, these alone decide.

    With ``on_fail="rescale"``, such a quantity rescales the weights by `rescale`, a fluctuation-driven initialization,
    in place and equally in all processes. A second trial decides whether that helps: if the loss does not end lower (by
    a fifth, if the network learns without it), the weights are restored to the last bit, with a warning. Otherwise all
    is measured, printed, and logged again, as `initialization_rescaled/QUANTITY/LAYER`, and remaining failures are a
    warning. If nothing is to be rescaled, this is printed.

    Args:
        on_fail: response to a verdict "fail": "warn", "raise", or "rescale".
        network: name of the network within the module, such as "model.network", to run it alone; None is "network" if
            the network is run alone.
        loss: function from outputs `[T, B, ...]` and targets to a scalar.
        read_batch: function from a batch to ``(x [T, B, ...], y [B, ...])``; None expects batches that are such pairs.
        samples: number of samples of the batch, from the first, for a network that is run alone.
        thresholds: limits of the verdicts; None uses the defaults.
        xi: for "rescale", distance of the threshold from the mean membrane potential in standard deviations, larger
            than 0.
        name: first part of all keys.

    Attributes:
        findings: findings of the first batch.
        rescalings: result of the rescaling for each spiking layer; empty without a rescaling.
        rescaled_findings: findings after the rescaling; empty if it was undone.

    Raises:
        ValueError: if an argument is out of range; at the start of a fit, if the module has no such network, has no
            layers to measure or rescale, or uses manual optimization without a `loss`; in the first batch, if its form
            does not fit `network`, or if the module cannot be copied.
        RuntimeError: in the first batch, if ``on_fail="raise"`` and a verdict is "fail"; the message names it.

    Example:
        >>> trainer = pl.Trainer(callbacks=[InitializationCheck(on_fail="rescale", xi=2.0)], logger=False)
    """

    def __init__(
        self,
        on_fail: Literal["warn", "raise", "rescale"] = "warn",
        network: str | None = None,
        loss: Loss | None = None,
        read_batch: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        samples: int = 16,
        thresholds: Thresholds | None = None,
        xi: float = XI,
        name: str = "initialization",
    ) -> None:
        check_choice("on_fail", on_fail, ("warn", "raise", "rescale"))
        check_integer("samples", samples)
        check_positive("xi", xi)
        self.on_fail, self.network, self.loss = on_fail, network, loss
        self.read_batch, self.samples, self.thresholds = read_batch, samples, thresholds
        self.xi, self.name = xi, name
        self.findings: list[Finding] = []
        self.rescalings: list[Rescaling] = []
        self.rescaled_findings: list[Finding] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.findings, self.rescalings, self.rescaled_findings = [], [], []
        if not self._runs_network(pl_module):
            check_training_step(pl_module, self)
        measured = self._measured_module(pl_module)
        check_layers(measured)
        if self.on_fail == "rescale" and not named_spiking_layers(measured):
            raise ValueError(
                "Expected a module with spiking layers for InitializationCheck(on_fail='rescale'), but got "
                f"{type(measured).__name__}, which has only ReLUs. {remedy_for_missing_layers(measured)}"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches precede the first step
        if trainer.global_step > 0 or self.findings:
            return
        module, run = self._measured_module(pl_module), self._run(trainer, pl_module, batch)
        self.findings = measure_initialization(module, run, self.thresholds)
        trial = self._trial(trainer, module, run, needs_trial(self.findings))
        if self.thresholds is None and trial is not None:
            self.findings = with_trial(self.findings, trial)
        self._report(trainer, pl_module, self.findings, self.name)
        message = self._failure(trainer, self.findings, "from its initialization")
        if self.on_fail == "raise" and message is not None:
            raise RuntimeError(message)
        if self.on_fail == "warn" and message is not None:
            rank_zero_warn(message)
        if self.on_fail == "rescale":
            if trial is None:
                if trainer.is_global_zero:
                    print("No verdict is 'fail', so the weights were not rescaled.")
            else:
                self._rescale(trainer, pl_module, module, run, trial)

    def _trial(self, trainer: pl.Trainer, module: nn.Module, run: Run, needed: bool) -> Trial | None:
        """Return a trial training if any process needs it, with the mean losses of all."""
        if not trainer.strategy.reduce_boolean_decision(needed, all=False):
            return None
        return try_training(module, run, reduce=lambda losses: trainer.strategy.reduce(losses, reduce_op="mean"))

    def _rescale(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, module: nn.Module, run: Run, before: Trial
    ) -> None:
        """Rescale the weights, measure again, and restore them if a trial does not gain from it."""
        weights = {parameter: parameter.detach().clone() for parameter in module.parameters()}
        found = rescale(module, run, self.xi, lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))
        after = self._trial(trainer, module, run, True)
        assert after is not None
        problem = ""
        if all(each.reason for each in found):
            problem = "no layer can be rescaled: " + "; ".join(f"{each.layer}: {each.reason}" for each in found)
        else:
            if not after.gains_over(before):
                problem = (
                    f"the rescaling was undone, because {TRIAL_STEPS} steps on the first batch lead to a loss of "
                    f"{after.last:.4g} with it and {before.last:.4g} without it"
                )
                with torch.no_grad():
                    for parameter, values in weights.items():
                        parameter.copy_(values)
                found = [
                    each if each.reason else each._replace(factor=1.0, shift=0.0, reason="undone") for each in found
                ]
        self.rescalings = found
        if trainer.is_global_zero:
            print(f"\n{rescalings_table(found)}")
        if problem:
            rank_zero_warn(f"InitializationCheck left the weights as they were: {problem}.")
            return
        self.rescaled_findings = measure_initialization(module, run, self.thresholds)
        if self.thresholds is None:
            self.rescaled_findings = with_trial(self.rescaled_findings, after)
        self._report(trainer, pl_module, self.rescaled_findings, f"{self.name}_rescaled")
        message = self._failure(trainer, self.rescaled_findings, "after rescaling")
        if message is not None:
            rank_zero_warn(message)

    def _runs_network(self, pl_module: pl.LightningModule) -> bool:
        """Return whether the network is run alone, and not by the module's training step."""
        chosen = (self.network, self.loss, self.read_batch, method_of(pl_module))
        return any(each is not None for each in chosen)

    def _measured_module(self, pl_module: pl.LightningModule) -> nn.Module:
        return network_of(pl_module, self.network or "network") if self._runs_network(pl_module) else pl_module

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Run:
        if not self._runs_network(pl_module):
            return training_run(trainer, pl_module, batch, self)
        x, y = first_samples(*read_batch(batch, self.read_batch, type(self).__name__), self.samples)
        return folded_loss((x, y), self.loss or task_loss(pl_module, x))

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, findings: list[Finding], name: str) -> None:
        values = {f"{name}/{each.quantity}/{each.layer}": each.value for each in findings}
        # one record for this batch, and not one for each step of the epoch
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, batch_size=1)
        table = findings_table(findings)
        log_text(trainer, name, table)
        if trainer.is_global_zero:
            print(f"\n{table}")  # starts a new line after the progress bar

    def _failure(self, trainer: pl.Trainer, findings: list[Finding], when: str) -> str | None:
        """Return a message about the failures; None if no process has any."""
        failed = overall(findings) == "fail"
        if not trainer.strategy.reduce_boolean_decision(failed, all=False):
            return None
        found = [each for each in findings if each.verdict == "fail"]
        reasons = "; ".join(map(str, found)) or "a verdict of another process is 'fail'"
        remedies = [*dict.fromkeys(each.remedy for each in found)]
        rescalable = {each.layer for each in findings if each.quantity == "membrane_mean"}
        if self.on_fail != "rescale" and any(
            each.layer in rescalable and each.remedy in (WEAKER, STRONGER) for each in found
        ):
            remedies.append("use on_fail='rescale'")
        return f"The network is not expected to train well {when}: {reasons}." + (
            f" Possible remedies: {'; '.join(remedies)}." if remedies else ""
        )
