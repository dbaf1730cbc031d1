"""The simulated curve: positions, values and encoding of its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule
from lightning_snn.data import NoisyCurve
from tests.support.training import trainer


def samples(**options: object) -> tuple[torch.Tensor, torch.Tensor]:
    module = NoisyCurve(**options)  # type: ignore[arg-type]
    module.setup()
    places, values = module.train_set.tensors  # type: ignore[union-attr]
    return places[:, 0].double(), values[:, 0].double()


def test_samples_lie_evenly_on_the_two_stretches_and_never_in_the_gap():
    places, _ = samples(train_size=10_000)
    first, second = places[places < 1.5], places[places >= 1.5]
    assert 0 <= first.min() < 0.01
    assert 0.99 < first.max() <= 1
    assert 2.5 <= second.min() < 2.51
    assert 3.99 < second.max() <= 4
    assert len(first) / 10_000 == pytest.approx(1 / 2.5, abs=0.02)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_values_lie_about_the_curve_by_the_noise(noise):
    places, values = samples(train_size=20_000, noise=noise)
    rest = values.numpy() - (np.sin(2 * places.numpy()) + 0.3 * np.cos(5 * places.numpy()))
    assert abs(rest.mean()) < 5 * noise / 20_000**0.5
    assert rest.std() == pytest.approx(noise, rel=0.03)
    assert abs((rest**3).mean()) < 0.1 * noise**3


def test_without_noise_values_are_those_of_the_curve():
    places, values = samples(noise=0.0)
    torch.testing.assert_close(values, NoisyCurve.truth(places), rtol=1e-5, atol=1e-6)
    assert NoisyCurve.truth(torch.tensor(math.pi / 4, dtype=torch.float64)).item() == pytest.approx(
        1 + 0.3 * math.cos(5 * math.pi / 4)
    )


def test_the_three_sets_are_different_draws_that_the_seed_decides():
    module, again, other = NoisyCurve(seed=1), NoisyCurve(seed=1), NoisyCurve(seed=2)
    for each in (module, again, other):
        each.setup()
    drawn = [part.tensors[0][:100] for part in (module.train_set, module.val_set, module.test_set, other.train_set)]
    assert len({tuple(places.flatten().tolist()) for places in drawn}) == 4
    assert torch.equal(drawn[0], again.train_set.tensors[0][:100])
    assert [len(part) for part in (module.train_set, module.val_set, module.test_set)] == [2000, 500, 500]


def test_a_batch_is_a_population_in_spikes_and_a_value():
    module = NoisyCurve(batch_size=50)
    module.setup()
    x, y = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert x.shape == (1, 50, 100)
    assert module.frame_shape == (100,)
    assert y.shape == (50, 1)
    assert y.dtype == x.dtype == torch.float32
    assert set(x.unique().tolist()) == {0, 1}
    # 0.5 of the height is reached 1.177 deviations from a center
    assert x.sum(-1).mean().item() == pytest.approx(2 * 0.12 * 1.1774 / (6 / 99), rel=0.05)


def test_neurons_of_the_gap_are_silent_in_training():
    module = NoisyCurve()
    module.setup()
    spiked = module.encoder(module.train_set.tensors[0])[0].any(0)
    centers = torch.linspace(-1, 5, 100)
    assert not spiked[(centers > 1.2) & (centers < 2.3)].any()
    assert spiked[(centers > 0.05) & (centers < 0.95)].all()


def test_the_grid_is_encoded_as_samples_are():
    module = NoisyCurve()
    places, x = module.grid(11, 0.0, 1.0)
    torch.testing.assert_close(places, torch.linspace(0, 1, 11))
    assert torch.equal(x, module.encoder(places[:, None]))


def test_a_network_learns_it():
    module = NoisyCurve(train_size=400, val_size=50, test_size=100, batch_size=50)
    network = nn.Sequential(nn.Linear(100, 32), nn.Tanh(), nn.Linear(32, 1))
    learner = SpikingModule(network, task="regression", learning_rate=1e-2)
    fitting = trainer(max_epochs=15)
    fitting.fit(learner, module)
    (found,) = fitting.test(learner, module, verbose=False)
    assert found["test/mse"] < 0.02  # the values vary by 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, "`train_size` to be an integer of at least 1, but got 0"),
        ({"noise": -0.1}, "`noise` to be a finite number of at least 0, but got -0.1"),
        ({"fields": 1}, "`fields` to be an integer of at least 2, but got 1"),
        ({"width": 0.0}, "`width` to be a finite number larger than 0, but got 0.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoisyCurve(**arguments)
