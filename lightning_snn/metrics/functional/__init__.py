"""Scores of predictions and of their uncertainty as pure functions: the functional forms of `lightning_snn.metrics`.

All functions take class probabilities, not logits, of shape `(N, C)`: each row is within [0, 1] and sums to one. The
spike probabilities of outputs need not sum to one. No input is clamped or renormalized. Sums are accumulated in float64
whatever the dtype of the input (float32 on Apple's MPS, which has no float64).
"""

from lightning_snn.functional.entropy import expected_entropy, mutual_information, predictive_entropy
from lightning_snn.metrics.functional._inputs import Reduction, accumulation_dtype, check_numbers, check_pairs
from lightning_snn.metrics.functional.calibration import (
    adaptive_calibration_error,
    adaptive_gap,
    classwise_calibration_error,
    expected_calibration_error,
    reliability_bins,
    top_label,
)
from lightning_snn.metrics.functional.conformal import (
    Score,
    conformal_scores,
    conformal_threshold,
    coverage_interval,
    prediction_sets,
    set_coverage,
    set_size,
    true_class_scores,
)
from lightning_snn.metrics.functional.ranking import (
    Positive,
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    ood_aupr,
    ood_auroc,
    ood_fpr,
    risk_coverage,
)
from lightning_snn.metrics.functional.scores import (
    bit_accuracy,
    brier_score,
    negative_log_likelihood,
    within_pair_accuracy,
)
from lightning_snn.metrics.functional.smooth_calibration import Kernel, smooth_calibration_error, smooth_gap

__all__ = [
    "Kernel",
    "Positive",
    "Reduction",
    "Score",
    "accumulation_dtype",
    "adaptive_calibration_error",
    "adaptive_gap",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "bit_accuracy",
    "brier_score",
    "check_numbers",
    "check_pairs",
    "classwise_calibration_error",
    "conformal_scores",
    "conformal_threshold",
    "coverage_interval",
    "expected_calibration_error",
    "expected_entropy",
    "mutual_information",
    "negative_log_likelihood",
    "ood_aupr",
    "ood_auroc",
    "ood_fpr",
    "prediction_sets",
    "predictive_entropy",
    "reliability_bins",
    "risk_coverage",
    "set_coverage",
    "set_size",
    "smooth_calibration_error",
    "smooth_gap",
    "top_label",
    "true_class_scores",
    "within_pair_accuracy",
]
