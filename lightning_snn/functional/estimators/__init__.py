"""Gradient estimators of noisy binary units: IW-ST and its relaxation-based relatives."""

from lightning_snn.functional.estimators.base import Estimator, Noise, noisy_spikes
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
    "chi_squared",
    "estimator_named",
    "iwst",
    "iwst_weight",
    "noisy_spikes",
]
