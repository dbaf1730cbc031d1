"""Predictions of `Trainer.predict` as a file of plain tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn.callbacks.predictions import describe, read_prediction
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tracking import save_tensors

# of a prediction: tensors that may be None, and the dimension of the samples of a batch
_FIELDS = {"mean": 0, "variance": 0, "samples": 1, "spike_probabilities": 0}


class PredictionWriter(Stages):
    """Writer of the predictions of `Trainer.predict` into a file of plain tensors.

    It writes `NAME.pt`, a dict of tensors that ``torch.load(path, weights_only=True)`` reads without this library:
    `mean` `[N, ...]` and, if the predictions have them, `variance` `[N, ...]`, `samples` `[K, N, ...]`, and
    `spike_probabilities` `[N, C]`, on the CPU. `target` `[N, ...]` are the targets, if batches are pairs ``(x, y)``.
    Predictions for each time step are `[N, T, ...]`. With several loaders, the names of the files of all but the first
    end with the loader's index: `NAME_1.pt`. With several processes, each writes its own predictions, and the names of
    all but those of the first end with the process's rank: `NAME_rank1.pt`.

    It works on any LightningModule whose `predict_step` returns a tensor `[B, ...]`, or an object with one as its
    attribute `mean`, like `methods.Prediction`. ``Trainer.predict(..., return_predictions=False)`` keeps no second
    copy of them.

    Args:
        folder: folder of the file; None uses that of the logger, or without one `default_root_dir`, and keeps the files
            of other runs there. A `fast_dev_run` writes nothing.
        name: name of the file, without its extension; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: in the first batch, if `predict_step` returns something else.

    Example:
        >>> trainer = pl.Trainer(callbacks=[PredictionWriter("predictions")], logger=False)
    """

    stages: tuple[Stage, ...] = ("predict",)

    def __init__(self, folder: str | os.PathLike[str] | None = None, name: str = "predictions") -> None:
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self.discard()

    def discard(self) -> None:
        self._parts: dict[int, list[dict[str, Tensor]]] = {}

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.discard()

    def end_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        prediction = read_prediction(outputs)
        if prediction is None or prediction.mean.dim() == 0:
            raise ValueError(
                f"Expected `predict_step` of {type(pl_module).__name__} to return a tensor [B, ...], or an object with "
                f"one as its `mean`, for {type(self).__name__}, but got {describe(outputs)}"
            )
        found = {name: getattr(prediction, name) for name in _FIELDS}
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
            found["target"] = batch[1]
        part = {name: value.detach().cpu() for name, value in found.items() if value is not None}
        if prediction.per_step:
            axes = {name: _FIELDS.get(name, 0) for name in part}
            part = {name: value.transpose(axes[name], axes[name] + 1) for name, value in part.items()}
        self._parts.setdefault(dataloader_idx, []).append(part)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = f"_rank{trainer.global_rank}" if trainer.global_rank else ""
        for loader, parts in self._parts.items():
            tensors = {
                name: torch.cat([part[name] for part in parts], _FIELDS.get(name, 0))
                for name in parts[0]
                if all(name in part for part in parts)
            }
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                suffix = f"_{loader}" if loader else ""
                save_tensors(trainer, f"{self.name}{suffix}{rank}", tensors, self.folder)
        self.discard()
