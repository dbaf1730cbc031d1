from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import NoisySpikes, RateBackprop, SpikingBayes, SurrogateGradient, TimeToFirstSpike
from lightning_snn.nn import Moments, Scale


def test_each_element_is_multiplied_by_its_factor():
    factor = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    x = torch.rand(4, 2, 3, dtype=torch.float64)
    assert torch.equal(run(Scale(factor), x), x * factor)
    assert Scale([1, 2]).factor.dtype == torch.float32
    assert torch.equal(Scale(3.0)(x), 3 * x)


def test_mean_and_variance_of_a_gaussian_are_scaled():
    scaled = Scale(torch.tensor([2.0, 3.0]))(Moments(torch.ones(1, 2), torch.ones(1, 2)))
    assert scaled.expectation.tolist() == [[2.0, 3.0]]
    assert scaled.variance.tolist() == [[4.0, 9.0]]


def test_factors_are_saved_and_not_trained():
    layer = Scale([1.0, 2.0])
    assert list(layer.state_dict()) == ["factor"]
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("method", [SurrogateGradient(), RateBackprop(), NoisySpikes(), SpikingBayes()], ids=repr)
def test_methods_train_through_factors(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), Scale(torch.rand(8) + 1), LIF(threshold=0.3), nn.Linear(8, 3))
    module = SpikingModule(network, method, num_classes=3)
    module.method.progress = module.method.progress.__class__(train_size=6)
    module.method.training_step(module.network, torch.rand(5, 6, 4), torch.arange(6) % 3).objective.backward()
    assert module.network[0].weight.grad.abs().sum() > 0


def test_first_spikes_refuse_them_by_name():
    network = nn.Sequential(nn.Linear(4, 8), Scale(2.0), LIF(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="1: Scale"):
        SpikingModule(network, TimeToFirstSpike(), num_classes=3)
