"""IW-ST estimators: bias by enumeration, variance by its closed form, ReinMax written independently, saturation,
transforms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.estimators import (
    IWST,
    AnalyticalGumbelRao,
    Estimator,
    GumbelRao,
    GumbelStraightThrough,
    chi_squared,
    estimator_named,
    iwst,
    iwst_weight,
    noisy_spikes,
)
from tests.support.estimators import every_lambda, every_noise
from tests.support.slow import others_slow

ESTIMATORS = (
    IWST(1.0),
    IWST(0.5),
    IWST(0.0, "logistic"),
    AnalyticalGumbelRao(),
    AnalyticalGumbelRao(0.3, True, "logistic"),
    GumbelRao(2),
    GumbelStraightThrough(0.5, "logistic"),
)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
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
    expected = (targets**2 / chances).sum(0) - 1
    torch.testing.assert_close(variance, density(t, noise) ** 2 * slope**2 * expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(expected, (1 - lam) ** 2 * (1 / (4 * fires * (1 - fires)) - 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(chi_squared(t, lam, noise), expected, rtol=1e-9, atol=1e-14)
    assert lam == 1 or ((chi_squared(t + 0.1, lam, noise) - expected).abs() > 1e-3).any()


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


@every_noise
@every_lambda
def test_chi_squared_is_finite_for_saturated_units_and_vanishes_at_zero(noise, lam):
    t = torch.tensor([-1e4, -40, -12, 12, 40, 1e4])
    distance = chi_squared(t, lam, noise)
    assert distance.isfinite().all()
    assert (distance >= 0).all()
    assert lam == 1 or distance[0] > 1e13
    small = chi_squared(torch.tensor([0.0, 1e-3]), lam, noise).tolist()
    slope = 2 / torch.pi if noise == "gaussian" else 0.25
    assert small[0] == 0
    assert small[1] == pytest.approx((1 - lam) ** 2 * slope * 1e-6, rel=1e-3)


@every_noise
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_single_precision_agrees_with_double(noise, lam):
    t = torch.linspace(-7.9, 7.9, 2001)
    for spikes in (torch.zeros_like(t), torch.ones_like(t)):
        expected = iwst_weight(t.double(), spikes, lam, noise)
        torch.testing.assert_close(iwst_weight(t, spikes, lam, noise).double(), expected, rtol=1e-5, atol=0)


def test_logistic_weights_stay_unbiased_where_the_tail_is_long():
    t = torch.tensor([-30.0, -12.0, 12.0, 30.0], dtype=torch.float64)
    spiked, silent = (iwst_weight(t, torch.full_like(t, x), 0.5, "logistic") for x in (1.0, 0.0))
    mean = torch.sigmoid(t) * spiked + torch.sigmoid(-t) * silent
    torch.testing.assert_close(mean, torch.sigmoid(t) * torch.sigmoid(-t), rtol=1e-12, atol=0)


@every_noise
def test_bfloat16_samples_are_as_frequent_as_stated(noise):
    draws = 20_000
    t = torch.full((draws,), -2.5, dtype=torch.bfloat16)
    rate = iwst(t, noise=noise).float().mean()
    expected = probability(torch.tensor(-2.5), noise)
    assert (rate - expected).abs() < 4.5 * (expected * (1 - expected) / draws) ** 0.5


@every_estimator
def test_gradients_under_autocast_are_finite(estimator):
    weight = torch.randn(6, 6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        spikes = noisy_spikes(100 * torch.randn(50, 6) @ weight, estimator)
        loss = (spikes @ weight).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert spikes.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("estimator", others_slow(ESTIMATORS, fast=ESTIMATORS[:2]))
def test_the_compiled_estimator_equals_the_eager_one_without_a_graph_break(estimator):
    t = torch.randn(20_000).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: noisy_spikes(t, estimator), backend="aot_eager", fullgraph=True)
    spikes = compiled(t)
    (gradient,) = torch.autograd.grad(spikes.sum(), t)
    rate = probability(t.detach(), estimator.noise).mean()
    assert (spikes.mean() - rate).abs() < 4.5 * (0.25 / len(t)) ** 0.5
    if not estimator.random:
        expected = estimator.weight(t.detach(), spikes.detach())
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
        return
    (eager,) = torch.autograd.grad(noisy_spikes(t, estimator).sum(), t)
    error = ((gradient.var() + eager.var()) / len(t)).sqrt()
    assert (gradient.mean() - eager.mean()).abs() < 5 * error


@every_estimator
def test_samples_and_gradients_are_vectorized_by_vmap(estimator):
    t = torch.randn(7, 5).requires_grad_()
    spikes = torch.func.vmap(lambda row: noisy_spikes(row, estimator), randomness="different")(t)
    (gradient,) = torch.autograd.grad(spikes.sum(), t)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (gradient > 0).all()
    if not estimator.random:
        torch.testing.assert_close(gradient, estimator.weight(t.detach(), spikes.detach()), rtol=1e-6, atol=1e-7)


def test_gradients_of_several_samples_are_vectorized_by_vmap():
    t, slope = torch.randn(50), torch.randn(50)
    gradient = torch.func.grad(lambda t: (iwst(t, 0.0) * slope).sum())
    several = torch.func.vmap(lambda _: gradient(t), randomness="different")(torch.zeros(4))
    candidates = torch.stack([slope * iwst_weight(t, torch.full_like(t, x), 0.0) for x in (0.0, 1.0)])
    distance = (several[:, None] - candidates).abs().amin(1)
    assert distance.max() < 1e-6
    assert not torch.equal(several[0], several[1])


class Counting(Estimator):
    """Counts how often a weight is asked for."""

    noise = "gaussian"

    def __init__(self, random: bool) -> None:
        self.random = random
        self.calls = 0

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.calls += 1
        return torch.ones_like(t)


@pytest.mark.parametrize("random", [True, False])
def test_no_weight_is_computed_where_no_gradient_is_wanted(random):
    estimator, t = Counting(random), torch.randn(8).requires_grad_()
    with torch.no_grad():
        assert not noisy_spikes(t, estimator).requires_grad
    assert estimator.calls == 0
    noisy_spikes(t, estimator).sum().backward()
    assert estimator.calls == 1


@pytest.mark.parametrize(("estimator", "count"), [(IWST(), 2), (GumbelRao(), 1)])
def test_only_what_the_backward_pass_needs_is_saved(estimator, count):
    saved: list[Tensor] = []
    t = torch.randn(30).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        noisy_spikes(t, estimator)
    assert [tensor.numel() for tensor in saved] == [30] * count


def test_second_derivatives_are_refused_rather_than_wrong():
    t = torch.randn(5).requires_grad_()
    cotangent = torch.ones(5).requires_grad_()
    (gradient,) = torch.autograd.grad(iwst(t), t, cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@every_estimator
def test_a_weight_leaves_its_arguments_as_they_are(estimator):
    t, spikes = torch.randn(40) * 20, (torch.rand(40) < 0.5).float()
    before = t.clone(), spikes.clone()
    assert estimator.weight(t, spikes).shape == t.shape
    assert torch.equal(t, before[0])
    assert torch.equal(spikes, before[1])


def test_estimators_have_numbers_and_names():
    assert estimator_named(0.3) == IWST(0.3)
    assert estimator_named(1, "logistic") == IWST(1.0, "logistic")
    assert estimator_named("straight_through") == IWST(1.0)
    assert estimator_named("reinmax", "logistic") == IWST(0.0, "logistic")
    assert estimator_named("darn_mean") == IWST(-1.0)
    assert estimator_named("agr", "logistic") == AnalyticalGumbelRao(1.0, False, "logistic")
    assert estimator_named("gumbel_rao") == GumbelRao()
    assert estimator_named("gumbel_straight_through") == GumbelStraightThrough()
    given = AnalyticalGumbelRao(0.2, True, "logistic")
    assert estimator_named(given, "gaussian") is given


@pytest.mark.parametrize("estimator", [1.5, -2, "st", None, True, float("nan")])
def test_what_is_no_estimator_is_refused_by_name(estimator):
    with pytest.raises(ValueError, match="Expected argument `estimator` to be .* 'reinmax'.*, but got"):
        estimator_named(estimator)


def test_arguments_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="Expected argument `lam` to be a number from -1 to 1, but got 1.5"):
        iwst(torch.zeros(2), 1.5)
    with pytest.raises(
        ValueError, match="Expected argument `noise` to be one of 'gaussian', 'logistic', but got 'cauchy'"
    ):
        iwst(torch.zeros(2), 0.5, "cauchy")
    with pytest.raises(ValueError, match="argument `lam` to be a number from -1 to 1, but got 2"):
        chi_squared(torch.zeros(2), 2)
