"""Observers of every neuron are right about it, or report what they do not see."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks import InitializationCheck, SpikeRaster, StateGuard
from lightning_snn.callbacks.initialization import rescale
from lightning_snn.methods import SurrogateGradient
from lightning_snn.metrics.activity import Activity, record_activity
from lightning_snn.nn import Neuron, Recurrent, RecurrentLIF, membrane
from lightning_snn.nn.observation import Traces, observe
from tests.contract.strangers import OwnEquations, OwnForward
from tests.nn.neurons.cases import NEURONS, Potentials
from tests.support.slow import others_slow
from tests.support.training import trainer

LINEAR = {name: make for name, make in NEURONS.items() if name != "quadratic"}


class Izhikevich(Neuron):
    """The equations of `docs/extending.md`, which rest at -70."""

    gain = 10.0

    def initial_state(self, x: Tensor) -> Potentials:
        return Potentials(torch.full_like(x, -70.0), torch.full_like(x, -14.0))

    def charge(self, x: Tensor, state: Potentials) -> Potentials:
        v, u = state
        return Potentials(v + 0.04 * v * v + 5 * v + 140 - u + self.gain * x, u + 0.02 * (0.2 * v - u))

    def firing_threshold(self, state: Potentials) -> float:
        return 30.0

    def after_spikes(self, state: Potentials, spikes: Tensor) -> Potentials:
        fired = spikes.detach()
        return Potentials(state.v + fired * (-65.0 - state.v), state.memory + 8.0 * spikes)


def network(neuron: nn.Module, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 3))
    with torch.no_grad():
        nn.init.normal_(made[0].weight, std=0.7 * scale)
        nn.init.constant_(made[0].bias, 0.3 * scale)
    return made


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(20, 6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


@torch.no_grad()
def free_potentials(layer: Neuron, current: Tensor) -> Tensor:
    """Potentials of neurons that never spike, on a scale with rest at 0 and the threshold at 1, step by step."""
    state, found = layer.initial_state(current[0]), []
    rest = membrane(state)
    for x in current.unbind(0):
        state = layer.charge(x, state)
        found.append((membrane(state) - rest) / (layer.firing_threshold(state) - rest))
        state = layer.after_spikes(state, torch.zeros_like(x))
    return torch.stack(found).double()


@pytest.mark.parametrize("name", LINEAR)
def test_a_rescaling_puts_the_free_potential_at_its_distance_from_the_threshold(name):
    made = network(LINEAR[name](), scale=0.01)
    x, _ = batch()
    assert run(made[:2], x).sum() == 0
    (found,) = rescale(made, lambda copied: run(copied, x).mean(), xi=1.5)
    assert found.reason == ""
    potentials = free_potentials(made[1], made[0](x).detach())
    assert ((1 - potentials.mean()) / potentials.std()).item() == pytest.approx(1.5, rel=0.03)
    assert run(made[:2], x).sum() > 0


@pytest.mark.parametrize(
    "name",
    others_slow(
        [*NEURONS, "izhikevich", "own_equations", "own_forward"],
        fast=("lif_learned", "adaptive", "recurrent_around_lif", "izhikevich", "own_equations", "own_forward"),
    ),
)
def test_an_initialization_check_measures_every_neuron_and_rescales_or_says_why_not(name, tmp_path):
    kinds = {**NEURONS, "izhikevich": Izhikevich, "own_equations": OwnEquations, "own_forward": OwnForward}
    module = SpikingModule(network(kinds[name](), scale=0.01), SurrogateGradient(), num_classes=3)
    x, y = batch()
    current = module.network[0](x).detach()
    before = module.network[0].weight.detach().clone()
    check = InitializationCheck(on_fail="rescale")
    made = trainer(check, default_root_dir=tmp_path, max_steps=1)
    made.fit(module, DataLoader([(x, y)], batch_size=None))
    found = {each.quantity: each.value for each in check.findings if each.layer == "1"}
    assert found["firing_rate"] == 0
    if name == "own_forward":
        assert "membrane_mean" not in found
        assert check.rescalings[0].reason == "its membrane potential is not known"
        return
    expected = free_potentials(module.network[1], current)  # none spikes
    assert found["membrane_mean"] == pytest.approx(expected.mean().item(), rel=1e-3, abs=1e-5)
    assert found["membrane_sd"] == pytest.approx(expected.std().item(), rel=1e-2)
    if name in ("izhikevich", "quadratic"):
        assert check.rescalings[0].reason
        assert (module.network[0].weight - before).abs().max() < 2e-3  # one optimizer step
    elif name in LINEAR:
        assert check.rescalings[0].factor > 10


@pytest.mark.parametrize("name", NEURONS)
def test_no_neuron_leaks_state_and_all_spikes_are_drawn(name, tmp_path):
    module = SpikingModule(network(NEURONS[name]()), SurrogateGradient(), num_classes=3)
    guard = StateGuard(on_leak="raise")
    loader = DataLoader([batch()] * 2, batch_size=None)
    callbacks: list[pl.Callback] = [guard, SpikeRaster(folder=tmp_path, every_n_epochs=1)]
    trainer(*callbacks, default_root_dir=tmp_path).fit(module, loader, loader)
    assert guard.leaks == {}
    x, _ = batch()
    traces = Traces(samples=2)
    with traces.recording(module.network):
        run(module.network, x)
    assert list(traces.found()) == ["1"]
    assert torch.equal(traces.found()["1"].spikes, run(module.network[:2], x)[:, :2])


class Leaky(Neuron):
    independent = False

    def charge(self, x: Tensor, state: Tensor) -> Tensor:
        return 0.8 * state + x

    def firing_threshold(self, state: Tensor) -> float:
        return 1.0

    def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
        return state - spikes - self.lateral(spikes)


class LateralParameter(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(4, 4))

    def lateral(self, spikes: Tensor) -> Tensor:
        return spikes @ self.weight.to(spikes.dtype)


class LateralBuffer(Leaky):
    independent = True  # a wrong declaration

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", 0.1 * torch.randn(4, 4))

    def lateral(self, spikes: Tensor) -> Tensor:
        return spikes @ self.weight.to(spikes.dtype)


class LateralPool(Leaky):
    """Inhibition without a matrix."""

    def lateral(self, spikes: Tensor) -> Tensor:
        return 0.1 * spikes.sum(-1, keepdim=True)


class LateralLayer(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.lateral.weight, 0.1)


class OwnThreshold(RecurrentLIF):
    def firing_threshold(self, state: object) -> float:
        return 1.0


@pytest.mark.parametrize("kind", [LateralParameter, LateralBuffer, LateralPool, lambda: OwnThreshold(4)])
def test_operations_of_connections_within_a_neuron_are_reported_as_uncounted(kind):
    made = network(kind())
    with record_activity(made) as activity:
        run(made, batch()[0])
    assert activity.uncounted == ["1"]
    assert "1" not in activity.operations


@pytest.mark.parametrize("name", NEURONS)
def test_no_shipped_neuron_is_uncounted(name):
    made = network(NEURONS[name]())
    with record_activity(made) as activity:
        run(made, batch()[0])
    assert activity.uncounted == []
    assert ("1" in activity.operations) == name.startswith("recurrent")


def test_operations_of_a_layer_within_a_neuron_are_counted_once_whoever_else_observes():
    made = network(LateralLayer())
    counted: list[Activity] = []
    for membranes in (False, True):
        with observe(made, lambda call: call.membrane(), membranes=membranes), record_activity(made) as activity:
            spikes = run(made[:2], batch()[0])
            run(made, batch()[0])
        counted.append(activity)
    alone, observed = counted
    assert alone.uncounted == []
    assert alone.operations == observed.operations
    assert alone.rows == observed.rows
    assert int(observed.operations["1.lateral"]) == 2 * 4 * int(spikes.sum()) > 0


def test_recurrent_operations_are_those_of_the_delayed_spikes():
    for layer in (Recurrent(LIF(0.8), 4), RecurrentLIF(4, 0.8), Recurrent(LateralLayer(), 4)):
        made = network(layer)
        with record_activity(made) as activity:
            run(made, batch()[0])
        spikes = run(made[:2], batch()[0])
        assert int(activity.operations["1"]) == 4 * int(spikes[:-1].sum()) > 0
        assert activity.dense["1"] == 4 * spikes.numel()


@pytest.mark.parametrize("steps", [1, 5])
def test_thresholds_of_a_trace_are_those_of_each_sample(steps):
    layer = OwnEquations()
    traces = Traces(samples=3, membranes=True)
    x = 2 * torch.rand(steps, 4, 3, generator=torch.Generator().manual_seed(0))
    with traces.recording(layer):
        run(layer, x)
    (trace,) = traces.found().values()
    assert 0 < trace.spikes.mean() < 1
    assert torch.equal(trace.membrane > trace.threshold, trace.spikes.bool())
