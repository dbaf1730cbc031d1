"""Spiking Bayesian networks: layers with a Gaussian posterior, trained by IW-ST gradients."""

from lightning_snn.methods.bayes.conversion import Posterior, is_convertible, register_posterior, to_bayesian, to_plain
from lightning_snn.methods.bayes.layers import (
    BayesConv1d,
    BayesConv2d,
    BayesianLayer,
    BayesianMap,
    BayesLinear,
    BayesRecurrentLIF,
)
from lightning_snn.methods.bayes.method import SpikingBayes
from lightning_snn.methods.bayes.wiring import trace_wiring

__all__ = [
    "BayesConv1d",
    "BayesConv2d",
    "BayesLinear",
    "BayesRecurrentLIF",
    "BayesianLayer",
    "BayesianMap",
    "Posterior",
    "SpikingBayes",
    "is_convertible",
    "register_posterior",
    "to_bayesian",
    "to_plain",
    "trace_wiring",
]
