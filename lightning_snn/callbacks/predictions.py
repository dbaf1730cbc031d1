"""Predictions: how to read one from what a step returns, and scores of all those of a validation or test."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import figures
from lightning_snn.functional.entropy import mutual_information
from lightning_snn.functional.temperature import tempered
from lightning_snn.methods.tasks import Prediction
from lightning_snn.metrics.functional import (
    adaptive_calibration_error,
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    ood_aupr,
    ood_auroc,
    ood_fpr,
    predictive_entropy,
    reliability_bins,
    risk_coverage,
    smooth_calibration_error,
    top_label,
)
from lightning_snn.metrics.functional.ranking import POSITIVE
from lightning_snn.processes import gather, gather_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FurtherScore = Literal["classwise_ece", "smooth_ece", "augrc", "ood_fpr95", "ood_aupr"]

FURTHER_SCORES: tuple[FurtherScore, ...] = ("classwise_ece", "smooth_ece", "augrc", "ood_fpr95", "ood_aupr")


class StepOutputs(NamedTuple):
    """Outputs of a step that returns predictions.

    Attributes:
        prediction: class probabilities `[B, C]`, or an object with them as its `mean`; see `read_prediction`.
        target: true classes `[B]`, or the target of a regression.
    """

    prediction: Any
    target: Any


def read_step_outputs(outputs: Any) -> StepOutputs | None:
    """Return prediction and target of a step that returned ``{"prediction": p, "target": y}``; None for others."""
    if isinstance(outputs, Mapping) and {"prediction", "target"} <= outputs.keys():
        return StepOutputs(outputs["prediction"], outputs["target"])
    return None


def read_prediction(value: Any) -> Prediction | None:
    """Return what a step predicted as a `Prediction`.

    Args:
        value: a tensor, which becomes the mean; a `Prediction`; or another object with a tensor as its attribute `mean`
            and perhaps the attributes `samples`, `categorical`, and `spike_probabilities`.

    Returns:
        The prediction; None if `value` is something else.
    """
    if isinstance(value, Prediction):
        return value
    if isinstance(value, Tensor):
        return Prediction(value)
    mean = getattr(value, "mean", None)
    if not isinstance(mean, Tensor):
        return None
    return Prediction(
        mean,
        samples=getattr(value, "samples", None),
        categorical=getattr(value, "categorical", True),
        spike_probabilities=getattr(value, "spike_probabilities", None),
    )


def describe(value: Any) -> str:
    """Return the type of a value, and of a tensor its dtype and shape, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return type(value).__name__


def check_labels(targets: Any, outputs: Tensor, callback: str) -> None:
    """Raise an error unless targets are the classes of predictions.

    Args:
        targets: targets of a batch.
        outputs: predictions, `[B, C]`.
        callback: name of the callback, for the error message.

    Raises:
        ValueError: if targets are not integers `[B]` from 0 to C - 1.
    """
    samples, classes = outputs.shape
    if not isinstance(targets, Tensor) or targets.shape != (samples,) or targets.is_floating_point():
        raise ValueError(
            f"Expected the targets for {callback} to be classes, integers of shape ({samples},), but got "
            f"{describe(targets)}"
        )
    if samples and not (targets.min() >= 0 and targets.max() < classes):
        raise ValueError(
            f"Expected the targets for {callback} to be classes from 0 to {classes - 1}, but got values from "
            f"{targets.min()} to {targets.max()}. Leave out samples without a label."
        )


def join_processes(parts: list[Tensor], trainer: pl.Trainer | None) -> Tensor | None:
    """Concatenate tensors along their first dimension, with a trainer those of all its processes.

    All processes have to call this function, also one that had no batch. None if there are no tensors at all.
    """
    if trainer is None or trainer.world_size == 1:
        return torch.cat(parts) if parts else None
    own = torch.cat(parts) if parts else torch.empty(0)
    joined = torch.cat(gather_parts(own.to(trainer.strategy.root_device)))
    return joined if len(joined) else None


def loaders_of_processes(loaders: Iterable[int], trainer: pl.Trainer) -> list[int]:
    """Return the indices of the loaders of which any process of a trainer had a batch, in order."""
    found = [*loaders]
    gathered = gather(found) if trainer.world_size > 1 else [found]
    return sorted(set().union(*gathered))


@dataclass
class CollectedPredictions:
    """Predictions of this process, one entry per batch.

    Attributes:
        outputs: class probabilities or logits, `[B, C]` each.
        targets: true classes, `[B]` each; empty for inputs without a class.
        mutual_information: mutual information of class and model, `[B]` each, in nats; empty without samples.
        over_time: class probabilities after each time step, `[B, T, C]` each; empty without them.
        logits: whether `outputs` are logits.
    """

    outputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    mutual_information: list[Tensor] = field(default_factory=list)
    over_time: list[Tensor] = field(default_factory=list)
    logits: bool = False

    def add(self, outputs: Tensor, logits: bool, samples: Tensor | None) -> None:
        """Add predictions of a batch.

        Args:
            outputs: class probabilities or logits, `[B, C]`.
            logits: whether `outputs` are logits.
            samples: class probabilities of K samples, `[K, B, C]`; None if there are none.
        """
        self.logits = logits
        self.outputs.append(outputs)
        if samples is not None:
            self.mutual_information.append(mutual_information(samples.detach()))

    def add_over_time(self, probabilities: Tensor) -> None:
        """Add class probabilities after each time step, `[T, B, C]`.

        Raises:
            ValueError: if earlier batches had another number of time steps.
        """
        rows = probabilities.transpose(0, 1)
        if self.over_time and self.over_time[0].shape[1] != rows.shape[1]:
            raise ValueError(
                f"Expected predictions after {self.over_time[0].shape[1]} time steps, as in earlier batches, but got "
                f"{rows.shape[1]}. Use recordings of equal length, or `over_time=False`."
            )
        self.over_time.append(rows)

    def join(self, trainer: pl.Trainer | None) -> Predictions:
        """Return all predictions, with a trainer those of all its processes, at least one of which has some.

        They are on the host, which has float64 and whose sums do not depend on the order of threads.
        """

        def join(parts: list[Tensor]) -> Tensor | None:
            joined = join_processes(parts, trainer)
            return None if joined is None else joined.cpu()

        several = trainer is not None and trainer.world_size > 1
        logits = any(gather(self.logits)) if several else self.logits
        parts = (self.outputs, self.targets, self.mutual_information, self.over_time)
        joined, targets, mutual_information, over_time = map(join, parts)
        assert joined is not None
        outputs = joined.double()
        log_probabilities = outputs.log_softmax(1) if logits else outputs.log()
        return Predictions(
            log_probabilities.exp() if logits else outputs,
            log_probabilities,
            torch.empty(0, dtype=torch.long) if targets is None else targets,
            None if mutual_information is None else mutual_information.double(),
            over_time=None if over_time is None else over_time.double().clamp(max=1).transpose(0, 1),
        )


@dataclass
class Predictions:
    """Predictions of N inputs, in float64.

    Attributes:
        probabilities: class probabilities, `[N, C]`.
        log_probabilities: their logarithms, `[N, C]`; from logits they are exact where probabilities underflow.
        targets: true classes, `[N]`; empty for inputs without a class.
        mutual_information: mutual information of class and model, `[N]`, in nats; None without samples.
        out_of_distribution: `uncertainties` of M inputs from outside the training distribution, `[M]` each.
        over_time: class probabilities after each time step, `[T, N, C]`; None without them.
    """

    probabilities: Tensor
    log_probabilities: Tensor
    targets: Tensor
    mutual_information: Tensor | None
    out_of_distribution: dict[str, Tensor] = field(default_factory=dict)
    over_time: Tensor | None = None

    @property
    def uncertainties(self) -> dict[str, Tensor]:
        """Predictive entropy and, with samples, mutual information, `[N]` each, in nats."""
        found = {"entropy": predictive_entropy(self.probabilities)}
        if self.mutual_information is not None:
            found["mutual_information"] = self.mutual_information
        return found

    @property
    def errors(self) -> Tensor:
        """Errors, `[N]`: True where the most probable class is wrong."""
        return ~top_label(self.probabilities, self.targets)[1]

    def scores(self, n_bins: int) -> dict[str, Tensor]:
        """Return scores of the probabilities and of their uncertainties."""
        uncertainties = self.uncertainties
        found = {
            "nll": negative_log_likelihood(self.probabilities, self.targets),
            "brier": brier_score(self.probabilities, self.targets),
            "ece": expected_calibration_error(self.probabilities, self.targets, n_bins),
            "adaptive_ece": adaptive_calibration_error(self.probabilities, self.targets, n_bins),
            "aurc": area_under_risk_coverage(uncertainties["entropy"], self.errors),
        }
        found |= {measure: values.mean() for measure, values in uncertainties.items()}
        for measure, values in uncertainties.items():
            if measure in self.out_of_distribution:
                key = "ood_auroc" if measure == "entropy" else f"ood_auroc_{measure}"
                found[key] = ood_auroc(values, self.out_of_distribution[measure])
        return found

    def further_scores(self, chosen: Collection[FurtherScore], n_bins: int) -> dict[str, Tensor]:
        """Return those of `FURTHER_SCORES` that were chosen; the scores of detection need inputs from outside."""
        uncertainties = self.uncertainties
        found = {}
        if "classwise_ece" in chosen:
            found["classwise_ece"] = classwise_calibration_error(self.probabilities, self.targets, n_bins)
        if "smooth_ece" in chosen:
            found["smooth_ece"] = smooth_calibration_error(self.probabilities, self.targets)
        if "augrc" in chosen:
            found["augrc"] = area_under_generalized_risk_coverage(uncertainties["entropy"], self.errors)
        for measure, outside in self.out_of_distribution.items():
            if measure not in uncertainties:
                continue
            pair = uncertainties[measure], outside
            ending = "" if measure == "entropy" else f"_{measure}"
            for positive in POSITIVE:
                if "ood_fpr95" in chosen:
                    found[f"ood_fpr95_{positive}{ending}"] = ood_fpr(*pair, positive=positive)
                if "ood_aupr" in chosen:
                    found[f"ood_aupr_{positive}{ending}"] = ood_aupr(*pair, positive)
        return found

    def tempered_scores(self, temperature: float, n_bins: int) -> dict[str, Tensor]:
        """Return scores of the probabilities at a temperature."""
        probabilities = tempered(self.log_probabilities, temperature)
        return {
            "nll_tempered": negative_log_likelihood(probabilities, self.targets),
            "ece_tempered": expected_calibration_error(probabilities, self.targets, n_bins),
        }

    def draw(self, n_bins: int) -> dict[str, Figure]:
        """Return figures of reliability, of risk against coverage, and a histogram of each uncertainty."""
        uncertainties = self.uncertainties
        curves = {
            measure.replace("_", " "): risk_coverage(values, self.errors) for measure, values in uncertainties.items()
        }
        found = {
            "reliability": figures.reliability_diagram(*reliability_bins(self.probabilities, self.targets, n_bins)),
            "risk_coverage": figures.risk_coverage_curve(curves),
        }
        for measure, values in uncertainties.items():
            groups = {"in distribution": values}
            if measure in self.out_of_distribution:
                groups["out of distribution"] = self.out_of_distribution[measure]
            found[measure] = figures.uncertainty_histograms(groups, f"{measure.replace('_', ' ')} [nats]")
        return found
