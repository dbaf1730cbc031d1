"""Networks as models of NeuroBench's harness (Yik et al. 2025, Nature Communications 16)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.convert.plain import plain_network
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.streaming import Stream


def to_neurobench(network: nn.Module) -> Any:
    """Return a `NeuroBenchModel` of a network, whose harness measures footprint, sparsity and synaptic operations.

    It runs step by step, as NeuroBench expects, so every call of a layer is one time step. Numbers are those of
    `EnergyMonitor`, with two differences: NeuroBench does not count recurrent weights, which are inside of neurons
    here, and weights with a posterior count as their means.

    Args:
        network: a plain network, or a `SpikingModule`, whose network is used; of a Bayesian one the posterior mean. It
            is set to evaluation mode.

    Returns:
        The model. It maps a batch `[B, T, ...]`, NeuroBench's order, to outputs `[B, T, ...]`.

    Raises:
        ImportError: if NeuroBench is not installed.
        RuntimeError, ValueError: from a call, for networks that cannot be streamed, as `Stream`.
    """
    try:
        from neurobench.models import NeuroBenchModel
    except ImportError as error:
        raise ImportError(
            "Expected the package neurobench to be installed, which its harness needs: pip install "
            f"'lightning-snn[neurobench]' ({error})"
        ) from error
    plain = plain_network(network).eval()
    # NeuroBench looks for layers among the children
    found = plain if next(plain.children(), None) is not None else nn.Sequential(plain)

    class StreamedNetwork(NeuroBenchModel):  # type: ignore[misc]
        """Network of lightning_snn that runs step by step."""

        def __init__(self) -> None:
            super().__init__()
            self.add_activation_module(Neuron)

        def __call__(self, batch: Tensor) -> Tensor:
            stream = Stream(found)
            return torch.stack([stream(step) for step in batch.unbind(1)], 1)

        def __net__(self) -> nn.Module:
            return found

    return StreamedNetwork()
