"""Spiking layers, Bayesian layers, encoders: thin modules over `functional`."""

from lightning_snn.nn.bayes import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.encoders import (
    Complement,
    DirectEncoder,
    LatencyEncoder,
    PoissonEncoder,
    PopulationEncoder,
    ThresholdEncoder,
)
from lightning_snn.nn.folding import folded, run
from lightning_snn.nn.lif import LIF, LeakyIntegrator, RecurrentLIF
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.noise import posterior_noise, weight_draws
from lightning_snn.nn.rate import (
    gradient_alignment,
    module_alignment,
    rate_backward,
    rate_drift,
    rate_run,
    register_rate_rule,
)
from lightning_snn.nn.registry import is_spiking_layer, register_spiking_layer, spiking_layers
from lightning_snn.nn.residual import GaussianNoise, MembraneResidual
from lightning_snn.nn.sign import Sign
from lightning_snn.nn.ttfs import (
    AlphaConv2d,
    AlphaLinear,
    FirstSpike,
    OffsetMap,
    SpikeEncoder,
    SpikePool2d,
    bound_row_sums,
)
from lightning_snn.nn.ttfs_events import safe_window, simulate
from lightning_snn.nn.ttfs_mapping import TTFSNetwork, from_relu
from lightning_snn.nn.ttfs_windows import calibrate, cascade, grow, latency, rescale

__all__ = [
    "LIF",
    "AlphaConv2d",
    "AlphaLinear",
    "BayesConv1d",
    "BayesConv2d",
    "BayesLinear",
    "BayesRecurrentLIF",
    "BayesianLayer",
    "Complement",
    "DirectEncoder",
    "FirstSpike",
    "GaussianNoise",
    "LatencyEncoder",
    "LeakyIntegrator",
    "MembraneResidual",
    "Moments",
    "OffsetMap",
    "PoissonEncoder",
    "PopulationEncoder",
    "RecurrentLIF",
    "Sign",
    "SpikeEncoder",
    "SpikePool2d",
    "SynapticDelays",
    "TTFSNetwork",
    "ThresholdEncoder",
    "bound_row_sums",
    "calibrate",
    "cascade",
    "folded",
    "from_relu",
    "gradient_alignment",
    "grow",
    "is_spiking_layer",
    "latency",
    "module_alignment",
    "posterior_noise",
    "rate_backward",
    "rate_drift",
    "rate_run",
    "register_rate_rule",
    "register_spiking_layer",
    "rescale",
    "run",
    "safe_window",
    "simulate",
    "spiking_layers",
    "weight_draws",
]
