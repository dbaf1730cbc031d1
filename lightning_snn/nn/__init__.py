"""Spiking layers, Bayesian layers, encoders: thin modules over `functional`."""

from lightning_snn.nn.bayes import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.encoders import DirectEncoder, LatencyEncoder, PoissonEncoder
from lightning_snn.nn.folding import folded, run
from lightning_snn.nn.lif import LIF, LeakyIntegrator, RecurrentLIF
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.noise import posterior_noise, weight_draws
from lightning_snn.nn.rate import gradient_alignment, rate_drift, rate_run, register_rate_rule
from lightning_snn.nn.registry import is_spiking_layer, register_spiking_layer, spiking_layers
from lightning_snn.nn.residual import GaussianNoise, MembraneResidual
from lightning_snn.nn.sign import Sign

__all__ = [
    "LIF",
    "BayesConv1d",
    "BayesConv2d",
    "BayesLinear",
    "BayesRecurrentLIF",
    "BayesianLayer",
    "DirectEncoder",
    "GaussianNoise",
    "LatencyEncoder",
    "LeakyIntegrator",
    "MembraneResidual",
    "Moments",
    "PoissonEncoder",
    "RecurrentLIF",
    "Sign",
    "SynapticDelays",
    "folded",
    "gradient_alignment",
    "is_spiking_layer",
    "posterior_noise",
    "rate_drift",
    "rate_run",
    "register_rate_rule",
    "register_spiking_layer",
    "run",
    "spiking_layers",
    "weight_draws",
]
