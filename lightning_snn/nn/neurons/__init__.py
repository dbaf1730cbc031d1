"""Neurons: a state and three equations each; everything else follows from them."""

from lightning_snn.nn.neurons.adaptive import AdaptiveLIF
from lightning_snn.nn.neurons.base import (
    EQUATIONS,
    Neuron,
    noise_refusal,
    runs_by_its_equations,
    widened,
    without_autocast,
)
from lightning_snn.nn.neurons.compiled import compile_steps
from lightning_snn.nn.neurons.firing import membrane
from lightning_snn.nn.neurons.integrator import LeakyIntegrator
from lightning_snn.nn.neurons.lif import IF, LIF, DetachedLIF
from lightning_snn.nn.neurons.probes import elementwise_refusal, gain_refusal, one_step_refusal
from lightning_snn.nn.neurons.recurrent import Recurrent, RecurrentLIF, recurrent
from lightning_snn.nn.neurons.synaptic import SynapticLIF

__all__ = [
    "EQUATIONS",
    "IF",
    "LIF",
    "AdaptiveLIF",
    "DetachedLIF",
    "LeakyIntegrator",
    "Neuron",
    "Recurrent",
    "RecurrentLIF",
    "SynapticLIF",
    "compile_steps",
    "elementwise_refusal",
    "gain_refusal",
    "membrane",
    "noise_refusal",
    "one_step_refusal",
    "recurrent",
    "runs_by_its_equations",
    "widened",
    "without_autocast",
]
