"""Yin-Yang: the symbol, its balanced samples and their encoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule
from lightning_snn.data import YinYang
from lightning_snn.data.yin_yang import yin_yang_class
from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.nn import LIF
from tests.support.training import trainer


def grid(points: int = 801) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced points in the disc."""
    x, y = np.meshgrid(*[(np.arange(points) + 0.5) / points] * 2)
    inside = np.hypot(x - 0.5, y - 0.5) < 0.5
    return x[inside], y[inside]


def test_half_a_turn_exchanges_the_halves_and_keeps_the_dots():
    x, y = grid()
    one, turned = yin_yang_class(x, y), yin_yang_class(1 - x, 1 - y)
    borders = np.isclose(np.hypot(x - 0.25, y - 0.5), 0.25) | np.isclose(np.hypot(x - 0.75, y - 0.5), 0.25)
    assert np.array_equal(turned[~borders], np.array([1, 0, 2])[one][~borders])


def test_areas_are_those_of_circles():
    x, y = grid()
    shares = np.bincount(yin_yang_class(x, y), minlength=3) / len(x)
    dots = 2 * 0.1**2 / 0.5**2
    np.testing.assert_allclose(shares, [(1 - dots) / 2, (1 - dots) / 2, dots], atol=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.5, 0.99, 1),
        (0.5, 0.01, 0),
        (0.25, 0.5, 2),
        (0.75, 0.59, 2),
        (0.25, 0.38, 1),  # the bulge of the upper half, below the middle
        (0.75, 0.62, 0),
        (0.1, 0.25, 0),
        (0.9, 0.75, 1),
    ],
)
def test_points_have_the_class_of_the_drawing(x: float, y: float, expected: int):
    assert yin_yang_class(np.array(x), np.array(y)) == expected


def test_samples_are_balanced_and_uniform_within_their_class():
    data = YinYang(train_size=30_000)
    data.setup()
    values, classes = data.train_set.tensors
    assert classes.bincount().tolist() == [10_000] * 3
    torch.testing.assert_close(values[:, :2] + values[:, 2:], torch.ones(30_000, 2), rtol=0, atol=1e-6)
    x, y = values[:, 0].double().numpy(), values[:, 1].double().numpy()
    assert np.hypot(x - 0.5, y - 0.5).max() <= 0.5 + 1e-6
    halves = (classes != 2).numpy()
    # both halves together are the disc without the dots, which are at its middle height
    dots = 2 * math.pi * 0.1**2
    moment = (math.pi * 0.5**4 / 4 - 2 * math.pi * 0.1**4 / 4) / (math.pi * 0.5**2 - dots)
    assert ((y[halves] - 0.5) ** 2).mean() == pytest.approx(moment, rel=0.02)
    right = np.hypot(x[~halves] - 0.75, y[~halves] - 0.5) < 0.11
    assert right.mean() == pytest.approx(0.5, abs=0.02)


def test_the_three_sets_are_different_draws_that_the_seed_decides():
    drawn = []
    for seed in (1, 1, 2):
        data = YinYang(train_size=90, val_size=90, test_size=90, seed=seed)
        data.setup()
        drawn.append([part.tensors[0] for part in (data.train_set, data.val_set, data.test_set)])
    for same, again, other in zip(*drawn, strict=True):
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
    train, val, test = drawn[0]
    assert not torch.equal(train, val)
    assert not torch.equal(val, test)


def test_a_value_becomes_one_spike_that_is_earlier_the_larger_it_is():
    data = YinYang(train_size=50, time_steps=32, encoder="latency")
    data.setup()
    data.trainer = None
    batch = next(iter(data.val_dataloader()))
    x, _ = data.on_after_batch_transfer(batch, 0)
    assert x.shape == (32, 50, 4)
    assert x.sum(0).max() == 1
    times, order = x.argmax(0).flatten(), batch.frames.flatten().argsort(descending=True)
    assert (times[order].diff() >= 0).all()


def test_hidden_neurons_learn_what_a_linear_classifier_cannot():
    def accuracy(network: nn.Module) -> float:
        torch.manual_seed(0)
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        data = YinYang(train_size=1500, val_size=30, test_size=600, batch_size=50)
        module = SpikingModule(network, TimeToFirstSpike(), num_classes=3, learning_rate=1e-2)
        stock = trainer(max_epochs=8)
        stock.fit(module, data)
        return stock.test(module, data, verbose=False)[0]["test/accuracy"]

    assert accuracy(nn.Sequential(nn.Linear(4, 40), LIF(), nn.Linear(40, 3))) > 0.8
    assert accuracy(nn.Sequential(nn.Linear(4, 3))) < 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0}, "`train_size` to be an integer of at least 1, but got 0"),
        ({"time_steps": 0}, "`time_steps` to be an integer of at least 1, but got 0"),
        ({"encoder": "threshold"}, "`encoder` to be one of 'direct', 'poisson', 'latency', but got 'threshold'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        YinYang(**arguments)
