"""Spiking Bayesian networks: accepted networks, the KL term and how often it counts, predictions."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, IterableDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.functional import Dynamics, Smooth, chi_squared, hinge_bias, iwst_weight, snr_bias, synapse_bias
from lightning_snn.methods import Progress, SpikingBayes, SurrogateGradient, noisy
from lightning_snn.methods.bayes import BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.methods.bayes.method import MONITOR_EVERY
from lightning_snn.nn import (
    LeakyIntegrator,
    MembraneResidual,
    Moments,
    RecurrentLIF,
    Sign,
    SynapticDelays,
    weight_draws,
)
from lightning_snn.nn import posterior_noise as noise
from tests.support.event_order import loader, order_of_events, small_network
from tests.support.training import trainer


def conv_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        LIF([0.5, 0.6, 0.7, 0.8], learn_beta=True),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
        RecurrentLIF(5),
        nn.Linear(5, 3),
        LeakyIntegrator(),
    )


def test_every_layer_with_weights_gets_a_posterior_and_nothing_else_changes():
    network = conv_network()
    prepared = SpikingBayes(kappa=0.3, prior_scale=2.0).prepare(network)
    kinds = {name: type(module) for name, module in network.named_modules()}
    assert {name: type(module) for name, module in prepared.named_modules()} == kinds | {
        "0": BayesConv2d,
        "2.2": BayesLinear,
        "3": BayesRecurrentLIF,
        "4": BayesLinear,
    }
    convolution = prepared[0]
    assert (convolution.stride, convolution.padding, convolution.bias) == ((2, 2), (1, 1), None)
    assert convolution.prior_scale == prepared[4].prior_scale == 2.0
    assert torch.equal(prepared[1].beta, network[1].beta)
    x = torch.rand(3, 2, 2, 8, 8)
    assert run(prepared, x).shape == run(network, x).shape == (3, 2, 3)


@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_every_noise_mode_understates_the_variance_of_spike_counts_under_static_weights(mode):
    draws = 2000
    x = (torch.rand(20, 1, 100) < 0.1).float().expand(-1, draws, -1)
    method = SpikingBayes(noise_mode=mode)
    prepared = method.prepare(nn.Sequential(nn.Linear(100, 8, bias=False), LIF(0.8)))
    with torch.no_grad():
        with noise(1.0, mode):
            noisy_counts = run(prepared, x).sum(0)
        with weight_draws(draws):
            static_counts = run(prepared, x).sum(0)
        members = torch.stack([run(method.posterior_sample(prepared), x[:, :1]).sum(0)[0] for _ in range(400)])
    assert noisy_counts.var(0).mean() < 0.6 * static_counts.var(0).mean()
    # the static draws are those of networks with weights drawn once
    assert members.var(0).mean().item() == pytest.approx(static_counts.var(0).mean().item(), rel=0.2)


def test_the_prior_is_prior_scale_over_the_root_of_the_fan_in_in_every_kind_of_layer():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        LIF(),
        nn.Flatten(),
        SynapticDelays((0, 1)),
        nn.Linear(2 * 4 * 4, 5),
        RecurrentLIF(5),
        nn.Linear(5, 3, bias=False),
    ).double()
    fan_ins = {"0": 18, "4": 32, "5": 5, "6": 5}
    for gain in (0.5, 2.0):  # the draw of the weights plays no part
        method = SpikingBayes(gain=gain, prior_scale=0.7)
        prepared = method.prepare(network)
        expected = torch.zeros((), dtype=torch.float64)
        for name, fan_in in fan_ins.items():
            layer = prepared.get_submodule(name)
            pairs = [(layer.weight, layer.weight_log_std, 0.7 / fan_in**0.5)]
            pairs += [] if layer.bias is None else [(layer.bias, layer.bias_log_std, 1.0)]
            for mean, log_std, prior in pairs:
                zero = torch.zeros((), dtype=torch.float64)
                posterior = Normal(mean.detach(), log_std.detach().exp())
                expected += kl_divergence(posterior, Normal(zero, zero + prior)).sum()
        torch.testing.assert_close(method.kl(prepared), expected, rtol=1e-12, atol=0)


def test_the_network_that_was_handed_in_shares_nothing_with_the_prepared_one():
    network = conv_network()
    state = copy.deepcopy(network.state_dict())
    prepared = SpikingBayes().prepare(network)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_posterior_has_the_stated_mean_and_width():
    prepared = SpikingBayes(gain=2.0, kappa=0.3).prepare(nn.Sequential(nn.Linear(100, 400), LIF()))[0]
    draws = prepared.weight.numel()
    assert abs(prepared.weight.mean().item()) < 5 * 0.2 / math.sqrt(draws)
    assert prepared.weight.std().item() == pytest.approx(0.2, rel=5 / math.sqrt(2 * draws))
    torch.testing.assert_close(prepared.variances()[0], torch.full((400, 100), (0.3 * 0.2) ** 2))


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_as_posterior_means_where_asked_for(keep):
    network, x = conv_network(), torch.rand(4, 2, 2, 8, 8)
    prepared = SpikingBayes(keep_weights=keep).prepare(network)
    assert torch.equal(prepared[0].weight, network[0].weight) is keep
    assert torch.equal(prepared[4].bias, network[4].bias) is keep
    assert torch.allclose(run(prepared, x), run(network, x)) is keep


def test_a_layer_that_stands_in_several_places_stays_one_layer():
    shared = nn.Linear(4, 4)
    network = nn.Sequential(shared, LIF(), shared, LIF(), nn.Sequential(nn.Flatten(), shared))
    prepared = SpikingBayes().prepare(network)
    assert isinstance(prepared[0], BayesLinear)
    assert prepared[2] is prepared[0]
    assert prepared[4][1] is prepared[0]
    method = SpikingBayes()
    torch.testing.assert_close(method.kl(prepared), prepared[0].kl())


def test_a_bare_layer_and_a_bayesian_layer_are_accepted():
    assert isinstance(SpikingBayes().prepare(nn.Linear(3, 2)), BayesLinear)
    layer = BayesLinear(3, 2)
    prepared = SpikingBayes().prepare(nn.Sequential(layer, LIF()))
    assert torch.equal(prepared[0].weight, layer.weight)
    assert torch.equal(prepared[0].weight_log_std, layer.weight_log_std)


def test_dtype_and_memory_format_follow_the_layer():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), LIF()).double().to(memory_format=torch.channels_last)
    for parameter in SpikingBayes().prepare(network)[0].parameters():
        assert parameter.dtype == torch.float64
        assert parameter.dim() == 1 or parameter.is_contiguous(memory_format=torch.channels_last)


NO_POSTERIOR = "its parameters have no Bayesian counterpart: see `register_posterior`"


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm2d(2), r"1\.0: BatchNorm2d \(normalization has no Bayesian counterpart\)"),
        (nn.BatchNorm2d(2, affine=False), r"1\.0: BatchNorm2d \(normalization has no Bayesian counterpart\)"),
        (nn.LayerNorm(4), rf"1\.0: LayerNorm \({NO_POSTERIOR}\)"),
        (nn.Conv3d(2, 2, 3), rf"1\.0: Conv3d \({NO_POSTERIOR}\)"),
        (nn.ConvTranspose2d(2, 2, 3), rf"1\.0: ConvTranspose2d \({NO_POSTERIOR}\)"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), r"1\.0: Conv1d \(padding_mode='circular'\)"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), r"1\.0: Conv2d \(padding_mode='reflect'\)"),
        (nn.Embedding(3, 4), rf"1\.0: Embedding \({NO_POSTERIOR}\)"),
        (LIF(order="leak_then_reset"), r'1\.0: LIF \(fires by noise in mode "step" only: noise_mode="step"\)'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_without_a_bayesian_counterpart_is_refused_by_name(layer, kind):
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(layer), LIF(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"that SpikingBayes can train, but got {kind}(\. |$)"):
        SpikingBayes().prepare(network)


def test_all_refused_layers_are_named_at_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), LIF(), nn.PReLU())
    with pytest.raises(ValueError, match=rf"1: BatchNorm1d \(.*\); 3: PReLU \({NO_POSTERIOR}\)"):
        SpikingBayes().prepare(network)
    with pytest.raises(ValueError, match=r"the network: Conv3d \("):
        SpikingBayes().prepare(nn.Conv3d(2, 2, 3))


def training_step(method: SpikingBayes, network: nn.Module):
    torch.manual_seed(1)
    return method.training_step(network, *order_of_events(16))


def test_the_kl_is_the_sum_over_the_layers():
    method = SpikingBayes()
    prepared = method.prepare(conv_network())
    layers = [module for module in prepared.modules() if isinstance(module, BayesianLayer)]
    assert [type(layer) for layer in layers] == [BayesConv2d, BayesLinear, BayesRecurrentLIF, BayesLinear]
    torch.testing.assert_close(method.kl(prepared), sum(layer.kl() for layer in layers))


@pytest.mark.parametrize(
    ("epoch", "warmup", "weight"),
    [(0.0, 2.0, 0.0), (0.5, 2.0, 0.25), (2.0, 2.0, 1.0), (9.0, 2.0, 1.0), (0.0, 0.0, 1.0)],
)
def test_the_kl_counts_by_its_weight_the_warm_up_and_the_number_of_training_samples(epoch, warmup, weight):
    method = SpikingBayes(kl_weight=0.3, warmup_epochs=warmup)
    prepared = method.prepare(small_network())
    method.progress = Progress(epoch, 50)
    step = training_step(method, prepared)
    torch.testing.assert_close(
        step.objective - step.loss, 0.3 * weight * method.kl(prepared) / 50, rtol=1e-4, atol=1e-7
    )


def test_the_argument_train_size_comes_before_the_size_of_the_loader():
    method = SpikingBayes(warmup_epochs=0, train_size=1000)
    prepared = method.prepare(small_network())
    method.progress = Progress(0.0, 50)
    step = training_step(method, prepared)
    torch.testing.assert_close(
        step.objective - step.loss, method.kl_weight * method.kl(prepared) / 1000, rtol=1e-4, atol=1e-7
    )


def test_without_the_number_of_training_samples_the_kl_term_is_refused():
    method = SpikingBayes()
    prepared = method.prepare(small_network())
    with pytest.raises(ValueError, match="argument `train_size` of SpikingBayes to be an integer, but got None"):
        training_step(method, prepared)
    without = SpikingBayes(kl_weight=0.0)
    step = training_step(without, prepared)
    assert step.objective == step.loss


class Stream(IterableDataset):
    """A data set of unknown length."""

    def __iter__(self):
        x, y = order_of_events(8)
        yield from zip(x.split(8, 1), y.split(8), strict=True)


def test_a_loader_of_unknown_length_needs_the_argument():
    def fit(**options) -> None:
        module = SpikingModule(small_network(), SpikingBayes(**options), num_classes=2)
        trainer(max_epochs=1).fit(module, DataLoader(Stream(), batch_size=None))

    fit(train_size=16)
    with pytest.raises(ValueError, match="argument `train_size` of SpikingBayes"):
        fit()


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (8, 2), (4, 4)])
def test_the_kl_counts_once_an_optimizer_step(batch_size, accumulate):
    module = SpikingModule(
        small_network(),
        SpikingBayes(kl_weight=0.5, warmup_epochs=0),
        num_classes=2,
        readout=lambda outputs: 0 * outputs.mean(0),  # no gradient but that of the KL
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
    )
    before = [parameter.detach().clone().requires_grad_() for parameter in module.network.parameters()]
    copied = copy.deepcopy(module.network)
    kl = SpikingBayes().kl(copied)
    expected = [
        parameter - 0.1 * gradient * 0.5 / 16
        for parameter, gradient in zip(before, torch.autograd.grad(kl, list(copied.parameters())), strict=True)
    ]
    fitting = trainer(max_steps=1, accumulate_grad_batches=accumulate)
    fitting.fit(module, loader(*order_of_events(8), batch_size))
    assert fitting.global_step == 1
    for parameter, value, start in zip(module.network.parameters(), expected, before, strict=True):
        assert not torch.equal(parameter, start) or torch.equal(value, start)
        torch.testing.assert_close(parameter, value, rtol=1e-6, atol=1e-8)


def test_the_objective_is_the_loss_of_a_noisy_run_and_its_gradient_that_of_iwst():
    method = SpikingBayes(lam=1.0, kl_weight=0.0)
    prepared = method.prepare(small_network())
    x, y = order_of_events(16)
    torch.manual_seed(1)
    step = method.training_step(prepared, x, y)
    torch.manual_seed(1)
    with noise(1.0):
        output = run(prepared, x)
    assert isinstance(output, Moments)
    sampled = output.expectation + (output.variance + 1e-8).sqrt() * torch.randn(output.shape)
    expected = nn.functional.cross_entropy(sampled.mean(0), y)
    torch.testing.assert_close(step.objective, expected)
    gradients = torch.autograd.grad(step.objective, list(prepared.parameters()))
    for got, reference in zip(gradients, torch.autograd.grad(expected, list(prepared.parameters())), strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-7)


def test_lambda_reaches_the_neurons():
    gradients = []
    for lam in (1.0, 0.5):
        torch.manual_seed(0)
        method = SpikingBayes(lam=lam, kl_weight=0.0)
        prepared = method.prepare(small_network())
        gradients.append(torch.autograd.grad(training_step(method, prepared).objective, prepared[0].weight)[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-5


@torch.no_grad()
def test_without_samples_the_prediction_is_the_deterministic_run_of_the_posterior_mean():
    method, plain = SpikingBayes(keep_weights=True), small_network()
    prepared, (x, _) = method.prepare(plain), order_of_events(16)
    prediction = method.predict(prepared, x)
    assert prediction.samples is None
    torch.testing.assert_close(prediction.mean, run(plain, x).mean(0).softmax(-1))
    assert torch.equal(method.predict(prepared, x).mean, prediction.mean)


@torch.no_grad()
def test_samples_are_averaged_and_follow_the_seed():
    method = SpikingBayes(samples=8)
    prepared, (x, _) = method.prepare(small_network()), order_of_events(16)
    predictions = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        predictions.append(method.predict(prepared, x))
    assert predictions[0].samples.shape == (8, 32, 2)
    torch.testing.assert_close(predictions[0].mean, predictions[0].samples.mean(0))
    assert torch.equal(predictions[0].samples, predictions[1].samples)
    assert not torch.equal(predictions[0].samples, predictions[2].samples)
    assert predictions[0].samples.std(0).min() > 0


@torch.no_grad()
def test_the_mean_over_samples_has_no_less_entropy_than_the_samples():
    method = SpikingBayes(samples=16)
    prediction = method.predict(method.prepare(small_network()), order_of_events(16)[0])

    def entropy(probabilities: Tensor) -> Tensor:
        return -torch.special.xlogy(probabilities, probabilities).sum(-1)

    information = entropy(prediction.mean) - entropy(prediction.samples).mean(0)
    assert information.min() >= -1e-6
    assert information.max() > 1e-4


def test_a_hard_reset_is_trained_too():
    method = SpikingBayes()
    prepared = method.prepare(nn.Sequential(nn.Linear(2, 8), LIF(reset="zero"), nn.Linear(8, 2)))
    assert prepared[1].dynamics == Dynamics("zero")
    method.progress = Progress(1.0, 32)
    training_step(method, prepared).objective.backward()
    assert all(parameter.grad.isfinite().all() for parameter in prepared.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 1.2}, "argument `lam` to be a number from 0 to 1, but got 1.2"),
        ({"kl_weight": -0.1}, "argument `kl_weight` to be a finite number of at least 0, but got -0.1"),
        ({"warmup_epochs": math.inf}, "argument `warmup_epochs` to be a finite number of at least 0, but got inf"),
        ({"gain": 0}, "argument `gain` to be a finite number larger than 0, but got 0"),
        ({"kappa": "wide"}, "argument `kappa` to be a finite number larger than 0, but got 'wide'"),
        ({"prior_scale": 0.0}, "argument `prior_scale` to be a finite number larger than 0, but got 0.0"),
        ({"samples": -1}, "argument `samples` to be an integer of at least 0, but got -1"),
        ({"samples": 2.0}, "argument `samples` to be an integer of at least 0, but got 2.0"),
        ({"train_size": 0}, "argument `train_size` to be an integer of at least 1, but got 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        SpikingBayes(**options)


def test_spikes_are_not_squared_where_the_chain_shows_them():
    network = nn.Sequential(
        nn.Linear(4, 4), LIF(), nn.Sequential(nn.Flatten(), SynapticDelays((0, 1)), nn.Linear(8, 4))
    )
    prepared = SpikingBayes().prepare(network)
    receives_spikes = prepared[2][2]
    assert receives_spikes.input_values == "spikes"
    assert prepared[0].input_values == "real"
    x = torch.randn(6, 5, 4)
    variances = []
    for values in ("spikes", "real"):
        receives_spikes.input_values = values
        torch.manual_seed(1)
        with noise(1.0):
            variances.append(run(prepared, x).variance)
    assert torch.equal(*variances)


def test_inputs_that_may_be_no_spikes_are_squared():
    shared = nn.Linear(4, 4)
    chains = {
        "real input": nn.Sequential(nn.Linear(4, 4)),
        "used with real input too": nn.Sequential(shared, LIF(), shared),
        "smooth spikes": nn.Sequential(LIF(surrogate=Smooth()), nn.Linear(4, 4)),
        "averaged spikes": nn.Sequential(LIF(), nn.AvgPool2d(1), nn.Linear(4, 4)),
    }
    for name, chain in chains.items():
        layers = [layer for layer in SpikingBayes().prepare(chain) if isinstance(layer, BayesLinear)]
        assert all(layer.input_values == "real" for layer in layers), name


def test_the_means_learn_first_without_noise_and_by_themselves():
    method = SpikingBayes(mean_epochs=2, warmup_epochs=1, train_size=50)
    prepared = method.prepare(small_network())
    steps = {}
    for epoch in (0.0, 1.9, 2.0, 2.5, 9.0):
        method.progress = Progress(epoch)
        prepared.zero_grad()
        step = training_step(method, prepared)
        step.objective.backward()
        gradient = max(layer.weight_log_std.grad.abs().max() for layer in prepared.modules() if hasattr(layer, "kl"))
        steps[epoch] = step.loss, step.objective.detach() - step.loss, gradient
    full = method.kl_weight * method.kl(prepared) / 50
    assert torch.equal(steps[0.0][0], steps[1.9][0])  # the same deterministic pass
    assert not torch.equal(steps[1.9][0], steps[2.0][0])  # noise
    assert [bool(gradient > 0) for *_, gradient in steps.values()] == [False, False, True, True, True]
    for epoch, share in zip(steps, (0, 0, 0, 0.5, 1), strict=True):
        torch.testing.assert_close(steps[epoch][1], share * full.detach(), rtol=1e-4, atol=1e-6)


# from a deterministic network and back


def trained(network: nn.Module) -> nn.Module:
    """The network after some steps by surrogate gradients."""
    x, y = torch.rand(4, 16, 2, 8, 8), torch.arange(16) % 3
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(5):
        optimizer.zero_grad()
        SurrogateGradient().training_step(network, x, y).objective.backward()
        optimizer.step()
    return network


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trained_network_keeps_its_outputs_exactly_on_its_way_to_a_posterior_and_back(dtype):
    with torch.enable_grad():
        network = trained(conv_network()).to(dtype)
    x, method = torch.rand(4, 3, 2, 8, 8, dtype=dtype), SpikingBayes(keep_weights=True)
    expected, prepared = run(network, x), method.prepare(network)
    assert torch.equal(run(prepared, x), expected)
    back = method.posterior_mean(prepared)
    assert torch.equal(run(back, x), expected)
    assert {name: type(module) for name, module in back.named_modules()} == {
        name: type(module) for name, module in network.named_modules()
    }
    for name, value in back.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


@torch.no_grad()
def test_the_posterior_mean_is_a_plain_network_that_predicts_as_the_method_does():
    method = SpikingBayes()
    prepared, x = method.prepare(conv_network()), torch.rand(4, 3, 2, 8, 8)
    plain, expected = method.posterior_mean(prepared), method.predict(prepared, x)
    assert not any(isinstance(module, BayesianLayer) for module in plain.modules())
    assert not any("log_std" in name for name in plain.state_dict())
    prediction = SurrogateGradient().predict(plain, x)
    assert torch.equal(prediction.mean, expected.mean)
    for parameter in plain.parameters():
        parameter.fill_(7.0)
    assert torch.equal(method.predict(prepared, x).mean, expected.mean)  # nothing is shared
    assert isinstance(method.posterior_mean(method.prepare(nn.Linear(3, 2))), nn.Linear)


@torch.no_grad()
def test_a_posterior_sample_is_a_plain_network_with_drawn_weights():
    method = SpikingBayes()
    prepared = method.prepare(conv_network())
    one, same, other = (
        method.posterior_sample(prepared, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    mean = method.posterior_mean(prepared).state_dict()
    assert one.keys() == mean.keys()
    for name, module in prepared.named_modules():
        if isinstance(module, BayesianLayer):
            key = f"{name}.weight"
            assert torch.equal(one[key], same[key])
            assert not torch.equal(one[key], other[key])
            scores = (one[key] - mean[key]) / module.variances()[0].sqrt()
            assert scores.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * scores.numel()))


def shared_network() -> nn.Module:
    """Three layers of which two have one weight, and two one bias."""
    network = nn.Sequential(nn.Linear(4, 4), LIF(), nn.Linear(4, 4), LIF(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    network[4].bias = network[2].bias
    return network


@pytest.mark.parametrize("keep", [True, False])
def test_parameters_that_layers_share_stay_shared_and_count_once(keep):
    method = SpikingBayes(keep_weights=keep)
    prepared = method.prepare(shared_network())
    first, second, third = prepared[0], prepared[2], prepared[4]
    assert second.weight is first.weight
    assert second.weight_log_std is first.weight_log_std
    assert third.bias is second.bias
    assert third.bias_log_std is second.bias_log_std
    assert first.bias is not second.bias
    assert third.weight is not first.weight
    terms = [first.kl_terms()[first.weight], first.kl_terms()[first.bias], third.kl()]
    torch.testing.assert_close(method.kl(prepared), sum(terms))
    for plain in (method.posterior_mean(prepared), method.posterior_sample(prepared)):
        assert plain[2].weight is plain[0].weight
        assert plain[4].bias is plain[2].bias
        assert plain[0].bias is not plain[2].bias
    assert len(list(prepared.parameters())) == 2 * len(list(shared_network().parameters()))


@torch.no_grad()
def test_drawn_networks_share_the_draws_of_what_they_share():
    method = SpikingBayes(samples=3, sampling="weights", sample_memory=1e-9)
    prepared, x = method.prepare(shared_network()).double(), 2 * torch.rand(5, 3, 4).double()
    samples = method.predict(prepared, x, torch.Generator().manual_seed(3)).samples
    source = torch.Generator().manual_seed(3)
    alone = [run(method.posterior_sample(prepared, source), x).mean(0).softmax(-1) for _ in range(3)]
    torch.testing.assert_close(samples, torch.stack(alone), rtol=1e-9, atol=1e-9)
    assert samples.std(0).max() > 1e-3


def test_frozen_parameters_stay_frozen():
    network = conv_network()
    network[0].requires_grad_(False)
    network[4].bias.requires_grad_(False)
    method = SpikingBayes(keep_weights=True)
    prepared = method.prepare(network)
    frozen = {name for name, value in prepared.named_parameters() if not value.requires_grad}
    assert frozen == {"0.weight", "0.weight_log_std", "4.bias", "4.bias_log_std"}
    assert torch.equal(prepared[0].weight, network[0].weight)
    plain = method.posterior_mean(prepared)
    assert {name for name, value in plain.named_parameters() if not value.requires_grad} == {"0.weight", "4.bias"}


def test_prepared_networks_can_be_copied_pickled_and_saved():
    network = nn.Sequential(nn.Linear(2, 6), LIF(0.8), nn.Linear(6, 6), LIF(0.8, learn_beta=True), nn.Linear(6, 2))
    method = SpikingBayes(noise_mode="trace", kl_weight=0.0)
    prepared, (x, y) = method.prepare(network), order_of_events(8)
    expected = training_step(method, prepared).loss
    saved = io.BytesIO()
    torch.save(prepared.state_dict(), saved)
    saved.seek(0)
    loaded = method.prepare(network)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    method.training_step(prepared, x, y).objective.backward()
    for copied in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), loaded):
        assert copied[0].targets[0] is copied[1]
        assert copied[2].targets[0] is copied[3]
        assert [layer.input_values for layer in copied[::2]] == ["real", "spikes", "spikes"]
        assert torch.equal(training_step(method, copied).loss, expected)


def test_the_names_of_parameters_are_those_of_earlier_checkpoints():
    prepared = SpikingBayes().prepare(
        nn.Sequential(nn.Conv2d(1, 2, 3), LIF(learn_beta=True), nn.Flatten(), nn.Linear(8, 2))
    )
    assert list(prepared.state_dict()) == [
        *("0.weight", "0.weight_log_std", "0.bias", "0.bias_log_std"),
        "1.beta_logit",
        *("3.weight", "3.weight_log_std", "3.bias", "3.bias_log_std"),
    ]


# the recurrent posterior


def test_recurrent_weights_keep_their_values_and_count_in_the_kl():
    network = nn.Sequential(nn.Linear(2, 5), RecurrentLIF(5, 0.8), nn.Linear(5, 2))
    method = SpikingBayes(kappa=0.3)
    prepared = method.prepare(network)
    assert torch.equal(prepared[1].weight, network[1].weight)
    width = 0.3 * network[1].weight.detach().square().mean().sqrt()
    torch.testing.assert_close(prepared[1].variances()[0].sqrt(), width.expand(5, 5))
    without = method.kl(nn.Sequential(prepared[0], LIF(), prepared[2]))
    torch.testing.assert_close(method.kl(prepared) - without, prepared[1].kl(), rtol=1e-5, atol=1e-4)
    assert prepared[1].kl() > 1
    method.progress = Progress(1.0, 32)
    training_step(method, prepared).objective.backward()
    assert prepared[1].weight_log_std.grad.abs().max() > 0


# traces


class Opaque(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def before_neurons(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), *layers, nn.Linear(4, 2))


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            before_neurons(RecurrentLIF(4)),
            r'1: RecurrentLIF \(fires by noise in mode "moment" or "step" only: noise_mode="moment"\)',
        ),
        (
            before_neurons(LIF(reset="zero")),
            r'1: LIF \(fires by noise in mode "moment" or "step" only: noise_mode="moment"\)',
        ),
        (before_neurons(LIF([0.5, 0.6, 0.7, 0.8])), r"1: LIF \(a decay per channel\)"),
        (before_neurons(nn.Linear(4, 4), LIF()), r"0: BayesLinear \(no neurons between it and another weight layer\)"),
        (before_neurons(Opaque(nn.Linear(4, 4)), LIF()), r"1\.layer: BayesLinear \(inside a module of unknown struct"),
        (before_neurons(Opaque(LIF())), r"1\.layer: LIF \(receives input through modules of unknown structure\)"),
        (before_neurons(LeakyIntegrator(), LIF()), r"2: LIF \(receives input through modules of unknown structure\)"),
        (
            before_neurons(Opaque(nn.Flatten()), LIF()),
            r"2: LIF \(receives input through modules of unknown structure\)",
        ),
        (nn.Sequential(SHARED, LIF(), SHARED), r"0: BayesLinear \(its output goes to neurons and elsewhere\)"),
        (
            nn.Sequential(SHARED, LIF(0.8), SHARED, LIF(0.9)),
            r"0: BayesLinear \(its output goes to neurons with different decays\)",
        ),
        (
            nn.Sequential(SHARED, LIF(learn_beta=True), SHARED, LIF(learn_beta=True)),
            r"0: BayesLinear \(its output goes to neurons with different decays\)",
        ),
    ],
)
def test_what_no_trace_can_be_had_of_is_refused_by_name(network, reason):
    with pytest.raises(ValueError, match=rf"can train, but got .*({reason})"):
        SpikingBayes(noise_mode="trace").prepare(network)
    SpikingBayes().prepare(network)  # the other modes take it


def test_everything_that_no_trace_can_be_had_of_is_named_at_once():
    with pytest.raises(ValueError, match=r"but got 1: LIF \(.*\); 3: RecurrentLIF \("):
        SpikingBayes(noise_mode="trace").prepare(
            nn.Sequential(nn.Linear(2, 4), LIF(reset="zero"), nn.Linear(4, 4), RecurrentLIF(4), nn.Linear(4, 2))
        )


def test_traces_are_had_of_chains_shared_layers_streams_and_binary_networks():
    lif = LIF(0.7, learn_beta=True)
    for network in (
        nn.Sequential(nn.Linear(2, 4), LIF(0.7), nn.Linear(4, 2), LeakyIntegrator()),
        nn.Sequential(nn.Linear(2, 4), lif, SHARED, lif, SHARED, lif, nn.Linear(4, 2)),
        before_neurons(LIF(), nn.Flatten(), SHARED, MembraneResidual(nn.Sequential(LIF(), nn.Linear(4, 4))), LIF()),
        before_neurons(Sign(), MembraneResidual(nn.Sequential(nn.Linear(4, 4), Sign()))),
        nn.Sequential(LIF(), nn.Linear(2, 2)),
    ):
        method = SpikingBayes(noise_mode="trace", kl_weight=0.0)
        prepared = method.prepare(network)
        training_step(method, prepared).objective.backward()
        assert all(parameter.grad.isfinite().all() for parameter in prepared.parameters())


# the auxiliary loss and the monitor


def deep_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 6),
        LIF(0.8),
        MembraneResidual(nn.Sequential(nn.Linear(6, 6), Sign())),
        nn.Linear(6, 6),
        LIF(),
        nn.Linear(6, 2),
    )


NAMES = {
    "snr": ["1", "2.branch.1", "4"],
    "hinge": ["1", "2.branch.1", "4"],
    "synapse": ["0", "2.branch.0", "3"],  # no unit receives the readout
}


@pytest.mark.parametrize("form", NAMES)
def test_the_auxiliary_loss_is_the_mean_over_layers_of_its_formula(form):
    method = SpikingBayes(bias_weight=0.3, bias_form=form, kl_weight=0.0)
    prepared = method.prepare(deep_network())
    step = training_step(method, prepared)
    scores, variances = {}, {}
    names = {module: name for name, module in prepared.named_modules()}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: variances.update({names[layer]: output.variance}))
        for layer in names
        if isinstance(layer, BayesianLayer)
    ]
    torch.manual_seed(1)
    with noise(0.5, observe=lambda layer, t: scores.update({names[layer]: t})):
        run(prepared, order_of_events(16)[0])
    for hook in hooks:
        hook.remove()
    layer_of = {"snr": lambda name: snr_bias(scores[name]), "hinge": lambda name: hinge_bias(scores[name])}
    layer_of["synapse"] = lambda name: synapse_bias(prepared.get_submodule(name).weight, variances[name])
    expected = {f"bias/{name}": layer_of[form](name) for name in NAMES[form]}
    found = {name: value for name, value in step.metrics.items() if name.startswith("bias/")}
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach())
        assert not found[name].requires_grad
    total = torch.stack(list(expected.values())).mean()
    torch.testing.assert_close(step.objective - step.loss, 0.3 * total, rtol=1e-4, atol=1e-6)
    assert total > 0.1


@pytest.mark.parametrize("form", NAMES)
def test_training_with_the_auxiliary_loss_lowers_it(form):
    values = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        method = SpikingBayes(lam=1.0, bias_weight=weight, bias_form=form, kl_weight=0.0)
        watching = SpikingBayes(bias_weight=1.0, bias_form=form, kl_weight=0.0)
        prepared = method.prepare(deep_network())
        optimizer = torch.optim.Adam(prepared.parameters(), 0.02)
        x, y = order_of_events(16)
        for _ in range(30):
            optimizer.zero_grad()
            method.training_step(prepared, x, y).objective.backward()
            optimizer.step()
        metrics = training_step(watching, prepared).metrics
        values[weight] = sum(value for name, value in metrics.items() if name.startswith("bias/"))
    assert values[1.0] < 0.5 * values[0.0]


@pytest.mark.parametrize(
    ("epoch", "epochs", "factor"),
    [(0.0, None, 1), (9.0, None, 1), (1.0, 4.0, 1), (2.0, 4.0, 0.75), (5.0, 4.0, 0), (9.0, 4.0, 0)],
)
def test_the_auxiliary_loss_falls_linearly_over_its_noisy_epochs(epoch, epochs, factor):
    method = SpikingBayes(bias_weight=0.3, bias_epochs=epochs, mean_epochs=1.0 if epochs else 0.0, kl_weight=0.0)
    prepared = method.prepare(deep_network())
    method.progress = Progress(epoch, 32)
    step = training_step(method, prepared)
    mean = torch.stack([value for name, value in step.metrics.items() if name.startswith("bias/")]).mean()
    torch.testing.assert_close(step.objective.detach() - step.loss, 0.3 * factor * mean, rtol=1e-4, atol=1e-6)


def test_without_weight_there_is_neither_loss_nor_curve():
    for options in ({}, {"bias_weight": 1.0, "mean_epochs": 1.0}):
        method = SpikingBayes(kl_weight=0.0, lam=1.0, **options)
        step = training_step(method, method.prepare(deep_network()))
        assert not [name for name in step.metrics if not name.startswith("variance_factor/")]
        assert step.objective == step.loss


def test_chi_squared_is_looked_at_every_so_many_steps_and_is_that_of_the_gradient():
    method = SpikingBayes(lam=0.25, kl_weight=0.0)
    prepared = method.prepare(deep_network())
    looks = []
    for step in range(MONITOR_EVERY + 1):
        method.progress = replace(method.progress, step=step)
        looks.append(training_step(method, prepared).metrics)
    assert [index for index, metrics in enumerate(looks) if metrics] == [0, MONITOR_EVERY]
    scores = {}
    names = {module: name for name, module in prepared.named_modules()}
    torch.manual_seed(1)
    with noise(0.25, observe=lambda layer, t: scores.update({f"chi_squared/{names[layer]}": t.detach()})):
        run(prepared, order_of_events(16)[0])
    assert [name for name in looks[0] if name.startswith("chi_squared")] == list(scores)
    for name, t in scores.items():
        slope = iwst_weight(t, torch.zeros_like(t), 1.0).square()
        torch.testing.assert_close(looks[0][name], (slope * chi_squared(t, 0.25)).sum() / slope.sum())
    # the variance of the summed gradient over its squares, by the weights of many samples
    t = scores["chi_squared/1"][:200, :3].flatten()
    spikes = (torch.randn(4000, t.numel()) < t).float()
    weights = iwst_weight(t.expand_as(spikes), spikes, 0.25)
    measured = weights.var(0).sum() / iwst_weight(t, t, 1.0).square().sum()
    slope = iwst_weight(t, t, 1.0).square()
    assert measured.item() == pytest.approx(((slope * chi_squared(t, 0.25)).sum() / slope.sum()).item(), rel=0.1)


def test_estimators_of_unknown_variance_are_not_looked_at():
    method = SpikingBayes(kl_weight=0.0, estimator="agr")
    assert not training_step(method, method.prepare(deep_network())).metrics


@pytest.mark.parametrize("options", [{"lam": 1.0}, {"estimator": "straight_through"}], ids=str)
def test_straight_through_has_a_factor_by_depth_but_no_chi_squared(options):
    method = SpikingBayes(kl_weight=0.0, **options)
    metrics = training_step(method, method.prepare(deep_network())).metrics
    assert list(metrics) == [f"variance_factor/{name}" for name in ("1", "2.branch.1", "4", "all")]


def test_saturated_units_are_warned_of_once_by_name():
    network = nn.Sequential(nn.Linear(2, 6), LIF(0.8), nn.Linear(6, 6), LIF(0.8), nn.Linear(6, 2))
    method = SpikingBayes(lam=0.0, kl_weight=0.0)
    prepared = method.prepare(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_step(method, prepared)
    with torch.no_grad():
        prepared[2].bias.fill_(10.0)  # every unit of the next layer fires for certain
    method._steps = 0
    with pytest.warns(UserWarning, match=r"exceeds 10 times its square in 3, because units there are saturated"):
        training_step(method, prepared)
    method._steps = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_step(method, prepared)


class Logged(pl.Callback):
    """The names of all values logged while training."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.names.append({name for name in trainer.callback_metrics if name.startswith("train/")})


def test_what_the_method_measures_is_logged_by_layer():
    logged, method = Logged(), SpikingBayes(bias_weight=1e-3)
    module = SpikingModule(deep_network(), method, num_classes=2)
    trainer(logged, max_epochs=1, log_every_n_steps=1).fit(module, loader(*order_of_events(16), 16))
    units = ("1", "2.branch.1", "4")
    expected = {
        "train/kl",
        *(f"train/{kind}/{name}" for kind in ("bias", "chi_squared", "variance_factor") for name in units),
    }
    assert expected <= logged.names[0]
    assert {f"train/bias/{name}" for name in units} <= logged.names[1]


# once an optimizer step


def test_accumulated_gradients_are_those_of_the_whole_batch(monkeypatch):
    """Without the noise of the readout, which is new in every batch."""
    monkeypatch.setattr(noisy, "sample", lambda mean, variance, generator: mean)
    states = []
    for batch_size, accumulate in ((16, 1), (8, 2)):
        torch.manual_seed(0)
        module = SpikingModule(
            nn.Sequential(LIF(0.9), nn.Linear(2, 2)),
            SpikingBayes(kl_weight=0.5, warmup_epochs=0),
            num_classes=2,
            optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        ).double()
        x, y = order_of_events(8)
        fitting = trainer(max_steps=1, accumulate_grad_batches=accumulate)
        fitting.fit(module, loader(3 * x.double(), y, batch_size))
        assert fitting.global_step == 1
        states.append(dict(module.network.named_parameters()))
    assert len(states[0]) == 4
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias_weight": -1.0}, "argument `bias_weight` to be a finite number of at least 0, but got -1.0"),
        ({"bias_form": "mean"}, "argument `bias_form` to be one of 'snr', 'hinge', 'synapse', but got 'mean'"),
        ({"bias_epochs": 0}, "argument `bias_epochs` to be a finite number larger than 0, but got 0"),
        ({"mean_epochs": -1}, "argument `mean_epochs` to be a finite number of at least 0, but got -1"),
        ({"sampling": "spikes"}, "argument `sampling` to be one of 'noise', 'weights', but got 'spikes'"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_extensions_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        SpikingBayes(**options)
