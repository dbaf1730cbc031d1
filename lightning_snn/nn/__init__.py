"""Spiking layers, Bayesian layers, encoders: thin modules over `functional`."""

from lightning_snn.nn.bayes import BayesConv2d, BayesianLayer, BayesLinear
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.encoders import DirectEncoder, LatencyEncoder, PoissonEncoder
from lightning_snn.nn.folding import folded, run
from lightning_snn.nn.lif import LIF, LeakyIntegrator, RecurrentLIF
from lightning_snn.nn.moments import Moments, posterior_noise
from lightning_snn.nn.registry import is_spiking_layer, register_spiking_layer, spiking_layers

__all__ = [
    "LIF",
    "BayesConv2d",
    "BayesLinear",
    "BayesianLayer",
    "DirectEncoder",
    "LatencyEncoder",
    "LeakyIntegrator",
    "Moments",
    "PoissonEncoder",
    "RecurrentLIF",
    "SynapticDelays",
    "folded",
    "is_spiking_layer",
    "posterior_noise",
    "register_spiking_layer",
    "run",
    "spiking_layers",
]
