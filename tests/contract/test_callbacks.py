"""Contracts of every callback, on third-party modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from tests.contract.callbacks import CALLBACKS, CallbackRow
from tests.support import training
from tests.support.figures import save_nothing
from tests.support.processes import as_launched, on_two_processes
from tests.support.third_party import MODULES, Loop, Ours, SnntorchLoop, ThirdPartyModule, loader

TABLE = CALLBACKS
EPOCHS = 2


def build(make: Callable[[], ThirdPartyModule]) -> ThirdPartyModule:
    torch.manual_seed(0)
    return make()


def trainer(folder: Path, callbacks: Sequence[pl.Callback], **options: Any) -> pl.Trainer:
    chosen = {"max_epochs": EPOCHS, "default_root_dir": folder, "log_every_n_steps": 1}
    return training.trainer(*callbacks, **(chosen | options))


def fit(
    module: ThirdPartyModule, folder: Path, callbacks: Sequence[pl.Callback], seed: int = 1, **options: Any
) -> pl.Trainer:
    torch.manual_seed(seed)
    made = trainer(folder, callbacks, **options)
    made.fit(module, loader(shuffle=True), loader())
    return made


def hooks(module: torch.nn.Module) -> int:
    """Count the hooks of all kinds on a module and its children."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(each, kind)) for each in module.modules() for kind in kinds)


def own_attributes(module: torch.nn.Module) -> dict[str, set[str]]:
    """Return the names of the attributes of each module within a module."""
    return {
        name: {*vars(each), *each._modules, *each._parameters, *each._buffers} for name, each in module.named_modules()
    }


class Remember(Logger):
    """Logger that stores all records and has no figures."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "remember"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.records.append((step, dict(metrics)))

    @property
    def names(self) -> set[str]:
        return {name for _, metrics in self.records for name in metrics}


@pytest.fixture(autouse=True)
def _without_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_snn.figures.save", save_nothing)


@pytest.fixture(scope="module")
def without_callbacks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], ThirdPartyModule]:
    """Return a function that returns the module of a class, trained and tested once without callbacks."""

    @cache
    def trained(make: Callable[[], ThirdPartyModule]) -> ThirdPartyModule:
        module = build(make)
        fit(module, tmp_path_factory.mktemp("plain"), []).test(module, loader(), verbose=False)
        return module

    return trained


@pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
def test_training_is_bit_identical_without_it(
    row: CallbackRow,
    make: Callable[[], ThirdPartyModule],
    without_callbacks: Callable[[Any], ThirdPartyModule],
    tmp_path: Path,
) -> None:
    plain, monitored = without_callbacks(make), build(make)
    keys = list(monitored.state_dict())
    fit(monitored, tmp_path, [row.make(tmp_path / "figures")]).test(monitored, loader(), verbose=False)
    assert len(plain.losses) == len(monitored.losses) == EPOCHS * len(loader())
    same = [bool(torch.equal(a, b)) for a, b in zip(plain.losses, monitored.losses, strict=True)]
    unchanged = len(same) if row.trains_from is None else row.trains_from * len(loader())
    assert all(same[:unchanged])
    assert row.trains_from is None or not all(same)
    assert list(monitored.state_dict()) == keys
    assert own_attributes(monitored) == own_attributes(plain)
    assert hooks(monitored) == 0
    if row.trains_from is None:
        for before, after in zip(plain.parameters(), monitored.parameters(), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_no_hook_outlives_an_exception(row: CallbackRow, step: str, tmp_path: Path) -> None:
    class Fails(row.module):  # type: ignore[name-defined, misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.after("training_step", super().training_step(batch, batch_idx))

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self.after("validation_step", super().validation_step(batch, batch_idx))

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return self.after("test_step", super().test_step(batch, batch_idx))

        def after(self, here: str, value: Any) -> Any:
            if here == step and self.trainer.state.stage != "sanity_check":
                raise ArithmeticError(here)
            return value

    module = build(Fails)
    made = trainer(tmp_path, [row.make(tmp_path / "figures")])
    run = made.test if step == "test_step" else made.fit
    with pytest.raises(ArithmeticError, match=step):
        run(module, loader(), *([] if step == "test_step" else [loader()]))
    assert hooks(module) == 0


def test_a_fast_run_writes_nothing(row: CallbackRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = build(row.module)
    made = fit(module, tmp_path, [row.make(tmp_path / "figures")], fast_dev_run=True)
    made.test(module, loader(), verbose=False)
    assert len(module.losses) == 1
    assert not list(tmp_path.iterdir())


def test_several_loggers_get_the_same_values(row: CallbackRow, tmp_path: Path) -> None:
    module, first, second = build(row.module), Remember(), Remember()
    csv = CSVLogger(str(tmp_path / "logs"))
    made = fit(module, tmp_path, [row.make(tmp_path / "figures")], logger=[first, csv, second])
    made.test(module, loader(), verbose=False)
    assert str(first.records) == str(second.records)  # as text, so that nan equals nan
    assert not row.keys or any(name.startswith(row.keys) for name in first.names)


def test_several_instances_share_a_run(
    row: CallbackRow, without_callbacks: Callable[[Any], ThirdPartyModule], tmp_path: Path
) -> None:
    plain, module, remembered = without_callbacks(row.module), build(row.module), Remember()
    callbacks = [row.make(tmp_path / "one"), (row.another or row.make)(tmp_path / "two")]
    made = fit(module, tmp_path, callbacks, logger=remembered)
    made.test(module, loader(), verbose=False)
    assert [float(loss) for loss in module.losses] == [float(loss) for loss in plain.losses]
    prefixes = (row.keys,) if row.another is None else (row.keys, "another/")
    for prefix in filter(None, prefixes if row.keys else ()):
        assert any(name.startswith(prefix) for name in remembered.names), prefix


def test_a_resumed_run_equals_an_uninterrupted_one(row: CallbackRow, tmp_path: Path) -> None:
    class Seeded(pl.Callback):
        """Make random numbers depend on the step only; checkpoints of Lightning do not contain the generator."""

        def __init__(self, stops: bool) -> None:
            self.stops = stops

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            torch.manual_seed(trainer.global_step)

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = self.stops

    def train(module: ThirdPartyModule, folder: Path, stops: bool = False, checkpoint: Path | None = None) -> None:
        saved = ModelCheckpoint(str(folder), save_last=True)
        callbacks = [Seeded(stops), row.make(tmp_path / "figures"), saved]
        made = trainer(tmp_path, callbacks, enable_checkpointing=True)
        made.fit(module, loader(), loader(), ckpt_path=checkpoint)

    whole, first, second = (build(row.module) for _ in range(3))
    train(whole, tmp_path / "whole")
    train(first, tmp_path / "stopped", stops=True)
    assert len(first.losses) == len(loader())
    train(second, tmp_path / "resumed", checkpoint=tmp_path / "stopped" / "last.ckpt")
    resumed = [*first.losses, *second.losses]
    assert [float(loss) for loss in resumed] == [float(loss) for loss in whole.losses]


def test_gradients_may_be_accumulated(row: CallbackRow, tmp_path: Path) -> None:
    plain, module = build(row.module), build(row.module)
    fit(plain, tmp_path, [], accumulate_grad_batches=3)
    made = fit(module, tmp_path, [row.make(tmp_path / "figures")], accumulate_grad_batches=3)
    assert made.global_step == EPOCHS * 2
    unchanged = len(plain.losses) if row.trains_from is None else row.trains_from * len(loader())
    assert [float(loss) for loss in module.losses][:unchanged] == [float(loss) for loss in plain.losses][:unchanged]


def test_a_sanity_check_logs_nothing_of_it(row: CallbackRow, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class StopAfterCheck(pl.Callback):
        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            raise Stop

    remembered = Remember()
    callbacks = [row.make(tmp_path / "figures"), StopAfterCheck()]
    with pytest.raises(Stop):
        fit(build(row.module), tmp_path, callbacks, logger=remembered, num_sanity_val_steps=2)
    assert not remembered.names
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    "logger", [pytest.param(False, id="no logger", marks=pytest.mark.slow), pytest.param(True, id="logger")]
)
def test_files_go_into_the_folder_of_the_run_and_replace_none_of_another_run(
    row: CallbackRow, logger: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.name == "report":
        pytest.skip("its folder is an argument without a default")
    working, root = tmp_path / "working", tmp_path / "root"
    working.mkdir()
    monkeypatch.chdir(working)
    written: list[set[Path]] = []
    for _ in range(2):
        options: dict[str, Any] = {"default_root_dir": root}
        options["logger"] = CSVLogger(str(tmp_path / "logs"), flush_logs_every_n_steps=1) if logger else False
        made = trainer(root, [row.make(None)], **options)
        module = build(row.module)
        made.fit(module, loader(), loader())
        made.test(module, loader(), verbose=False)
        made.predict(module, loader())
        folder = Path(made.logger.log_dir) if logger else root
        kinds = (path for kind in ("png", "csv", "pt", "txt") for path in folder.glob(f"*.{kind}"))
        written.append({path for path in kinds if path.name != "metrics.csv"})
    first, both = written
    assert len(both) == len(first) if logger else len(both) == 2 * len(first)
    assert not (first & both) if logger else first <= both
    assert not list(working.iterdir())
    assert not root.exists() or not logger


@pytest.mark.parametrize(
    "several",
    [
        pytest.param(list, id="list"),
        pytest.param(lambda loaders: dict(zip("ab", loaders, strict=True)), id="dict", marks=pytest.mark.slow),
    ],
)
def test_every_stage_may_have_several_loaders(
    row: CallbackRow, several: Callable[[list[Any]], Any], tmp_path: Path
) -> None:
    def losses(*callbacks: pl.Callback) -> list[float]:
        torch.manual_seed(1)
        module, made = build(row.module), trainer(tmp_path, callbacks)
        loaders = several([loader(), loader(batch_size=20)])
        made.fit(module, loader(shuffle=True), loaders)
        logged = set(made.callback_metrics)
        for run in (made.validate, made.test):
            logged |= {name for found in run(module, loaders, verbose=False) for name in found}
        assert [len(batches) for batches in made.predict(module, loaders)] == [4, 2]
        assert not callbacks or not row.keys or any(name.startswith(row.keys) for name in logged)
        return [float(loss) for loss in module.losses]

    plain, monitored = losses(), losses(row.make(tmp_path / "figures"))
    unchanged = len(plain) if row.trains_from is None else row.trains_from * len(loader())
    assert monitored[:unchanged] == plain[:unchanged]


def test_it_works_with_modules_and_a_trainer_of_pytorch_lightning(row: CallbackRow, tmp_path: Path) -> None:
    package = pytest.importorskip("pytorch_lightning", reason="`pytorch_lightning` is not installed")
    from pytorch_lightning.loggers import CSVLogger as OtherCSVLogger

    class Other(Loop, package.LightningModule):  # type: ignore[name-defined, misc]
        pass

    def losses(*callbacks: pl.Callback) -> tuple[list[float], set[str]]:
        logger = OtherCSVLogger(str(tmp_path / "logs"))
        made = trainer(tmp_path, callbacks, trainer=package.Trainer, logger=logger)
        module = build(Other)
        made.fit(module, loader(), loader())
        logged = set(made.callback_metrics)
        for run in (made.validate, made.test):
            run(module, loader(), verbose=False)
            logged |= set(made.callback_metrics)
        assert len(made.predict(module, loader())) == len(loader())
        return [float(loss) for loss in module.losses], logged

    assert not isinstance(Other(), pl.LightningModule)
    plain, _ = losses()
    monitored, logged = losses(row.make(tmp_path / "figures"))
    unchanged = len(plain) if row.trains_from is None else row.trains_from * len(loader())
    assert monitored[:unchanged] == plain[:unchanged]
    assert not row.keys or any(name.startswith(row.keys) for name in logged)


def on_rank(rank: int) -> dict[str, Any]:
    """Run each callback in two processes."""
    folder = Path(os.environ["CALLBACK_FOLDER"])
    found: dict[str, Any] = {}
    with as_launched(rank), mock.patch("lightning_snn.figures.save", save_nothing):
        plain = [(f"plain {kind.__name__}", kind, None) for kind in (Ours, SnntorchLoop)]
        for name, kind, row in [*plain, *((row.name, row.module, row) for row in TABLE)]:
            module = build(kind)
            strategy = DDPStrategy(process_group_backend="gloo")
            callbacks = [] if row is None else [row.make(folder / row.name)]
            options: dict[str, Any] = {"devices": 2, "strategy": strategy}
            made = fit(module, folder, callbacks, **options)
            logged = {key: value.item() for key, value in made.callback_metrics.items() if key != "train_loss"}
            made.test(module, loader(), verbose=False)
            logged |= {key: value.item() for key, value in made.callback_metrics.items()}
            found[name] = {
                "losses": [float(loss) for loss in module.losses],
                "logged": {k: v for k, v in logged.items() if row is not None and row.keys and k.startswith(row.keys)},
                "parameters": torch.cat([each.detach().flatten() for each in module.parameters()]),
            }
    return found


def test_over_two_processes_both_log_the_same_and_train_alike(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    with mock.patch.dict(os.environ, {"CALLBACK_FOLDER": str(tmp_path)}):
        first, second = on_two_processes(on_rank, tmp_path / "group")
    assert len(first) == len(TABLE) + 2
    for name, found in first.items():
        assert torch.equal(found["parameters"], second[name]["parameters"]), name
        logged, other = (
            {key: torch.tensor(value) for key, value in each["logged"].items()} for each in (found, second[name])
        )
        assert logged.keys() == other.keys(), name
        for key in logged:
            assert torch.equal(logged[key].nan_to_num(), other[key].nan_to_num()), f"{name}: {key}"
    for row in TABLE:
        assert not row.keys or first[row.name]["logged"], row.name
        if row.trains_from is None:
            assert first[row.name]["losses"] == first[f"plain {row.module.__name__}"]["losses"], row.name


def test_every_public_callback_has_a_row() -> None:
    from lightning_snn import callbacks

    public = {name for name in callbacks.__all__ if issubclass_of_callback(getattr(callbacks, name))}
    tested = {type(row.make(Path("unused"))).__name__ for row in TABLE}
    elsewhere = {"SpikeTimes"}  # only for time-to-first-spike networks
    assert public - elsewhere == tested


def issubclass_of_callback(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, pl.Callback)
