"""Gaussian activations: their algebra against sampling, and the refusal of operations without exact moments."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.functional import IWST
from lightning_snn.nn import Moments, posterior_noise
from lightning_snn.nn.noise import spike_noise

DRAWS = 20_000


def activation(*shape: int) -> Moments:
    return Moments(torch.randn(shape), torch.rand(shape) + 0.1)


def assert_same(one: Moments, other: Moments) -> None:
    torch.testing.assert_close(one.expectation, other.expectation, rtol=0, atol=0)
    torch.testing.assert_close(one.variance, other.variance, rtol=0, atol=0)


def assert_moments_of(function, *inputs: Moments) -> None:
    """The function of activations has the moments of the function of their samples, within 5 standard errors."""
    result = function(*inputs)
    samples = function(*(x.expectation + x.variance.sqrt() * torch.randn(DRAWS, *x.shape) for x in inputs))
    assert ((samples.mean(0) - result.expectation).abs() < 5 * (result.variance / DRAWS).sqrt()).all()
    assert ((samples.var(0) / result.variance - 1).abs() < 5 * math.sqrt(2 / DRAWS)).all()


def per_draw(function):
    """A function of images `[B, C, H, W]` that also takes samples `[K, B, C, H, W]`."""

    def call(x):
        if isinstance(x, Tensor):
            return function(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return function(x)

    return call


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: -x,
        lambda x, y: 2 * x + 3.0,
        lambda x, y: 1.0 - x,
        lambda x, y: x / 4 - y * 0.5,
        lambda x, y: torch.linspace(0.5, 2, 3) * x + torch.ones(3),
        lambda x, y: torch.ones(3) - y,
    ],
    ids=["sum", "difference", "negative", "affine", "complement", "scaled", "tensors", "tensor_less_activation"],
)
def test_sums_and_scaling_have_the_moments_of_samples(function):
    assert_moments_of(function, activation(2, 3), activation(2, 3))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d((3, 2), stride=1),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        lambda x: F.avg_pool2d(x, 2, 1),
    ],
    ids=["two", "overlapping", "padded", "global", "function"],
)
def test_average_pooling_has_the_moments_of_samples(pool):
    assert_moments_of(per_draw(pool), activation(1, 2, 4, 5))


def test_pooling_the_variance_like_the_mean_would_be_noticed():
    x, pool = activation(1, 2, 4, 4), nn.AvgPool2d(2)
    with pytest.raises(AssertionError):
        assert_moments_of(per_draw(lambda x: x.map(pool) if isinstance(x, Moments) else pool(x)), x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 1),
        nn.Flatten(),
        nn.Unflatten(1, (2, 2)),
        lambda x: x.unflatten(0, (1, 2)),
        lambda x: torch.unflatten(x, 0, (1, 2)),
        lambda x: x.reshape(-1, 5),
        lambda x: x.view(2, 20),
        lambda x: x.permute(2, 0, 1),
        lambda x: torch.permute(x, (2, 0, 1)),
        lambda x: x.transpose(0, 1),
        lambda x: torch.transpose(x, 0, 1),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.to(torch.float64),
        lambda x: x.contiguous(),
        lambda x: x[1:, :, ::2],
        nn.Identity(),
    ],
)
def test_rearrangements_act_on_mean_and_variance(function):
    x = activation(2, 4, 5)
    assert_same(function(x), Moments(function(x.expectation), function(x.variance)))


KNOWN = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: torch.mean(x, dim=2),
        lambda x: x.sum(1),
        lambda x: torch.sum(x, (1, 3)),
        lambda x: x.flatten(2).mean(2),
        lambda x: x.flatten(1) @ torch.linspace(-1, 1, 40).view(40, 1),
        lambda x: x.flatten(2).matmul(KNOWN[0, :4].repeat(5, 1)),
        lambda x: KNOWN[0, :, :4] @ x,
        lambda x: torch.matmul(KNOWN[1, :3, :4], x),
        lambda x: x.view(len(x), -1)[:, :3],
        lambda x: torch.div(1.0 - x, 2),
    ],
)
def test_means_sums_and_products_have_the_moments_of_samples(function):
    assert_moments_of(per_draw(function), activation(1, 2, 4, 5))


def test_a_mean_over_everything_and_the_length_are_those_of_the_tensor():
    x = activation(2, 4, 5)
    assert len(x) == 2
    assert_same(x.mean(), Moments(x.expectation.mean(), x.variance.mean() / 40))
    assert_same(torch.stack(list(x)), x)
    assert_same(torch.stack(x.chunk(2, 1), 0), torch.stack(torch.split(x, 2, 1), 0))


def test_an_activation_added_to_itself_is_doubled_not_a_sum_of_independent_ones():
    x = activation(2, 3)
    assert_same(x + x, 2 * x)
    assert torch.equal((x - x).variance, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x @ x.transpose(0, 1), "a known matrix in the product"),
        (lambda x: torch.div(1.0, x), "`div` by a Gaussian activation"),
        (lambda x: x.cumsum(0), "has no `cumsum`"),
        (lambda x: torch.einsum("ij->j", x), "`einsum` of a Gaussian activation"),
        (lambda x: x.var(0), "has no `var`"),
        (lambda x: x.repeat(2, 1), "has no `repeat`"),
    ],
)
def test_an_operation_without_exact_moments_is_refused_by_name(function, name):
    with pytest.raises((TypeError, AttributeError), match=name):
        function(activation(2, 3))


def test_concatenation_acts_on_mean_and_variance():
    one, other = activation(2, 3), activation(2, 4)
    assert_same(
        torch.cat([one, other], 1),
        Moments(torch.cat([one.expectation, other.expectation], 1), torch.cat([one.variance, other.variance], 1)),
    )
    with pytest.raises(TypeError, match="Expected Gaussian activations only in torch.cat"):
        torch.cat([one, torch.zeros(2, 4)], 1)


def test_a_larger_tensor_added_gives_a_variance_of_the_shape_of_the_mean():
    total = activation(3) + torch.zeros(2, 3)
    assert total.expectation.shape == total.variance.shape == (2, 3)


def test_a_residual_sum_works_from_either_side():
    x, tensor = activation(2, 3), torch.randn(2, 3)
    assert_same(tensor + x, x + tensor)
    assert_same(torch.add(tensor, x), x + tensor)
    assert_same(tensor * x, x * tensor)
    assert_same(torch.mul(tensor, x), x * tensor)
    assert torch.equal((x + tensor).variance, x.variance)
    assert torch.equal((x * tensor).variance, x.variance * tensor**2)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.Linear(3, 2), "linear"),
        (nn.BatchNorm1d(3), "batch_norm"),
        (torch.sigmoid, "sigmoid"),
    ],
)
def test_a_nonlinearity_is_refused_by_name(function, name):
    with pytest.raises(
        TypeError, match=rf"`\w*{name}\w*` of a Gaussian activation has no exact .* Put a spiking layer before"
    ):
        function(activation(2, 3))


def test_convolution_and_maximum_pooling_are_refused_by_name():
    x = activation(1, 2, 4, 4)
    with pytest.raises(TypeError, match="`conv2d` of a Gaussian activation"):
        nn.Conv2d(2, 3, 3)(x)
    with pytest.raises(TypeError, match="pool.* of a Gaussian activation"):
        nn.MaxPool2d(2)(x)


def test_a_method_that_tensors_have_is_refused_by_name():
    with pytest.raises(AttributeError, match="Gaussian activation has no `relu`.*Put a spiking layer before"):
        activation(2, 3).relu()


def test_the_product_of_two_activations_and_division_by_one_are_refused():
    with pytest.raises(TypeError, match="for /: 'Tensor' and 'Moments'"):
        torch.ones(2) / activation(2)
    with pytest.raises(TypeError, match="factor of a Gaussian activation, but got another one"):
        activation(2) * activation(2)


@pytest.mark.parametrize(
    "options", [{"ceil_mode": True}, {"count_include_pad": False}, {"divisor_override": 3}], ids=str
)
def test_pooling_with_windows_of_unequal_weight_is_refused(options):
    with pytest.raises(TypeError, match="avg_pool2d of a Gaussian activation to have windows of one size"):
        nn.AvgPool2d(3, 2, 1, **options)(activation(1, 2, 4, 4))


def test_adaptive_pooling_to_more_than_one_cell_is_refused():
    with pytest.raises(TypeError, match="to have output size 1, but got 2"):
        nn.AdaptiveAvgPool2d(2)(activation(1, 2, 4, 4))


def test_activations_have_shape_dtype_and_device_and_can_be_copied():
    x = activation(2, 3)
    assert (x.shape, x.dim(), x.size(1), x.dtype, x.device) == ((2, 3), 2, 3, torch.float32, torch.device("cpu"))
    assert repr(x) == "Moments(shape=(2, 3))"
    assert_same(copy.deepcopy(x), x)


def test_posterior_noise_nests_and_is_restored_after_exceptions():
    assert spike_noise() is None
    with posterior_noise(0.3):
        with posterior_noise(None):
            assert spike_noise() is None
            with posterior_noise(1.0):
                assert spike_noise().estimator == IWST(1.0)
            assert spike_noise() is None
        with pytest.raises(TypeError), posterior_noise(1.0):
            nn.ReLU()(activation(1))
        assert spike_noise().estimator == IWST(0.3)
    assert spike_noise() is None


def test_a_lambda_out_of_range_is_refused_by_name():
    with (
        pytest.raises(ValueError, match="Expected argument `estimator` to be a number from -1 to 1, .* but got -2"),
        posterior_noise(-2),
    ):
        pass
