"""The LightningModule: composes a network, a method and metrics, and never asks which method it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_snn.checks import check_choice, check_integer, check_positive
from lightning_snn.methods.base import Method, Progress
from lightning_snn.methods.surrogate import SurrogateGradient
from lightning_snn.methods.task import Classification, Prediction, Readout, Regression
from lightning_snn.metrics import BrierScore, ExpectedCalibrationError, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.nn.folding import run

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class SpikingModule(pl.LightningModule):
    """A network and the method that trains it, ready for a stock `Trainer`.

    A batch is ``(x [T, B, ...], y [B, ...])``. Logged are `train/loss`, and on validation and test data accuracy,
    negative log-likelihood, Brier score and expected calibration error (15 bins), or the mean squared error of a
    regression.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, num_classes]` (or to the regression's output).
        method: the learning rule, of which the module keeps a copy; surrogate gradients by default.
        num_classes: number of classes C, needed for classification.
        task: "classification" or "regression".
        readout: how T outputs become one: "mean", "max", "last", "sum", or a function `[T, B, ...] -> [B, ...]`.
        optimizer: makes the optimizer from the parameters; Adam by default. A method that needs its own comes first.
        learning_rate: of the default Adam, larger than 0.
        lr_scheduler: makes a scheduler that steps once an epoch, or "cosine": to 0 over all steps of the run, stepped
            every batch.
        pairs: pairs of classes that only the order of events tells apart; their within-pair accuracy is logged.

    Raises:
        ValueError: if an argument is outside its range, or the method cannot train the network.

    Example:
        >>> network = nn.Sequential(nn.Linear(784, 128), LIF(), nn.Linear(128, 10))
        >>> module = SpikingModule(network, SpikingBayes(), num_classes=10)
        >>> Trainer(max_epochs=3).fit(module, MNIST("data"))
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method | None = None,
        num_classes: int | None = None,
        task: Literal["classification", "regression"] = "classification",
        readout: Readout = "mean",
        optimizer: OptimizerFactory | None = None,
        learning_rate: float = 1e-3,
        lr_scheduler: SchedulerFactory | Literal["cosine"] | None = None,
        pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        method = SurrogateGradient() if method is None else method
        for name, value, kind in (("network", network, nn.Module), ("method", method, Method)):
            if not isinstance(value, kind):
                raise ValueError(f"Expected argument `{name}` to be a {kind.__name__}, but got {value!r}")
        check_choice("task", task, ("classification", "regression"))
        check_positive("learning_rate", learning_rate)
        if task == "classification":
            check_integer("num_classes", num_classes, 2)
        if lr_scheduler is not None and not callable(lr_scheduler):
            check_choice("lr_scheduler", lr_scheduler, ("cosine",))
        # plain data only: a checkpoint must load with weights_only=True
        callables = [
            name for name, value in {"readout": readout, "lr_scheduler": lr_scheduler}.items() if callable(value)
        ]
        self.save_hyperparameters(ignore=["network", "method", "optimizer", *callables])

        # a copy: the task and the progress are of this module, and the method may be handed to another one
        self.method = copy.deepcopy(method)
        self.method.task = Classification(readout) if task == "classification" else Regression(readout)
        self.network = self.method.prepare(network)
        self.optimizer_factory, self.scheduler = optimizer, lr_scheduler
        self.learning_rate = learning_rate
        metrics = _metrics(task, num_classes, pairs)
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        self._train_size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Outputs `[T, B, ...]` of a plain run of the network."""
        return run(self.network, x)

    def on_train_start(self) -> None:
        self._train_size = _train_size(self.trainer)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        fraction = batch_idx / self.trainer.num_training_batches
        self.method.progress = Progress(
            self.trainer.current_epoch + fraction, self._train_size, self.trainer.global_step
        )
        step = self.method.training_step(self.network, x, y)
        self.log("train/loss", step.loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(y))
        self.log_dict({f"train/{name}": value for name, value in step.metrics.items()}, batch_size=len(y))
        return step.objective

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        return {"prediction": self._evaluate(batch, self.val_metrics), "target": batch[1]}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        return {"prediction": self._evaluate(batch, self.test_metrics), "target": batch[1]}

    def predict_step(self, batch: Any, batch_idx: int) -> Prediction:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self.method.predict(self.network, x)

    def configure_optimizers(self) -> Any:
        optimizer = self.method.configure_optimizer(self.network)
        if optimizer is None:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            make = self.optimizer_factory
            optimizer = torch.optim.Adam(parameters, self.learning_rate) if make is None else make(parameters)
        if self.scheduler is None:
            return optimizer
        if callable(self.scheduler):
            return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                'Expected `max_epochs` or `max_steps` to be set for lr_scheduler="cosine", but the run has no end'
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, int(steps)), "interval": "step"},
        }

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Prediction:
        x, y = batch
        prediction = self.method.predict(self.network, x)
        metrics.update(prediction.mean, y)
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(y))
        return prediction


def _metrics(task: str, num_classes: int | None, pairs: Sequence[tuple[int, int]]) -> MetricCollection:
    if task == "regression":
        return MetricCollection({"mse": MeanSquaredError()})
    assert num_classes is not None
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ece": ExpectedCalibrationError(n_bins=15),
    }
    if pairs:
        metrics["pair_accuracy"] = WithinPairAccuracy(pairs)
        if max(max(pair) for pair in pairs) >= num_classes:
            raise ValueError(f"Expected argument `pairs` to hold classes below {num_classes}, but got {list(pairs)!r}")
    return MetricCollection(metrics, compute_groups=False)


def _train_size(trainer: pl.Trainer) -> int | None:
    """Samples in an epoch over all processes, None if the loader does not tell."""
    loader = trainer.train_dataloader
    try:
        size = len(loader.dataset)  # type: ignore[union-attr]
    except (AttributeError, TypeError):  # several loaders, or an iterable dataset without a length
        return None
    batch_size = getattr(loader, "batch_size", None)
    if batch_size is None or trainer.num_training_batches == float("inf"):
        return size
    return min(size, int(trainer.num_training_batches) * batch_size * trainer.world_size)
