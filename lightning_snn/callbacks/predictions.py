"""Predictions of a whole validation or test, of all processes, and what they score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_snn import figures
from lightning_snn.functional.temperature import tempered
from lightning_snn.metrics.functional import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    ood_auroc,
    predictive_entropy,
    reliability_bins,
    risk_coverage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class KeptPredictions:
    """Predictions of this process, batch by batch.

    Attributes:
        outputs: class probabilities or logits, `[B, C]` each.
        targets: true classes, `[B]` each; none of inputs that have no class.
        information: mutual information of class and model, `[B]` each, in nats; none of predictions without samples.
        logits: whether `outputs` are logits.
    """

    outputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    information: list[Tensor] = field(default_factory=list)
    logits: bool = False

    def joined(self, trainer: pl.Trainer | None) -> Predictions:
        """All predictions, with a trainer those of all its processes, on the host: where there is float64, and sums
        that no order of threads changes."""
        everywhere = trainer is not None and trainer.world_size > 1

        def join(parts: list[Tensor]) -> Tensor:
            # processes may have unequal shares
            whole = torch.cat(parts)
            return (torch.cat(gather_all_tensors(whole)) if everywhere else whole).cpu()

        outputs = join(self.outputs).double()
        log_probabilities = outputs.log_softmax(1) if self.logits else outputs.log()
        return Predictions(
            log_probabilities.exp() if self.logits else outputs,
            log_probabilities,
            join(self.targets) if self.targets else torch.empty(0, dtype=torch.long),
            join(self.information).double() if self.information else None,
        )


@dataclass
class Predictions:
    """Predictions of N inputs, in float64.

    Attributes:
        probabilities: of the classes, `[N, C]`.
        log_probabilities: their logarithms, `[N, C]`; of logits these are exact where probabilities underflow.
        targets: true classes `[N]`; none of inputs that have no class.
        information: mutual information of class and model `[N]`, in nats; None of predictions without samples.
        outside: `uncertainties` of M inputs from outside of the training distribution, `[M]` each.
    """

    probabilities: Tensor
    log_probabilities: Tensor
    targets: Tensor
    information: Tensor | None
    outside: dict[str, Tensor] = field(default_factory=dict)

    @property
    def uncertainties(self) -> dict[str, Tensor]:
        """Predictive entropy and, where there are samples, mutual information, `[N]` each, in nats."""
        found = {"entropy": predictive_entropy(self.probabilities)}
        if self.information is not None:
            found["mutual_information"] = self.information
        return found

    @property
    def errors(self) -> Tensor:
        """Whether the most probable class is wrong, `[N]`."""
        return self.probabilities.argmax(1) != self.targets

    def scores(self, n_bins: int) -> dict[str, Tensor]:
        """Scores of the probabilities and of their uncertainties."""
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
            if measure in self.outside:
                key = "ood_auroc" if measure == "entropy" else f"ood_auroc_{measure}"
                found[key] = ood_auroc(values, self.outside[measure])
        return found

    def tempered_scores(self, temperature: float, n_bins: int) -> dict[str, Tensor]:
        """Scores of the probabilities at a temperature."""
        probabilities = tempered(self.log_probabilities, temperature)
        return {
            "nll_tempered": negative_log_likelihood(probabilities, self.targets),
            "ece_tempered": expected_calibration_error(probabilities, self.targets, n_bins),
        }

    def drawn(self, n_bins: int) -> dict[str, Figure]:
        """Reliability, risk against coverage, and a histogram of each uncertainty."""
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
            if measure in self.outside:
                groups["out of distribution"] = self.outside[measure]
            found[measure] = figures.uncertainty_histograms(groups, f"{measure.replace('_', ' ')} [nats]")
        return found
