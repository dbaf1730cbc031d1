"""Compiled networks and modules: every method trains them as those that are not compiled, or refuses them by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    Progress,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn.layer_rules import is_compiled
from tests.support.event_order import CLASSES, loader, order_of_events, small_network
from tests.support.slow import others_slow
from tests.support.training import trainer

X, Y = order_of_events(8)
METHODS: dict[str, Callable[[], Method]] = {
    "surrogate_gradient": SurrogateGradient,
    "rate_backprop": RateBackprop,
    "rate_backprop_windows": lambda: RateBackprop(window=4),
    "rate_backprop_linked": lambda: RateBackprop(window=4, link=True),
    "rate_backprop_step": lambda: RateBackprop(window="step"),
    "rate_backprop_streaming": lambda: RateBackprop(streaming=True),
    "spiking_bayes": SpikingBayes,
    "spiking_bayes_samples": lambda: SpikingBayes(samples=3),
    "noisy_spikes": NoisySpikes,
    "time_to_first_spike": lambda: TimeToFirstSpike((0.0, 1.1)),
    "expectation_propagation": ExpectationPropagation,
}
KEEPS_ITS_LAYERS = ("surrogate_gradient",)
REFUSES_ALWAYS = tuple(name for name in METHODS if name.startswith(("rate", "expectation")))
# in the test command one of those that a test treats alike
IN_TEST_COMMAND = ("surrogate_gradient", "rate_backprop_windows", "spiking_bayes_samples", "expectation_propagation")
EVERY = pytest.mark.parametrize("name", others_slow(METHODS, IN_TEST_COMMAND))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def build(name: str, network: nn.Module | None = None) -> SpikingModule:
    torch.manual_seed(0)
    module = SpikingModule(small_network() if network is None else network, METHODS[name](), num_classes=CLASSES)
    module.method.progress = Progress(0.5, len(Y))
    return module


def results(module: SpikingModule) -> list[Tensor]:
    """Return objective, gradients and prediction of seeded steps."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        module.network.zero_grad()
        objective = module.method.training_step(module.network, X, Y).objective
        objective.backward()
        found += [objective.detach(), *(each.grad.clone() for each in module.network.parameters())]
        torch.manual_seed(seed)
        found.append(module.method.predict(module.network, X).mean)
    return found


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(one, other, strict=True))


@EVERY
@pytest.mark.parametrize("compile_network", [compiled, compiled_in_place])
def test_a_network_compiled_after_prepare_trains_alike_or_is_refused_by_name(name, compile_network):
    module = build(name)
    plain = copy.deepcopy(module)
    module.network = compile_network(module.network)
    assert is_compiled(module.network)
    if name in REFUSES_ALWAYS:
        with pytest.raises(ValueError, match=r"can train, but got the network: .*train it without `torch.compile`"):
            module.method.training_step(module.network, X, Y)
        return
    assert close(results(module), results(plain))


@EVERY
def test_a_compiled_network_trains_alike_or_is_refused_by_name_in_prepare(name):
    torch.manual_seed(0)
    network = small_network()
    if name not in KEEPS_ITS_LAYERS:
        with pytest.raises(ValueError, match=r"can train, but got the network: OptimizedModule \(it is compiled"):
            build(name, compiled(network))
        with pytest.raises(ValueError, match=r"can train, but got 0: OptimizedModule \(it is compiled"):
            build(name, nn.Sequential(compiled(nn.Linear(2, 4)), LIF(), nn.Linear(4, CLASSES)))
        return
    assert close(results(build(name, compiled(network))), results(build(name, network)))


@EVERY
def test_a_network_compiled_in_place_is_copied_without_that_which_is_said(name):
    torch.manual_seed(0)
    network = small_network()
    plain = build(name, network)
    with pytest.warns(UserWarning, match=r"the network was, by `compile\(\)`. Call `module.compile\(\)`"):
        module = build(name, compiled_in_place(network))
    assert not is_compiled(module.network)
    assert close(results(module), results(plain))


@EVERY
def test_a_compiled_module_is_refused_by_name(name):
    module = compiled(build(name))
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(ValueError, match=r"`torch.compile\(SpikingModule\)`. Compile in place"):
            getattr(trainer(), stage)(module, loader(X, Y))


@EVERY
def test_a_module_compiled_in_place_trains_alike(name):
    def fitted(compile_module: bool) -> list[Tensor]:
        module = build(name)
        if compile_module:
            if name == "expectation_propagation":
                with pytest.raises(ValueError, match=r"steps can be compiled, but got ExpectationPropagation"):
                    module.compile(backend="eager")
            else:
                module.compile(backend="eager")
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(max_epochs=2).fit(module, loader(X, Y, 8), loader(X, Y, 8))
        return [parameter.detach() for parameter in module.parameters()]

    assert close(fitted(True), fitted(False))
