"""Spectra of Jacobians by vector-Jacobian products, against matrices that are built."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.functional.jacobian import (
    eigenvalues,
    gain,
    gradient_ratio,
    joint_gain,
    largest_singular_value,
    slope_statistics,
    spectral_radius,
)

pytestmark = pytest.mark.usefixtures("float64_by_default")


def mlp(*widths: int) -> nn.Sequential:
    layers = []
    for inside, outside in itertools.pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers)


def jacobians(network: nn.Module, x: Tensor) -> Tensor:
    """Built row by row, sample by sample."""
    rows = [torch.autograd.functional.jacobian(lambda v: network(v[None])[0].flatten(), sample) for sample in x]
    return torch.stack([row.flatten(1) for row in rows])


def evaluated(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    return network(x), x


NETWORKS = {
    "dense": (lambda: mlp(20, 30, 20), torch.Size([20])),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1)),
        torch.Size([2, 4, 4]),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_spectral_radius_is_that_of_the_matrix_once_the_space_is_complete(name: str):
    make, shape = NETWORKS[name]
    network, x = make(), torch.randn(4, *shape)
    matrices = jacobians(network, x)
    expected = torch.linalg.eigvals(matrices).abs().amax(1)
    assert torch.linalg.eigvals(matrices).imag.abs().max() > 0.01
    torch.testing.assert_close(spectral_radius(*evaluated(network, x), steps=64), expected, rtol=1e-8, atol=0)
    assert not torch.allclose(torch.linalg.matrix_norm(matrices, 2), expected, rtol=1e-2)


def test_a_rotation_has_radius_one_where_power_iteration_finds_no_vector():
    turn = nn.Linear(2, 2, bias=False)
    turn.weight.data = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert spectral_radius(*evaluated(turn, torch.randn(3, 2))).tolist() == pytest.approx([1.0] * 3, abs=1e-14)


def test_few_steps_come_close_in_a_wide_layer():
    network, x = mlp(256, 256), torch.randn(8, 256)
    expected = torch.linalg.eigvals(jacobians(network, x)).abs().amax(1)
    found = spectral_radius(*evaluated(network, x))
    assert (found / expected - 1).abs().max() < 0.05
    assert (found / expected - 1).abs().mean() < 0.02


@pytest.mark.parametrize("name", NETWORKS)
def test_the_largest_singular_value_is_that_of_the_matrix(name: str):
    make, shape = NETWORKS[name]
    network, x = make(), torch.randn(4, *shape)
    expected = torch.linalg.matrix_norm(jacobians(network, x), 2)
    found = largest_singular_value(*evaluated(network, x), steps=200)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert (largest_singular_value(*evaluated(network, x), steps=3) <= expected * (1 + 1e-12)).all()


def test_singular_values_are_of_jacobians_that_need_not_be_square():
    network, x = mlp(12, 7), torch.randn(5, 12)
    expected = torch.linalg.matrix_norm(jacobians(network, x), 2)
    torch.testing.assert_close(largest_singular_value(*evaluated(network, x), steps=100), expected, rtol=1e-6, atol=0)


def test_the_gain_is_the_frobenius_norm_exactly_with_enough_probes_and_about_without():
    network, x = mlp(60, 50, 40), torch.randn(6, 60)
    expected = torch.linalg.matrix_norm(jacobians(network, x)) / math.sqrt(40)
    torch.testing.assert_close(gain(*evaluated(network, x), probes=40), expected, rtol=1e-12, atol=0)
    assert (gain(*evaluated(network, x), probes=39) / expected - 1).abs().max() < 0.15
    assert (gain(*evaluated(network, x), probes=39) != expected).all()


def test_a_jacobian_of_zeros_gives_zeros():
    x = torch.randn(2, 5, requires_grad=True)
    outputs = (x * 0).relu()
    for found in (spectral_radius(outputs, x), largest_singular_value(outputs, x), gain(outputs, x)):
        assert torch.equal(found, torch.zeros(2))


def test_outputs_that_do_not_depend_on_the_inputs_have_no_gain():
    x, other = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    assert torch.equal(gain(other * 2, x), torch.zeros(2))


def test_a_generator_makes_it_repeatable():
    network, x = mlp(30, 30), torch.randn(2, 30)
    found = [gain(*evaluated(network, x), 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_spectral_radius_of_unequal_sizes_is_refused():
    with pytest.raises(ValueError, match="as many outputs as inputs per sample for a spectrum, but got 7 for 12"):
        spectral_radius(*evaluated(mlp(12, 7), torch.randn(5, 12)))


def test_slope_statistics_by_hand():
    found = slope_statistics(torch.tensor([-1.0, 0.05, 1.0, 3.95]))
    assert (found.minimum, found.maximum, found.mean) == pytest.approx((-1, 3.95, 1))
    assert found.std == pytest.approx(math.sqrt((4 + 0.95**2 + 0 + 2.95**2) / 4))
    assert (found.not_positive, found.small) == (0.25, 0.25)


def test_the_gradient_ratio_of_vanished_gradients():
    assert gradient_ratio([2.0, 7.0, 4.0]) == 0.5
    assert gradient_ratio([2.0, 0.0]) == math.inf
    assert math.isnan(gradient_ratio([0.0, 0.0]))
    with pytest.raises(ValueError, match="at least one norm"):
        gradient_ratio([])


def test_eigenvalues_are_those_of_each_sample():
    network, x = mlp(6, 6), torch.randn(4, 6, requires_grad=True)
    outputs = network(x)
    found = eigenvalues(outputs, x)
    assert found.shape == (4, 6)
    expected = torch.linalg.eigvals((outputs > 0).to(x.dtype)[:, :, None] * network[0].weight)
    for mine, built in zip(found, expected, strict=True):
        # in no order, with each value as often
        distances = (mine[:, None] - built).abs()
        assert distances.amin(0).max() < 1e-8
        assert distances.amin(1).max() < 1e-8
    torch.testing.assert_close(found.sum(1).real, torch.diagonal(jacobians(network, x.detach()), 0, 1, 2).sum(1))
    torch.testing.assert_close(found.abs().amax(1), spectral_radius(outputs, x))


def test_eigenvalues_of_a_jacobian_that_is_not_square_are_refused():
    x = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="as many outputs as inputs per sample for a spectrum, but got 5 for 3"):
        eigenvalues(mlp(3, 5)(x), x)


def test_the_joint_gain_is_that_of_all_outputs_with_respect_to_all_inputs():
    weight = torch.randn(3, 8, 6)
    inputs = [torch.randn(40, 6, requires_grad=True) for _ in range(2)]
    # the second step depends on the first input too
    first = torch.tanh(inputs[0] @ weight[0].t())
    outputs = [first, torch.tanh(inputs[1] @ weight[1].t() + inputs[0] @ weight[2].t())]
    of_steps = [1 - output.detach().square() for output in outputs]
    squares = [
        (of_steps[0][:, :, None] * weight[0]).square().sum(),
        (of_steps[1][:, :, None] * weight[1]).square().sum(),
        (of_steps[1][:, :, None] * weight[2]).square().sum(),
    ]
    expected = math.sqrt(sum(squares) / (2 * 40 * 8))
    found = joint_gain(outputs, inputs, 200, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(expected, rel=0.02)
    assert float(joint_gain(outputs, inputs, 4, torch.Generator().manual_seed(0))) == pytest.approx(expected, rel=0.2)


def test_outputs_that_are_not_computed_from_the_inputs_have_no_joint_gain():
    given, other = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert joint_gain([other * 2], [given]) is None
    assert joint_gain([given.detach() * 2], [given]) is None
    assert joint_gain([given * 0], [given]) == 0
