"""Measurements that benchmarks of training take beside the scores."""

from __future__ import annotations

import copy

from torch import Tensor

from lightning_snn import SpikingModule
from lightning_snn.metrics.memory import peak_bytes, saved_bytes


def step_memory(module: SpikingModule, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the MB of a training step, measured on copies of network and method."""
    network, method = copy.deepcopy(module.network), copy.deepcopy(module.method)

    def objective() -> Tensor:
        return method.training_step(network, x, y).objective

    objective().backward()  # not measured, because the drift check of the first step needs further memory
    return {
        "saved MB": saved_bytes(objective, network.parameters()) / 1e6,
        "peak MB": peak_bytes(lambda: objective().backward()) / 1e6,
    }
