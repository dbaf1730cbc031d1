"""Conformal prediction sets of `UncertaintyLogger`: calibrated in the validation, scored in the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.predictions import Predictions, describe, read_prediction
from lightning_snn.callbacks.stages import Stage
from lightning_snn.checks import check_choice, check_fraction, check_integer
from lightning_snn.metrics.functional import (
    Score,
    conformal_scores,
    conformal_threshold,
    coverage_interval,
    prediction_sets,
    set_coverage,
    set_size,
    true_class_scores,
)
from lightning_snn.metrics.functional.conformal import check_conformal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ConformalSets:
    """Settings of conformal prediction sets, for `UncertaintyLogger(conformal=...)`.

    Args:
        alpha: chosen probability that a set lacks the true class, within (0, 1).
        score: "lac", "aps" or "raps"; see `lightning_snn.metrics.functional.conformal_scores`.
        randomized: whether "aps" and "raps" draw random numbers; without them, sets cover more than 1 - alpha.
        penalty: penalty of "raps" for each further class, at least 0.
        free_classes: number of classes without a penalty in "raps", at least 0.
        seed: seed of the random numbers, at least 0. They are drawn from generators of their own.
        over_time: whether to calibrate and score the sets after each time step too, from `method.predict_anytime` of a
            `SpikingModule`; or a function from a module and a batch to class probabilities after each time step
            `[T, B, C]`, called without gradients. T has to be the same in all batches.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> ConformalSets(alpha=0.05, score="raps", penalty=0.1).free_classes
        5
    """

    alpha: float = 0.1
    score: Score = "aps"
    randomized: bool = True
    penalty: float = 0.01
    free_classes: int = 5
    seed: int = 0
    over_time: bool | Callable[[pl.LightningModule, Any], Any] = False

    def __post_init__(self) -> None:
        check_fraction("alpha", self.alpha)
        check_conformal(self.score, self.penalty, self.free_classes)
        check_choice("randomized", self.randomized, (True, False))
        check_integer("seed", self.seed, minimum=0)
        if not callable(self.over_time):
            check_choice("over_time", self.over_time, (True, False))

    def scores(self, probabilities: Tensor, calibrates: bool) -> Tensor:
        """Return the scores of all classes; calibration and test data get different random numbers.

        Args:
            probabilities: class probabilities, `[N, C]` or `[T, N, C]`.
            calibrates: whether these are the data of the calibration.
        """
        generator = torch.Generator().manual_seed(2 * self.seed + (not calibrates)) if self.randomized else None
        return conformal_scores(probabilities, self.score, generator, self.penalty, self.free_classes)

    def predict_over_time(self, pl_module: pl.LightningModule, batch: Any, shape: torch.Size) -> Tensor | None:
        """Return the class probabilities after each time step, `[T, B, C]`; None if they are not asked for.

        Args:
            pl_module: the module.
            batch: a batch.
            shape: shape `[B, C]` of the final prediction for this batch.

        Raises:
            ValueError: if the module has no such predictions, or they are no probabilities of this shape.
        """
        if not self.over_time:
            return None
        if callable(self.over_time):
            value = self.over_time(pl_module, batch)
        else:
            module: Any = pl_module
            method: Any = getattr(module, "method", None)
            if not hasattr(method, "predict_anytime") or not hasattr(module, "read_batch"):
                raise ValueError(
                    f"Expected argument `over_time` to be a function for {type(pl_module).__name__}, because it is no "
                    "SpikingModule, but got True. Pass a function from the module and a batch to class probabilities "
                    "[T, B, C]."
                )
            value = module.predict_anytime(batch)
        prediction = read_prediction(value)
        mean = None if prediction is None else prediction.mean
        expected = f"Expected class probabilities [T, {shape[0]}, {shape[1]}] after each time step for `over_time`"
        if mean is None or mean.dim() != 3 or mean.shape[1:] != shape or not mean.is_floating_point():
            raise ValueError(f"{expected}, but got {describe(value if mean is None else mean)}")
        mean = mean.detach().float()
        if not (mean >= 0).all() or not ((mean.sum(-1) - 1).abs() < 0.01).all():
            raise ValueError(
                f"{expected}, at least 0 with rows that sum to 1, but got values from {mean.min():g} to {mean.max():g}"
            )
        return mean


@dataclass
class Calibration:
    """Result of a calibration.

    Attributes:
        samples: number of samples.
        threshold: threshold of the sets, a scalar.
        thresholds: threshold after each time step, `[T]`; None without them.
    """

    samples: int
    threshold: Tensor
    thresholds: Tensor | None = None


class SetScores:
    """Calibration of prediction sets and their scores.

    Args:
        settings: settings of the sets.

    Attributes:
        calibration: result of the last calibration; None before the first.
    """

    def __init__(self, settings: ConformalSets) -> None:
        self.settings = settings
        self.calibration: Calibration | None = None

    def needs(self, stage: Stage, dataloader_idx: int) -> bool:
        """Return whether the predictions of a loader are used: those of the calibration, and of a test after it."""
        return dataloader_idx == 0 if stage == "val" else self.calibration is not None

    def calibrate(self, held_out: Predictions) -> dict[str, Tensor]:
        """Compute the thresholds from held-out data, and return that of the final predictions for the log."""
        self.calibration = Calibration(len(held_out.targets), self._threshold(held_out.probabilities, held_out.targets))
        if held_out.over_time is not None:
            thresholds = self._threshold(held_out.over_time, held_out.targets)
            self.calibration = replace(self.calibration, thresholds=thresholds)
        return {"conformal_threshold": self.calibration.threshold}

    def scores(self, test: Predictions) -> dict[str, Tensor]:
        """Return coverage and size of the sets, also those after each time step; nothing before a calibration."""
        if self.calibration is None:
            return {}
        found = self._of_sets(test.probabilities, test.targets, self.calibration.threshold)
        if test.over_time is None or self.calibration.thresholds is None:
            return found
        steps = self._of_sets(test.over_time, test.targets, self.calibration.thresholds)
        return found | {f"{key}_t{t}": row for key, rows in steps.items() for t, row in enumerate(rows, start=1)}

    def draw(self, test: Predictions) -> dict[str, Figure]:
        """Return a figure of coverage and size after each time step, if there are any."""
        if self.calibration is None or self.calibration.thresholds is None or test.over_time is None:
            return {}
        steps = self._of_sets(test.over_time, test.targets, self.calibration.thresholds)
        interval = coverage_interval(self.calibration.samples, len(test.targets), self.settings.alpha)
        coverage, size = steps.values()
        drawn = figures.prediction_sets_over_time(coverage, size, 1 - self.settings.alpha, interval)
        return {"conformal": drawn}

    def state_dict(self) -> dict[str, Any]:
        """Return the settings that the thresholds depend on, and the thresholds."""
        calibration = None if self.calibration is None else dict(vars(self.calibration))
        return {"settings": self._key(), "calibration": calibration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the thresholds; those of other settings are dropped with a warning."""
        if state["settings"] == self._key():
            self.calibration = None if state["calibration"] is None else Calibration(**state["calibration"])
        elif state["calibration"] is not None:
            rank_zero_warn(
                f"The thresholds of the checkpoint belong to the conformal settings {state['settings']}, but those of "
                f"this run are {self._key()}. Run a validation to calibrate the prediction sets"
            )

    def _key(self) -> dict[str, Any]:
        settings = asdict(replace(self.settings, over_time=bool(self.settings.over_time)))
        return {name: value for name, value in settings.items() if name not in ("seed", "over_time")}

    def _threshold(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        scores = self.settings.scores(probabilities, calibrates=True)
        return conformal_threshold(true_class_scores(scores, targets), self.settings.alpha)

    def _of_sets(self, probabilities: Tensor, targets: Tensor, threshold: Tensor) -> dict[str, Tensor]:
        if threshold.ndim and len(threshold) != len(probabilities):
            raise ValueError(
                f"Expected predictions after {len(threshold)} time steps, as in the calibration, but got "
                f"{len(probabilities)}. Use recordings of equal length, or `over_time=False`."
            )
        sets = prediction_sets(self.settings.scores(probabilities, calibrates=False), threshold)
        return {"conformal_coverage": set_coverage(sets, targets), "conformal_size": set_size(sets)}
