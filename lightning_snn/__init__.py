"""Spiking neural networks in PyTorch Lightning: write the network once, choose how it learns.

Example:
    >>> network = nn.Sequential(nn.Linear(784, 128), LIF(), nn.Linear(128, 10))
    >>> Trainer(max_epochs=3).fit(SpikingModule(network, methods.SpikingBayes(), num_classes=10), data.MNIST("data"))
"""

from lightning_snn import data, functional, methods, metrics, networks, nn
from lightning_snn.module import SpikingModule
from lightning_snn.nn import LIF, run

__version__ = "0.1.0"

__all__ = ["LIF", "SpikingModule", "__version__", "data", "functional", "methods", "metrics", "networks", "nn", "run"]
