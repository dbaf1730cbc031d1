"""Scores on test data while training goes on, against passes over the training data and against seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.metrics.functional import (
    accumulation_dtype,
    bit_accuracy,
    expected_calibration_error,
    negative_log_likelihood,
)


class PassScores(pl.Callback):
    """Keeps in `rows` what test data say of a classifier during training: to draw a curve, and never to choose by.

    A row is a dict of `passes` over the training data; `seconds` that training steps took, those of tests and of
    loading apart; `accuracy`; `bit_accuracy`, that of each output by itself, nan for modules whose outputs do not spike
    by themselves; `nll`, the negative log-likelihood; and `ece`, the expected calibration error.

    It works on any LightningModule whose `predict_step` gives class probabilities `[B, C]`, or something with them as
    `mean` and, it may be, `spike_probabilities`. Test data are those of the `test_dataloader` of the data module or,
    without one, of the module. Rows are kept in checkpoints. Over several processes each tests on all test data.

    Args:
        times: tests in each pass, at least 1, as evenly spread as its batches let them be.

    Raises:
        ValueError: if `times` is out of range; when the fit starts, if there are no test data.

    Example:
        >>> scores = PassScores(times=4)
        >>> Trainer(max_epochs=3, callbacks=[scores]).fit(module, data)
        >>> [row["nll"] for row in scores.rows]
    """

    def __init__(self, times: int = 1) -> None:
        check_integer("times", times)
        self.times = times
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._since = 0.0
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict  # which a test of an earlier checkpoint restores too, and means no rows to be lost

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _with_test_data(trainer, pl_module) is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            got = "no data module" if data is None else type(data).__name__
            raise ValueError(
                "Expected `fit` to be given a data module with a `test_dataloader`, or the module to have one, for "
                f"PassScores, which scores test data during training, but got {got} and {type(pl_module).__name__}, "
                "which has none"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._restored:
            self.rows, self.seconds = [dict(row) for row in self._restored["rows"]], self._restored["seconds"]
            self._restored = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._since = _now(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += _now(pl_module) - self._since
        batches = trainer.num_training_batches
        if (batch_idx + 1) * self.times // batches == batch_idx * self.times // batches:
            return
        passes = trainer.current_epoch + (batch_idx + 1) / batches
        self.rows.append({"passes": passes, "seconds": self.seconds, **self._test(trainer, pl_module)})

    @torch.no_grad()
    def _test(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        means, spikes, targets = [], [], []
        pl_module.eval()
        trainer.testing = True  # so that the data module does not augment
        try:
            with isolate_rng():  # loaders and methods draw, and training is to go on as it would without a test
                for index, loaded in enumerate(_with_test_data(trainer, pl_module).test_dataloader()):
                    batch = trainer.strategy.batch_to_device(loaded)
                    prediction = pl_module.predict_step(batch, index)
                    means.append(prediction if isinstance(prediction, Tensor) else prediction.mean)
                    spikes.append(getattr(prediction, "spike_probabilities", None))
                    targets.append(batch[1])
        finally:
            trainer.training = True
            pl_module.train()
        return classification_scores(torch.cat(means), torch.cat(targets), [p for p in spikes if p is not None])


def classification_scores(probabilities: Tensor, targets: Tensor, spikes: Sequence[Tensor] = ()) -> dict[str, float]:
    """The scores of a row of `PassScores`.

    Args:
        probabilities: of the classes, `[N, C]`.
        targets: true classes, `[N]`.
        spikes: probabilities of each output by itself, in parts that make up `[N, C]`; none where outputs do not spike.
    """
    probabilities = probabilities.to(accumulation_dtype(probabilities.device))
    return {
        "accuracy": (probabilities.argmax(1) == targets).sum().item() / len(targets),
        "bit_accuracy": bit_accuracy(torch.cat(list(spikes)), targets).item() if spikes else math.nan,
        "nll": negative_log_likelihood(probabilities, targets).item(),
        "ece": expected_calibration_error(probabilities, targets).item(),
    }


def _with_test_data(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The data module or the module, whichever makes loaders of test data; None if neither does."""
    makers = (trainer.datamodule, pl_module)  # type: ignore[attr-defined]
    return next((maker for maker in makers if is_overridden("test_dataloader", maker)), None)


def _now(pl_module: pl.LightningModule) -> float:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    return time.perf_counter()
