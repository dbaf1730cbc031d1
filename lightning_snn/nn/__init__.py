"""Building blocks of networks: neurons, time folding, encoders, delays, residual blocks, observation."""

from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.divisive import DivisiveNormalization
from lightning_snn.nn.encoders import (
    Complement,
    DirectEncoder,
    FirstEventEncoder,
    LatencyEncoder,
    PoissonEncoder,
    PopulationEncoder,
    ThresholdEncoder,
)
from lightning_snn.nn.folding import folded, run, unfold
from lightning_snn.nn.lengths import sequence_lengths, valid_steps
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import (
    IF,
    LIF,
    AdaptiveLIF,
    DetachedLIF,
    LeakyIntegrator,
    Neuron,
    Recurrent,
    RecurrentLIF,
    SynapticLIF,
    compile_steps,
    membrane,
    recurrent,
)
from lightning_snn.nn.noise import posterior_noise, weight_draws
from lightning_snn.nn.registry import is_spiking_layer, register_spiking_layer, spiking_layers
from lightning_snn.nn.residual import GaussianNoise, MembraneResidual
from lightning_snn.nn.scale import Scale
from lightning_snn.nn.sign import Sign
from lightning_snn.nn.spike_gate import SpikeGate
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.streaming import Stream, advance
from lightning_snn.nn.time_wrappers import OverTime, PerStep

__all__ = [
    "IF",
    "LIF",
    "AdaptiveLIF",
    "Complement",
    "DetachedLIF",
    "DirectEncoder",
    "DivisiveNormalization",
    "FirstEventEncoder",
    "GaussianNoise",
    "LatencyEncoder",
    "LeakyIntegrator",
    "MembraneResidual",
    "Moments",
    "Neuron",
    "OverTime",
    "PerStep",
    "PoissonEncoder",
    "PopulationEncoder",
    "Recurrent",
    "RecurrentLIF",
    "Scale",
    "Sign",
    "SpikeGate",
    "StatefulLayer",
    "Stream",
    "SynapticDelays",
    "SynapticLIF",
    "ThresholdEncoder",
    "advance",
    "compile_steps",
    "folded",
    "is_spiking_layer",
    "membrane",
    "posterior_noise",
    "recurrent",
    "register_spiking_layer",
    "run",
    "sequence_lengths",
    "spiking_layers",
    "unfold",
    "valid_steps",
    "weight_draws",
]
