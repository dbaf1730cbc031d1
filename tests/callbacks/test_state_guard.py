"""`StateGuard` on networks that leak state between batches, in each way that is known, and on those that do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import StateGuard
from lightning_snn.callbacks.layer_state import find_states, is_reset, used_states
from lightning_snn.nn import RecurrentLIF
from lightning_snn.nn.conventions import REGISTERED, Conventions
from tests.support import training

STEPS, FEATURES, HIDDEN, CLASSES = 3, 4, 6, 3
X, Y = torch.rand(20, FEATURES, generator=torch.Generator().manual_seed(0)) * 2, torch.arange(20) % CLASSES


def loader(batch_size: int = 8, samples: int = len(X)) -> DataLoader:
    return DataLoader(TensorDataset(X[:samples], Y[:samples]), batch_size)


class Module(pl.LightningModule):
    """Classifier by the mean over time of a network's output, without a reset."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x) for _ in range(STEPS)]).mean(0)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def between(neurons: nn.Module, *more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), neurons, *more, nn.Linear(HIDDEN, CLASSES))


def hidden(**options: Any) -> nn.Sequential:
    return between(snntorch.Leaky(beta=0.9, init_hidden=True, **options))


trainer = partial(training.trainer, max_epochs=2, num_sanity_val_steps=0)


def leaks(module: pl.LightningModule, batches: Any = None, **options: Any) -> dict[str, list[str]]:
    """Return the leaks that `StateGuard` finds in a fit with validation; it warns if and only if there are any."""
    guard = StateGuard()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(guard, **options).fit(module, batches or loader(), loader())
    warned = [str(warning.message) for warning in caught if "StateGuard" in str(warning.message)]
    assert bool(warned) == bool(guard.leaks), warned
    assert not any(each._forward_pre_hooks for each in module.modules())
    return guard.leaks


def hooks(module: nn.Module) -> int:
    return sum(len(each._forward_pre_hooks) for each in module.modules())


class ResetsItself(Module):
    def forward(self, x: Tensor) -> Tensor:
        self.net[1].reset_mem()
        return super().forward(x)


class Detached(Module):
    """`Module` without a graph from batch to batch, so that training continues."""

    def on_train_batch_end(self, *_: Any) -> None:
        for each in self.modules():
            for name, buffer in each._buffers.items():
                each._buffers[name] = buffer.detach()
            if hasattr(each, "detach") and hasattr(each, "_memories"):
                each.detach()


# snntorch


def test_hidden_state_that_nobody_resets_is_named_with_its_remedy():
    with pytest.warns(UserWarning, match="StateGuard") as caught:
        trainer(StateGuard()).fit(Detached(hidden()), loader())
    (message,) = (str(warning.message) for warning in caught if "StateGuard" in str(warning.message))
    assert "leaks into a training batch of Detached: net.1 (Leaky) starts from `mem`." in message
    assert "graph" not in message
    assert "Call `reset_mem()` of each snntorch neuron at the start of `forward`" in message


def test_the_leak_is_real():
    module = Module(hidden())
    with torch.no_grad():
        first, second = module(X[:8]), module(X[:8])
        module.net[1].reset_mem()
        third = module(X[:8])
    assert not torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_leak_is_raised_before_the_optimizer_steps_and_before_backward_fails():
    module = Module(hidden())
    made = trainer(StateGuard("raise"))
    with pytest.raises(RuntimeError, match=r"net\.1 \(Leaky\) .* has the autograd graph of the earlier batch"):
        made.fit(module, loader())
    assert made.global_step == 1
    assert len(module.losses) == 2
    assert hooks(module) == 0


def test_without_the_guard_the_same_fit_fails_in_backward():
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        trainer(pl.Callback()).fit(Module(hidden()), loader())


def test_a_warned_of_leak_explains_the_failing_backward_of_manual_optimization():
    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            F.cross_entropy(self(batch[0]), batch[1]).backward()

    with (
        pytest.warns(UserWarning, match=r"net\.1 \(Leaky\) starts from `mem`"),
        pytest.raises(RuntimeError, match="second time"),
    ):
        trainer(StateGuard()).fit(Manual(hidden()), loader())


@pytest.mark.parametrize(
    ("neurons", "states"),
    [
        (lambda: snntorch.Leaky(0.9, init_hidden=True, reset_mechanism="zero"), ["mem"]),
        (lambda: snntorch.Lapicque(0.9, init_hidden=True), ["mem"]),
        (lambda: snntorch.Synaptic(0.8, 0.9, init_hidden=True), ["syn", "mem"]),
        (lambda: snntorch.Alpha(0.9, 0.8, init_hidden=True), ["syn_exc", "syn_inh", "mem"]),
        (lambda: snntorch.RLeaky(0.9, linear_features=HIDDEN, init_hidden=True), ["mem"]),
    ],
)
def test_each_neuron_of_snntorch_leaks_all_its_states(neurons, states):
    found = leaks(Detached(between(neurons())))
    assert set(states) <= set(found["net.1"]) <= {*states, "spk"}
    assert list(found) == ["net.1"]


def test_both_layers_are_named_in_one_message():
    net = between(snntorch.Leaky(0.9, init_hidden=True))
    net.append(snntorch.Leaky(0.5, init_hidden=True))
    with pytest.warns(UserWarning, match="StateGuard") as caught:
        trainer(StateGuard()).fit(Detached(net), loader())
    (message,) = (str(warning.message) for warning in caught if "StateGuard" in str(warning.message))
    assert "net.1 (Leaky) starts from `mem`; net.3 (Leaky) starts from `mem`." in message


def test_a_smaller_batch_starts_from_zero_and_is_no_leak():
    """snntorch discards a state of another shape: batches of 8, 4 do not leak; 8, 8 do."""
    found = [leaks(Detached(hidden()), loader(8, samples), limit_val_batches=0, max_epochs=1) for samples in (12, 16)]
    assert found == [{}, {"net.1": ["mem"]}]


class Explicit(Module):
    """Loop of snntorch's tutorials; its neurons keep their last membrane potentials, which nothing uses."""

    begin: Callable[[Any, Tensor], Tensor | None] = staticmethod(lambda neurons, x: neurons.init_leaky())

    def forward(self, x: Tensor) -> Tensor:
        first, neurons, last = self.net
        membrane = self.begin(neurons, x)
        outputs = []
        for _ in range(STEPS):
            spikes, membrane = neurons(first(x), membrane)
            outputs.append(last(spikes))
        return torch.stack(outputs).mean(0)


@pytest.mark.parametrize(
    "begin", [lambda neurons, x: neurons.init_leaky(), lambda neurons, x: torch.zeros(len(x), HIDDEN)]
)
def test_an_explicit_loop_that_starts_from_a_reset_state_is_no_leak(begin):
    module = Explicit(between(snntorch.Leaky(beta=0.9)))
    module.begin = begin
    assert leaks(module) == {}
    assert not is_reset(module.net[1].mem)  # kept, and stale


def test_an_explicit_loop_that_starts_from_none_or_from_the_last_membrane_leaks():
    """`lif(x, None)` takes the membrane that the neuron kept."""

    class Loose(Explicit, Detached):
        pass

    for begin in (lambda neurons, x: None, lambda neurons, x: neurons.mem if len(neurons.mem) == len(x) else None):
        module = Loose(between(snntorch.Leaky(beta=0.9)))
        module.begin = begin
        assert leaks(module) == {"net.1": ["mem"]}


def test_a_reset_at_the_end_of_a_step_is_as_good():
    class Tidy(Module):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            self.net[1].reset_mem()
            return output

    assert leaks(Tidy(hidden())) == {}


def test_state_that_leaks_into_evaluation_only_is_found():
    class Careless(Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.net[1].reset_mem()
            return super().forward(x)

    with pytest.warns(UserWarning, match="into a validation batch of Careless"):
        trainer(StateGuard()).fit(Careless(hidden()), loader(), loader())
    module = Careless(hidden())
    with pytest.raises(RuntimeError, match="into a test batch of Careless"):
        trainer(StateGuard("raise")).test(module, loader())
    with pytest.raises(RuntimeError, match="into a predict batch of Careless"):
        trainer(StateGuard("raise")).predict(Careless(hidden()), loader())
    assert hooks(module) == 0


def test_state_that_leaks_from_training_into_validation_is_found_in_its_first_batch():
    module = Detached(hidden())
    guard = StateGuard("raise")
    with pytest.raises(RuntimeError, match="into a validation batch"):
        trainer(guard, limit_train_batches=1, limit_val_batches=1).fit(module, loader(), loader())


def test_state_that_leaks_from_validation_into_training_is_found():
    """The state was created in inference mode."""

    class Half(Module):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                self.net[1].reset_mem()
            return super().forward(x)

        def on_train_batch_end(self, *_: Any) -> None:
            self.net[1].reset_mem()

    made = trainer(StateGuard("raise"))
    with pytest.raises(RuntimeError, match="into a training batch of Half"):
        made.fit(Half(hidden()), loader(10), loader(10))
    assert made.current_epoch == 1
    assert made.global_step == 2


# SpikingJelly


@pytest.fixture(params=["s", "m"])
def jelly(request: pytest.FixtureRequest) -> Callable[..., Module]:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    class Jelly(Detached):
        resets = False

        def forward(self, x: Tensor) -> Tensor:
            if self.resets:
                functional.reset_net(self.net)
            if request.param == "m":
                return self.net(x.expand(STEPS, -1, -1)).mean(0)
            return super().forward(x)

    def make(resets: bool, dropout: bool = False) -> Module:
        more = [layer.Dropout(0.5)] if dropout else []
        module = Jelly(between(neuron.LIFNode(), *more))
        functional.set_step_mode(module, request.param)
        module.resets = resets
        return module

    return make


def test_spikingjelly_leaks_until_it_is_reset(jelly):
    # of batches of different sizes SpikingJelly itself complains
    even = loader(10)
    guard = StateGuard()
    with pytest.warns(
        UserWarning,
        match=r"net\.1 \(LIFNode\) starts from `v`\. Call SpikingJelly's `functional\.reset_net\(network\)`",
    ):
        trainer(guard).fit(jelly(False), even, even)
    assert guard.leaks == {"net.1": ["v"]}
    assert leaks(jelly(True)) == {}


def test_the_mask_of_spikingjellys_dropout_leaks_too(jelly):
    found = leaks(jelly(False, dropout=True), loader(10), limit_val_batches=0)
    assert found["net.1"] == ["v"]
    assert found.get("net.2", ["mask"]) == ["mask"]
    assert leaks(jelly(True, dropout=True)) == {}


# third-party modules


class Remembers(nn.Module):
    """Recurrent cell that keeps its output."""

    def __init__(self, kept: str = "tensor") -> None:
        super().__init__()
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.kept = kept
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.state[0] if isinstance(self.state, tuple) else self.state
        if state is None or len(state) != len(x):
            state = torch.zeros(len(x), HIDDEN)
        state = self.cell(x, state.detach())
        self.state = state if self.kept == "tensor" else (state,)
        return state


class Fires(nn.Module):
    """Spiking layer without a state."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((x > 0).float() - x).detach()


@pytest.fixture
def fires(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    monkeypatch.setitem(REGISTERED, Fires, Conventions())
    return Fires


@pytest.mark.parametrize(("kept", "place"), [("tensor", "state"), ("tuple", "state[0]")])
def test_a_third_party_recurrent_module_that_keeps_its_state_is_found(fires, kept, place):
    with pytest.warns(UserWarning, match="Reset the state of Remembers at the start of each batch"):
        trainer(StateGuard()).fit(Module(between(Remembers(kept), fires())), loader())
    assert leaks(Module(between(Remembers(kept), fires()))) == {"net.1": [place]}


@pytest.mark.parametrize("passes", [lambda h: h.detach(), lambda h: h.detach().clone()], ids=["tensor", "copy"])
def test_state_that_a_module_passes_to_a_cell_is_found_in_the_module(fires, passes):
    class Keeps(Module):
        h: Tensor | None = None

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            first, _, cell, last = self.net
            h = None if self.h is None or len(self.h) != len(batch[0]) else passes(self.h)
            for _ in range(STEPS):
                h = cell(first(batch[0]), h)
            self.h = h
            return F.cross_entropy(last(h), batch[1])

    net = between(fires(), nn.GRUCell(HIDDEN, HIDDEN))
    assert leaks(Keeps(net), limit_val_batches=0) == {"Keeps": ["h"]}


def test_a_third_party_neuron_leaks_even_if_no_spike_shows_it(monkeypatch):
    class Neuron(nn.Module):
        """Neuron with a threshold that is never reached."""

        v: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            old = self.v if self.v is not None and len(self.v) == len(x) else torch.zeros_like(x)
            self.v = 0.5 * old.detach() + x
            return torch.zeros_like(x) + 0 * x

    monkeypatch.setitem(REGISTERED, Neuron, Conventions("v"))
    assert leaks(Module(between(Neuron()))) == {"net.1": ["v"]}


class Rests(nn.Module):
    """Neuron that keeps its membrane potential and can be reset to its resting potential."""

    def __init__(self) -> None:
        super().__init__()
        self.v = torch.zeros(1, HIDDEN)

    def rest(self, samples: int) -> None:
        self.v = torch.linspace(0.1, 0.9, HIDDEN).repeat(samples, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.5 * self.v.detach() + x.detach()
        return x + ((self.v > 1).float() - x).detach()


class Resting(Module):
    rests = True

    def on_train_batch_end(self, *_: Any) -> None:
        if self.rests:
            self.net[1].rest(1)


@pytest.mark.parametrize("rests", [True, False])
def test_a_single_sample_whose_neurons_are_each_reset_to_their_own_value_is_no_leak(monkeypatch, rests):
    monkeypatch.setitem(REGISTERED, Rests, Conventions("v"))
    module = Resting(between(Rests()))
    module.rests = rests
    options = {"limit_val_batches": 0, "max_epochs": 1}
    assert leaks(module, loader(1, 5), **options) == ({} if rests else {"net.1": ["v"]})


def test_a_single_sample_that_hangs_on_the_graph_of_the_last_explains_the_failing_backward():
    with pytest.raises(RuntimeError, match="into a training batch .* fails"):
        trainer(StateGuard("raise")).fit(Module(hidden()), loader(1, 5))
    assert leaks(Detached(hidden()), loader(1, 5), limit_val_batches=0) == {"net.1": ["mem"]}


def test_a_state_that_a_call_overwrites_by_what_was_there_is_not_used():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state, self.spikes = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])

        def forward(self, x: Tensor) -> Tensor:
            self.state = 0.5 * self.state + x
            self.spikes = (x > 0).float()
            return self.spikes

    module = Overwrites()
    among = [place for place, _ in find_states(module)]
    used = used_states(module, among, (torch.tensor([[-1.0, 1.0]]),), {})
    assert [str(place) for place in used] == ["state"]


def test_kept_tensors_that_are_no_state_of_samples_cause_no_warning(fires):
    class Keeps(nn.Module):
        """A record, a cache, statistics over batches, and a state that is created in every call."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(HIDDEN, HIDDEN))
            self.mean = torch.zeros(HIDDEN)
            self.cache: Tensor | None = None
            self.records: list[Tensor] = []
            self.last: Tensor | None = None
            self.normalize = nn.BatchNorm1d(HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            if self.cache is None or self.cache.shape != x.shape:
                self.cache = torch.rand(x.shape)
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.average = 0.9 * self.average + 0.1 * torch.outer(self.mean, self.mean)
            self.last = self.normalize(x) + self.cache - self.mean - self.average.sum(0)
            self.records.append(self.last)
            return self.last

    module = Module(between(nn.Sequential(Keeps(), nn.Dropout(0.5), fires(), nn.BatchNorm1d(HIDDEN))))
    assert leaks(module) == {}
    assert module.net[1][0].last.grad_fn is None  # validation came last
    assert not is_reset(module.net[1][0].mean)


def test_a_lightning_module_that_keeps_a_record_is_tested_on_copies():
    """Its copy has the trainer, but logs nothing."""

    class Records(ResetsItself):
        last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x + torch.rand_like(x))
            self.log("calls", 1.0, reduce_fx="sum", on_epoch=True, on_step=False)
            return self.last

    found = []
    for callback in (StateGuard(every_n_batches=1), pl.Callback()):
        module, calls = Records(hidden()), []
        module.net[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        made = trainer(callback, limit_val_batches=0)
        made.fit(module, loader())
        found.append((module.losses, made.callback_metrics["calls"].item(), len(calls)))
    assert found[0] == found[1]
    assert found[0][1] == len(loader())
    assert leaks(Records(hidden())) == {}


def test_a_module_that_cannot_be_copied_is_reported_and_trained(fires):
    class Uncopied(Remembers):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not me")

    module = Module(between(Uncopied(), fires()))
    with pytest.warns(UserWarning, match=r"cannot check whether Uncopied starts from `state`.*TypeError\('not me'\)"):
        trainer(StateGuard()).fit(module, loader())
    assert len(module.losses) == 2 * len(loader())


# ours


class Ours(Module):
    def forward(self, x: Tensor) -> Tensor:
        return run(self.net, x.expand(STEPS, -1, -1)).mean(0)


def test_our_layers_keep_nothing_and_are_not_even_hooked(monkeypatch):
    module = Ours(
        between(nn.Sequential(LIF(), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, HIDDEN), RecurrentLIF(HIDDEN)))
    )

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("hooked")

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", unexpected)
    assert leaks(module) == {}


# reset


def test_reset_trains_as_a_module_that_resets_itself():
    module, reference = Module(hidden()), ResetsItself(hidden())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="StateGuard")
        trainer(StateGuard("reset"), num_sanity_val_steps=2).fit(module, loader(), loader())
    trainer(pl.Callback()).fit(reference, loader(), loader())
    assert module.losses == reference.losses
    assert len(set(module.losses)) == 2 * len(loader())


def test_reset_takes_spikingjellys_modules_too(jelly):
    module, reference = jelly(False), jelly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="StateGuard")
        trainer(StateGuard("reset")).fit(module, loader(), loader())
    trainer(pl.Callback()).fit(reference, loader(), loader())
    assert module.losses == reference.losses


def test_reset_still_reports_leaks_that_it_cannot_reset(fires):
    with pytest.warns(UserWarning, match=r"net\.1 \(Remembers\) starts from `state`"):
        trainer(StateGuard("reset")).fit(Module(between(Remembers(), fires())), loader())


# when, and what is refused


def test_the_first_batches_and_then_every_nth_are_checked(monkeypatch):
    checked: list[int] = []
    monkeypatch.setattr(
        StateGuard, "_observe", lambda self, module, stage: checked.append(module.trainer.fit_loop.batch_idx)
    )
    trainer(StateGuard(every_n_batches=4), max_epochs=1).fit(ResetsItself(hidden()), loader(2))
    assert checked == [0, 1, 2, 4, 8]


def test_a_leak_is_reported_once_per_fit():
    guard = StateGuard(every_n_batches=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            trainer(guard).fit(Detached(hidden()), loader(5), loader(5))
    assert sum("StateGuard" in str(warning.message) for warning in caught) == 2
    assert guard.leaks == {"net.1": ["mem"]}


def test_checks_change_neither_states_nor_random_numbers():
    class Noisy(Detached):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    losses = []
    for callback in (StateGuard(every_n_batches=1), pl.Callback()):
        module = Noisy(hidden())
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(callback).fit(module, loader(5), loader(5))
        losses.append(module.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("run_of", ["fit", "validate", "test"])
def test_a_module_without_spiking_layers_is_refused(run_of):
    with pytest.raises(ValueError, match="for StateGuard, but got Module without any"):
        getattr(trainer(StateGuard()), run_of)(Module(between(nn.ReLU())), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_leak": "error"}, "`on_leak` to be one of 'warn', 'raise', 'reset', but got 'error'"),
        ({"every_n_batches": 0}, "`every_n_batches` to be an integer of at least 1, but got 0"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StateGuard(**options)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (torch.zeros(3, 4), True),
        (torch.zeros(1, 4), True),
        (torch.full((3, 4), 0.5), True),
        (torch.arange(4.0).expand(3, 4), True),
        (torch.arange(3.0)[:, None].expand(3, 4), False),
        (torch.arange(4.0)[None], False),
        (torch.zeros(0), True),
    ],
)
def test_a_state_is_reset_if_all_samples_have_the_same(state, expected):
    assert is_reset(state) == expected
