"""IW-ST estimators: bias by enumeration, variance by its closed form, ReinMax written independently, saturation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import iwst, iwst_weight

NOISES, LAMBDAS = ("gaussian", "logistic"), (1.0, 0.5, 0.0, -1.0)
every_noise = pytest.mark.parametrize("noise", NOISES)
every_lambda = pytest.mark.parametrize("lam", LAMBDAS)
UNITS = 5
STATES = torch.tensor(list(product((0.0, 1.0), repeat=UNITS)), dtype=torch.float64)


def probability(t: Tensor, noise: str) -> Tensor:
    return torch.special.ndtr(t) if noise == "gaussian" else torch.sigmoid(t)


def density(t: Tensor, noise: str) -> Tensor:
    if noise == "gaussian":
        return torch.distributions.Normal(0.0, 1.0).log_prob(t).exp()
    return torch.sigmoid(t) * torch.sigmoid(-t)


def expectation(values: Tensor, t: Tensor, noise: str) -> Tensor:
    """The mean of one row of `values` a state of all units, summed over all states."""
    fires = probability(t, noise)
    weights = torch.where(STATES > 0, fires, 1 - fires).prod(1)
    return torch.einsum("s,s...->...", weights, values)


def relative_bias(loss: Callable[[Tensor], Tensor], lam: float, noise: str) -> float:
    """Of the mean of the estimator over all states, from the gradient of the mean loss over all states."""
    t = torch.randn(UNITS, dtype=torch.float64).requires_grad_()
    (truth,) = torch.autograd.grad(expectation(loss(STATES), t, noise), t)
    states = STATES.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(states).sum(), states)
    every_t = t.detach().expand_as(STATES)
    estimate = expectation(slopes * iwst_weight(every_t, STATES, lam, noise), t.detach(), noise)
    return ((estimate - truth).norm() / truth.norm()).item()


def linear(x: Tensor) -> Tensor:
    return x @ torch.linspace(-1, 2, UNITS, dtype=x.dtype)


def multilinear(x: Tensor) -> Tensor:
    return linear(x) + 3 * x[:, 0] * x[:, 1] - 2 * x[:, 1] * x[:, 2] * x[:, 4]


def quadratic(x: Tensor) -> Tensor:
    return (linear(x) - 0.7) ** 2


@every_noise
@every_lambda
@pytest.mark.parametrize("loss", [linear, multilinear])
def test_every_lambda_is_unbiased_where_the_slope_does_not_depend_on_the_unit_itself(noise, lam, loss):
    assert relative_bias(loss, lam, noise) < 1e-12


@every_noise
def test_lambda_zero_is_unbiased_for_quadratic_losses(noise):
    assert relative_bias(quadratic, 0.0, noise) < 1e-12


@every_noise
@pytest.mark.parametrize("lam", [1.0, 0.5, -1.0])
def test_other_lambdas_are_biased_for_quadratic_losses(noise, lam):
    assert relative_bias(quadratic, lam, noise) > 1e-2


@every_noise
def test_lambda_zero_is_biased_for_cubic_losses(noise):
    assert relative_bias(lambda x: linear(x) ** 3, 0.0, noise) > 1e-2


@every_noise
@every_lambda
def test_the_bias_for_a_quadratic_loss_has_the_stated_form(noise, lam):
    t = torch.randn(UNITS, dtype=torch.float64)
    curvature = 1.7
    slopes = curvature * (STATES - 0.2)
    estimate = expectation(slopes * iwst_weight(t.expand_as(STATES), STATES, lam, noise), t, noise)
    fires = probability(t, noise)
    truth = density(t, noise) * curvature * (0.5 - 0.2)
    torch.testing.assert_close(
        estimate - truth, density(t, noise) * lam * (fires - 0.5) * curvature, rtol=1e-12, atol=1e-14
    )


@every_noise
@every_lambda
def test_the_variance_for_a_linear_loss_is_the_chi_squared_distance(noise, lam):
    t, slope = torch.linspace(-3, 3, 25, dtype=torch.float64), 1.3
    fires = probability(t, noise)
    gradients = torch.stack([slope * iwst_weight(t, torch.full_like(t, x), lam, noise) for x in (0.0, 1.0)])
    chances = torch.stack([1 - fires, fires])
    mean = (chances * gradients).sum(0)
    variance = (chances * (gradients - mean) ** 2).sum(0)
    targets = lam * chances + (1 - lam) / 2
    chi_squared = (targets**2 / chances).sum(0) - 1
    torch.testing.assert_close(variance, density(t, noise) ** 2 * slope**2 * chi_squared, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(chi_squared, (1 - lam) ** 2 * (1 / (4 * fires * (1 - fires)) - 1), rtol=1e-9, atol=1e-12)


@every_noise
def test_lambda_one_is_the_density_of_the_noise(noise):
    t = torch.linspace(-6, 6, 101)
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        torch.testing.assert_close(iwst_weight(t, spikes, 1.0, noise), density(t, noise), rtol=1e-6, atol=1e-7)


def test_lambda_zero_with_logistic_noise_is_reinmax():
    def reinmax(t: Tensor, spikes: Tensor, slope: Tensor) -> Tensor:
        """Algorithm 2 of Liu et al. 2023 at temperature 1, for the two logits (0, t)."""
        logits = torch.stack([torch.zeros_like(t), t], -1).requires_grad_()
        hard = torch.stack([1 - spikes, spikes], -1)
        first = logits.softmax(-1)
        second = (hard + first) / 2
        second = (torch.log(second).detach() - logits.detach() + logits).softmax(-1)
        surrogate = 2 * second - 0.5 * first
        output = surrogate - surrogate.detach() + hard
        (gradient,) = torch.autograd.grad((output[..., 1] * slope).sum(), logits)
        return gradient[..., 1]

    t, slope = 2 * torch.randn(200, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        expected = reinmax(t, spikes, slope)
        torch.testing.assert_close(iwst_weight(t, spikes, 0.0, "logistic") * slope, expected, rtol=1e-12, atol=1e-14)
        assert (iwst_weight(t, spikes, 0.5, "logistic") * slope - expected).abs().max() > 1e-3


@pytest.mark.parametrize("lam", [0.0, -1.0])
def test_darn_weights_have_their_closed_forms(lam):
    t = torch.linspace(-6, 6, 61, dtype=torch.float64)
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        chance = torch.where(spikes > 0, torch.sigmoid(t), torch.sigmoid(-t))
        expected = (1 - chance) / 2 if lam == 0 else (1 - chance) ** 2
        torch.testing.assert_close(iwst_weight(t, spikes, lam, "logistic"), expected, rtol=1e-12, atol=1e-14)


def test_gaussian_weights_at_lambda_zero_are_half_the_inverse_mills_ratio():
    t = torch.linspace(-6, 6, 61, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    for sign, spikes in ((1, torch.ones_like(t)), (-1, torch.zeros_like(t))):
        expected = normal.log_prob(t).exp() / torch.special.erfc(-sign * t / 2**0.5)
        torch.testing.assert_close(iwst_weight(t, spikes, 0.0), expected, rtol=1e-10, atol=1e-14)


@every_noise
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_weights_stay_in_the_stated_range(noise, lam):
    t = torch.linspace(-50, 50, 1001)
    bound = 4.06 if noise == "gaussian" else 0.5
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        weight = iwst_weight(t, spikes, lam, noise)
        assert weight.min() >= 0
        assert weight.max() <= bound + 1e-3


@every_noise
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_finite_for_saturated_units(noise, lam, dtype):
    t = torch.tensor([-1e4, -40, -12, 0, 12, 40, 1e4], dtype=dtype).requires_grad_()
    for _ in range(3):
        spikes = iwst(t, lam, noise)
        (gradient,) = torch.autograd.grad(spikes.sum(), t)
        assert gradient.isfinite().all()
        assert gradient.dtype == spikes.dtype == dtype
        assert spikes[[0, 1, 5, 6]].tolist() == [0, 0, 1, 1]
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        assert iwst_weight(t.detach().float(), spikes.float(), lam, noise).isfinite().all()


@every_noise
@every_lambda
def test_the_backward_is_the_weight_times_the_slope(noise, lam):
    t, slope = torch.randn(50, dtype=torch.float64).requires_grad_(), torch.randn(50, dtype=torch.float64)
    spikes = iwst(t, lam, noise)
    (gradient,) = torch.autograd.grad(spikes, t, slope)
    torch.testing.assert_close(
        gradient, slope * iwst_weight(t.detach(), spikes.detach(), lam, noise), rtol=1e-12, atol=0
    )


@every_noise
def test_spikes_are_as_frequent_as_stated(noise):
    draws = 20_000
    t = torch.tensor([-2.0, -0.5, 0.0, 0.3, 1.7])
    rate = iwst(t.expand(draws, 5), noise=noise).mean(0)
    assert (rate - probability(t, noise)).abs().max() < 4.5 * (0.25 / draws) ** 0.5


def test_the_two_noises_differ_in_their_rate():
    t = torch.full((20_000,), 1.0)
    assert (iwst(t, noise="gaussian").mean() - iwst(t, noise="logistic").mean()).abs() > 0.05


@every_noise
def test_a_generator_makes_samples_reproducible_and_leaves_the_global_one_alone(noise):
    t = torch.zeros(200)
    state = torch.get_rng_state()
    one, same, other = (iwst(t, noise=noise, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(iwst(t, noise=noise), iwst(t, noise=noise))


def test_arguments_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="Expected argument `lam` to be a number from -1 to 1, but got 1.5"):
        iwst(torch.zeros(2), 1.5)
    with pytest.raises(
        ValueError, match="Expected argument `noise` to be one of 'gaussian', 'logistic', but got 'cauchy'"
    ):
        iwst(torch.zeros(2), 0.5, "cauchy")
