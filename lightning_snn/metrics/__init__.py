"""torchmetrics classes; their functional twins are in `lightning_snn.metrics.functional`, of spike trains in
`lightning_snn.metrics.spikes`, of synaptic operations in `lightning_snn.metrics.activity` and of what is counted in
networks of first spikes in `lightning_snn.metrics.ttfs`."""

from __future__ import annotations

from lightning_snn.metrics.activity import SynapticOperations
from lightning_snn.metrics.probability import BitAccuracy, BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.spikes import DecisionLatency, FiringRate, FirstSpikeLatency
from lightning_snn.metrics.ttfs import Agreement, Latency, OverflowFraction, SpikesPerNeuron
from lightning_snn.metrics.uncertainty import (
    AdaptiveCalibrationError,
    AreaUnderRiskCoverage,
    ExpectedCalibrationError,
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
    "DecisionLatency",
    "ExpectedCalibrationError",
    "FiringRate",
    "FirstSpikeLatency",
    "Latency",
    "MutualInformation",
    "NegativeLogLikelihood",
    "OutOfDistributionAUROC",
    "OverflowFraction",
    "PredictiveEntropy",
    "SpikesPerNeuron",
    "SynapticOperations",
    "WithinPairAccuracy",
]
