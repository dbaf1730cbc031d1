"""Convolutions are dense layers whose weights are tied over positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn import LIF
from lightning_snn.methods.ep import Natural, output_moments
from tests.methods.ep.task import Steps, digits, prepared, updated


def assert_alike(one: list[Natural], other: list[Natural]) -> None:
    for a, b in zip(one, other, strict=True):
        for found, expected in zip(a, b, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"weights": "categorical"}, {"activation": "heaviside"}])
def test_a_kernel_as_large_as_the_image_is_a_dense_layer(options):
    x, y = digits(60, 32)
    images = x.view(60, 2, 4, 4)
    convolution = nn.Sequential(nn.Conv2d(2, 6, 4), LIF(), nn.Flatten(), nn.Linear(6, 3)).double()
    matrix = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), LIF(), nn.Linear(6, 3)).double()
    found, expected = (updated(prepared(network, **options), images, y, 6) for network in (convolution, matrix))
    assert_alike(found.natural, expected.natural)
    torch.testing.assert_close(found.log_evidence, expected.log_evidence)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"weights": "sign"}, {"weights": "categorical"}])
def test_a_convolution_learns_from_positions_as_a_dense_layer_from_samples(bias, options):
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(5, 2, 6, 7, generator=generator) < 0.4).double()
    layer = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=bias).double()
    values = layer(x).detach() + 0.3 * torch.randn(layer(x).shape, generator=generator)

    def patches(images: Tensor) -> Tensor:
        return F.unfold(images, (3, 2), padding=(1, 0), stride=(2, 1)).transpose(1, 2).flatten(0, 1)

    dense = nn.Linear(12, 3, bias).double()
    settings = {"regression": True, "noise_variance": 0.1} | options
    found = updated(prepared(layer, **settings), x, values)
    expected = updated(prepared(dense, **settings), patches(x), values.permute(0, 2, 3, 1).reshape(-1, 3))
    assert_alike(found.natural, expected.natural)
    positions = values[0, 0].numel()
    torch.testing.assert_close(found.log_evidence, positions * expected.log_evidence)
    # one position alone carries less information
    alone = updated(
        prepared(dense, **settings), patches(x)[::positions], values.permute(0, 2, 3, 1).reshape(-1, 3)[::positions]
    )
    assert not torch.allclose(alone.natural[0].precision, expected.natural[0].precision)


POOLINGS = {
    "any spike": (nn.MaxPool2d(2), 24),
    "average": (nn.AvgPool2d(2), 24),
}


def lines(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images `[B, 1, 8, 8]` with a line across or down, in any place, and noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=generator)
    noise = (torch.rand(samples, 8, 8, generator=generator) < 0.05).double()
    across = torch.zeros_like(noise)
    across[torch.arange(samples), torch.randint(1, 7, (samples,), generator=generator)] = 1
    return torch.where((y == 0)[:, None, None], across, across.mT).maximum(noise)[:, None], y


@pytest.mark.parametrize("pooling", POOLINGS)
def test_two_convolutions_learn_which_way_a_line_runs(pooling):
    stage, hidden = POOLINGS[pooling]
    network = nn.Sequential(nn.Conv2d(1, 6, 3), LIF(), stage, nn.Conv2d(6, 6, 2), LIF(), nn.Flatten())
    network.append(nn.Linear(hidden, 2)).double()
    x, y = lines(400, 0)
    steps = Steps(network, activation="heaviside", iterations=5)
    steps.take(x, y, torch.arange(400).split(40))
    x, y = lines(200, 1)
    predicted = output_moments(steps.network.chain, x).potential.mean.argmax(1)
    assert (predicted == y).double().mean() > 0.8
