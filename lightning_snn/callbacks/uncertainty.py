"""Scores and figures of a classifier's uncertainty, in every validation and test."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.callbacks.conformal import ConformalSets, SetScores
from lightning_snn.callbacks.dry_run import call_step, check_validation
from lightning_snn.callbacks.packages import overrides
from lightning_snn.callbacks.predictions import (
    FURTHER_SCORES,
    CollectedPredictions,
    FurtherScore,
    Predictions,
    check_labels,
    describe,
    loaders_of_processes,
    read_prediction,
    read_step_outputs,
)
from lightning_snn.callbacks.readouts import (
    Outputs,
    check_probabilities_or_logits,
    check_time_first,
    read_over_time,
)
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tracking import log_figure, may_write
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.temperature import fit_temperature
from lightning_snn.processes import warn_of_repeated_samples

Loader = Iterable[Any] | Callable[[], Iterable[Any]]


class _Source(NamedTuple):
    """A prediction, by the name of the function that returned it, and what tensors from there are by default."""

    name: str
    value: Any
    kind: Outputs


class UncertaintyLogger(Stages):
    """Logger of how reliable a classifier's probabilities and uncertainties are, in each validation and test.

    Logged as `uncertainty/val/KEY` and `uncertainty/test/KEY`, over the samples of all processes:

    - `nll`, `brier`, `ece`, and `adaptive_ece`: negative log-likelihood, Brier score, and expected calibration error in
      bins of equal width and in bins of equal size;
    - `entropy`, the mean predictive entropy, and, for predictions with samples, `mutual_information` of class and
      model, both in nats;
    - `aurc`: area under the risk-coverage curve of errors of 0 and 1, ranked by entropy;
    - with an `ood_dataloader`, `ood_auroc`: how well the entropy separates its inputs from those of the validation or
      test; with samples also `ood_auroc_mutual_information`;
    - `temperature` (`val`), fitted to the validation data, and the scores of the test at this temperature (`test`):
      `nll_tempered` and `ece_tempered`. Checkpoints contain the temperature. A test without an earlier validation has
      none;
    - with `scores`, those that were chosen: `classwise_ece`, the calibration error of all classes; `smooth_ece`, the
      calibration error without bins; `augrc`, the area under the generalized risk-coverage curve; and, with an
      `ood_dataloader`, `ood_fpr95_out` and `ood_aupr_out`, where inputs from outside are to be found, and
      `ood_fpr95_in` and `ood_aupr_in`, where those of the data are to be kept;
    - with `conformal`, `conformal_threshold` (`val`), calibrated with the validation data, and `conformal_coverage` and
      `conformal_size` of the prediction sets (`test`), after time step t also with `_t1`, `_t2`, ... at the end of the
      key. Checkpoints contain the thresholds. The coverage is the chosen one only if validation data were not used to
      choose the model.

    At the end of `Trainer.test` and of `Trainer.validate` it draws `NAME_STAGE_reliability.png`,
    `NAME_STAGE_entropy.png`, and `NAME_STAGE_risk_coverage.png`, and for prediction sets after each time step
    `NAME_test_conformal.png`. With several validation or test loaders, the keys of all but the first end with the
    loader's index. Temperature and sets are fitted to the first.

    It works on any LightningModule of a classifier. It takes predictions from the first of these that is available:
    `predict`; a step that returns ``{"prediction": p, "target": y}``; an overridden `predict_step`; `forward`. Except
    for those of the step, it computes them itself, at the cost of another validation or test. A prediction is a tensor,
    or an object with class probabilities as its `mean` and perhaps those of K samples as `samples`, like
    `methods.Prediction`. Of outputs `[T, B, C]` it takes the mean over time, which is the firing rate of spikes,
    and of a pair of spikes and membrane potentials, as in snntorch's networks, the mean membrane potential; it reports
    once which of them. Rates and membrane potentials are logits.

    Nothing is done in training steps, and random states are restored after predictions, so training is bit-identical
    with and without this callback. The first batch of a sanity check is predicted but not scored, so that unsuitable
    outputs raise an error before an epoch is lost. Without a sanity check, a copy of the module runs a validation step
    on the first batch of each loader at the start of the fit.

    Args:
        ood_dataloader: loader of inputs from outside the training distribution, or a function that returns one. Its
            batches are transferred like those of the validation; their labels are ignored. Every process iterates over
            all of it in each validation and test.
        temperature: whether to fit the temperature.
        n_bins: number of bins of the calibration errors and of the reliability diagram, at least 1.
        folder: folder of the figures; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        outputs: whether tensors are class "probabilities" or "logits"; None treats those of `forward` as logits and all
            others as probabilities, and raises an error if they look like the other. It warns if outputs of `forward`
            lie within [0, 1], like spike rates and sigmoids: their softmax is nearly uniform.
        predict: function from the module and a batch to a prediction `[B, C]`, called without gradients.
        read_batch: function from a batch to ``(x, y [B])``; None expects batches that are such pairs.
        scores: further scores: any of "classwise_ece", "smooth_ece", "augrc", "ood_fpr95", and "ood_aupr".
        conformal: settings of conformal prediction sets; None makes none. Sets after each time step cost another run of
            the network for each batch, and T C numbers of memory for each sample.
        name: first part of all keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is out of range; in the first batch of a validation or test, if the predictions are
            not class probabilities or do not match `outputs`, or if the targets are not classes `[B]`. Labels such as
            -1 of samples without a class are refused; leave these samples out, for example by `predict` and
            `read_batch`.

    Example:
        >>> uncertainty = UncertaintyLogger(ood_dataloader=[torch.rand(8, 3)], n_bins=10)
        >>> trainer = pl.Trainer(callbacks=[uncertainty], logger=False)
    """

    stages: tuple[Stage, ...] = ("val", "test")

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
        scores: Collection[FurtherScore] = (),
        conformal: ConformalSets | None = None,
    ) -> None:
        super().__init__()
        check_choice("temperature", temperature, (True, False))
        check_integer("n_bins", n_bins)
        check_choice("outputs", outputs, (None, "probabilities", "logits"))
        for score in scores:
            check_choice("scores", score, FURTHER_SCORES)
        self.ood_dataloader = ood_dataloader
        self.temperature, self.n_bins = temperature, n_bins
        self.folder = None if folder is None else Path(folder)
        self.outputs, self.predict, self.read_batch = outputs, predict, read_batch
        self.name, self.scores = name, tuple(scores)
        self.sets = None if conformal is None else SetScores(conformal)
        self.fitted_temperature: float | None = None
        self._warned = False
        self.discard()

    def discard(self) -> None:
        self._collected: dict[int, CollectedPredictions] = {}
        self._scored: dict[int, Predictions] = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        sets = {} if self.sets is None else {"conformal": self.sets.state_dict()}
        return {"temperature": self.fitted_temperature, **sets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fitted_temperature = state_dict["temperature"]
        if self.sets is not None and "conformal" in state_dict:
            self.sets.load_state_dict(state_dict["conformal"])

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self.discard()
        warn_of_repeated_samples(trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        super().on_validation_batch_end(trainer, pl_module, *arguments)
        batch_idx = arguments[2]
        if trainer.sanity_checking and batch_idx == 0:
            self._checked = True
            self.end_batch(trainer, pl_module, "val", *arguments)  # only for the errors that it raises
            self.discard()

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._checked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        skips = self._checked or not trainer.enable_validation or trainer.fast_dev_run  # type: ignore[attr-defined]
        if not skips:
            check_validation(
                trainer,
                pl_module,
                lambda copied, batch, outputs, index: self.end_batch(trainer, copied, "val", outputs, batch, 0, index),
            )
            self.discard()

    def end_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        collected = self._collected.setdefault(dataloader_idx, CollectedPredictions())
        returned = read_step_outputs(outputs)
        # targets that are read by a function belong to predictions by a function
        if returned is None or (self.predict is not None and self.read_batch is not None):
            targets = self._targets(batch)
        else:
            targets = returned.target
        if returned is None or self.predict is not None:
            with isolate_rng():
                source = self._predict(trainer, pl_module, batch, batch_idx, dataloader_idx)
        else:
            source = _Source("its step", returned.prediction, "probabilities")
        self._collect(collected, source, pl_module, targets)
        check_labels(targets, collected.outputs[-1], type(self).__name__)
        collected.targets.append(targets.detach())
        if self.sets is not None and self.sets.needs(stage, dataloader_idx):
            with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
                over_time = self.sets.settings.predict_over_time(pl_module, batch, collected.outputs[-1].shape)
            if over_time is not None:
                collected.add_over_time(over_time)

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._score(trainer, pl_module)
        if stage == "val" and 0 in self._scored:
            self._log(trainer, pl_module, stage, 0, self._fit_to(self._scored[0]))
        for index, scored in self._scored.items():
            scores = scored.scores(self.n_bins) | scored.further_scores(self.scores, self.n_bins)
            if stage == "test" and self.sets is not None:
                scores |= self.sets.scores(scored)
            if stage == "test" and self.temperature and self.fitted_temperature is not None:
                scores |= scored.tempered_scores(self.fitted_temperature, self.n_bins)
            self._log(trainer, pl_module, stage, index, scores)
        if trainer.state.fn == TrainerFn.FITTING:
            self.discard()

    def _fit_to(self, held_out: Predictions) -> dict[str, Tensor | float]:
        """Fit the temperature and the prediction sets, and return their scalars."""
        found: dict[str, Tensor | float] = {}
        if self.temperature:
            self.fitted_temperature = fit_temperature(held_out.log_probabilities, held_out.targets).item()
            found["temperature"] = self.fitted_temperature
        if self.sets is not None:
            found.update(self.sets.calibrate(held_out))
        return found

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if may_write(trainer):
            for index, scored in self._scored.items():
                suffix = f"_{index}" if index else ""
                drawn = scored.draw(self.n_bins)
                if stage == "test" and self.sets is not None:
                    drawn |= self.sets.draw(scored)
                for figure_name, figure in drawn.items():
                    log_figure(trainer, f"{self.name}_{stage}_{figure_name}{suffix}", figure, self.folder)
        self.discard()

    def _targets(self, batch: Any) -> Any:
        pair = batch if self.read_batch is None else self.read_batch(batch)
        if isinstance(pair, (tuple, list)) and len(pair) >= 2:
            return pair[1]
        raise ValueError(
            f"Expected a batch (x, y [B]) for {type(self).__name__}, but got {type(pair).__name__}. Pass `read_batch` "
            "to convert batches."
        )

    def _predict(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> _Source:
        """Compute a prediction that the step does not return."""
        with trainer.precision_plugin.forward_context():
            if self.predict is not None:
                return _Source("`predict`", self.predict(pl_module, batch), "probabilities")
            if overrides(pl_module, "predict_step"):
                value = call_step(pl_module, "predict_step", batch, batch_idx, dataloader_idx)
                return _Source("its `predict_step`", value, "probabilities")
            pair = batch if self.read_batch is None else self.read_batch(batch)
            inputs = pair[0] if isinstance(pair, (tuple, list)) else pair
            return _Source("its `forward`", pl_module(inputs), "logits")

    def _collect(
        self, collected: CollectedPredictions, source: _Source, pl_module: pl.LightningModule, targets: Any = None
    ) -> None:
        """Collect a prediction; of the first batch, check whether it consists of probabilities or logits.

        Args:
            collected: predictions so far.
            source: the prediction.
            pl_module: the module, for error messages.
            targets: targets of the batch; None if they are not known.
        """
        origin = f"from {source.name} of {type(pl_module).__name__} for {type(self).__name__}"
        value, kind = source.value, source.kind if self.outputs is None else self.outputs
        over_time = read_over_time(value)
        if over_time is not None:
            check_time_first(value, targets, origin)
            if not self._warned:
                self._warned = True
                rank_zero_warn(over_time.report(origin))
            value, kind = over_time.outputs, kind if over_time.probabilities or self.outputs is not None else "logits"
        prediction = read_prediction(value)
        if prediction is not None and not isinstance(value, Tensor):
            kind = "probabilities"
            if not prediction.categorical:
                raise ValueError(f"Expected predictions of classes {origin}, but got those of a regression")
        mean = None if prediction is None else prediction.mean
        if mean is None or mean.dim() != 2 or mean.shape[1] < 2 or not mean.is_floating_point():
            remedy = ""
            if self.predict is None:
                remedy = (
                    " Pass `predict` to compute them, define a `predict_step`, or return "
                    '{"prediction": class probabilities [B, C], "target": classes [B]} from the step.'
                )
            got = describe(value if mean is None else mean)
            raise ValueError(f"Expected {kind} [B, C] of at least two classes {origin}, but got {got}.{remedy}")
        # half precision is widened, so that later sums are not rounded
        mean = mean.detach().to(torch.promote_types(mean.dtype, torch.float32))
        are_known_logits = kind == "logits" and over_time is not None and not over_time.probabilities
        if not collected.outputs and not are_known_logits:
            warning = check_probabilities_or_logits(mean, kind, origin, is_chosen=self.outputs is not None)
            if warning is not None and not self._warned:
                self._warned = True
                rank_zero_warn(warning)
        if kind == "probabilities":
            mean = mean.clamp(max=1)  # a mean of ones may round to more than 1
        collected.add(mean, kind == "logits", None if prediction is None else prediction.samples)

    def _score(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the predictions of all batches and processes, on the host and in float64."""
        collected, self._collected = self._collected, {}
        with_targets = [index for index, each in collected.items() if each.targets]
        self._scored = {
            index: collected.get(index, CollectedPredictions()).join(trainer)
            for index in loaders_of_processes(with_targets, trainer)
        }
        if self._scored and self.ood_dataloader is not None:
            with isolate_rng():  # loaders draw random numbers too
                uncertainties = self._out_of_distribution(trainer, pl_module)
            for scored in self._scored.values():
                scored.out_of_distribution = uncertainties

    def _out_of_distribution(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        """Return the uncertainties of the inputs from outside the training distribution."""
        loader = self.ood_dataloader() if callable(self.ood_dataloader) else self.ood_dataloader
        assert loader is not None
        collected = CollectedPredictions()
        for index, loaded in enumerate(loader):
            # like the batches of a validation, through the hooks of the data
            batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(loaded))
            batch = trainer.strategy.batch_to_device(batch)
            self._collect(collected, self._predict(trainer, pl_module, batch, index, 0), pl_module)
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                break
        if not collected.outputs:
            raise ValueError("Expected argument `ood_dataloader` to return at least one batch, but got none")
        return collected.join(None).uncertainties

    def _log(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        index: int,
        values: Mapping[str, Tensor | float],
    ) -> None:
        suffix = f"/{index}" if index else ""
        named = {f"{self.name}/{stage}/{key}{suffix}": float(value) for key, value in values.items()}
        # the values are already those of all processes
        pl_module.log_dict(named, sync_dist=trainer.world_size > 1)
