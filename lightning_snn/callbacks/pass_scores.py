"""Scores on test data during training, by epochs and by seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.callbacks.clock import finished_at
from lightning_snn.callbacks.dry_run import call_step
from lightning_snn.callbacks.packages import overrides
from lightning_snn.callbacks.predictions import check_labels, describe, read_prediction
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.checks import check_integer
from lightning_snn.metrics.functional import (
    accumulation_dtype,
    bit_accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    top_label,
)


class PassScores(Stages):
    """Record of a classifier's scores on test data during training, to draw a curve and never to select by.

    Each entry of `rows` is a dict of `epochs`, a fraction within an epoch; `seconds` of training steps, without those
    of tests and of loading; `accuracy`; `bit_accuracy`, the accuracy of each output neuron on its own, nan for modules
    whose outputs are not spikes; `nll`, the negative log-likelihood in nats; and `ece`, the expected calibration error.

    It works on any LightningModule whose `predict_step` returns class probabilities `[B, C]`, or an object with them as
    `mean` and perhaps with `spike_probabilities`. Test data are those of the `test_dataloader` of the data module or,
    without one, of the module. With several loaders, the names of the scores of all but the first end with the loader's
    index, such as `nll/1`. Checkpoints contain the rows. With several processes, each tests on all test data.

    Args:
        times: number of tests per epoch, at least 1, spread as evenly as the batches allow.

    Attributes:
        rows: scores of the tests so far.
        seconds: seconds of training steps so far.

    Raises:
        ValueError: if `times` is out of range; at the start of a fit, if there are no test data; there or in
            a later test, if `predict_step` returns something else, or a target is not a class.

    Example:
        >>> scores = PassScores(times=4)
        >>> trainer = pl.Trainer(max_epochs=3, callbacks=[scores], logger=False)
        >>> [row["nll"] for row in scores.rows]  # before the fit
        []
    """

    stages: tuple[Stage, ...] = ("train",)

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        check_integer("times", times)
        self.times = times
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._step_started = 0.0
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # used at the start of a fit only: a test of an earlier checkpoint must not lose rows
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if _source_of_test_data(trainer, pl_module) is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            got = "no data module" if data is None else type(data).__name__
            raise ValueError(
                "Expected a data module or a module with a `test_dataloader` for PassScores, but got "
                f"{got} and {type(pl_module).__name__} without one"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._restored:
            self.rows, self.seconds = [dict(row) for row in self._restored["rows"]], self._restored["seconds"]
            self._restored = {}
        self._test(trainer, pl_module, limit=1)  # for its errors, before an epoch is lost

    def begin_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._step_started = finished_at(pl_module.device)

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
        self.seconds += finished_at(pl_module.device) - self._step_started
        batches = trainer.num_training_batches
        if (batch_idx + 1) * self.times // batches == batch_idx * self.times // batches:
            return
        epochs = trainer.current_epoch + (batch_idx + 1) / batches
        self.rows.append({"epochs": epochs, "seconds": self.seconds, **self._test(trainer, pl_module)})

    @torch.no_grad()
    def _test(self, trainer: pl.Trainer, pl_module: pl.LightningModule, limit: int | None = None) -> dict[str, float]:
        """Return the scores on the first batches of all test data; None uses all batches."""
        parts: dict[int, list[tuple[Tensor, Tensor, Tensor | None]]] = {}
        pl_module.eval()
        trainer.testing = True  # so that the data module does not augment
        try:
            with isolate_rng():  # loaders and methods draw random numbers
                loaders = CombinedLoader(_source_of_test_data(trainer, pl_module).test_dataloader(), "sequential")
                for loaded, index, loader in islice(loaders, limit):
                    batch = trainer.strategy.batch_to_device(loaded, dataloader_idx=loader)
                    parts.setdefault(loader, []).append(_scored(pl_module, batch, index, loader))
        finally:
            trainer.training = True
            pl_module.train()
        found = {}
        for loader, scored in parts.items():
            means, targets, spikes = zip(*scored, strict=True)
            scores = classification_scores(
                torch.cat(means), torch.cat(targets), [each for each in spikes if each is not None]
            )
            found.update({f"{name}/{loader}" if loader else name: value for name, value in scores.items()})
        return found


def _scored(
    pl_module: pl.LightningModule, batch: Any, batch_idx: int, loader: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return class probabilities `[B, C]`, targets `[B]`, and spike probabilities, if there are any, of a batch."""
    value = call_step(pl_module, "predict_step", batch, batch_idx, loader)
    prediction = read_prediction(value)
    if prediction is None or prediction.mean.dim() != 2:
        raise ValueError(
            f"Expected `predict_step` of {type(pl_module).__name__} to return class probabilities [B, C] or a "
            f"prediction for PassScores, but got {describe(value)}"
        )
    check_labels(batch[1], prediction.mean, "PassScores")
    return prediction.mean, batch[1], prediction.spike_probabilities


def classification_scores(probabilities: Tensor, targets: Tensor, spikes: Sequence[Tensor] = ()) -> dict[str, float]:
    """Compute the scores of a row of `PassScores`.

    Args:
        probabilities: class probabilities, `[N, C]`.
        targets: true classes, `[N]`.
        spikes: spike probabilities of each output neuron, in parts that concatenate to `[N, C]`; empty if outputs are
            not spikes.

    Returns:
        `accuracy`, `bit_accuracy` (nan without `spikes`), `nll` in nats, and `ece`.
    """
    probabilities = probabilities.to(accumulation_dtype(probabilities.device))
    return {
        "accuracy": top_label(probabilities, targets)[1].to(probabilities.dtype).mean().item(),
        "bit_accuracy": bit_accuracy(torch.cat(list(spikes)), targets).item() if spikes else math.nan,
        "nll": negative_log_likelihood(probabilities, targets).item(),
        "ece": expected_calibration_error(probabilities, targets).item(),
    }


def _source_of_test_data(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """Return the data module or else the module, if it has a `test_dataloader`; None if neither has."""
    candidates = (trainer.datamodule, pl_module)  # type: ignore[attr-defined]
    return next((each for each in candidates if overrides(each, "test_dataloader")), None)
