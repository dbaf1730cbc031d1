"""Architectures, as plain modules."""

from lightning_snn.networks.event_conv import EventConvNet
from lightning_snn.networks.mlp import MLP

__all__ = ["MLP", "EventConvNet"]
