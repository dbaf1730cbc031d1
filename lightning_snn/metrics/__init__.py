"""torchmetrics classes; their functional twins are in `lightning_snn.metrics.functional`, and in
`lightning_snn.metrics.ttfs` for what is counted in networks of first spikes."""

from __future__ import annotations

from lightning_snn.metrics.probability import BitAccuracy, BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.ttfs import Agreement, Latency, OverflowFraction, SpikesPerNeuron
from lightning_snn.metrics.uncertainty import (
    AdaptiveCalibrationError,
    AreaUnderRiskCoverage,
    MutualInformation,
    OutOfDistributionAUROC,
    PredictiveEntropy,
)

__all__ = [
    "AdaptiveCalibrationError",
    "Agreement",
    "AreaUnderRiskCoverage",
    "BitAccuracy",
    "BrierScore",
    "Latency",
    "MutualInformation",
    "NegativeLogLikelihood",
    "OutOfDistributionAUROC",
    "OverflowFraction",
    "PredictiveEntropy",
    "SpikesPerNeuron",
    "WithinPairAccuracy",
]
