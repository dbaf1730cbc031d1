"""Memories of past updates, from which the cavity of a batch follows: what the layers know without that batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_snn.methods.ep.fingerprint import fingerprint
from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.weights import Natural
from lightning_snn.processes import world_size

MemoryName = Literal["per_batch", "average", "adf"]


class Memory(nn.Module):
    """Base class of the memories, which itself keeps nothing.

    This is assumed-density filtering, "adf": a batch that is seen twice counts twice.
    """

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        """Return the natural parameters of each layer without this batch.

        Args:
            layers: the layers with weights.
            x: inputs `[B, ...]`.
            y: targets `[B, ...]`.
            train_size: number of training samples over all processes; None if it is unknown.
        """
        return [layer.natural for layer in layers]

    def fade(self, layers: Sequence[MessageLayer], retained: float) -> None:
        """Multiply what the layers contain of all batches by a factor in (0, 1], before `cavities`."""
        for layer in layers:
            layer.fade(retained)

    def returning(self, layers: Sequence[MessageLayer]) -> bool:
        """Return whether the layers contain the batch of the last `cavities` from an earlier update."""
        return False

    def update_scale(self, layers: Sequence[MessageLayer]) -> int:
        """Return the factor of displacements by the batch of the last `cavities`, before processes average theirs."""
        return 1

    def record(self, layers: Sequence[MessageLayer], displacements: Sequence[Natural]) -> None:
        """Record the displacements that the batch of the last `cavities` requests."""


class AverageMemory(Memory):
    """Memory of the total update: an average batch is subtracted from the second epoch on.

    Attributes:
        samples_seen: number of samples so far, over all processes. It is part of the state dict and not a buffer,
            because averages of weights (EMA) would average a buffer too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples_seen = 0
        self._returning = False

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        """Return the natural parameters of each layer without this batch; see `Memory.cavities`.

        Raises:
            ValueError: if the number of training samples is unknown, or smaller than that of the batch.
        """
        if train_size is None:
            raise ValueError(
                'Expected the number of training samples to be known for `memory="average"`, but the data loader has '
                'no length. Use "per_batch" or "adf"'
            )
        if train_size < len(y):
            raise ValueError(
                f'Expected the number of training samples for `memory="average"` to be at least that of a batch, but '
                f"got {train_size} for a batch of {len(y)}. If the data set holds ready batches, use `per_batch`, or a "
                "data set of samples"
            )
        self._returning = self.samples_seen >= train_size
        self.samples_seen += len(y) * world_size()
        share = len(y) / train_size if self._returning else 0.0
        return [layer.average_cavity(share) for layer in layers]

    def returning(self, layers: Sequence[MessageLayer]) -> bool:
        return self._returning

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}samples_seen"] = torch.tensor(self.samples_seen)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        key = f"{prefix}samples_seen"
        if key in state_dict:
            self.samples_seen = int(state_dict[key])
        elif strict:
            missing_keys.append(key)


class BatchMemory(Memory):
    """Memory of the update by each batch, in the layers' `sites`; batches are identified by their content."""

    def __init__(self) -> None:
        super().__init__()
        self._batch = (0, 0)

    def cavities(self, layers: Sequence[MessageLayer], x: Tensor, y: Tensor, train_size: int | None) -> list[Natural]:
        """Return the natural parameters of each layer without this batch; see `Memory.cavities`.

        Raises:
            ValueError: if all samples were seen before, but not in this batch.
        """
        for layer in layers:
            layer.sites.update(layer.natural)
        key, sites = fingerprint(x, y), layers[0].sites
        # a padded sampler may give all but one process a sample twice
        if key not in sites and train_size is not None and sites.samples + len(y) > train_size + world_size() - 1:
            raise ValueError(
                'Expected the same samples in each batch in every epoch for `memory="per_batch"`, which keeps the '
                f"update by each batch, but got a batch of {len(y)} samples that differs from the {len(sites)} batches "
                "before. Shuffle batches, not samples: `FixedBatches` as the loader's `batch_sampler`, "
                "`fixed_batches=True` of our data modules, or `shuffle=False`, all without random augmentation or "
                'encoding; or use `memory="average"`, or "adf" for a single epoch on new data'
            )
        self._batch = (key, len(y))
        return [layer.cavity(layer.sites.site(key)) for layer in layers]

    def fade(self, layers: Sequence[MessageLayer], retained: float) -> None:
        for layer in layers:
            layer.sites.update(layer.natural)
        # once per step of the optimizer: while batches accumulate, the layers must not move
        if not any(layer.sites.pending for layer in layers):
            super().fade(layers, retained)
            for layer in layers:
                layer.sites.fade(retained)

    def returning(self, layers: Sequence[MessageLayer]) -> bool:
        return self._batch[0] in layers[0].sites

    def update_scale(self, layers: Sequence[MessageLayer]) -> int:
        # known batches move the layers little, so their displacements may be summed; those of new ones would overshoot
        return world_size() if self.returning(layers) else 1

    def record(self, layers: Sequence[MessageLayer], displacements: Sequence[Natural]) -> None:
        if world_size() == 1:
            tags = [self._batch]  # which a device would return only after all its work
        else:
            tags = [
                tuple(tag.tolist()) for tag in _gathered(torch.tensor(self._batch, device=layers[0].precision.device))
            ]
        for layer, displacement in zip(layers, displacements, strict=True):
            parts = zip(*(_gathered(values) for values in displacement), strict=True)
            layer.sites.register(
                layer.natural, [(key, size, Natural(*part)) for (key, size), part in zip(tags, parts, strict=True)]
            )


MEMORIES: dict[MemoryName, type[Memory]] = {"per_batch": BatchMemory, "average": AverageMemory, "adf": Memory}


def _gathered(values: Tensor) -> list[Tensor]:
    """Return the tensor of each process, in the order of their ranks."""
    if world_size() == 1:
        return [values]
    every = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(every, values.contiguous())
    return every
