"""Gradient estimators of noisy binary units: IW-ST and its relaxation-based relatives."""

from lightning_snn.functional.estimators.base import Estimator, Noise, noisy_spikes
from lightning_snn.functional.estimators.depth import (
    best_lambda,
    bias_difference,
    layer_factors,
    slope_chi_squared,
    variance_factor,
)
from lightning_snn.functional.estimators.gumbel import AnalyticalGumbelRao, GumbelRao, GumbelStraightThrough
from lightning_snn.functional.estimators.iwst import IWST, chi_squared, iwst, iwst_weight
from lightning_snn.functional.estimators.names import EstimatorName, estimator_named

__all__ = [
    "IWST",
    "AnalyticalGumbelRao",
    "Estimator",
    "EstimatorName",
    "GumbelRao",
    "GumbelStraightThrough",
    "Noise",
    "best_lambda",
    "bias_difference",
    "chi_squared",
    "estimator_named",
    "iwst",
    "iwst_weight",
    "layer_factors",
    "noisy_spikes",
    "slope_chi_squared",
    "variance_factor",
]
