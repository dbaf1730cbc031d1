"""Spiking neural networks in PyTorch Lightning: write the network once, choose how it learns.

Example:
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(784, 128), LIF(), nn.Linear(128, 10))
    >>> module = SpikingModule(network, methods.SpikingBayes(), num_classes=10)
    >>> module.network[0]
    BayesLinear(784, 128, bias=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn import callbacks, convert, data, functional, methods, metrics, networks, nn
    from lightning_snn.checkpoint_io import AtomicCheckpointIO
    from lightning_snn.cli import load_run
    from lightning_snn.functional.scans.choice import kernels
    from lightning_snn.module import SpikingModule
    from lightning_snn.nn import LIF, Stream, advance, run

__version__ = "0.1.0"

__all__ = [
    "LIF",
    "AtomicCheckpointIO",
    "SpikingModule",
    "Stream",
    "__version__",
    "advance",
    "callbacks",
    "convert",
    "data",
    "functional",
    "kernels",
    "load_run",
    "methods",
    "metrics",
    "networks",
    "nn",
    "run",
]

_SUBPACKAGES = ("callbacks", "convert", "data", "functional", "methods", "metrics", "networks", "nn")

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AtomicCheckpointIO": "lightning_snn.checkpoint_io",
        "LIF": "lightning_snn.nn",
        "SpikingModule": "lightning_snn.module",
        "Stream": "lightning_snn.nn",
        "advance": "lightning_snn.nn",
        "kernels": "lightning_snn.functional.scans.choice",
        "load_run": "lightning_snn.cli",
        "run": "lightning_snn.nn",
        **{name: f"{__name__}.{name}" for name in _SUBPACKAGES},
    },
)
