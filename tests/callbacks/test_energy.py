"""`EnergyMonitor`: what it logs against counts by hand, what it measures, and what it refuses."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule, figures, run
from lightning_snn.callbacks import EnergyMonitor
from lightning_snn.callbacks.energy import _samples
from lightning_snn.callbacks.tracking import may_write
from lightning_snn.functional.energy import ENERGY_CONSTANTS, HOROWITZ_FLOAT32, LOIHI, EnergyConstants
from lightning_snn.methods import SpikingBayes
from tests.support.training import trainer

STEPS = 4
GENERATOR = torch.Generator().manual_seed(0)
X = (torch.rand(20, STEPS, 6, generator=GENERATOR) < 0.4).float()
Y = torch.arange(20) % 2
LOADER = DataLoader(list(zip(X, Y, strict=True)), 5)


class Loop(pl.LightningModule):
    """Module with a learning rate of 0 that records the spikes of every batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        pl.seed_everything(1, verbose=False)
        self.scale = scale
        self.hidden, self.readout, self.lif = nn.Linear(6, 10), nn.Linear(10, 2), snntorch.Leaky(beta=0.8)
        with torch.no_grad():
            self.hidden.weight[:4] *= 0
            self.hidden.weight[4:].abs_().mul_(3)
        self.spikes: list[float] = []
        self.hooked: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.hooked.append(any(module._forward_hooks or module._forward_pre_hooks for module in self.modules()))
        membrane, total, outputs = self.lif.init_leaky(), 0.0, []
        for step in x.unbind(1):
            spikes, membrane = self.lif(self.hidden(self.scale * step), membrane)
            total += spikes.sum().item()
            outputs.append(self.readout(spikes))
        self.spikes.append(total)
        return torch.stack(outputs).mean(0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Refusing(Loop):
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])
        raise ArithmeticError("no")


def trainer_with(callback: pl.Callback, folder: Path, **options: Any) -> pl.Trainer:
    return trainer(callback, default_root_dir=folder, **options)


def results_of(
    module: pl.LightningModule, callback: EnergyMonitor, folder: Path, data: Any = LOADER
) -> dict[str, float]:
    return dict(trainer_with(callback, folder).test(module, data, verbose=False)[0])


def without(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in values.items() if name.startswith(prefix)}


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Skip figures, which take most of the time."""
    monkeypatch.setattr("lightning_snn.callbacks.energy.may_write", lambda trainer: False)


@pytest.mark.parametrize("batches", [1, 3])
def test_what_is_logged_is_what_the_first_batches_cost(batches, tmp_path):
    module = Loop()
    found = without("energy/test/", results_of(module, EnergyMonitor(batches), tmp_path))
    samples = 5 * batches
    inputs, spikes = X[:samples].sum().item(), sum(module.spikes[:batches])
    assert spikes > 0
    # 6 of 10 neurons have weights
    acs = {"hidden": 6 * inputs / samples, "readout": 2 * spikes / samples}
    passes = {"hidden": 60, "readout": 20}
    expected = {"spikes/lif": spikes / samples, "spikes": spikes / samples, "ratio": sum(acs.values()) / 80}
    for layer, name in (("hidden", "/hidden"), ("readout", "/readout"), (None, "")):
        expected[f"effective_acs{name}"] = acs[layer] if layer else sum(acs.values())
        expected[f"effective_macs{name}"] = 0
        expected[f"ann_macs{name}"] = passes[layer] if layer else 80
        expected[f"dense{name}"] = STEPS * expected[f"ann_macs{name}"]
        expected[f"ratio{name}"] = expected[f"effective_acs{name}"] / expected[f"ann_macs{name}"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_training_and_validation_are_measured_now_and_then(tmp_path):
    module, callback = Loop(), EnergyMonitor(batches=1, every_n_batches=3)
    trainer = trainer_with(callback, tmp_path, num_sanity_val_steps=1)
    trainer.fit(module, LOADER, LOADER)
    # a sanity check; of four batches the first and the fourth; of validation the first
    assert module.hooked == [False, True, False, False, True, True, False, False, False]
    logged = trainer.callback_metrics
    train = torch.cat([X[:5], X[15:]]).sum().item() / 10
    assert logged["energy/train/effective_acs/hidden"].item() == pytest.approx(6 * train)
    assert logged["energy/val/effective_acs/hidden"].item() == pytest.approx(6 * X[:5].sum().item() / 5)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class RunsAgain(pl.Callback):
    """Callback that runs the network again at the end of a training batch, like one that tests on other data."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module(X)


def test_what_other_callbacks_run_is_not_the_cost_of_training(tmp_path):
    found = []
    for others in ([], [RunsAgain()]):
        trainer = trainer_with(EnergyMonitor(every_n_batches=1), tmp_path)
        trainer.callbacks[:0] = others
        trainer.fit(Loop(), LOADER)
        found.append(without("energy/train/", trainer.callback_metrics))
    assert found[0] == found[1]
    assert found[0]["dense"] == STEPS * 80


def test_no_training_is_measured_where_none_is_asked_for(tmp_path):
    module, trainer = Loop(), trainer_with(EnergyMonitor(every_n_batches=0), tmp_path)
    trainer.fit(module, LOADER)
    assert not any(module.hooked)
    assert not trainer.callback_metrics


def test_no_hook_outlives_an_exception(tmp_path):
    module = Refusing()
    with pytest.raises(ArithmeticError):
        results_of(module, EnergyMonitor(), tmp_path)
    assert module.hooked == [True]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_noisy_samples_of_a_prediction_are_its_cost(tmp_path):
    costs = {}
    for samples in (1, 3):
        network = nn.Sequential(nn.Linear(6, 10), LIF(), nn.Linear(10, 2))
        module = SpikingModule(network, SpikingBayes(samples=samples), num_classes=2)
        data = DataLoader([(x, y) for x, y in zip(X.transpose(0, 1).split(5, 1), Y.split(5), strict=True)], None)
        costs[samples] = without("energy/test/", results_of(module, EnergyMonitor(), tmp_path / str(samples), data))
    assert costs[3]["ann_macs"] == costs[1]["ann_macs"] == 80
    # what comes before the first noisy neurons is computed once
    assert costs[3]["dense/network.0"] == costs[1]["dense/network.0"] == STEPS * 60
    assert costs[3]["dense/network.2"] == 3 * costs[1]["dense/network.2"] == 3 * STEPS * 20


def test_joules_are_those_of_the_constants(tmp_path):
    found = without("energy/test/", results_of(Loop(2.0), EnergyMonitor(constants="horowitz_float32"), tmp_path))
    assert found["effective_acs"] > 0
    assert found["effective_macs"] > 0
    assert found["joules"] == pytest.approx(0.9e-12 * found["effective_acs"] + 4.6e-12 * found["effective_macs"])
    assert found["joules_ann"] == pytest.approx(4.6e-12 * 80)


def test_a_chip_without_multiplications_has_joules_of_spikes_only(tmp_path):
    spiking = without("energy/test/", results_of(Loop(), EnergyMonitor(constants="loihi"), tmp_path))
    assert spiking["joules"] == pytest.approx(23.6e-12 * spiking["effective_acs"])
    analog = without("energy/test/", results_of(Loop(2.0), EnergyMonitor(constants=LOIHI), tmp_path))
    assert analog["effective_macs"] > 0
    assert not {"joules", "joules_ann"} & {*analog, *(spiking.keys() - {"joules"})}


def test_the_caveat_is_logged_once_and_without_constants_never(tmp_path, monkeypatch):
    logged_texts: list[str] = []
    monkeypatch.setattr("lightning_snn.callbacks.energy.rank_zero_info", logged_texts.append)
    callback = EnergyMonitor(constants="horowitz_int32")
    for _ in range(2):
        results_of(Loop(), callback, tmp_path)
    results_of(Loop(), EnergyMonitor(), tmp_path)
    (caveat,) = logged_texts
    assert "Memory traffic" in caveat
    assert "ISSCC 2014" in caveat


def test_every_set_of_constants_has_a_source_and_a_caveat():
    assert {name: (each.joules_per_ac, each.joules_per_mac) for name, each in ENERGY_CONSTANTS.items()} == {
        "horowitz_float32": (0.9e-12, pytest.approx(0.9e-12 + 3.7e-12)),
        "horowitz_int32": (0.1e-12, pytest.approx(0.1e-12 + 3.1e-12)),
        "loihi": (23.6e-12, None),
    }
    assert all("left out" in each.caveat and each.source for each in ENERGY_CONSTANTS.values())


def test_a_test_writes_a_figure_and_a_table(tmp_path, monkeypatch):
    drawn = {}

    def draw(layers: Any, note: str) -> Any:
        drawn.update(layers=layers, note=note)
        return figure(layers, note)

    figure = figures.synaptic_operations
    monkeypatch.setattr("lightning_snn.callbacks.energy.may_write", may_write)
    monkeypatch.setattr(figures, "synaptic_operations", draw)
    constants = EnergyConstants("mine", 1e-12, 2e-12, "nothing is left out", "a guess")
    callback = EnergyMonitor(constants=constants, folder=tmp_path / "kept", name="cost")
    found = results_of(Loop(), callback, tmp_path)
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {"cost_test.png", "cost_test.csv"}
    assert list(drawn["layers"]) == ["hidden", "readout"]
    assert drawn["note"].endswith("Based on mine (a guess): nothing is left out")
    with (tmp_path / "kept" / "cost_test.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["all", "hidden", "readout", "lif"]
    assert float(rows["all"]["effective_acs"]) == pytest.approx(found["cost/test/effective_acs"], rel=1e-6)
    assert rows["lif"]["dense"] == ""


def test_layers_that_are_not_counted_cause_one_warning(tmp_path):
    module, callback = Loop(), EnergyMonitor()
    module.attention = nn.MultiheadAttention(4, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_with(callback, tmp_path, max_epochs=2).fit(module, LOADER, LOADER)
        results_of(module, callback, tmp_path)
    messages = [str(warning.message) for warning in caught if "EnergyMonitor" in str(warning.message)]
    (message,) = messages
    assert message.startswith("EnergyMonitor does not count the synaptic operations of attention. Its totals are")


class Attending(Loop):
    """Module whose hidden spikes attend to each other, the neurons being the tokens, of one feature each."""

    def __init__(self, attend: Any) -> None:
        super().__init__()
        self.attend, self.attended = attend, []

    def forward(self, x: Tensor) -> Tensor:
        membrane, outputs = self.lif.init_leaky(), []
        for step in x.unbind(1):
            spikes, membrane = self.lif(self.hidden(step), membrane)
            self.attended.append(spikes.sum(1))
            outputs.append(self.readout(self.attend(spikes[:, :, None])[:, :, 0]))
        return torch.stack(outputs).mean(0)


def test_products_of_spikes_by_spikes_are_counted(tmp_path):
    module = Attending(lambda spikes: (spikes @ spikes.transpose(1, 2)) @ spikes)
    found = without("energy/test/", results_of(module, EnergyMonitor(1), tmp_path))
    plain = without("energy/test/", results_of(Attending(lambda spikes: spikes), EnergyMonitor(1), tmp_path))
    # of n spikes, n^2 pairs in each of the products, since a score is not zero between spikes only
    pairs = sum(2 * counts.square().sum().item() for counts in module.attended[:STEPS]) / 5
    assert found["effective_acs/Attending"] == pytest.approx(pairs, rel=1e-6)
    assert pairs > 0
    assert found["effective_macs/Attending"] == 0
    assert found["dense/Attending"] == STEPS * 200
    assert found["ann_macs/Attending"] == 200
    assert found["ann_macs"] == plain["ann_macs"] + 200 == 280
    assert found["ratio"] == pytest.approx((found["effective_acs"] + found["effective_macs"]) / 280, rel=1e-6)


def test_products_that_cannot_be_counted_cause_a_warning(tmp_path):
    module = Attending(lambda spikes: F.scaled_dot_product_attention(spikes, spikes, spikes))
    expected = r"does not count the synaptic operations of Attending \(scaled_dot_product_attention\). Its totals"
    with pytest.warns(UserWarning, match=expected):
        results_of(module, EnergyMonitor(), tmp_path)


@pytest.mark.parametrize(
    ("shapes", "run_samples", "steps", "expected"),
    [
        ([(16, 32, 2, 8, 8), (32,)], 256, 16, 32),  # time first, 8 noisy samples side by side
        ([(32, 16, 2, 8, 8), (32,)], 32, 16, 32),
        ([(32, 16, 2, 8, 8), (32,)], 64, 16, 32),  # two runs
        ([(1, 16, 2), (1,)], 8, 16, 1),
        ([(32, 784), (32, 1)], 64, 5, 32),
        ([(16, 32, 6)], 32, 16, 32),
        ([(16, 32, 6)], 64, 16, 32),  # inputs only
        ([(8, 4, 6)], 8, 8, 4),  # two runs of half as many samples as time steps
        ([(10, 4, 6), (4, 10)], 20, 10, 4),  # as many classes as time steps
        ([(8, 8, 6)], 16, 8, 8),
        ([(16, 32, 6)], 64, 0, 64),  # both sizes are possible
        ([(), (5, 3)], 5, 0, 5),
        ([], 7, 0, 7),
    ],
)
def test_samples_are_found_in_a_batch(shapes, run_samples, steps, expected):
    assert (
        _samples({"parts": [torch.zeros(shape) for shape in shapes], "name": "a batch"}, run_samples, steps) == expected
    )


class RunsTwice(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, 3))

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        for _ in range(2):
            run(self.network, batch[0])


def test_steps_are_not_taken_for_samples(tmp_path):
    for batch in ((torch.ones(8, 4, 6),), (torch.ones(8, 4, 6), torch.ones(4, 8))):
        found = results_of(RunsTwice(), EnergyMonitor(), tmp_path, DataLoader([batch], None))
        assert found["energy/test/dense"] == 2 * 8 * (48 + 24)
        assert found["energy/test/ann_macs"] == 48 + 24


class Lazy(RunsTwice):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.LazyConvTranspose1d(2, 3, padding=1), nn.Flatten(), LIF(), nn.LazyLinear(3))


def test_lazy_layers_are_counted_and_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"does not count the synaptic operations of network\.0\. Its"):
        found = results_of(Lazy(), EnergyMonitor(), tmp_path, DataLoader([(torch.ones(5, 4, 1, 6),)], None))
    assert found["energy/test/dense"] == found["energy/test/dense/network.3"] == 2 * 5 * 12 * 3


def test_samples_may_be_given_by_a_function(tmp_path):
    callback = EnergyMonitor(samples=lambda batch: 2 * len(batch[1]))
    assert results_of(Loop(), callback, tmp_path)["energy/test/ann_macs"] == 80
    plain = results_of(Loop(), EnergyMonitor(), tmp_path)["energy/test/dense"]
    assert results_of(Loop(), callback, tmp_path)["energy/test/dense"] == plain / 2


def test_what_has_no_spiking_layers_and_what_are_no_arguments_is_refused(tmp_path):
    module = Loop()
    module.lif = nn.Identity()
    with pytest.raises(ValueError, match="spiking layers of .* for EnergyMonitor, but got Loop without any"):
        results_of(module, EnergyMonitor(), tmp_path)
    with pytest.raises(ValueError, match="`batches` to be an integer of at least 1, but got 0"):
        EnergyMonitor(0)
    with pytest.raises(ValueError, match="`every_n_batches` to be an integer of at least 0, but got -1"):
        EnergyMonitor(every_n_batches=-1)
    with pytest.raises(ValueError, match="`constants` to be one of None, 'horowitz_float32', .*, but got 'mine'"):
        EnergyMonitor(constants="mine")


def test_the_figure_refuses_what_are_no_operations():
    layer = {"effective_acs": 3, "effective_macs": 0, "dense": 60, "ann_macs": 10}
    (axes,) = figures.synaptic_operations({"0": layer, "silent": dict.fromkeys(layer, 0)}, "a note").axes
    assert sorted(bar.get_width() for bar in axes.patches) == [3, 10, 60]
    assert "unknown" in figures.synaptic_operations({"silent": dict.fromkeys(layer, 0)}).axes[0].get_title("left")
    for layers in ({}, {"0": {"dense": 3}}, {"0": layer | {"dense": -1}}):
        with pytest.raises(ValueError, match="Expected argument `layers"):
            figures.synaptic_operations(layers)


def test_the_legend_of_the_figure_has_colors_of_series_without_bars():
    layer = {"effective_acs": 3, "effective_macs": 0, "dense": 60, "ann_macs": 12}
    figure = figures.synaptic_operations({"0": layer, "1": layer | {"effective_macs": 9}})
    colors = {patch.get_label(): patch.get_facecolor() for patch in figure.legends[0].get_patches()}
    assert len(set(colors.values())) == 4
    without_macs = figures.synaptic_operations({"0": layer})
    assert colors == {patch.get_label(): patch.get_facecolor() for patch in without_macs.legends[0].get_patches()}
    # (3 + 3 + 9) / 24
    assert figure.axes[0].get_title("left").startswith("ratio: 0.625, effective operations of both kinds")


def test_joules_add_up_over_both_kinds_of_operations():
    assert HOROWITZ_FLOAT32.joules(10, 100) == pytest.approx(469e-12)
    assert LOIHI.joules(10, 0) == pytest.approx(236e-12)
    assert math.isnan(LOIHI.joules(10, 1))
