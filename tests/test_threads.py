"""Threads that predict while another one trains the same network, for every method."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.methods import ActivityPenalty, Progress, RateBackprop, SpikingBayes, SurrogateGradient
from lightning_snn.methods import TimeToFirstSpike as FirstSpikes
from lightning_snn.methods.rate.rules import RATE_RULES
from lightning_snn.nn import OverTime
from lightning_snn.nn.phase import has_instance_forward
from lightning_snn.nn.run_context import ThreadForward, forward_replaced
from tests.contract.table import METHODS, MethodRow
from tests.support.event_order import CHANNELS, CLASSES, order_of_events, small_network
from tests.support.processes import PATIENCE

X, Y = order_of_events(16)
PREDICTING, STEPS, ROUNDS = 8, 6, 6


def sequence_network() -> nn.Module:
    return nn.Sequential(nn.Linear(CHANNELS, 8), LIF(), OverTime(nn.GRU(8, 4)), nn.Linear(4, CLASSES))


MORE = (
    MethodRow("penalties", SurrogateGradient),
    MethodRow("penalties_of_rates", RateBackprop),
    MethodRow("sequence_layers", SurrogateGradient, sequence_network),
    # windows that grow while training would change clipped outputs
    MethodRow(
        "activity_of_first_spikes",
        lambda: FirstSpikes((0.0, 1.1), activity_penalty=0.1, overflow="clip", gamma=None),
    ),
    MethodRow("synapse_bias", lambda: SpikingBayes(bias_weight=0.1, bias_form="synapse")),
)


def build(row: MethodRow) -> SpikingModule:
    torch.manual_seed(0)
    penalties = {"rate": ActivityPenalty(0.1)} if row.name.startswith("penalties") else None
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, penalties=penalties)
    module.method.progress = Progress(0.5, len(Y))
    return module


def predicted(module: SpikingModule, x: Tensor, seed: int) -> Tensor:
    """Predict with the thread's own noise."""
    takes = "generator" in inspect.signature(module.method.predict).parameters
    options = {"generator": torch.Generator().manual_seed(seed)} if takes else {}
    return module.method.predict(module.network, x, **options).mean


def trained(module: SpikingModule) -> list[Any]:
    """Return objectives, logged values and gradients of several steps without an optimizer."""
    torch.manual_seed(1)
    found: list[Any] = []
    for _ in range(STEPS):
        module.network.zero_grad()
        step = module.method.penalized_step(module.network, X, Y)
        step.objective.backward()
        found += [step.objective.detach(), *step.metrics.values()]
        found += [each.grad.clone() for each in module.network.parameters() if each.grad is not None]
    return found


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*functions: Callable[[], None]) -> None:
    """Call functions in threads that start at once, and raise what one of them raises."""
    start, errors = Barrier(len(functions), timeout=PATIENCE), []

    def go(function: Callable[[], None]) -> None:
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=go, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("row", [*METHODS, *MORE], ids=lambda row: row.name)
def test_eight_threads_predict_while_another_trains_as_each_does_alone(row):
    module = build(row)
    inputs = [order_of_events(2 + index, seed=index)[0] for index in range(PREDICTING)]
    expected = [predicted(module, x, seed) for seed, x in enumerate(inputs)]
    alone = trained(copy.deepcopy(module))
    found: list[list[Tensor]] = [[] for _ in inputs]
    steps: list[Any] = []

    def predict(index: int) -> None:
        for _ in range(ROUNDS):
            found[index].append(predicted(module, inputs[index], index))

    predicting = [lambda index=index: predict(index) for index in range(PREDICTING)]
    together(lambda: steps.extend(trained(module)), *predicting)
    for index in range(PREDICTING):
        assert all(torch.equal(each, expected[index]) for each in found[index])
    assert all(torch.equal(one, other) for one, other in zip(steps, alone, strict=True))
    assert not any("forward" in vars(layer) for layer in module.network.modules())


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("window", [1, 4, "step"])
def test_threads_train_one_network_by_rates_as_each_does_alone(window):
    network = small_network()
    method = RateBackprop(window=window, check_drift=False)
    batches = [order_of_events(2 + index, seed=index) for index in range(4)]

    def gradients(index: int) -> list[Tensor]:
        objective = method.training_step(network, *batches[index]).objective
        return list(torch.autograd.grad(objective, list(network.parameters())))

    expected = [gradients(index) for index in range(len(batches))]
    found: list[list[Tensor]] = [[] for _ in batches]

    def train(index: int) -> None:
        for _ in range(ROUNDS):
            found[index] = gradients(index)

    together(*(lambda index=index: train(index) for index in range(len(batches))))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any("forward" in vars(layer) for layer in network.modules())


def test_a_replaced_forward_is_that_of_one_thread_and_ends_with_its_context():
    layer, x = nn.Linear(2, 3), torch.rand(4, 2)
    elsewhere: list[Tensor] = []
    with forward_replaced([layer], lambda module, x: x + 1):
        assert torch.equal(layer(x), x + 1)
        together(lambda: elsewhere.append(layer(x)))
        assert not has_instance_forward(layer)
        assert RATE_RULES.find(layer) is not None
        copied = copy.deepcopy(layer)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(elsewhere[0], expected)
    assert torch.equal(layer(x), expected)
    assert "forward" not in vars(layer)
    assert isinstance(vars(copied)["forward"], ThreadForward)
    assert torch.equal(copied(x), expected)


def test_a_context_replaces_the_forward_of_its_own_modules_only():
    mine, other, x = nn.Linear(2, 2), nn.Linear(2, 2), torch.rand(4, 2)
    entered, called = Barrier(2, timeout=PATIENCE), Barrier(2, timeout=PATIENCE)
    expected, found = other(x), {}

    def first() -> None:
        with forward_replaced([mine], lambda module, x: x + 1):
            entered.wait()
            found["other"] = other(x)  # whose forward the second thread replaces
            called.wait()

    def second() -> None:
        with forward_replaced([other], lambda module, x: x + 2):
            entered.wait()
            called.wait()

    together(first, second)
    assert torch.equal(found["other"], expected)


def test_a_forward_of_an_instance_is_restored():
    layer, x = nn.Linear(2, 3), torch.rand(4, 2)
    layer.forward = lambda x: 2 * x
    with forward_replaced([layer], lambda module, x: x + 1):
        assert torch.equal(layer(x), x + 1)
        assert has_instance_forward(layer)
    assert torch.equal(layer(x), 2 * x)


def test_contexts_of_two_threads_may_overlap():
    layer, x, found = nn.Linear(2, 3), torch.rand(4, 2), {}
    entered, left = Barrier(2, timeout=PATIENCE), Barrier(2, timeout=PATIENCE)

    def first() -> None:
        with forward_replaced([layer], lambda module, x: x + 1):
            entered.wait()
            found["first"] = layer(x)
        left.wait()

    def second() -> None:
        with forward_replaced([layer], lambda module, x: x + 2):
            entered.wait()
            left.wait()
            found["second"] = layer(x)  # after the other context has ended

    together(first, second)
    assert torch.equal(found["first"], x + 1)
    assert torch.equal(found["second"], x + 2)
    assert "forward" not in vars(layer)
