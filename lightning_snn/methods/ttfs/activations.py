"""Potentials of first-spike neurons on data, without storing them, and evaluation with chosen effects on spike times.

If processes train together (``torch.distributed``), records combine the data of all of them; every process has to read
their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_snn.functional.ttfs import Overflow, TimeConstraints
from lightning_snn.methods.ttfs.neurons import FirstSpike, first_spike_layers
from lightning_snn.methods.ttfs.time_window import TimeWindow
from lightning_snn.processes import is_distributed

_INFINITY_BITS = 0x7F800000  # of a float32; those of NaN are larger


class PotentialRecord(Protocol):
    """Statistic of the potentials of a layer."""

    def add(self, u: Tensor) -> None:
        """Add the potentials u `[B, ...]` of a batch."""


@contextmanager
def evaluating(
    network: nn.Module, overflow: Overflow = "pass", constraints: TimeConstraints | None = None
) -> Iterator[None]:
    """Evaluate a network with chosen effects on spike times, and no others, within this context.

    Args:
        network: any module with `TimeWindow` layers.
        overflow: of all `FirstSpike` layers, see there.
        constraints: hardware effects on the spike times of all `TimeWindow` layers; None for none.
    """
    training = {module: module.training for module in network.modules()}
    before = {module: module.constraints for module in training if isinstance(module, TimeWindow)}
    modes = {module: (module.overflow, module.time_domain) for module in training if isinstance(module, FirstSpike)}
    try:
        network.eval()
        for spiking in before:
            spiking.constraints = constraints
        for layer in modes:
            layer.overflow, layer.time_domain = overflow, False
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for spiking, constraint in before.items():
            spiking.constraints = constraint
        for layer, (kept, time_domain) in modes.items():
            layer.overflow, layer.time_domain = kept, time_domain


@contextmanager
def recorded(network: nn.Module, records: Mapping[str, PotentialRecord]) -> Iterator[None]:
    """Add the potentials of `FirstSpike` layers to records, by the name of the layer, within this context."""
    layers = first_spike_layers(network)
    with ExitStack() as stack:
        for name, record in records.items():
            stack.enter_context(layers[name].register_forward_pre_hook(partial(_add, record)))
        yield


def _add(record: PotentialRecord, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    record.add(inputs[0].detach())


class LargestPotential:
    """Largest potential over batches and processes."""

    def __init__(self, device: torch.device) -> None:
        self._largest = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, u: Tensor) -> None:
        """Add the potentials u `[B, ...]` of a batch."""
        self._largest = torch.maximum(self._largest, u.amax().to(self._largest))

    def value(self) -> float:
        """Return the largest potential, at least 0; NaN if any was NaN."""
        return combined(self._largest, "MAX").item()


class PotentialHistogram:
    """Histogram of the positive potentials over batches and processes, whose bins have a relative width of 2^-11.

    Positive floats have the order of their bits as integers, so the upper bits are the bins.

    Attributes:
        total: number of potentials so far, in this process.
    """

    _DROPPED_BITS = 12

    def __init__(self, device: torch.device) -> None:
        self.total = 0
        self._counts = torch.zeros(2**31 >> self._DROPPED_BITS, dtype=torch.int64, device=device)

    def add(self, u: Tensor) -> None:
        """Add the potentials u `[B, ...]` of a batch."""
        # NaN is counted, too: without its sign its bits are above those of infinity
        bits = u[~(u <= 0)].float().abs().view(torch.int32)
        self._counts += torch.bincount(bits >> self._DROPPED_BITS, minlength=len(self._counts))
        self.total += u.numel()

    def active(self) -> float:
        """Return the fraction of potentials that are positive, so that their neuron spikes; NaN without potentials."""
        total = combined(self._counts.new_tensor(self.total), "SUM")
        return (combined(self._counts, "SUM").sum() / total).item()

    def quantile(self, quantile: float) -> float:
        """Return an upper bound of a quantile in (0, 1] of the positive potentials, the upper end of its bin.

        0 if there are none, and NaN if any potential was NaN.
        """
        # on the CPU, because cumsum has no deterministic implementation on GPUs
        cumulative = combined(self._counts, "SUM").cpu().cumsum(0)
        if cumulative[-1] == 0:
            return 0.0
        if cumulative[-1] > cumulative[_INFINITY_BITS >> self._DROPPED_BITS]:
            return math.nan
        wanted = (quantile * cumulative[-1].double()).ceil().long().clamp(min=1)
        place = int(torch.searchsorted(cumulative, wanted))
        return self._upper_end(torch.tensor(place)).item()

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return the middle of each bin that has potentials, and their number, both float64 `[bins]` on the CPU."""
        counts = combined(self._counts, "SUM").cpu()
        places = counts.nonzero()[:, 0]
        ends = torch.stack([self._upper_end(places - 1), self._upper_end(places)]).double()
        return ends.mean(0), counts[places].double()

    def _upper_end(self, place: Tensor) -> Tensor:
        return ((place + 1) << self._DROPPED_BITS).to(torch.int32).view(torch.float32)


def combined(values: Tensor, operation: str) -> Tensor:
    """Return the combination of a tensor of all processes, by "MAX" or "SUM"; the tensor itself if there is one."""
    if not is_distributed():
        return values
    result = values.clone()
    dist.all_reduce(result, getattr(dist.ReduceOp, operation))
    return result
