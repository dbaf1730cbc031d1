"""Whether a network can be trained as it was initialized, said with the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import Run, check_training_step, training_run
from lightning_snn.callbacks.initialization.findings import STRONGER, WEAKER, Finding, findings_table, overall
from lightning_snn.callbacks.initialization.measurement import check_layers, folded_loss, measure_initialization
from lightning_snn.callbacks.initialization.rescaling import XI, Rescaling, rescale, rescalings_table
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.callbacks.modules import network_of, read_batch, task_loss
from lightning_snn.callbacks.tracking import log_text
from lightning_snn.checks import check_choice, check_integer, check_positive
from lightning_snn.methods.task import Loss
from lightning_snn.nn.observation import named_spiking_layers


class InitializationCheck(pl.Callback):
    """Says with the first batch of a fit whether activity and gradients go through the network, and what helps if not.

    Measured is what `measure_initialization` finds, before the first step and on copies, in the precision of the
    parameters: training goes on to the last bit as it would without this callback. It is printed at once as a table
    with verdicts, reasons and remedies, and logged as `initialization/QUANTITY/LAYER`, one record at the end of the
    first epoch. A fit that resumes from a checkpoint is not measured. Of several processes each measures its own part
    of the first batch; what is logged is the mean, what is printed that of the first, and a failure in one is a failure
    of all.

    It works on any LightningModule with spiking layers or rectifiers. The loss is, in this order: `loss`; that of the
    task of the module's `method`, as a `SpikingModule` has one; the module's own `training_step`, run on a copy with
    the whole first batch, the logging left out. The first two take a network that maps `[T*B, ...]` to one tensor
    `[T*B, ...]`, run by itself on `samples` samples; naming `network` or giving `read_batch` chooses that too, with the
    cross-entropy of the mean over time. A network without time takes a batch of one time step.

    With ``on_fail="rescale"`` a failure has the weights rescaled, in place and alike in all processes, by `rescale`, a
    fluctuation-driven initialization. Then all is measured, printed and logged once more, as
    `initialization_rescaled/QUANTITY/LAYER`, and what fails still is a warning.

    Args:
        on_fail: what a verdict "fail" brings: "warn", "raise" or "rescale".
        network: name of the network within the module, dots and all, to run by itself; None is "network" where it has
            to be run by itself.
        loss: from outputs `[T, B, ...]` and targets to a scalar.
        read_batch: from a batch to ``(x [T, B, ...], y [B, ...])``; None takes batches that are just that.
        samples: how many samples of the batch to use for a network by itself, from the first.
        thresholds: when it passes; None are the defaults.
        xi: for "rescale", distance of the threshold from the mean membrane in standard deviations, larger than 0.
        name: first part of all keys.

    Attributes:
        findings: what was found.
        rescalings: what became of each spiking layer; empty without a rescaling.
        rescaled_findings: what was found after that.

    Raises:
        ValueError: if an argument is outside its range; when the fit starts, if the module has no such network, no
            layers to measure or rescale, or optimizes by hand without a `loss`; with the first batch, if it has another
            form than `network` needs, or the module cannot be copied.
        RuntimeError: with the first batch, for ``on_fail="raise"``, naming what failed.

    Example:
        >>> trainer = Trainer(callbacks=[InitializationCheck(on_fail="rescale")])
        >>> trainer.fit(module, data)
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
        if not self._by_itself(pl_module):
            check_training_step(pl_module, self)
        measured = self._measured(pl_module)
        check_layers(measured)
        if self.on_fail == "rescale" and not named_spiking_layers(measured):
            raise ValueError(
                "Expected a module with spiking layers for InitializationCheck(on_fail='rescale'), but got "
                f"{type(measured).__name__}, which has rectifiers only"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches come before the first step
        if trainer.global_step > 0 or self.findings:
            return
        module, run = self._measured(pl_module), self._run(trainer, pl_module, batch)
        self.findings = measure_initialization(module, run, self.thresholds)
        self._tell(trainer, pl_module, self.findings, self.name)
        message = self._failure(trainer, self.findings, "from its initialization")
        if message is None:
            return
        if self.on_fail == "raise":
            raise RuntimeError(message)
        if self.on_fail == "warn":
            rank_zero_warn(message)
            return
        self.rescalings = rescale(module, run, self.xi, lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))
        if trainer.is_global_zero:
            print(f"\n{rescalings_table(self.rescalings)}")
        self.rescaled_findings = measure_initialization(module, run, self.thresholds)
        self._tell(trainer, pl_module, self.rescaled_findings, f"{self.name}_rescaled")
        message = self._failure(trainer, self.rescaled_findings, "although it was rescaled")
        if message is not None:
            rank_zero_warn(message)

    def _by_itself(self, pl_module: pl.LightningModule) -> bool:
        """Whether a network is run by itself, and not by the module's training step."""
        chosen = (self.network, self.loss, self.read_batch, task_loss(pl_module))
        return any(each is not None for each in chosen)

    def _measured(self, pl_module: pl.LightningModule) -> nn.Module:
        return network_of(pl_module, self.network or "network") if self._by_itself(pl_module) else pl_module

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Run:
        if not self._by_itself(pl_module):
            return training_run(trainer, pl_module, batch, self)
        x, y = read_batch(batch, self.read_batch, type(self).__name__)
        return folded_loss((x[:, : self.samples], y[: self.samples]), self.loss or task_loss(pl_module))

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule, findings: list[Finding], name: str) -> None:
        values = {f"{name}/{each.quantity}/{each.layer}": each.value for each in findings}
        # one record, not one of each step of the epoch; it comes of this batch alone
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, batch_size=1)
        table = findings_table(findings)
        log_text(trainer, name, table)
        if trainer.is_global_zero:
            print(f"\n{table}")  # below the progress bar

    def _failure(self, trainer: pl.Trainer, findings: list[Finding], when: str) -> str | None:
        """What failed, the same in all processes: None if nothing did in any."""
        failed = overall(findings) == "fail"
        if not trainer.strategy.reduce_boolean_decision(failed, all=False):
            return None
        found = [each for each in findings if each.verdict == "fail"]
        reasons = "; ".join(map(str, found)) or "another process says so"
        remedies = [*dict.fromkeys(each.remedy for each in found)]
        known = {each.layer for each in findings if each.quantity == "membrane_mean"}
        if self.on_fail != "rescale" and any(
            each.layer in known and each.remedy in (WEAKER, STRONGER) for each in found
        ):
            remedies.append("on_fail='rescale'")
        return f"The network is not expected to train well {when}: {reasons}" + (
            f". What may help: {'; '.join(remedies)}" if remedies else ""
        )
