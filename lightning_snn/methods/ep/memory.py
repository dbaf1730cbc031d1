"""What a layer would know without the batch at hand: the cavity, by what is remembered of the batches before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_snn.methods.ep.fingerprint import fingerprint
from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.weights import Natural
from lightning_snn.processes import world_size

MemoryName = Literal["per_batch", "average", "adf"]


class Memory(nn.Module):
    """Base of the memories, and the one that remembers nothing (assumed-density filtering, "adf"): data that come
    twice count twice."""

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        """Natural parameters of each layer without this batch.

        Args:
            layers: the layers with weights.
            x: inputs `[B, ...]`.
            y: targets `[B, ...]`.
            train_size: number of training samples over all processes; None where it is not known.
        """
        return [layer.natural for layer in layers]

    def strength(self, layers: Sequence[MessageLayer]) -> int:
        """What displacements by the batch of the last `cavities` are multiplied by, before processes average theirs."""
        return 1

    def remember(self, layers: Sequence[MessageLayer], displacements: Sequence[Natural]) -> None:
        """Take note of the displacements that were asked for by the batch of the last `cavities`."""


class AverageMemory(Memory):
    """Takes an average batch away once all data have been heard."""

    heard: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        if train_size is None:
            raise ValueError(
                'Expected the number of training samples to be known for `memory="average"`, but the loader does not '
                'tell it: choose "per_batch" or "adf"'
            )
        again, share = self.heard >= train_size, len(y) / train_size
        self.heard += len(y) * world_size()
        return [layer.without_share(again.to(layer.precision.dtype) * share) for layer in layers]


class BatchMemory(Memory):
    """Keeps what each batch has said, in the layers' `sites`, and finds it by what the batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self._batch = (0, 0)

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        """As of `Memory`.

        Raises:
            ValueError: if all samples were heard before, but not in this batch.
        """
        for layer in layers:
            layer.sites.settle(layer.natural)
        key, sites = fingerprint(x, y), layers[0].sites
        # a padded sampler may give each process but one a sample twice
        if key not in sites and train_size is not None and sites.samples + len(y) > train_size + world_size() - 1:
            raise ValueError(
                'Expected the same samples in each batch at every pass, as `memory="per_batch"` keeps what each batch '
                f"said, but got a batch of {len(y)} samples that none of the {len(sites)} batches before was. Shuffle "
                "batches, not samples: `FixedBatches` as the loader's `batch_sampler`, `fixed_batches=True` of our "
                "data modules, or `shuffle=False`, all without random augmentation or encoding; or choose "
                '`memory="average"`, or "adf" for a single pass over new data'
            )
        self._batch = (key, len(y))
        return [layer.without(layer.sites.site(key)) for layer in layers]

    def strength(self, layers: Sequence[MessageLayer]) -> int:
        # batches that were heard before move little, and bear to be summed over processes; new ones would overshoot
        return world_size() if self._batch[0] in layers[0].sites else 1

    def remember(self, layers: Sequence[MessageLayer], displacements: Sequence[Natural]) -> None:
        tags = [tag.tolist() for tag in _gathered(torch.tensor(self._batch, device=layers[0].precision.device))]
        for layer, displacement in zip(layers, displacements, strict=True):
            parts = zip(*(_gathered(values) for values in displacement), strict=True)
            layer.sites.ask(
                layer.natural, [(key, size, Natural(*part)) for (key, size), part in zip(tags, parts, strict=True)]
            )


MEMORIES: dict[MemoryName, type[Memory]] = {"per_batch": BatchMemory, "average": AverageMemory, "adf": Memory}


def _gathered(values: Tensor) -> list[Tensor]:
    """A tensor of each process, in the order of their ranks."""
    if world_size() == 1:
        return [values]
    every = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(every, values.contiguous())
    return every
