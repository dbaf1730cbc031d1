"""Binary neurons: their values, their gradients, and the probability with which noise makes them fire."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.functional import AnalyticalGumbelRao, ArcTangent, Smooth, Triangular, iwst_weight
from lightning_snn.methods.bayes import BayesLinear
from lightning_snn.nn import Moments, Sign, posterior_noise

X = torch.tensor([-3.0, -1e-6, 0.0, 1e-6, 0.4, 2.0], dtype=torch.float64)


def test_the_values_are_signs_and_the_sign_of_zero_is_negative():
    assert Sign()(X).tolist() == [-1, -1, -1, 1, 1, 1]


@pytest.mark.parametrize("surrogate", [ArcTangent(), Triangular(0.7), Smooth()], ids=str)
def test_the_gradient_is_twice_the_surrogate(surrogate):
    x = X.clone().requires_grad_()
    Sign(surrogate)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * surrogate.derivative(X), rtol=1e-12, atol=0)


def test_a_smooth_sign_has_an_exact_gradient():
    assert torch.autograd.gradcheck(Sign(Smooth()), (X.clone().requires_grad_(),))


def test_a_surrogate_goes_by_its_name():
    assert Sign("triangular").surrogate == Triangular()
    assert repr(Sign("triangular")) == "Sign(surrogate=Triangular(width=1.0))"
    with pytest.raises(ValueError, match="Expected argument `surrogate` to be .* but got 'step'"):
        Sign("step")


@torch.no_grad()
@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_noise_makes_the_neuron_fire_with_the_probability_of_a_gaussian(mode):
    draws = 40_000
    mean, variance = torch.tensor([-0.5, 0.0, 0.3, 1.0]), torch.tensor([0.25, 2.0, 0.04, 4.0])
    with posterior_noise(1.0, mode):
        signs = Sign()(Moments(mean.expand(draws, 4), variance.expand(draws, 4)))
    assert set(signs.unique().tolist()) == {-1, 1}
    rate = torch.special.ndtr(mean / variance.sqrt())
    assert ((signs.add(1).div(2).mean(0) - rate).abs() < 4.5 * math.sqrt(0.25 / draws)).all()


@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_with_noise_the_gradient_is_twice_that_of_iwst(lam):
    moments = torch.randn(200, dtype=torch.float64), torch.rand(200, dtype=torch.float64) + 0.1
    mean, variance = (value.requires_grad_() for value in moments)
    with posterior_noise(lam):
        signs = Sign()(Moments(mean, variance))
    t = mean / (variance + 1e-8).sqrt()
    weight = iwst_weight(t.detach(), (signs.detach() + 1) / 2, lam)
    expected = torch.autograd.grad(t, (mean, variance), 2 * weight)
    for got, reference in zip(torch.autograd.grad(signs.sum(), (mean, variance)), expected, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


def test_another_estimator_changes_the_gradient_alone():
    runs = []
    for estimator in (0.5, AnalyticalGumbelRao(noise="gaussian")):
        torch.manual_seed(1)
        mean = torch.linspace(-1, 1, 50).requires_grad_()
        with posterior_noise(estimator):
            signs = Sign()(Moments(mean, torch.ones(50)))
        runs.append((signs, torch.autograd.grad(signs.sum(), mean)[0]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert (runs[0][1] - runs[1][1]).abs().max() > 0.1


def test_there_is_no_memory():
    torch.manual_seed(1)
    with posterior_noise():
        signs = run(nn.Sequential(BayesLinear(3, 4), Sign()), torch.zeros(2000, 1, 3))
    one, next_one = signs[:-1].flatten(1), signs[1:].flatten(1)
    assert (one * next_one).mean(0).abs().max() < 4.5 / math.sqrt(2000)


def test_a_known_input_gives_its_sign_within_posterior_noise_too():
    with posterior_noise():
        assert torch.equal(Sign()(X), Sign()(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_input_and_saturation_leaves_gradients_finite(dtype):
    x = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype).requires_grad_()
    variance = torch.tensor([1e-6, 0.0, 1.0], dtype=dtype).requires_grad_()
    with posterior_noise(0.0):
        for signs in (Sign()(x), Sign()(Moments(x, variance))):
            assert signs.dtype == dtype
            gradients = torch.autograd.grad(signs.float().sum(), (x, variance), allow_unused=True)
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "noisy"])
def test_the_sign_of_nan_is_nan_with_a_gradient_of_nan(noisy):
    x = X.clone()
    x[2] = math.nan
    x.requires_grad_()
    with posterior_noise(0.5, generator=torch.Generator().manual_seed(0)):
        y = Sign()(Moments(x, torch.full_like(x, 1e-12)) if noisy else x)
    assert torch.equal(y.isnan(), x.isnan())
    assert set(y[~y.isnan()].tolist()) == {-1.0, 1.0}
    y.sum().backward()
    assert torch.equal(x.grad.isnan(), x.isnan())
