"""Layers whose weights are not plain parameters: trained, or refused by name with what to do, by every method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_snn import LIF, SpikingModule
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3))


def pruned() -> nn.Module:
    made = network()
    prune.l1_unstructured(made[0], "weight", 0.5)
    return made


def weight_normed() -> nn.Module:
    made = network()
    nn.utils.weight_norm(made[0])
    return made


def parametrized() -> nn.Module:
    made = network()
    parametrizations.weight_norm(made[0])
    return made


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), LIF(), nn.LazyLinear(3))


REMEDIES: dict[Callable[[], nn.Module], str] = {
    pruned: r'0: Linear \(its weight is computed from other .*prune\.remove\(layer, "weight"\)',
    weight_normed: r"0: Linear \(its weight is computed from other .*remove_weight_norm\(layer\)",
    parametrized: r'0: ParametrizedLinear \(.*remove_parametrizations\(layer, "weight"\)',
    lazy: r"0: LazyLinear \(its parameters are not initialized: call `lightning_snn\.run",
}
TRAINED: dict[type[Method], tuple[Callable[[], nn.Module], ...]] = {
    SurrogateGradient: tuple(REMEDIES),
    RateBackprop: tuple(REMEDIES),
    NoisySpikes: tuple(REMEDIES),  # the module hands over a copy, in which hooks compute the weights
    SpikingBayes: (),
    TimeToFirstSpike: (),
    ExpectationPropagation: (),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("make", REMEDIES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("method", TRAINED, ids=lambda kind: kind.__name__)
def test_a_method_trains_computed_weights_or_says_what_to_do(method, make):
    if make not in TRAINED[method]:
        with pytest.raises(ValueError, match=f"a network that {method.__name__} can train, but got {REMEDIES[make]}"):
            SpikingModule(make(), method(), num_classes=3)
        return
    module = SpikingModule(make(), method(), num_classes=3)
    step = module.method.training_step(module.network, torch.rand(4, 3, 4), torch.tensor([0, 1, 2]))
    step.objective.backward()
    assert all(parameter.grad is not None for parameter in module.network.parameters())


def test_rate_backprop_refuses_a_network_that_is_compiled_after_its_preparation():
    module = SpikingModule(network(), RateBackprop(), num_classes=3)
    for compiled in (
        torch.compile(module.network),
        nn.Sequential(torch.compile(module.network[0]), *module.network[1:]),
    ):
        with pytest.raises(ValueError, match=r"OptimizedModule \(it is compiled, but RateBackprop replaces the calls"):
            module.method.training_step(compiled, torch.rand(4, 3, 4), torch.tensor([0, 1, 2]))
