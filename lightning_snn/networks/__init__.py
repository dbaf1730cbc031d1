"""Architectures, as plain modules."""

from lightning_snn.networks.event_conv import EventConvNet
from lightning_snn.networks.mlp import MLP
from lightning_snn.networks.recurrent import RecurrentNet
from lightning_snn.networks.residual import ResidualConvNet, ResidualMLP

__all__ = ["MLP", "EventConvNet", "RecurrentNet", "ResidualConvNet", "ResidualMLP"]
