"""Table of the modules of a network."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricCollection


def model_summary(pl_module: pl.LightningModule) -> str:
    """Return a table of all modules except metrics, with their numbers of parameters; the network is not run."""
    metrics = [part for part in pl_module.modules() if isinstance(part, (Metric, MetricCollection))]
    left_out = {id(part) for metric in metrics for part in metric.modules()}
    rows = [("module", "type", "parameters")]
    for name, part in pl_module.named_modules():
        if name and id(part) not in left_out:
            rows.append((name, type(part).__name__, _count(part.parameters())))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}" for name, kind, count in rows]
    trained = _count(part for part in pl_module.parameters() if part.requires_grad)
    lines += ["", f"{_count(pl_module.parameters())} parameters, of which {trained} are trained by gradients"]
    return "\n".join(lines)


def _count(parameters: Iterable[Tensor]) -> str:
    listed = list(parameters)
    return "?" if any(map(is_lazy, listed)) else f"{sum(part.numel() for part in listed):,}"
