"""Training and evaluation by loops of plain PyTorch, which promises compare the Trainer with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.methods import Method, Prediction, Progress
from tests.contract.table import MethodRow
from tests.support.event_order import CLASSES, order_of_events
from tests.support.training import time_first, trainer

SAMPLES, SIZE = 20, 8  # so an epoch has batches of 8, 8 and 4 samples
X, Y = order_of_events(SAMPLES // 2)

Batch = tuple[Tensor, Tensor]
State = dict[str, Tensor]


def build(row: MethodRow, seed: int = 0, **options: Any) -> SpikingModule:
    """Return the module of a row; options replace or join those of the row."""
    torch.manual_seed(seed)
    chosen = {"num_classes": CLASSES, "batch_first": False} | options
    rate = None if has_own_optimizer(row) else row.learning_rate
    return SpikingModule(row.network(), row.make(), **({"learning_rate": rate} | chosen))


def predict(module: SpikingModule, x: Tensor, seed: int = 0) -> Prediction:
    """Return the prediction of a module in evaluation mode, with this seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return module.eval().method.predict(module.network, x)


def has_own_optimizer(row: MethodRow) -> bool:
    return type(row.make()).configure_optimizer is not Method.configure_optimizer


def plain_sgd(row: MethodRow) -> dict[str, Any]:
    """Return the option for SGD, whose steps are proportional to the gradient, unlike Adam's."""
    return {} if has_own_optimizer(row) else {"optimizer": SGD}


def parts(sizes: Sequence[int] = (SIZE, SIZE, SAMPLES - 2 * SIZE)) -> list[list[int]]:
    """Return consecutive indices of samples, one list per batch."""
    numbers = iter(range(sum(sizes)))
    return [[next(numbers) for _ in range(size)] for size in sizes]


def batches(indices: Iterable[Sequence[int]] | None = None, x: Tensor = X, y: Tensor = Y) -> list[Batch]:
    """Return batches `(x [T, B, 2], y [B])` of the given samples; those of an epoch by default."""
    return [(x[:, list(part)], y[list(part)]) for part in (parts() if indices is None else indices)]


def loader(indices: Sequence[Sequence[int]] | None = None, x: Tensor = X, y: Tensor = Y) -> DataLoader[Any]:
    """Return a loader of the same batches."""
    dataset = TensorDataset(x.transpose(0, 1), y)
    if indices is None:
        return DataLoader(dataset, SIZE, collate_fn=time_first)
    given: Any = indices
    return DataLoader(dataset, batch_sampler=given, collate_fn=time_first)


def state(module: torch.nn.Module) -> State:
    """Return a copy of all that a checkpoint holds of a module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(one: State, other: State) -> list[str]:
    """Return the names under which two states differ in a bit."""
    same = {name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])}
    return sorted((one.keys() | other.keys()) - same)


def assert_close(found: State, expected: State, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


class SeedBatches(pl.Callback):
    """The noise of a batch depends on its number only, as in `ByHand` and `scores`."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        torch.manual_seed(trainer.fit_loop.total_batch_idx)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: object) -> None:
        torch.manual_seed(batch_idx)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


def running(*callbacks: pl.Callback, **options: Any) -> Any:
    """Return a Trainer whose noise is that of `ByHand` and `scores`."""
    return trainer(SeedBatches(), *callbacks, **({"num_sanity_val_steps": 0} | options))


def fit(module: SpikingModule, *callbacks: pl.Callback, **options: Any) -> Any:
    """Train a module on the batches of an epoch, and validate it on the same; return the Trainer."""
    fitting = running(*callbacks, **options)
    fitting.fit(module, loader(), loader())
    return fitting


class ByHand:
    """Training by a loop over `training_step`, `backward` and `step`.

    Args:
        module: the module.
        train_size: samples per epoch.
        change: changes gradients in place before a step, for example clips them.
        rate: factor on the learning rate, from the numbers of epochs and steps before.
        has_length: whether the loader has a length, by which the method knows the fraction of an epoch.
        within: context of `training_step`.
    """

    def __init__(
        self,
        module: SpikingModule,
        train_size: int = SAMPLES,
        change: Callable[[list[Tensor]], None] = lambda gradients: None,
        rate: Callable[[int, int], float] = lambda epoch, step: 1.0,
        has_length: bool = True,
        within: Callable[[], Any] = torch.enable_grad,
    ) -> None:
        self.module, self.train_size, self.change, self.rate = module, train_size, change, rate
        self.has_length, self.within = has_length, within
        made = module.configure_optimizers()
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epochs = self.steps = self.seen = self.samples = 0
        self.before = state(module)
        self.after_steps: list[State] = []
        self.losses: list[Tensor] = []

    def train(
        self, batches: Sequence[Batch], epochs: int = 1, accumulate: int = 1, max_steps: int | None = None
    ) -> ByHand:
        """Train for some more epochs, in each on all batches."""
        for _ in range(epochs):
            for index, batch in enumerate(batches):
                if self.steps == max_steps:
                    return self
                self.backward(batch, index / len(batches) if self.has_length else 0.0, accumulate)
                if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                    self.step()
            self.epochs += 1
        return self

    def backward(self, batch: Batch, share: float, count: int) -> None:
        """Add the gradient of a batch over `count`, which is after a share of the epoch."""
        x, y = batch
        method = self.module.train().method
        torch.manual_seed(self.seen)
        method.progress = Progress(self.epochs + share, self.train_size, self.steps, self.samples, self.has_length)
        with self.within():
            step = method.training_step(self.module.network, x, y)
        (step.objective / count).backward()
        self.losses.append(step.loss)
        self.seen += 1
        self.samples += x.shape[1]

    def step(self) -> None:
        """Take a step of the optimizer and remember the weights after it."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate(self.epochs, self.steps)
        self.change([each.grad for each in self.module.parameters() if each.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.after_steps.append(state(self.module))

    @property
    def state(self) -> State:
        """Copy of the present state, which must not be that of the start."""
        present = state(self.module)
        assert differing(self.before, present)
        return present


def predictions(module: SpikingModule, batches: Iterable[Batch]) -> list[Prediction]:
    """Return the prediction for each batch, whose noise depends on its number only."""
    module.eval()
    found = []
    for index, (x, _) in enumerate(batches):
        torch.manual_seed(index)
        with torch.no_grad():
            found.append(module.method.predict(module.network, x))
    return found


def scores(module: SpikingModule, batches: Sequence[Batch]) -> dict[str, float]:
    """Return accuracy, negative log-likelihood in nats and Brier score over all samples of some batches."""
    means = torch.cat([each.mean for each in predictions(module, batches)]).double()
    y = torch.cat([y for _, y in batches])
    return {
        "accuracy": (means.argmax(1) == y).double().mean().item(),
        "nll": -means[torch.arange(len(y)), y].log().mean().item(),
        "brier": (means - torch.eye(CLASSES, dtype=means.dtype)[y]).square().sum(1).mean().item(),
    }


def logged(metrics: dict[str, Any], stage: str) -> dict[str, float]:
    """Return the logged values of the scores that `scores` computes by hand."""
    return {name: float(metrics[f"{stage}/{name}"]) for name in ("accuracy", "nll", "brier")}


class Validations(pl.Callback):
    """The logged scores of each validation, with the number of steps before it."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.scores: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.steps.append(trainer.global_step)
        self.scores.append(logged(trainer.callback_metrics, "val"))
