"""Scores of predictions and of their uncertainty as pure functions: the twins of the classes in
`lightning_snn.metrics`.

Class probabilities, not logits, are of shape `(N, C)`: rows within [0, 1] that sum to one; spike probabilities of
outputs need not. Nothing is clamped or renormalized. Sums run in float64 whatever the dtype of the input (float32 on
Apple's MPS, which lacks it).
"""

from lightning_snn.functional.entropy import expected_entropy, mutual_information, predictive_entropy
from lightning_snn.metrics.functional._inputs import Reduction, accumulation_dtype, check_pairs
from lightning_snn.metrics.functional.calibration import (
    adaptive_calibration_error,
    adaptive_gap,
    expected_calibration_error,
    reliability_bins,
    top_label,
)
from lightning_snn.metrics.functional.ranking import area_under_risk_coverage, ood_auroc, risk_coverage
from lightning_snn.metrics.functional.scores import (
    bit_accuracy,
    brier_score,
    negative_log_likelihood,
    within_pair_accuracy,
)

__all__ = [
    "Reduction",
    "accumulation_dtype",
    "adaptive_calibration_error",
    "adaptive_gap",
    "area_under_risk_coverage",
    "bit_accuracy",
    "brier_score",
    "check_pairs",
    "expected_calibration_error",
    "expected_entropy",
    "mutual_information",
    "negative_log_likelihood",
    "ood_auroc",
    "predictive_entropy",
    "reliability_bins",
    "risk_coverage",
    "top_label",
    "within_pair_accuracy",
]
