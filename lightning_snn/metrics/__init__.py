"""torchmetrics classes; their functional twins are in `lightning_snn.metrics.functional`."""

from __future__ import annotations

from lightning_snn.metrics.probability import BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.uncertainty import AreaUnderRiskCoverage, OutOfDistributionAUROC

__all__ = [
    "AreaUnderRiskCoverage",
    "BrierScore",
    "NegativeLogLikelihood",
    "OutOfDistributionAUROC",
    "WithinPairAccuracy",
]
