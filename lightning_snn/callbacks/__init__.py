"""Callbacks for any LightningModule with spiking layers."""

from lightning_snn.callbacks.alignment import GradientAlignment
from lightning_snn.callbacks.hardware import HardwareConstraints, HardwareFineTuning
from lightning_snn.callbacks.initialization import InitializationCheck
from lightning_snn.callbacks.pass_scores import PassScores
from lightning_snn.callbacks.report import Report
from lightning_snn.callbacks.spike_times import SpikeTimes
from lightning_snn.callbacks.uncertainty import UncertaintyLogger

__all__ = [
    "GradientAlignment",
    "HardwareConstraints",
    "HardwareFineTuning",
    "InitializationCheck",
    "PassScores",
    "Report",
    "SpikeTimes",
    "UncertaintyLogger",
]
