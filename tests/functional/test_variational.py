"""Local reparameterization and the KL term: against sampled weights and against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lightning_snn.functional import gaussian_kl, linear_moments, sample

DRAWS = 4000


def posterior(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape), torch.rand(shape) + 0.05


def draws(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + variance.sqrt() * torch.randn(DRAWS, *mean.shape)


def assert_moments(samples: Tensor, mean: Tensor, variance: Tensor) -> None:
    """The samples' mean is within 5 standard errors, their variance within 5 relative standard errors."""
    assert ((samples.mean(0) - mean).abs() <= 5 * (variance / DRAWS).sqrt()).all()
    assert ((samples.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / DRAWS)).all()


def test_linear_moments_are_those_of_sampled_weights():
    x = torch.randn(3, 6)
    (weight, weight_variance), (bias, bias_variance) = posterior(4, 6), posterior(4)
    samples = torch.einsum("bn,kmn->kbm", x, draws(weight, weight_variance)) + draws(bias, bias_variance)[:, None]
    assert_moments(samples, *linear_moments(x, weight, weight_variance, bias, bias_variance))
    without = torch.einsum("bn,kmn->kbm", x, draws(weight, weight_variance))
    assert_moments(without, *linear_moments(x, weight, weight_variance, None, None))


def test_a_wrong_variance_is_noticed():
    x = torch.randn(3, 6)
    weight, weight_variance = posterior(4, 6)
    samples = torch.einsum("bn,kmn->kbm", x, draws(weight, weight_variance))
    mean, variance = linear_moments(x, weight, weight_variance, None, None)
    with pytest.raises(AssertionError):
        assert_moments(samples, mean, 1.5 * variance)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (0, 0), (1, 1), 1),
        ((2, 1), (1, 0), (1, 1), 1),
        ((1, 1), (2, 2), (2, 1), 2),
        ((2, 2), (1, 1), (1, 1), 4),
    ],
    ids=["plain", "stride-padding", "dilation-groups", "depthwise"],
)
def test_convolution_moments_are_those_of_sampled_weights(stride, padding, dilation, groups):
    x = torch.randn(2, 4, 6, 5)
    (weight, weight_variance), (bias, bias_variance) = posterior(4, 4 // groups, 3, 2), posterior(4)
    geometry = stride, padding, dilation, groups
    mean, variance = linear_moments(
        x, weight, weight_variance, bias, bias_variance, apply=lambda *a: F.conv2d(*a, *geometry)
    )
    # one convolution with all draws: patches of the input against every drawn kernel
    patches = F.unfold(x, (3, 2), dilation, padding, stride).unflatten(1, (groups, -1))  # [B, G, fan-in, L]
    kernels = draws(weight, weight_variance).flatten(2).unflatten(1, (groups, -1))  # [K, G, out / G, fan-in]
    samples = torch.einsum("bgfl,kgof->kbgol", patches, kernels).flatten(2, 3).unflatten(-1, mean.shape[-2:])
    samples = samples + draws(bias, bias_variance)[:, None, :, None, None]
    assert_moments(samples, mean, variance)


def dyadic(*shape: int) -> Tensor:
    """Multiples of 1/8 below 4, whose sums are exact in any order."""
    return torch.randint(1, 32, shape) / 8


APPLY = {
    "linear": (F.linear, (5, 6), (4, 6)),
    "conv1d": (lambda *a: F.conv1d(*a, 2, 1, 1, 2), (5, 4, 7), (4, 2, 3)),
    "conv2d": (lambda *a: F.conv2d(*a, (2, 1), (1, 2), (1, 1), 2), (5, 4, 6, 5), (4, 2, 3, 2)),
}


@pytest.mark.parametrize(("apply", "shape", "fan"), APPLY.values(), ids=APPLY.keys())
@pytest.mark.parametrize("values", ["spikes", "signs"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_shortcuts_for_binary_inputs_give_exactly_what_the_general_path_gives(apply, shape, fan, values, bias):
    x = torch.randint(0, 2, shape).float()
    x = x if values == "spikes" else 2 * x - 1
    posterior = [dyadic(*fan), dyadic(*fan), *((dyadic(4), dyadic(4)) if bias else (None, None))]
    general, shortcut = (linear_moments(x, *posterior, each, apply=apply) for each in ("real", values))
    for expected, moment in zip(general, shortcut, strict=True):
        assert torch.equal(moment, expected)
    # real numbers are what the shortcuts are not for
    wrong = linear_moments(x / 2, *posterior, values, apply=apply)[1]
    assert (wrong - linear_moments(x / 2, *posterior, "real", apply=apply)[1]).abs().max() > 0.1


def test_the_gradient_of_the_variance_at_a_spike_is_its_difference():
    x = torch.randint(0, 2, (5, 6)).double().requires_grad_()
    weight, weight_variance = (value.double() for value in posterior(4, 6))
    variance = linear_moments(x, weight, weight_variance, values="spikes")[1]
    (gradient,) = torch.autograd.grad(variance.sum(), x)
    for j in range(6):
        flipped = x.detach().clone()
        flipped[:, j] = 1 - flipped[:, j]
        difference = linear_moments(flipped, weight, weight_variance)[1] - variance
        torch.testing.assert_close(gradient[:, j], difference.sum(1) / (1 - 2 * x[:, j]))
    assert not linear_moments(x, weight, weight_variance, values="signs")[1].requires_grad


def test_a_gaussian_input_adds_the_variance_of_the_product():
    x, x_variance = torch.randn(3, 6), torch.rand(3, 6) + 0.2
    (weight, weight_variance), (bias, bias_variance) = posterior(4, 6), posterior(4)
    inputs = draws(x, x_variance)
    samples = torch.einsum("kbn,kmn->kbm", inputs, draws(weight, weight_variance)) + draws(bias, bias_variance)[:, None]
    mean, variance = linear_moments(x, weight, weight_variance, bias, bias_variance, x_variance=x_variance)
    assert ((samples.mean(0) - mean).abs() <= 5 * (variance / DRAWS).sqrt()).all()
    # products have heavier tails than Gaussians
    squares = (samples - samples.mean(0)).square()
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / math.sqrt(DRAWS)).all()
    known = linear_moments(x, weight, weight_variance, bias, bias_variance)[1]
    assert (variance > known).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", [0.3, 2.0])
def test_the_kl_is_that_of_torch_distributions(dtype, prior):
    mean = torch.randn(30, 7, dtype=dtype)
    log_std = torch.empty_like(mean).uniform_(-10, 2)
    expected = kl_divergence(
        Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), torch.full_like(mean, prior))
    ).sum()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(gaussian_kl(mean, log_std, prior), expected, rtol=tolerance, atol=0)


def test_the_kl_of_the_prior_from_itself_is_zero_and_otherwise_positive():
    mean, log_std = torch.zeros(50, dtype=torch.float64), torch.full((50,), math.log(0.3), dtype=torch.float64)
    assert gaussian_kl(mean, log_std, 0.3).item() == pytest.approx(0, abs=1e-12)
    assert gaussian_kl(mean + 0.01, log_std, 0.3) > 0
    assert gaussian_kl(mean, log_std + 0.01, 0.3) > 0
    assert gaussian_kl(mean, log_std - 0.01, 0.3) > 0


def test_the_kl_has_finite_gradients_over_the_range_of_the_log_std():
    mean, log_std = torch.zeros(13).requires_grad_(), torch.linspace(-10, 2, 13).requires_grad_()
    kl = gaussian_kl(mean, log_std, 0.1)
    assert kl.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(kl, (mean, log_std)))


def test_the_prior_may_be_a_tensor():
    mean, log_std = torch.randn(3, 4), torch.randn(3, 4)
    prior = torch.tensor([[0.1], [0.5], [2.0]])
    expected = sum(gaussian_kl(mean[i], log_std[i], prior[i].item()) for i in range(3))
    torch.testing.assert_close(gaussian_kl(mean, log_std, prior), expected)


def test_samples_have_the_moments_asked_for():
    mean, variance = posterior(5)
    assert_moments(sample(mean.expand(DRAWS, 5), variance.expand(DRAWS, 5)), mean, variance)


def test_samples_differentiate_by_reparameterization_and_stay_finite_without_variance():
    mean, variance = torch.zeros(4).requires_grad_(), torch.tensor([0.0, 0.0, 1.0, 4.0]).requires_grad_()
    torch.manual_seed(1)
    drawn = sample(mean, variance)
    torch.manual_seed(1)
    noise = torch.randn(4)
    gradient_mean, gradient_variance = torch.autograd.grad(drawn.sum(), (mean, variance))
    assert gradient_mean.tolist() == [1, 1, 1, 1]
    assert gradient_variance.isfinite().all()
    torch.testing.assert_close(gradient_variance[2:], noise[2:] / torch.tensor([2.0, 4.0]))
    assert drawn[:2].abs().max() < 1e-3
