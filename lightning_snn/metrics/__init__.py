"""Metrics of predictions, uncertainty, spikes and synaptic operations as torchmetrics classes.

The functional forms are in `lightning_snn.metrics.functional` (predictions and uncertainty),
`lightning_snn.metrics.spikes` (spike trains), `lightning_snn.metrics.activity` (synaptic operations) and
`lightning_snn.metrics.ttfs` (time-to-first-spike networks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names
from lightning_snn.metrics.conformal import ConformalThreshold, SetCoverage, SetSize
from lightning_snn.metrics.probability import BitAccuracy, BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.ranking import (
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    OutOfDistributionAUPR,
    OutOfDistributionAUROC,
    OutOfDistributionFPR,
)
from lightning_snn.metrics.spikes import DecisionLatency, FiringRate, FirstSpikeLatency
from lightning_snn.metrics.uncertainty import (
    AdaptiveCalibrationError,
    ClasswiseCalibrationError,
    ExpectedCalibrationError,
    MutualInformation,
    PredictiveEntropy,
    SmoothCalibrationError,
)

if TYPE_CHECKING:
    from lightning_snn.metrics.activity import SynapticOperations
    from lightning_snn.metrics.ttfs import Agreement, Latency, OverflowFraction, SpikesPerNeuron

__all__ = [
    "AdaptiveCalibrationError",
    "Agreement",
    "AreaUnderGeneralizedRiskCoverage",
    "AreaUnderRiskCoverage",
    "BitAccuracy",
    "BrierScore",
    "ClasswiseCalibrationError",
    "ConformalThreshold",
    "DecisionLatency",
    "ExpectedCalibrationError",
    "FiringRate",
    "FirstSpikeLatency",
    "Latency",
    "MutualInformation",
    "NegativeLogLikelihood",
    "OutOfDistributionAUPR",
    "OutOfDistributionAUROC",
    "OutOfDistributionFPR",
    "OverflowFraction",
    "PredictiveEntropy",
    "SetCoverage",
    "SetSize",
    "SmoothCalibrationError",
    "SpikesPerNeuron",
    "SynapticOperations",
    "WithinPairAccuracy",
]

# the module needs none of these
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SynapticOperations": f"{__name__}.activity",
        **dict.fromkeys(("Agreement", "Latency", "OverflowFraction", "SpikesPerNeuron"), f"{__name__}.ttfs"),
        **{name: f"{__name__}.{name}" for name in ("activity", "ttfs")},
    },
)
