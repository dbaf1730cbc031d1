"""Layers that learn by messages: distributions over weights, one-spike neurons, and what carries messages between."""

from lightning_snn.nn.ep.chain import Chain, MessageNetwork
from lightning_snn.nn.ep.conversion import convert
from lightning_snn.nn.ep.fingerprint import fingerprint
from lightning_snn.nn.ep.layers import MessageLayer
from lightning_snn.nn.ep.local import hear
from lightning_snn.nn.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.nn.ep.prediction import draw_output, output_moments
from lightning_snn.nn.ep.weights import GaussianWeights, LevelWeights, Natural

__all__ = [
    "Chain",
    "GaussianWeights",
    "LevelWeights",
    "MessageLayer",
    "MessageNetwork",
    "MessageNeuron",
    "Natural",
    "SpikeOutput",
    "ValueOutput",
    "convert",
    "draw_output",
    "fingerprint",
    "hear",
    "output_moments",
]
