"""Architectures, as plain modules."""

from lightning_snn.networks.mlp import MLP

__all__ = ["MLP"]
