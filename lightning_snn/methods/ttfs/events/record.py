"""Records of simulated networks: spikes and potentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class SpikeTable(NamedTuple):
    """Table of spikes in columns `[S]`, ordered by sample, layer and time.

    Save it by ``numpy.savez(path, **table._asdict())``.

    Attributes:
        sample: row of the input.
        layer: index into `EventRecord.layers`.
        neuron: index into the flattened layer.
        time: spike time, in units of the input window; NaN if it is unknown, because a potential was NaN.

    Example:
        >>> from lightning_snn.methods.ttfs import SpikeEncoder, simulate
        >>> table = simulate(torch.nn.Sequential(SpikeEncoder()), torch.tensor([[0.25, 0.0, 1.0]])).spikes()
        >>> table.neuron.tolist(), table.time.tolist()
        ([2, 0], [0.0, 0.75])
    """

    sample: np.ndarray
    layer: np.ndarray
    neuron: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class EventRecord:
    """Record of a simulation; all tensors are float64 or bool, on the CPU.

    Attributes:
        outputs: potentials of the readout at `t_read`, `[B, ...]`.
        t_read: time at which the readout is read: the end of its last presynaptic window.
        times: spike times of each layer, the encoder first, `[B, ...]`; infinite for no spike, NaN after an input or a
            weight of NaN.
        potential: potential of each neuron at its t_min, `[B, ...]`.
        peak: largest potential of each neuron up to t_min, `[B, ...]`.
        early: whether each neuron reached its threshold before t_min, where it fires without a gate, `[B, ...]`.
        overflow: whether each neuron was above its threshold at t_min, where the gate makes it fire later than it
            should, `[B, ...]`.

    Example:
        >>> from lightning_snn.methods.ttfs import SpikeEncoder, simulate
        >>> record = simulate(torch.nn.Sequential(SpikeEncoder()), torch.tensor([[0.25, 1.0]]))
        >>> record.layers, record.times["0"]
        (('0',), tensor([[0.7500, 0.0000]], dtype=torch.float64))
    """

    outputs: Tensor
    t_read: float
    times: dict[str, Tensor]
    potential: dict[str, Tensor]
    peak: dict[str, Tensor]
    early: dict[str, Tensor]
    overflow: dict[str, Tensor]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that emit spikes."""
        return tuple(self.times)

    @property
    def early_crossings(self) -> dict[str, int]:
        """Number of neurons of each layer that reached their threshold before t_min, over all samples."""
        return {name: int(mask.sum()) for name, mask in self.early.items()}

    def spikes(self) -> SpikeTable:
        """Return the spikes as a table."""
        columns = []
        for layer, emitted in enumerate(self.times.values()):
            times = emitted.flatten(1)
            sample, neuron = times.isinf().logical_not().nonzero(as_tuple=True)
            columns.append((sample, torch.full_like(sample, layer), neuron, times[sample, neuron]))
        table = SpikeTable(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))
        order = np.lexsort((table.time, table.layer, table.sample))
        return SpikeTable(*(column[order] for column in table))
