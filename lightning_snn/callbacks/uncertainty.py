"""Whether a classifier's uncertainty can be trusted, at every validation and test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.callbacks.predictions import KeptPredictions, Predictions
from lightning_snn.callbacks.tracking import log_figure, may_write, output_folder
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.entropy import mutual_information
from lightning_snn.functional.temperature import fit_temperature

Outputs = Literal["probabilities", "logits"]
Loader = Iterable[Any] | Callable[[], Iterable[Any]]


class UncertaintyLogger(pl.Callback):
    """Logs with each validation and test how well a classifier's probabilities and uncertainties hold, and draws it.

    Logged are, as `uncertainty/val/KEY` and `uncertainty/test/KEY`, over the samples of all processes,

    - `nll`, `brier`, `ece` and `adaptive_ece`: negative log-likelihood, Brier score, expected calibration error in bins
      of equal width and in bins of equal size;
    - `entropy`, the mean predictive entropy, and, of predictions with samples, `mutual_information` of class and model;
    - `aurc`, the area under the risk-coverage curve of errors of 0 and 1, ranked by entropy;
    - with an `ood_dataloader`, `ood_auroc`: how well the entropy tells its inputs from those of the validation or test,
      and `ood_auroc_mutual_information` where there are samples;
    - `temperature` (`val`), fitted to the validation data, and what it makes of the test (`test`): `nll_tempered` and
      `ece_tempered`. It is kept in checkpoints, so that a checkpoint is tested with its own; a test that no validation
      came before has none.

    The end of `Trainer.test` and of `Trainer.validate` brings `NAME_STAGE_reliability.png`, `NAME_STAGE_entropy.png`
    and `NAME_STAGE_risk_coverage.png`. Of several validation or test loaders each but the first has its index as a
    last part of its keys; the temperature is that of the first.

    It works on any LightningModule of a classifier. Predictions are, in this order, those of `predict`; those that its
    step returns as ``{"prediction": p, "target": y}``; those of its `predict_step`, if it defines one; its `forward`.
    All but the step's are computed for this callback: as much work as the validation or test itself. An object with
    class probabilities as its `mean`, as our methods' `Prediction` is, may have them of K `samples` too.

    Nothing is done in training steps, and random numbers that predictions draw are put back: training goes on to the
    last bit as it would without this callback. The first batch of a sanity check is predicted too, and neither kept nor
    logged: what cannot be scored is refused before an epoch is lost.

    Args:
        ood_dataloader: loader of inputs from outside of the training distribution, or a function that makes one. Its
            batches go to the device and through the hooks of the data as those of the validation do, their labels
            unused. It is gone through with each validation and test, by each process as a whole.
        temperature: whether to fit the temperature.
        n_bins: bins of the calibration errors and of the reliability diagram, at least 1.
        folder: where to write figures; None takes the trainer's `default_root_dir`. Nothing is written in a
            `fast_dev_run`.
        outputs: whether tensors are class "probabilities" or "logits"; None takes those of `forward` for logits and all
            others for probabilities, and refuses what looks like the other. Of outputs of `forward` that lie within
            [0, 1], as spike rates and sigmoids do, it warns: their softmax is nearly uniform.
        predict: from the module and a batch to a prediction `[B, C]`, called without gradients.
        read_batch: from a batch to ``(x, y [B])``; None takes batches that are such pairs.
        name: first part of all keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is outside its range; at the first batch of a validation or test, if the predictions
            are not of classes, are not what `outputs` says or there are no classes `[B]` to compare them with.

    Example:
        >>> trainer = Trainer(callbacks=[UncertaintyLogger(ood_dataloader=noise)])
        >>> trainer.fit(module, data)
        >>> trainer.test(module, data)
    """

    def __init__(
        self,
        ood_dataloader: Loader | None = None,
        temperature: bool = True,
        n_bins: int = 15,
        folder: str | os.PathLike[str] | None = None,
        outputs: Outputs | None = None,
        predict: Callable[[pl.LightningModule, Any], Any] | None = None,
        read_batch: Callable[[Any], tuple[Any, Tensor]] | None = None,
        name: str = "uncertainty",
    ) -> None:
        check_choice("temperature", temperature, (True, False))
        check_integer("n_bins", n_bins)
        check_choice("outputs", outputs, (None, "probabilities", "logits"))
        self.ood_dataloader = ood_dataloader
        self.temperature, self.n_bins = temperature, n_bins
        self.folder = None if folder is None else Path(folder)
        self.outputs, self.predict, self.read_batch = outputs, predict, read_batch
        self.name = name
        self.fitted_temperature: float | None = None
        self._warned = False
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[int, KeptPredictions] = {}
        self._scored: dict[int, Predictions] = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        return {"temperature": self.fitted_temperature}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fitted_temperature = state_dict["temperature"]

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._forget()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._keep(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        elif batch_idx == 0:
            self._keep(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)  # for its errors
            self._forget()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._score(trainer, pl_module)
        if self.temperature and 0 in self._scored:
            first = self._scored[0]
            self.fitted_temperature = fit_temperature(first.log_probabilities, first.targets).item()
            self._log(trainer, pl_module, "val", 0, {"temperature": self.fitted_temperature})
        for index, scored in self._scored.items():
            self._log(trainer, pl_module, "val", index, scored.scores(self.n_bins))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._score(trainer, pl_module)
        for index, scored in self._scored.items():
            found = scored.scores(self.n_bins)
            if self.temperature and self.fitted_temperature is not None:
                found |= scored.tempered_scores(self.fitted_temperature, self.n_bins)
            self._log(trainer, pl_module, "test", index, found)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer, "val")
        self._forget()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, "test")
        self._forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._forget()

    def _keep(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        kept = self._kept.setdefault(dataloader_idx, KeptPredictions())
        returned = outputs if isinstance(outputs, Mapping) and {"prediction", "target"} <= outputs.keys() else None
        targets = self._targets(batch) if returned is None else returned["target"]
        if returned is None or self.predict is not None:
            with isolate_rng():
                answer = self._ask(trainer, pl_module, batch, batch_idx, not kept.targets)
        else:
            answer = self._read(returned["prediction"], pl_module, "its step", "probabilities", not kept.targets)
        if not _are_classes(targets, len(answer.outputs)):
            got = f"a tensor of {targets.dtype} and shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else ""
            raise ValueError(
                f"Expected classes, integers of shape ({len(answer.outputs)},), as the targets for "
                f"{type(self).__name__}, but got {got or type(targets).__name__}"
            )
        kept.logits = answer.logits
        kept.outputs.append(answer.outputs)
        kept.targets.append(targets.detach())
        if answer.information is not None:
            kept.information.append(answer.information)

    def _targets(self, batch: Any) -> Any:
        pair = batch if self.read_batch is None else self.read_batch(batch)
        if isinstance(pair, (tuple, list)) and len(pair) >= 2:
            return pair[1]
        raise ValueError(
            f"Expected a batch (x, y [B]) for {type(self).__name__}, or argument `read_batch` to make one of it, but "
            f"got {type(pair).__name__}"
        )

    def _ask(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, check: bool
    ) -> _Answer:
        """A prediction computed for this callback."""
        usual: Outputs = "probabilities"
        with trainer.precision_plugin.forward_context():
            if self.predict is not None:
                source, found = "`predict`", self.predict(pl_module, batch)
            elif is_overridden("predict_step", pl_module):
                source, found = "its `predict_step`", pl_module.predict_step(batch, batch_idx)
            else:
                pair = batch if self.read_batch is None else self.read_batch(batch)
                inputs = pair[0] if isinstance(pair, (tuple, list)) else pair
                source, found, usual = "its `forward`", pl_module(inputs), "logits"
        return self._read(found, pl_module, source, usual, check)

    def _read(self, found: Any, pl_module: pl.LightningModule, source: str, usual: Outputs, check: bool) -> _Answer:
        of = f"from {source} of {type(pl_module).__name__} for {type(self).__name__}"
        samples = None
        kind = usual if self.outputs is None else self.outputs
        if not isinstance(found, Tensor) and hasattr(found, "mean"):
            if not getattr(found, "categorical", True):
                raise ValueError(f"Expected predictions of classes {of}, but got those of a regression")
            found, samples, kind = found.mean, getattr(found, "samples", None), "probabilities"
        if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] < 2 or not found.is_floating_point():
            is_tensor = isinstance(found, Tensor)
            got = f"a tensor of {found.dtype} and shape {tuple(found.shape)}" if is_tensor else type(found).__name__
            remedy = ""
            if self.predict is None:
                remedy = (
                    "; argument `predict` can make them of a batch, so can a `predict_step`, or a step that returns "
                    '{"prediction": class probabilities [B, C], "target": classes [B]}'
                )
            raise ValueError(f"Expected {kind} [B, C] of at least two classes {of}, but got {got}{remedy}")
        # in half precision they are widened, so that later sums are not rounded
        found = found.detach().to(torch.promote_types(found.dtype, torch.float32))
        if check:
            whole = bool((found >= 0).all() and ((found.sum(1) - 1).abs() < 0.01).all())
            if kind == "probabilities" and not whole:
                raise ValueError(
                    f"Expected class probabilities {of}, at least 0 with rows that sum to 1, but got values from "
                    f'{found.min():g} to {found.max():g}; logits need outputs="logits"'
                )
            if kind == "logits" and whole and self.outputs is None:
                raise ValueError(
                    f"Expected logits {of}, but got rows that are at least 0 and sum to 1; class probabilities need "
                    'outputs="probabilities", and if these are logits, say so by outputs="logits"'
                )
            if kind == "logits" and self.outputs is None and not self._warned and _look_like_rates(found):
                self._warned = True
                rank_zero_warn(
                    f"Values {of} are taken for logits, but lie within [0, 1], as spike rates and sigmoids do. If they "
                    'are logits, say so by outputs="logits"; if not, make probabilities of them by argument `predict`'
                )
        if kind == "probabilities":
            found = found.clamp(max=1)  # a mean of ones may round to more than 1
        information = None if samples is None else mutual_information(samples.detach())
        return _Answer(found, kind == "logits", information)

    def _score(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join what was kept of batches and processes, on the host and in float64."""
        self._scored = {index: kept.joined(trainer) for index, kept in sorted(self._kept.items()) if kept.targets}
        self._kept = {}
        if self._scored and self.ood_dataloader is not None:
            with isolate_rng():  # loaders draw too
                outside = self._outside(trainer, pl_module)
            for scored in self._scored.values():
                scored.outside = outside

    def _outside(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        """Uncertainties of the inputs from outside of the training distribution."""
        loader = self.ood_dataloader() if callable(self.ood_dataloader) else self.ood_dataloader
        assert loader is not None
        kept = KeptPredictions()
        for index, loaded in enumerate(loader):
            # as batches of the validation go, through the hooks of the data
            batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(loaded))
            batch = trainer.strategy.batch_to_device(batch)
            answer = self._ask(trainer, pl_module, batch, index, index == 0)
            kept.logits = answer.logits
            kept.outputs.append(answer.outputs)
            if answer.information is not None:
                kept.information.append(answer.information)
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                break
        if not kept.outputs:
            raise ValueError("Expected argument `ood_dataloader` to give at least one batch, but got none")
        return kept.joined(None).uncertainties

    def _log(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: str,
        index: int,
        values: Mapping[str, Tensor | float],
    ) -> None:
        suffix = f"/{index}" if index else ""
        named = {f"{self.name}/{stage}/{key}{suffix}": float(value) for key, value in values.items()}
        # values are those of all processes already
        pl_module.log_dict(named, sync_dist=trainer.world_size > 1)

    def _draw(self, trainer: pl.Trainer, stage: str) -> None:
        if not may_write(trainer):
            return
        folder = output_folder(trainer, self.folder)
        for index, scored in self._scored.items():
            suffix = f"_{index}" if index else ""
            for figure_name, figure in scored.drawn(self.n_bins).items():
                log_figure(trainer, f"{self.name}_{stage}_{figure_name}{suffix}", figure, folder)


class _Answer(NamedTuple):
    """Class probabilities or logits `[B, C]`, and mutual information `[B]` where there are samples."""

    outputs: Tensor
    logits: bool
    information: Tensor | None


def _look_like_rates(found: Tensor) -> bool:
    # zeros alone are those of a network that is silent, and tell nothing
    return bool(((found >= 0) & (found <= 1)).all() and (found > 0).any())


def _are_classes(targets: Any, number: int) -> bool:
    return isinstance(targets, Tensor) and targets.shape == (number,) and not targets.is_floating_point()
