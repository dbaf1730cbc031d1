"""Base of metrics that need all samples at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_snn.processes import gather_parts


class StoredSamples(Metric):
    """Base of metrics that store their samples until they are reset, and join those of all processes.

    Processes may have different numbers of samples, also none.

    Args:
        names: names of the states, lists of tensors `[N, ...]`, to which `update` appends one each.
        kwargs: see `torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, *names: str, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_parts, **kwargs})
        self._names = names
        for name in names:
            self.add_state(name, [], dist_reduce_fx="cat")

    def joined(self) -> list[Tensor]:
        """Return all samples of each state, in the order of their names."""
        every = [getattr(self, name) for name in self._names]
        return [dim_zero_cat(parts) if len(parts) else torch.empty(0) for parts in every]
