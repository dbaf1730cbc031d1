"""Copies of a module before, during and after training: by `copy.deepcopy`, pickle and `torch.save`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import SpikingModule
from tests.contract.table import every_method
from tests.support.event_order import CLASSES, loader, order_of_events
from tests.support.training import trainer

X, Y = order_of_events(8)


def pickled(module: SpikingModule) -> SpikingModule:
    copied: SpikingModule = pickle.loads(pickle.dumps(module))
    return copied


def saved(module: SpikingModule) -> SpikingModule:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copied: SpikingModule = torch.load(file, weights_only=False)
    return copied


COPIES: dict[str, Callable[[SpikingModule], SpikingModule]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "torch.save": saved,
}


def predicted(module: SpikingModule) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module.method.predict(module.network, X).mean


class Copies(pl.Callback):
    """Copies the module at some moments of a fit, and compares states and predictions at once."""

    def __init__(self) -> None:
        self.made: dict[str, list[SpikingModule]] = {}

    def copy(self, moment: str, module: SpikingModule) -> None:
        copies = [make(module) for make in COPIES.values()]
        state = module.state_dict()
        for copied in copies:
            assert all(torch.equal(value, state[key]) for key, value in copied.state_dict().items())
            assert torch.equal(predicted(copied), predicted(module))
        self.made[moment] = copies

    def on_before_backward(self, trainer: pl.Trainer, pl_module: SpikingModule, loss: Tensor) -> None:
        self.copy("with a graph", pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: SpikingModule, *_: object) -> None:
        self.copy("between steps", pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: SpikingModule, *_: object) -> None:
        self.copy("in validation", pl_module)


@every_method
def test_copies_made_before_during_and_after_a_fit_equal_the_module_and_train_on(row):
    torch.manual_seed(0)
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES)
    copies = Copies()
    copies.copy("before", module)
    trainer(copies, max_epochs=2).fit(module, loader(X, Y), loader(X, Y))
    copies.copy("after", module)
    assert set(copies.made) == {"before", "with a graph", "between steps", "in validation", "after"}
    state = {key: value.clone() for key, value in module.state_dict().items()}
    # of each moment one, of each kind in turn; all were compared above
    for index, made in enumerate(copies.made.values()):
        copied = made[index % len(COPIES)]
        trainer(max_epochs=3, num_sanity_val_steps=0).fit(copied, loader(X, Y))
        assert all(each.isfinite().all() for each in copied.parameters())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
