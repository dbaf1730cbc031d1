"""torchmetrics classes; their functional twins are in `lightning_snn.metrics.functional`, and in
`lightning_snn.metrics.ttfs` for what is counted in networks of first spikes."""

from __future__ import annotations

from lightning_snn.metrics.probability import BitAccuracy, BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.ttfs import Agreement, Latency, OverflowFraction, SpikesPerNeuron
from lightning_snn.metrics.uncertainty import AreaUnderRiskCoverage, OutOfDistributionAUROC

__all__ = [
    "Agreement",
    "AreaUnderRiskCoverage",
    "BitAccuracy",
    "BrierScore",
    "Latency",
    "NegativeLogLikelihood",
    "OutOfDistributionAUROC",
    "OverflowFraction",
    "SpikesPerNeuron",
    "WithinPairAccuracy",
]
