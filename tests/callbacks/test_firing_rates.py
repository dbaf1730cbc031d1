"""`FiringRateMonitor` against counts by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks import FiringRateMonitor
from lightning_snn.methods import RateBackprop
from tests.support.figures import record_drawn
from tests.support.given_spikes import Given, data, spikes
from tests.support.processes import on_two_processes
from tests.support.third_party import Ours, SnntorchHidden, SnntorchLoop, SpikingJellyMulti, X, loader
from tests.support.training import trainer


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Record the histograms; figures are empty, for speed."""
    record_drawn(monkeypatch, "spike_raster")
    return record_drawn(monkeypatch, "firing_rate_histograms")


def logged(made: pl.Trainer, stage: str, suffix: str = "") -> dict[str, float]:
    """Return the logged values by quantity and layer."""
    start = f"firing_rates/{stage}/"
    values = {key.removeprefix(start): value.item() for key, value in made.callback_metrics.items() if start in key}
    return {key.removesuffix(suffix): value for key, value in values.items() if key.endswith(suffix)}


def by_hand(values: Tensor) -> dict[str, float]:
    """Return the expected values for data `[B, T, 5]`."""
    counts = np.count_nonzero(values.numpy(), axis=(0, 1))
    steps = values.shape[0] * values.shape[1]
    found = {}
    neurons = {"first": counts, "second": counts[:2], "all": np.concatenate([counts, counts[:2]])}
    for layer, spiked in neurons.items():
        rates = spiked / steps
        found[f"rate/{layer}"] = float(rates.mean())
        found[f"sparsity/{layer}"] = 1 - float(rates.mean())
        found[f"dead/{layer}"] = float(np.mean([count == 0 for count in spiked]))
        found[f"saturated/{layer}"] = float(np.mean([rate > 0.95 for rate in rates]))
    return found


def test_all_of_a_test_is_counted(tmp_path: Path) -> None:
    made = trainer(FiringRateMonitor(folder=tmp_path))
    made.test(Given(), data(spikes()), verbose=False)
    found, expected = logged(made, "test"), by_hand(spikes())
    assert found == pytest.approx(expected, abs=1e-7)
    assert (expected["dead/first"], expected["saturated/first"], expected["saturated/second"]) == (0.2, 0.2, 0.5)


def test_each_nth_batch_of_training_and_validation_is_counted_and_no_other_is_hooked(tmp_path: Path) -> None:
    made, module = trainer(FiringRateMonitor(2, tmp_path), num_sanity_val_steps=1), Given()
    made.fit(module, data(spikes(3)), data(spikes(2)))
    for stage, values in (("train", spikes(3)), ("val", spikes(2))):
        parts = values.split(2)
        assert logged(made, stage) == pytest.approx(by_hand(torch.cat(parts[::2])), abs=1e-7)
        assert logged(made, stage) != pytest.approx(by_hand(values), abs=1e-7)
    assert module.hooked == [False] + [True, False, True, False, True] * 2


def test_every_epoch_is_counted_by_itself(tmp_path: Path) -> None:
    class Changing(Given):
        def forward(self, batch: list[Tensor]) -> Tensor:
            return super().forward([batch[0] * (self.current_epoch == 0)])

    made = trainer(FiringRateMonitor(1, tmp_path), max_epochs=2)
    made.fit(Changing(), data(spikes()), data(spikes()))
    assert logged(made, "train")["dead/all"] == logged(made, "val")["dead/all"] == 1


def test_any_value_but_0_is_a_spike(tmp_path: Path) -> None:
    made = trainer(FiringRateMonitor(folder=tmp_path))
    made.validate(Given(), data(-0.5 * spikes()), verbose=False)
    assert logged(made, "val")["rate/first"] == pytest.approx(by_hand(spikes()[:2])["rate/first"])


@pytest.mark.parametrize("kind", [SnntorchLoop, SnntorchHidden, SpikingJellyMulti, Ours])
def test_layers_of_every_library_are_counted(kind: type[Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    outputs: dict[str, list[Tensor]] = {}
    made = trainer(FiringRateMonitor(folder=tmp_path))
    made.test(module, loader(), verbose=False)
    layers = {key.removeprefix("rate/") for key in logged(made, "test") if key.startswith("rate/")} - {"all"}
    for name in layers:
        outputs[name] = []
        module.get_submodule(name).register_forward_hook(
            lambda layer, given, output, name=name: outputs[name].append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    with torch.no_grad():
        module.eval()(X)
    for name in layers:
        spiked = torch.stack(outputs[name]).flatten(0, -2).reshape(-1, outputs[name][0].shape[-1])
        assert spiked.count_nonzero() > 0
        assert logged(made, "test")[f"rate/{name}"] == pytest.approx(spiked.mean().item())
        assert logged(made, "test")[f"dead/{name}"] == pytest.approx((spiked.sum(0) == 0).float().mean().item())
    assert len(layers) == (2 if "Snntorch" in kind.__name__ else 1)


def test_a_layer_that_is_called_with_several_shapes_has_the_neurons_of_each(tmp_path: Path) -> None:
    class Twice(Given):
        def forward(self, batch: list[Tensor]) -> Tensor:
            for x in batch[0].unbind(1):
                self.first(x)
                self.first(x[:, :2])
            return self.weight**2

    class Once(Given):
        def forward(self, batch: list[Tensor]) -> Tensor:
            for x in batch[0].unbind(1):
                self.first(torch.cat([x, x[:, :2]], 1))
            return self.weight**2

    found = []
    for module in (Twice(), Once()):
        made = trainer(FiringRateMonitor(folder=tmp_path))
        made.test(module, data(spikes()), verbose=False)
        found.append(logged(made, "test"))
    assert found[0] == found[1]
    assert found[0]["dead/first"] == pytest.approx(2 / 7)


def test_loaders_are_counted_apart(tmp_path: Path) -> None:
    made = trainer(FiringRateMonitor(1, tmp_path))
    made.validate(Given(), [data(spikes(1)), data(spikes(2, 4))], verbose=False)
    second = logged(made, "val", "/1")
    first = {key: value for key, value in logged(made, "val").items() if not key.endswith("/1")}
    assert first == pytest.approx(by_hand(spikes(1)), abs=1e-7)
    assert second == pytest.approx(by_hand(spikes(2, 4)), abs=1e-7)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"firing_rates_val.png", "firing_rates_val_1.png", "firing_rates_val_raster.png"}


def test_rates_of_rate_based_backpropagation_are_no_spikes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), LIF(), nn.Linear(8, 3))
    x, y = 2 * spikes().transpose(0, 1), torch.arange(10) % 3
    hidden = run(network[:2], x)
    made = trainer(FiringRateMonitor(folder=tmp_path))
    batches = DataLoader([(x, y)], batch_size=None)
    made.fit(SpikingModule(network, RateBackprop(), num_classes=3), batches)
    (key,) = (key for key in logged(made, "train") if key.startswith("rate/") and not key.endswith("all"))
    assert logged(made, "train")[key] == pytest.approx(hidden.count_nonzero().item() / hidden.numel())
    assert 0.05 < logged(made, "train")[key] < 0.8


def test_loggers_get_histograms_after_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, np.ndarray, np.ndarray]] = []

    def take(trainer: pl.Trainer, name: str, counts: Tensor, edges: Tensor) -> None:
        taken.append((name, counts.numpy(), edges.numpy()))

    monkeypatch.setattr("lightning_snn.callbacks.firing_rates.log_histogram", take)
    trainer(FiringRateMonitor(1, tmp_path), max_epochs=2).fit(Given(), data(spikes()), data(spikes()))
    names = [name for name, _, _ in taken]
    assert names == [f"firing_rates/{stage}/{layer}" for stage in ("val", "train") for layer in ("first", "second")] * 2
    _, counts, edges = taken[0]
    rates = spikes().numpy().mean((0, 1))
    np.testing.assert_array_equal(counts, np.histogram(rates, edges)[0])
    assert (counts[0], counts[-1], counts.sum()) == (2, 1, 5)


def test_the_end_of_a_fit_a_validation_and_a_test_draws_figures(drawn, tmp_path: Path) -> None:
    def files(folder: str) -> set[str]:
        return {file.name for file in (tmp_path / folder).iterdir()}

    def names(*stages: str) -> set[str]:
        return {f"rates_{stage}{kind}.png" for stage in stages for kind in ("", "_raster")}

    module = Given()
    made = trainer(FiringRateMonitor(1, tmp_path / "fit", "rates"), max_epochs=2)
    made.fit(module, data(spikes(1)), data(spikes(2)))
    assert files("fit") == names("train", "val")
    made.test(module, data(spikes(3)), verbose=False)
    assert files("fit") == names("train", "val", "test")
    trainer(FiringRateMonitor(1, tmp_path / "val", "rates")).validate(module, data(spikes(2)), verbose=False)
    assert files("val") == names("val")
    assert [list(rates) for rates in drawn] == [["first", "second"]] * 4
    means = sorted(rates["first"].mean().item() for rates in drawn)
    assert means == pytest.approx(sorted(spikes(seed).mean().item() for seed in (1, 2, 2, 3)))


class Uneven(IterableDataset):
    """Run one process with batches and one without."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter([[part] for part in spikes().split(2)] if torch.distributed.get_rank() == 1 else [])


def _on_rank(rank: int) -> dict[str, float]:
    launched = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    launched |= {"MASTER_PORT": "0", "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    with mock.patch.dict(os.environ, launched):
        strategy = DDPStrategy(process_group_backend="gloo")
        made = trainer(FiringRateMonitor(1, os.environ["RATES_FOLDER"]), devices=2, strategy=strategy)
        made.validate(Given(), DataLoader(Uneven(), batch_size=None), verbose=False)
        found = {f"val/{key}": value for key, value in logged(made, "val").items()}
        made.test(Given(), data(spikes()), verbose=False)
    return {**found, **logged(made, "test")}


def test_two_processes_count_together_even_if_one_has_no_batch(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    with mock.patch.dict(os.environ, {"RATES_FOLDER": str(tmp_path / "figures")}):
        first, second = on_two_processes(_on_rank, tmp_path / "group")
    assert first == second
    expected = by_hand(spikes())
    assert first == pytest.approx({**expected, **{f"val/{key}": value for key, value in expected.items()}}, abs=1e-7)


def test_layers_in_a_plain_list_are_refused_or_warned_of_with_a_remedy_that_helps(tmp_path: Path) -> None:
    class Listed(Given):
        def __init__(self, known: bool) -> None:
            super().__init__()
            self.layers = [self.first, self.second, LIF()]
            if not known:
                del self.first, self.second
            self.known = known

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if self.known else pytest.fail("the fit does not start")

    remedy = r"PyTorch does not know those in plain lists .*, layers\[.*2\], nor .* in an `nn.ModuleList`"
    with pytest.raises(ValueError, match=f"for FiringRateMonitor, but got Listed without any. {remedy}"):
        trainer(FiringRateMonitor(folder=tmp_path)).fit(Listed(known=False), data(spikes()))
    made = trainer(FiringRateMonitor(folder=tmp_path))
    with pytest.warns(UserWarning, match=rf"FiringRateMonitor leaves out layers\[2\]. {remedy}"):
        made.fit(Listed(known=True), data(spikes()))
    assert "firing_rates/train/rate/first" in made.callback_metrics


def test_what_does_not_spike_is_refused_when_it_starts() -> None:
    class Plain(Given):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Identity(), nn.Identity()

    expected = "Expected a module with spiking layers .* for FiringRateMonitor, but got Plain without any"
    made = trainer(FiringRateMonitor())
    with pytest.raises(ValueError, match=expected):
        made.fit(Plain(), data(spikes()))
    with pytest.raises(ValueError, match=expected):
        made.validate(Plain(), data(spikes()), verbose=False)
    with pytest.raises(ValueError, match=expected):
        made.test(Plain(), data(spikes()), verbose=False)


def test_bad_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="`every_n_batches` to be an integer of at least 1, but got 0"):
        FiringRateMonitor(0)
