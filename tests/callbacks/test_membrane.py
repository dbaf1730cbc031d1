"""`MembraneTrace` against membranes computed by hand."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import MembraneTrace
from lightning_snn.nn.conventions import REGISTERED, Conventions
from tests.support.training import trainer

STEPS, FEATURES, HIDDEN = 6, 4, 5
X = torch.rand(12, FEATURES, generator=torch.Generator().manual_seed(0))
FIRST, LAST = X[:8], X[8:]


class Module(pl.LightningModule):
    """Module for evaluation; only an unrelated parameter is trained."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.idle = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.idle.square()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Ours(Module):
    def forward(self, x: Tensor) -> None:
        run(self.net, x.expand(STEPS, -1, -1))


class Loop(Module):
    def forward(self, x: Tensor) -> None:
        membrane = self.net[1].reset_mem()
        for _ in range(STEPS):
            _, membrane = self.net[1](self.net[0](x), membrane)


def connection(outputs: int = HIDDEN, inputs: int = FEATURES) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def loader(x: Tensor = X) -> DataLoader:
    return DataLoader(TensorDataset(x), 8)


def by_hand(current: Tensor, threshold: float = 1.0, leaks: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Membranes before the reset by subtraction, and spikes, `[T, B, N]`, of a constant current at a decay of .9; what
    is subtracted leaks, or, as in snntorch, does not."""
    given, membrane, spikes = current.detach().double().numpy(), np.zeros(current.shape), np.zeros(current.shape)
    found = []
    for _ in range(STEPS):
        membrane = 0.9 * membrane - (0.9 if leaks else 1.0) * threshold * spikes + given
        spikes = (membrane > threshold).astype(float)
        found.append((membrane, spikes))
    assert 0 < np.mean([fired.mean() for _, fired in found]) < 1
    return np.stack([each for each, _ in found]), np.stack([fired for _, fired in found])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the name and arguments of each figure instead of drawing it."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "lightning_snn.figures.membrane_traces",
        lambda membranes, spikes, thresholds, neurons: {"m": membranes, "s": spikes, "t": thresholds, "n": neurons},
    )
    monkeypatch.setattr(
        "lightning_snn.callbacks.membrane.log_figure",
        lambda trainer, name, figure, folder: calls.append({"name": name, "folder": folder, **figure}),
    )
    return calls


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_membranes_of_a_loop_are_those_computed_by_hand(drawn, threshold, tmp_path):
    module = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9, threshold=threshold)))
    found = trainer(MembraneTrace(neurons=3, folder=tmp_path)).test(module, loader(), verbose=False)[0]
    membranes, spikes = by_hand(module.net[0](FIRST), threshold)
    assert set(found) == {"membrane/test/mean/net.1", "membrane/test/sd/net.1"}
    assert found["membrane/test/mean/net.1"] == pytest.approx(membranes.mean() / threshold, abs=1e-6)
    assert found["membrane/test/sd/net.1"] == pytest.approx(membranes.std() / threshold, abs=1e-6)
    (figure,) = drawn
    assert (figure["name"], figure["folder"], figure["n"]) == ("membrane_test", tmp_path, 3)
    np.testing.assert_allclose(figure["m"]["net.1"], membranes[:, 0], atol=1e-6)
    np.testing.assert_array_equal(figure["s"]["net.1"], spikes[:, 0])
    assert figure["t"]["net.1"] == threshold


def test_membranes_of_our_layers_are_those_computed_by_hand(drawn):
    module = Ours(nn.Sequential(connection(), LIF(0.9, 0.5)))
    found = trainer(MembraneTrace(name="mine")).validate(module, loader(), verbose=False)[0]
    membranes, spikes = by_hand(module.net[0](FIRST), 0.5, leaks=True)
    assert found["mine/val/mean/net.1"] == pytest.approx(membranes.mean() / 0.5, abs=1e-6)
    assert found["mine/val/sd/net.1"] == pytest.approx(membranes.std() / 0.5, abs=1e-6)
    assert [figure["name"] for figure in drawn] == ["mine_val"]
    np.testing.assert_allclose(drawn[0]["m"]["net.1"], membranes[:, 0], atol=1e-6)
    np.testing.assert_array_equal(drawn[0]["s"]["net.1"], spikes[:, 0])


@pytest.mark.parametrize("mode", ["s", "m"])
def test_membranes_of_spikingjelly_are_those_computed_by_hand(drawn, mode):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron

    class Jelly(Module):
        def forward(self, x: Tensor) -> None:
            functional.reset_net(self.net)
            for given in [x.expand(STEPS, -1, -1)] if mode == "m" else [x] * STEPS:
                self.net(given)

    module = Jelly(nn.Sequential(connection(), neuron.IFNode(0.25, v_reset=None)))
    functional.set_step_mode(module, mode)
    found = trainer(MembraneTrace()).test(module, loader(), verbose=False)[0]
    current, charged, spikes, potentials = module.net[0](FIRST).detach(), 0.0, 0.0, []
    for _ in range(STEPS):
        charged = charged - 0.25 * spikes + current
        spikes = (charged >= 0.25).float()
        potentials.append(charged)
    membranes = torch.stack(potentials)
    assert found["membrane/test/mean/net.1"] == pytest.approx(membranes.mean().item() / 0.25, abs=1e-5)
    assert found["membrane/test/sd/net.1"] == pytest.approx(membranes.std(correction=0).item() / 0.25, abs=1e-5)
    np.testing.assert_allclose(drawn[0]["m"]["net.1"], membranes[:, 0], atol=1e-6)
    assert module.net[1].store_v_seq is False


def test_the_first_batch_of_the_first_loader_is_measured(drawn):
    module = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9)))
    alone = trainer(MembraneTrace()).test(module, loader(FIRST), verbose=False)[0]
    several = trainer(MembraneTrace()).test(module, [loader(X), loader(LAST)], verbose=False)
    assert several[0] == alone
    other = trainer(MembraneTrace()).test(module, loader(LAST), verbose=False)[0]
    assert other != alone
    assert len(drawn) == 3


def test_every_nth_epoch_of_a_fit_is_measured_and_no_sanity_check(drawn):
    module = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9)))
    epochs: list[int] = []
    seen: list[int] = []

    class Epochs(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(trainer.current_epoch)
            if drawn:
                epochs.append(trainer.current_epoch)
                drawn.clear()

    made = trainer(MembraneTrace(every_n_epochs=3), Epochs(), max_epochs=7, num_sanity_val_steps=1)
    made.fit(module, loader(), loader())
    assert epochs == [0, 3, 6]
    assert len(seen) == 8
    assert not any(each._forward_hooks for each in module.modules())


class Watches(pl.Callback):
    """Return the epochs of a fit with a drawing."""

    def __init__(self, drawn: list[Any]) -> None:
        self.drawn, self.epochs = drawn, list[int]()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += [trainer.current_epoch] * bool(self.drawn)
        self.drawn.clear()


@pytest.mark.parametrize(
    ("every", "validated", "epochs"), [(5, 5, [4, 9]), (5, 2, [1, 7]), (2, 2, [1, 3, 5, 7, 9]), (1, 3, [2, 5, 8])]
)
def test_validations_that_do_not_come_in_every_epoch_have_their_turn(drawn, every, validated, epochs):
    module = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9)))
    seen = Watches(drawn)
    made = trainer(MembraneTrace(every_n_epochs=every), seen, max_epochs=10, check_val_every_n_epoch=validated)
    made.fit(module, loader(FIRST), loader(FIRST))
    assert seen.epochs == epochs
    assert "membrane/val/mean/net.1" in made.callback_metrics


def test_all_validations_of_an_epoch_that_is_measured_are(drawn):
    module, seen = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9))), Watches(drawn)
    made = trainer(MembraneTrace(every_n_epochs=2), seen, max_epochs=3, val_check_interval=0.5)
    made.fit(module, loader(), loader(FIRST))
    assert seen.epochs == [0, 0, 2, 2]


def test_a_resumed_fit_is_measured_from_its_first_validation(drawn, tmp_path):
    module = Loop(nn.Sequential(connection(), snntorch.Leaky(beta=0.9)))
    callback, checkpoint = MembraneTrace(every_n_epochs=5), tmp_path / "last.ckpt"
    made = trainer(callback, max_epochs=2)
    made.fit(module, loader(FIRST), loader(FIRST))
    made.save_checkpoint(checkpoint)
    for resuming in (callback, MembraneTrace(every_n_epochs=5)):
        drawn.clear()
        seen = Watches(drawn)
        resumed = trainer(resuming, seen, max_epochs=9, num_sanity_val_steps=0)
        resumed.fit(module, loader(FIRST), loader(FIRST), ckpt_path=checkpoint)
        assert seen.epochs == [2, 7]


def test_a_neuron_in_two_places_of_different_width_is_drawn_in_the_first(drawn):
    class Shared(Loop):
        def forward(self, x: Tensor) -> None:
            neurons, first, second = self.net[1], torch.zeros(len(x), HIDDEN), torch.zeros(len(x), 2)
            for _ in range(STEPS):
                spikes, first = neurons(self.net[0](x), first)
                _, second = neurons(spikes[:, :2], second)

    module = Shared(nn.Sequential(connection(), snntorch.Leaky(beta=0.9)))
    trainer(MembraneTrace()).test(module, loader(), verbose=False)
    membranes, spikes = by_hand(module.net[0](FIRST))
    np.testing.assert_allclose(drawn[0]["m"]["net.1"], membranes[:, 0], atol=1e-6)
    np.testing.assert_array_equal(drawn[0]["s"]["net.1"], spikes[:, 0])


def test_layers_without_a_known_membrane_are_named_once_and_the_others_drawn(drawn, monkeypatch):
    class Fires(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float()

    monkeypatch.setitem(REGISTERED, Fires, Conventions())

    class Both(Loop):
        def forward(self, x: Tensor) -> None:
            super().forward(x)
            self.net[2](x)

    module = Both(nn.Sequential(connection(), snntorch.Leaky(beta=0.9), Fires()))
    found = trainer(MembraneTrace(every_n_epochs=1), max_epochs=3)
    with pytest.warns(UserWarning, match=r"MembraneTrace neither draws nor logs net\.2: the membrane") as caught:
        found.fit(module, loader(), loader())
    assert sum("MembraneTrace" in str(warning.message) for warning in caught) == 1
    assert [set(figure["m"]) for figure in drawn] == [{"net.1"}] * 3
    assert {key for key in found.callback_metrics if "membrane" in key} == {
        "membrane/val/mean/net.1",
        "membrane/val/sd/net.1",
    }
    with pytest.raises(
        ValueError, match="Expected a spiking layer with a known membrane potential .* but got only net.1. "
    ):
        trainer(MembraneTrace()).test(Ours(nn.Sequential(connection(), Fires())), loader(), verbose=False)


def test_a_threshold_that_is_not_known_leaves_the_scalars_out(drawn, monkeypatch):
    class Keeps(snntorch.Leaky):
        pass

    monkeypatch.setitem(REGISTERED, Keeps, Conventions("mem"))
    found = trainer(MembraneTrace()).test(Loop(nn.Sequential(connection(), Keeps(0.9))), loader(), verbose=False)
    assert found == [{}]
    assert drawn[0]["t"] == {"net.1": None}


def test_gaussian_currents_have_a_mean_membrane(tmp_path):
    from lightning_snn import SpikingModule
    from lightning_snn.methods import SpikingBayes

    net = nn.Sequential(connection(), LIF(0.9), connection(3, HIDDEN))
    module = SpikingModule(net, SpikingBayes(), num_classes=3)
    data = DataLoader(TensorDataset(X.expand(STEPS, -1, -1).transpose(0, 1), torch.arange(12) % 3), 12)
    data.collate_fn = lambda pairs: (torch.stack([x for x, _ in pairs], 1), torch.stack([y for _, y in pairs]))
    found = trainer(MembraneTrace(folder=tmp_path)).test(module, data, verbose=False)[0]
    names = [name for name in found if name.startswith("membrane/test/mean/")]
    assert names
    assert all(np.isfinite(found[name]) for name in names)
    assert (tmp_path / "membrane_test.png").stat().st_size > 0


@pytest.mark.parametrize("run_of", ["fit", "validate", "test"])
def test_a_module_without_spiking_layers_is_refused(run_of):
    with pytest.raises(ValueError, match="for MembraneTrace, but got Ours without any"):
        getattr(trainer(MembraneTrace()), run_of)(Ours(nn.Sequential(connection())), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "`neurons` to be an integer of at least 1, but got 0"),
        ({"neurons": 6}, "`neurons` to be at most 5, but got 6"),
        ({"every_n_epochs": 0}, "`every_n_epochs` to be an integer of at least 1, but got 0"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MembraneTrace(**options)
