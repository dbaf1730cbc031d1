"""Plain layers and the Bayesian ones in their place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.functional import Triangular
from lightning_snn.methods.bayes import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.methods.bayes.conversion import Posterior, is_convertible, to_bayesian, to_plain
from lightning_snn.nn import LIF, RecurrentLIF, Sign

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), BayesLinear, (5, 6)),
    "linear_without_bias": (lambda: nn.Linear(6, 4, bias=False), BayesLinear, (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2), BayesConv1d, (5, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(1, 2), bias=False), BayesConv2d, (5, 4, 7, 6)),
    "recurrent": (lambda: RecurrentLIF(6, 0.8), BayesRecurrentLIF, (5, 6)),
    "recurrent_learned": (
        lambda: RecurrentLIF(
            6, torch.linspace(0.5, 0.9, 6), 0.7, "zero", True, Triangular(0.4), learn_beta=True, learn_threshold=True
        ),
        BayesRecurrentLIF,
        (5, 6),
    ),
    "recurrent_channels": (lambda: RecurrentLIF(3, [0.3, 0.6, 0.9], [0.5, 1, 1.5]), BayesRecurrentLIF, (5, 3)),
}
every_layer = pytest.mark.parametrize(("make", "kind", "shape"), LAYERS.values(), ids=LAYERS.keys())


def converted(layer: nn.Module, keep_weights: bool = True, **options) -> BayesianLayer:
    posterior = Posterior(**({"gain": 2.0, "kappa": 0.3, "prior_scale": 1.5} | options))
    return to_bayesian(layer, posterior, keep_weights)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_converted_there_and_back_compute_what_the_layer_computes(make, kind, shape, dtype):
    layer, x = make().to(dtype), torch.randn(4, *shape, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = run(layer, x)
    made = converted(layer)
    assert type(made) is kind
    assert torch.equal(run(made, x), expected)
    back = to_plain(made, made.weight, made.bias)
    assert type(back) is type(layer)
    assert repr(back) == repr(layer)
    assert torch.equal(run(back, x), expected)
    assert back.state_dict().keys() == layer.state_dict().keys()
    for name, value in back.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, layer.state_dict()[name])
        assert value.data_ptr() != made.state_dict()[name].data_ptr() != layer.state_dict()[name].data_ptr()


@every_layer
def test_without_keeping_weights_means_are_drawn_and_recurrent_weights_stay(make, kind, shape):
    layer = make()
    made = converted(layer, keep_weights=False)
    assert torch.equal(made.weight, layer.weight) is (kind is BayesRecurrentLIF)
    if made.bias is not None:
        assert made.bias.abs().max() == 0


@every_layer
def test_the_posterior_has_the_stated_width(make, kind, shape):
    layer = make()
    made = converted(layer, kappa=0.3)
    std = layer.weight.square().mean().sqrt().item() if kind is BayesRecurrentLIF else 2 / math.sqrt(made.fan_in)
    torch.testing.assert_close(made.variances()[0].sqrt(), torch.full_like(layer.weight, 0.3 * std))
    # the prior depends on no weight
    assert made.fan_in == layer.weight[0].numel()
    assert made.prior_scale == 1.5


@every_layer
def test_bayesian_layers_follow_training_mode_and_frozen_parameters(make, kind, shape):
    layer = make().eval()
    layer.weight.requires_grad_(False)
    made = converted(layer)
    back = to_plain(made, made.weight, made.bias)
    assert not made.training
    assert not back.training
    for each in (made, back):
        assert {name for name, value in each.named_parameters() if not value.requires_grad} >= {"weight"}
        if hasattr(each, "weight_log_std"):
            assert not each.weight_log_std.requires_grad
    trained = {name for name, value in layer.named_parameters() if value.requires_grad}
    assert {name for name, value in back.named_parameters() if value.requires_grad} == trained
    if "bias" in trained:
        assert made.bias_log_std.requires_grad


def test_bayesian_layers_follow_the_memory_format():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    made = converted(layer)
    back = to_plain(made, made.weight, made.bias)
    for weight in (made.weight, made.weight_log_std, back.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_decay_that_has_saturated_can_be_converted():
    layer = RecurrentLIF(3, 0.9, learn_beta=True, channels=3)
    nn.init.constant_(layer.beta_logit, 30.0)
    assert layer.beta.max() == 1
    assert torch.equal(converted(layer).beta_logit, layer.beta_logit)


def test_parameters_of_other_dtypes_keep_them():
    layer = RecurrentLIF(3, 0.9, learn_beta=True)
    layer.weight.data = layer.weight.data.bfloat16()
    made = converted(layer)
    assert (made.weight.dtype, made.weight_log_std.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(
    "layer",
    [
        LIF(learn_beta=True),
        Sign(),
        nn.ReLU(),
        nn.Conv3d(1, 1, 1),
        nn.ConvTranspose1d(1, 1, 1),
        nn.Bilinear(2, 2, 2),
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        BayesLinear(2, 2),
        BayesRecurrentLIF(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_have_no_to_bayesian(layer):
    assert not is_convertible(layer)


def test_layers_that_can_be_converted_are_convertible():
    assert all(is_convertible(make()) for make, *_ in LAYERS.values())


def test_recurrent_weights_that_start_at_zero_have_a_posterior():
    layer = RecurrentLIF(4)
    nn.init.zeros_(layer.weight)
    made = converted(layer)
    assert made.variances()[0].min() > 1e-3
    assert made.kl().isfinite()
