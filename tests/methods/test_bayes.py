"""Spiking Bayesian networks: what they accept, the KL term and how often it counts, predictions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.functional import Dynamics, Smooth
from lightning_snn.methods import Progress, SpikingBayes
from lightning_snn.nn import (
    BayesConv2d,
    BayesianLayer,
    BayesLinear,
    LeakyIntegrator,
    Moments,
    RecurrentLIF,
    SynapticDelays,
)
from lightning_snn.nn import posterior_noise as noise
from tests.contract.task import loader, order_of_events, small_network, trainer


def conv_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        LIF([0.5, 0.6, 0.7, 0.8], learn_beta=True),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
        RecurrentLIF(5),
        nn.Linear(5, 3),
        LeakyIntegrator(),
    )


def test_every_linear_and_convolution_gets_a_posterior_and_nothing_else_changes():
    network = conv_network()
    prepared = SpikingBayes(kappa=0.3, prior_scale=2.0).prepare(network)
    kinds = {name: type(module) for name, module in network.named_modules()}
    assert {name: type(module) for name, module in prepared.named_modules()} == kinds | {
        "0": BayesConv2d,
        "2.2": BayesLinear,
        "4": BayesLinear,
    }
    convolution = prepared[0]
    assert (convolution.stride, convolution.padding, convolution.bias) == ((2, 2), (1, 1), None)
    assert convolution.prior_scale == 2.0
    assert torch.equal(prepared[1].beta, network[1].beta)
    x = torch.rand(3, 2, 2, 8, 8)
    assert run(prepared, x).shape == run(network, x).shape == (3, 2, 3)


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


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm2d(2), r"1\.0 \(BatchNorm2d\)"),
        (nn.BatchNorm2d(2, affine=False), r"1\.0 \(BatchNorm2d\)"),
        (nn.LayerNorm(4), r"1\.0 \(LayerNorm\)"),
        (nn.Conv1d(2, 2, 3), r"1\.0 \(Conv1d\)"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), r"1\.0 \(Conv2d with padding_mode='reflect'\)"),
        (nn.Embedding(3, 4), r"1\.0 \(Embedding\)"),
        (LIF(order="leak_then_reset"), r"1\.0 \(LIF with order='leak_then_reset'\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_without_a_bayesian_counterpart_is_refused_by_name(layer, kind):
    network = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(layer), LIF(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"for SpikingBayes, but got {kind}\. "):
        SpikingBayes().prepare(network)


def test_all_refused_layers_are_named_at_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), LIF(), nn.PReLU())
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\), 3 \(PReLU\)"):
        SpikingBayes().prepare(network)
    with pytest.raises(ValueError, match=r"the network \(Conv1d\)"):
        SpikingBayes().prepare(nn.Conv1d(2, 2, 3))


def training_step(method: SpikingBayes, network: nn.Module):
    torch.manual_seed(1)
    return method.training_step(network, *order_of_events(16))


def test_the_kl_is_the_sum_over_the_layers():
    method = SpikingBayes()
    prepared = method.prepare(conv_network())
    layers = [module for module in prepared.modules() if isinstance(module, BayesianLayer)]
    assert len(layers) == 3
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


def test_the_argument_train_size_comes_before_what_the_loader_tells():
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


def test_a_loader_of_unknown_length_needs_the_argument(tmp_path):
    def fit(**options) -> None:
        module = SpikingModule(small_network(), SpikingBayes(**options), num_classes=2)
        trainer(tmp_path, max_epochs=1).fit(module, DataLoader(Stream(), batch_size=None))

    fit(train_size=16)
    with pytest.raises(ValueError, match="argument `train_size` of SpikingBayes"):
        fit()


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (8, 2), (4, 4)])
def test_the_kl_counts_once_an_optimiser_step(tmp_path, batch_size, accumulate):
    module = SpikingModule(
        small_network(),
        SpikingBayes(kl_weight=0.5, warmup_epochs=0),
        num_classes=2,
        readout=lambda outputs: 0 * outputs.mean(0),  # no gradient but that of the KL
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
    )
    before = [parameter.detach().clone().requires_grad_() for parameter in module.network.parameters()]
    twin = copy.deepcopy(module.network)
    kl = SpikingBayes().kl(twin)
    expected = [
        parameter - 0.1 * gradient * 0.5 / 16
        for parameter, gradient in zip(before, torch.autograd.grad(kl, list(twin.parameters())), strict=True)
    ]
    fitting = trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate)
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
    sampled = output.mean + (output.variance + 1e-8).sqrt() * torch.randn(output.shape)
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
    driven_by_spikes = prepared[2][2]
    assert driven_by_spikes.binary_input
    assert not prepared[0].binary_input
    x = torch.randn(6, 5, 4)
    variances = []
    for binary in (True, False):
        driven_by_spikes.binary_input = binary
        torch.manual_seed(1)
        with noise(1.0):
            variances.append(run(prepared, x).variance)
    torch.testing.assert_close(*variances)


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
        assert not any(layer.binary_input for layer in layers), name


def test_the_means_learn_first_without_noise_and_by_themselves():
    method = SpikingBayes(mean_epochs=2, warmup_epochs=1, train_size=50)
    prepared = method.prepare(small_network())
    steps = {}
    for epoch in (0.0, 1.9, 2.0, 2.5, 9.0):
        method.progress = Progress(epoch)
        prepared.zero_grad()
        step = training_step(method, prepared)
        step.objective.backward()
        spread = max(layer.weight_log_std.grad.abs().max() for layer in prepared.modules() if hasattr(layer, "kl"))
        steps[epoch] = step.loss, step.objective.detach() - step.loss, spread
    full = method.kl_weight * method.kl(prepared) / 50
    assert torch.equal(steps[0.0][0], steps[1.9][0])  # the same deterministic pass
    assert not torch.equal(steps[1.9][0], steps[2.0][0])  # noise
    assert [bool(spread > 0) for *_, spread in steps.values()] == [False, False, True, True, True]
    for epoch, share in zip(steps, (0, 0, 0, 0.5, 1), strict=True):
        torch.testing.assert_close(steps[epoch][1], share * full.detach(), rtol=1e-4, atol=1e-6)
