"""Expectation propagation: weight distributions trained by messages between layers."""

from lightning_snn.methods.ep.batch_update import BatchUpdate, update_batch
from lightning_snn.methods.ep.chain import Chain, MessageNetwork
from lightning_snn.methods.ep.conversion import convert
from lightning_snn.methods.ep.fingerprint import fingerprint
from lightning_snn.methods.ep.firing import FiringProbability, SpikeLogOdds, firing_network
from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.method import ExpectationPropagation
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.prediction import draw_output, output_moments
from lightning_snn.methods.ep.stability import Stability, ep_stability
from lightning_snn.methods.ep.transforms import register_message_transform
from lightning_snn.methods.ep.weights import GaussianWeights, LevelWeights, Natural

__all__ = [
    "BatchUpdate",
    "Chain",
    "ExpectationPropagation",
    "FiringProbability",
    "GaussianWeights",
    "LevelWeights",
    "MessageLayer",
    "MessageNetwork",
    "MessageNeuron",
    "Natural",
    "SpikeLogOdds",
    "SpikeOutput",
    "Stability",
    "ValueOutput",
    "convert",
    "draw_output",
    "ep_stability",
    "fingerprint",
    "firing_network",
    "output_moments",
    "register_message_transform",
    "update_batch",
]
