"""Callbacks for any LightningModule with spiking layers."""

from lightning_snn.callbacks.alignment import GradientAlignment
from lightning_snn.callbacks.conformal import ConformalSets
from lightning_snn.callbacks.energy import EnergyMonitor
from lightning_snn.callbacks.exact_resume import ExactResume
from lightning_snn.callbacks.firing_rates import FiringRateMonitor
from lightning_snn.callbacks.hardware import HardwareConstraints, HardwareFineTuning
from lightning_snn.callbacks.initialization import InitializationCheck
from lightning_snn.callbacks.membrane import MembraneTrace
from lightning_snn.callbacks.pass_scores import PassScores
from lightning_snn.callbacks.prediction_writer import PredictionWriter
from lightning_snn.callbacks.raster import SpikeRaster
from lightning_snn.callbacks.report import Report
from lightning_snn.callbacks.spike_times import SpikeTimes
from lightning_snn.callbacks.state_guard import StateGuard
from lightning_snn.callbacks.uncertainty import UncertaintyLogger

__all__ = [
    "ConformalSets",
    "EnergyMonitor",
    "ExactResume",
    "FiringRateMonitor",
    "GradientAlignment",
    "HardwareConstraints",
    "HardwareFineTuning",
    "InitializationCheck",
    "MembraneTrace",
    "PassScores",
    "PredictionWriter",
    "Report",
    "SpikeRaster",
    "SpikeTimes",
    "StateGuard",
    "UncertaintyLogger",
]
