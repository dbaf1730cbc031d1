"""Auxiliary losses against their formulas, and against what they are meant to lower."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import gaussian_kl, hinge_bias, linear_moments, snr_bias, synapse_bias

T = torch.tensor([[0.0, 1.0, -2.0], [3.0, -1.0, 0.5]])


def test_the_signal_to_noise_form_is_the_mean_square():
    assert snr_bias(T).item() == pytest.approx((0 + 1 + 4 + 9 + 1 + 0.25) / 6)


def test_the_hinge_form_is_free_up_to_what_is_tolerated():
    assert hinge_bias(T).item() == pytest.approx(((4 - 2) ** 2 + (9 - 2) ** 2) / 6)
    assert hinge_bias(T, 0.0).item() == pytest.approx((1 + 16 + 81 + 1 + 0.0625) / 6)
    assert hinge_bias(T, 9.0).item() == 0


@pytest.mark.parametrize("loss", [snr_bias, hinge_bias])
def test_forms_of_pre_activations_take_any_shape_and_weigh_all_units_alike(loss):
    t = 2 * torch.randn(4, 3, 2, 5)
    torch.testing.assert_close(loss(t), torch.stack([loss(part) for part in t.unbind(2)]).mean())


def test_the_synapse_form_is_the_strongest_synapse_over_the_variance():
    weight = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.1, -0.2]])
    variance = torch.tensor([[1.0, 4.0], [3.0, 6.0]])
    assert synapse_bias(weight, variance).item() == pytest.approx((9 / 2 + 0.25 / 5) / 2, rel=1e-6)


def test_the_synapse_form_of_a_convolution_averages_over_positions():
    weight, variance = torch.randn(3, 2, 5, 4), torch.rand(6, 3, 7, 8) + 0.1
    expected = [weight[k].square().max() / variance[:, k].mean() for k in range(3)]
    torch.testing.assert_close(synapse_bias(weight, variance), torch.stack(expected).mean())
    other = synapse_bias(weight, variance.transpose(0, 1).reshape(6, 3, 7, 8))
    assert (other - torch.stack(expected).mean()).abs() > 1e-3


def test_gradients_are_those_of_the_formulas_and_stay_finite_without_noise():
    t = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    variance = (torch.rand(5, 4, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(snr_bias, (t,))
    assert torch.autograd.gradcheck(hinge_bias, (2 * t,))
    assert torch.autograd.gradcheck(synapse_bias, (weight, variance))
    for gradient in torch.autograd.grad(synapse_bias(weight, 0 * variance), (weight, variance)):
        assert gradient.isfinite().all()


LOSSES = {
    "snr": lambda mean, variance, weight: snr_bias(mean / variance.sqrt()),
    "hinge": lambda mean, variance, weight: hinge_bias(mean / variance.sqrt()),
    "synapse": lambda mean, variance, weight: synapse_bias(weight, variance),
}


def descend(form: str | None, rate: float = 0.05) -> dict[str, float]:
    """All quantities of a layer after descent on one of them; None leaves it as it was."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    weight = (2 * torch.randn(5, 6)).requires_grad_()
    log_std = torch.full((5, 6), math.log(0.5)).requires_grad_()

    def quantities() -> dict[str, Tensor]:
        mean, variance = linear_moments(x, weight, (2 * log_std).exp())
        return {name: loss(mean, variance, weight) for name, loss in LOSSES.items()}

    optimizer = torch.optim.Adam([weight, log_std], rate)
    for _ in range(0 if form is None else 40):
        optimizer.zero_grad()
        quantities()[form].backward()
        optimizer.step()
    return {name: value.item() for name, value in quantities().items()} | {
        "kl": gaussian_kl(weight, log_std, 1 / math.sqrt(6)).item()
    }


@pytest.mark.parametrize("form", LOSSES)
def test_descent_on_a_form_lowers_it_and_the_others_with_it(form):
    before, after = descend(None), descend(form)
    assert after[form] < 0.2 * before[form]
    assert all(after[name] < before[name] for name in LOSSES)


def test_the_kl_pushes_the_same_way():
    torch.manual_seed(0)
    weight, log_std = (2 * torch.randn(5, 6)).requires_grad_(), torch.full((5, 6), math.log(0.5)).requires_grad_()
    x = torch.randn(64, 6)
    descents = []
    for loss in ("kl", "snr"):
        mean, variance = linear_moments(x, weight, (2 * log_std).exp())
        value = gaussian_kl(weight, log_std, 1.0) if loss == "kl" else snr_bias(mean / variance.sqrt())
        descents.append(torch.cat([part.flatten() for part in torch.autograd.grad(value, (weight, log_std))]))
    assert torch.cosine_similarity(*descents, dim=0) > 0.2
