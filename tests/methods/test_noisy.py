"""Noisy runs, one or many in parallel: shared layers, memory and predictions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.functional import IWST, AnalyticalGumbelRao, estimator_named
from lightning_snn.methods import NoisySpikes, Progress, Regression, SpikingBayes
from lightning_snn.methods.bayes import BayesianLayer
from lightning_snn.nn import MembraneResidual, RecurrentLIF, Sign, posterior_noise
from tests.support.event_order import order_of_events, small_network

X = order_of_events(8)[0]


def flat_network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), LIF(0.8), nn.Linear(6, 6), RecurrentLIF(6, 0.7), nn.Linear(6, 2))


class Opaque(nn.Module):
    """A network that is no chain."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def deep_network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(2, 6)),
        nn.Sequential(nn.Identity(), LIF(0.8)),
        nn.Linear(6, 6),
        MembraneResidual(nn.Sequential(Sign(), nn.Linear(6, 6))),
        RecurrentLIF(6, 0.7),
        nn.Linear(6, 2),
    )


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bayes(network: nn.Module, **options) -> tuple[SpikingBayes, nn.Module]:
    method = SpikingBayes(**options)
    return method, method.prepare(network)


NETWORKS = {
    "chain": deep_network,
    "opaque": lambda: Opaque(deep_network()),
    "noise_first": lambda: nn.Sequential(LIF(0.9), nn.Linear(2, 2), LIF(0.9), nn.Linear(2, 2)),
    "no_neurons": lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 2)),
}


@torch.no_grad()
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("mode", ["moment", "step"])
def test_one_sample_is_one_noisy_run(make, mode):
    method, prepared = bayes(make(), noise_mode=mode)
    (outputs,) = method.sampled_outputs(prepared, X, 1, generator())
    assert outputs.shape == (8, 1, 16, 2)
    assert torch.equal(outputs[:, 0], method.noisy_output(prepared, X, generator()))
    assert not torch.equal(outputs[:, 0], method.noisy_output(prepared, X, generator(4)))


@torch.no_grad()
@pytest.mark.parametrize("method", [SpikingBayes(), NoisySpikes(0.5)], ids=lambda method: type(method).__name__)
def test_samples_have_the_law_of_noisy_runs_and_are_independent(method):
    prepared, x, count = method.prepare(deep_network()), X[:, :1], 2000
    samples = torch.cat(method.sampled_outputs(prepared, x, count, generator()), 1)[:, :, 0]
    # copies of the sample in one batch are independent runs too
    runs = method.noisy_output(prepared, x.expand(-1, count, -1), generator(4))
    deviation = (samples.var(1) + runs.var(1)).sqrt() / math.sqrt(count)
    assert ((samples.mean(1) - runs.mean(1)).abs() < 5 * deviation + 1e-6).all()
    assert ((samples.var(1) / runs.var(1)).log().abs() < 5 * 2 / math.sqrt(count) + 0.1).all()
    assert samples.var(1).min() > 0
    last = samples[-1, :, 0] - samples[-1, :, 0].mean()
    assert abs((last[:-1] * last[1:]).mean() / last.var()) < 5 / math.sqrt(count)


class Rows:
    """Counts the rows that reach each of some layers."""

    def __init__(self, *layers: nn.Module) -> None:
        self.rows: dict[nn.Module, list[int]] = {layer: [] for layer in layers}
        for layer in layers:
            layer.register_forward_hook(lambda layer, inputs, output: self.rows[layer].append(output.shape[0]))


@torch.no_grad()
def test_layers_before_the_first_noise_are_computed_once():
    method, prepared = bayes(deep_network(), samples=5)
    rows = Rows(prepared[0][1], prepared[1][1], prepared[2])
    method.predict(prepared, X)
    assert list(rows.rows.values()) == [[128], [128, 4 * 128], [128, 4 * 128]]


@torch.no_grad()
def test_samples_of_weights_share_nothing():
    method, prepared = bayes(deep_network(), samples=5, sampling="weights")
    rows = Rows(prepared[0][1])
    method.predict(prepared, X)
    assert rows.rows[prepared[0][1]] == [128, 4 * 128]


@torch.no_grad()
@pytest.mark.parametrize(("fitting", "chunks"), [(0.5, [1] * 8), (3, [1, 3, 3, 1]), (3.9, [1, 3, 3, 1]), (99, [1, 7])])
@pytest.mark.parametrize("sampling", ["noise", "weights"])
def test_no_more_samples_run_side_by_side_than_the_memory_holds(fitting, chunks, sampling):
    largest = 8 * 16 * 32 * 4  # time steps, batch, neurons and bytes of the widest layer
    memory = fitting * 6 * largest / 2**20
    method, prepared = bayes(small_network(), sampling=sampling, sample_memory=memory)
    rows = Rows(prepared[1])
    outputs = method.sampled_outputs(prepared, X, 8, generator())
    assert [chunk.shape for chunk in outputs] == [(8, each, 16, 2) for each in chunks]
    assert rows.rows[prepared[1]] == [8 * 16 * each for each in chunks]


@torch.no_grad()
@pytest.mark.parametrize("sampling", ["noise", "weights"])
def test_the_law_of_the_samples_does_not_depend_on_the_memory(sampling):
    count, means = 400, []
    for memory in (0.02, 512.0):
        torch.manual_seed(0)
        method, prepared = bayes(small_network(), sampling=sampling, sample_memory=memory)
        samples = torch.cat(method.sampled_outputs(prepared, X[:, :1], count, generator()), 1).mean(0)
        means.append((samples.mean(0), samples.var(0)))
    difference = (means[0][0] - means[1][0]).abs()
    assert (difference < 5 * ((means[0][1] + means[1][1]) / count).sqrt()).all()


@torch.no_grad()
@pytest.mark.parametrize("memory", [1e-9, 512.0])
def test_a_prediction_holds_its_samples_in_the_order_of_their_runs(memory):
    method, prepared = bayes(small_network(), samples=5, sample_memory=memory)
    prediction = method.predict(prepared, X, generator())
    outputs = torch.cat(method.sampled_outputs(prepared, X, 5, generator()), 1)
    assert prediction.samples.shape == (5, 16, 2)
    for sample, output in zip(prediction.samples, outputs.unbind(1), strict=True):
        torch.testing.assert_close(sample, output.mean(0).softmax(-1))
    torch.testing.assert_close(prediction.mean, prediction.samples.mean(0))
    assert len(torch.unique(prediction.samples, dim=0)) == 5


@torch.no_grad()
@pytest.mark.parametrize("memory", [1e-9, 512.0])
@pytest.mark.parametrize("make", [flat_network, lambda: Opaque(flat_network())], ids=["chain", "opaque"])
def test_samples_of_weights_are_networks_drawn_from_the_posterior(memory, make):
    method, prepared = bayes(make().double(), samples=4, sampling="weights", sample_memory=memory)
    x = X.double()
    prediction = method.predict(prepared, x, generator())
    if memory < 1:
        source = generator()
        alone = [run(method.posterior_sample(prepared, source), x).mean(0).softmax(-1) for _ in range(4)]
        torch.testing.assert_close(prediction.samples, torch.stack(alone), rtol=1e-9, atol=1e-9)
    # a network that is drawn has no other noise: the same sample twice in a batch has the same output
    twice = method.predict(prepared, torch.cat([x, x], 1), generator()).samples
    torch.testing.assert_close(twice[:, :16], twice[:, 16:], rtol=1e-9, atol=1e-9)
    assert prediction.samples.std(0).max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("sampling", ["noise", "weights"])
def test_samples_follow_the_generator_alone_or_else_the_global_seed(sampling):
    method, prepared = bayes(small_network(), samples=3, sampling=sampling)
    state = torch.get_rng_state()
    one, same, other = (method.predict(prepared, X, generator(seed)).samples for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    seeded = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seeded.append(method.predict(prepared, X).samples)
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


@torch.no_grad()
@pytest.mark.parametrize("sampling", ["noise", "weights"])
def test_samples_inform_about_the_model(sampling):
    most = {}
    for samples in (1, 16):
        method, prepared = bayes(small_network(), samples=samples, sampling=sampling)
        prediction = method.predict(prepared, X)
        assert prediction.mutual_information.min() >= -1e-6
        most[samples] = prediction.mutual_information.max()
    assert most[1] == 0
    assert most[16] > 1e-3


@torch.no_grad()
def test_without_samples_every_time_step_is_predicted_as_from_the_steps_so_far():
    method, prepared = bayes(deep_network(), samples=0)
    anytime = method.predict_anytime(prepared, X)
    assert anytime.samples is None
    for step in range(8):
        torch.testing.assert_close(anytime.mean[step], method.predict(prepared, X[: step + 1]).mean)
    assert not torch.allclose(anytime.mean[3], anytime.mean[7])


@torch.no_grad()
def test_networks_that_are_drawn_predict_every_time_step_as_from_the_steps_so_far():
    method, prepared = bayes(deep_network().double(), samples=3, sampling="weights")
    x = X.double()
    anytime = method.predict_anytime(prepared, x, generator())
    assert anytime.samples.shape == (3, 8, 16, 2)
    for step in range(8):
        alone = method.predict(prepared, x[: step + 1], generator())
        torch.testing.assert_close(anytime.samples[:, step], alone.samples, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(anytime.mean[step], alone.mean, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_noisy_predictions_after_the_last_step_are_those_of_the_whole():
    method, prepared = bayes(deep_network(), samples=6)
    anytime, whole = method.predict_anytime(prepared, X, generator()), method.predict(prepared, X, generator())
    torch.testing.assert_close(anytime.samples[:, -1], whole.samples)
    torch.testing.assert_close(anytime.mean[-1], whole.mean)
    assert anytime.mutual_information.shape == (8, 16)


@torch.no_grad()
def test_a_regression_predicts_mean_and_variance_of_its_samples():
    method, prepared = bayes(small_network(), samples=6)
    method.task = Regression("last")
    prediction = method.predict(prepared, X, generator())
    outputs = torch.cat(method.sampled_outputs(prepared, X, 6, generator()), 1)[-1]
    torch.testing.assert_close(prediction.mean, outputs.mean(0))
    torch.testing.assert_close(prediction.variance, outputs.var(0, correction=0))


def test_samples_have_no_gradient_and_one_noisy_run_has():
    method, prepared = bayes(small_network())
    assert not method.sampled_outputs(prepared, X, 3)[0].requires_grad
    method.noisy_output(prepared, X).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in prepared.parameters())


@torch.no_grad()
def test_predictions_leave_neither_hooks_nor_contexts_nor_changes():
    for sampling in ("noise", "weights"):
        method, prepared = bayes(deep_network(), samples=3, sampling=sampling)
        expected, state = run(prepared, X), copy.deepcopy(prepared.state_dict())
        method.predict(prepared, X)
        assert torch.equal(run(prepared, X), expected)
        assert not any(module._forward_hooks for module in prepared.modules())
        assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
    prepared[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.predict(prepared, X)
    assert [len(module._forward_hooks) for module in prepared.modules() if module._forward_hooks] == [1]


@pytest.mark.parametrize(
    ("precision", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str
)
@pytest.mark.parametrize("sampling", ["noise", "weights"])
def test_samples_are_predicted_in_other_precisions(precision, expected, sampling):
    double = precision == torch.float64
    network, x = (deep_network().double(), X.double()) if double else (deep_network(), X)
    method, prepared = bayes(network, samples=3, sampling=sampling)
    with torch.autocast("cpu", torch.bfloat16, enabled=not double):
        prediction = method.predict(prepared, x)
        loss = nn.functional.cross_entropy(method.noisy_output(prepared, x).mean(0).float(), torch.zeros(16).long())
    assert prediction.samples.dtype == expected
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in prepared.parameters())


@pytest.mark.parametrize(
    "estimator",
    ["straight_through", "reinmax", "darn_mean", "agr", "gumbel_rao", "gumbel_straight_through", IWST(0.3)],
    ids=str,
)
@pytest.mark.parametrize("kind", [SpikingBayes, NoisySpikes])
@pytest.mark.parametrize("mode", ["moment", "step"])
def test_every_estimator_trains(estimator, kind, mode):
    method = kind(estimator=estimator, noise_mode=mode)
    method.progress = Progress(1.0, 16)
    prepared = method.prepare(deep_network())
    before = [parameter.detach().clone() for parameter in prepared.parameters()]
    optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
    method.training_step(prepared, X, torch.arange(16) % 2).objective.backward()
    optimizer.step()
    for parameter, start in zip(prepared.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, start)
    assert method.estimator == estimator_named(estimator)
    named = estimator_named(estimator) != IWST(method.lam)
    assert (f"estimator={method.estimator}" if named else f"lam={method.lam:g}") in repr(method)


def test_estimators_agree_on_spikes_and_differ_in_gradients():
    gradients: list[Tensor] = []
    losses = []
    for estimator in (None, "straight_through", "reinmax", "agr", AnalyticalGumbelRao(0.3, noise="gaussian")):
        torch.manual_seed(0)
        method, prepared = bayes(deep_network(), estimator=estimator, kl_weight=0.0)
        step = method.training_step(prepared, X, torch.arange(16) % 2)
        losses.append(step.loss)
        gradients.append(torch.autograd.grad(step.objective, prepared[0][1].weight)[0])
    assert len({loss.item() for loss in losses}) == 1
    for index, one in enumerate(gradients):
        assert all((one - other).abs().max() > 1e-4 for other in gradients[:index])


def test_lambda_is_an_estimator_too():
    assert SpikingBayes(lam=0.3).estimator == IWST(0.3)
    assert SpikingBayes(lam=0.3, estimator="reinmax").estimator == IWST(0.0)
    assert "lam=0.3" in repr(SpikingBayes(lam=0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -0.1}, "argument `lam` to be a number from 0 to 1, but got -0.1"),
        ({"noise_mode": "white"}, "argument `noise_mode` to be one of .* but got 'white'"),
        ({"estimator": "best"}, "argument `estimator` to be .* but got 'best'"),
        ({"estimator": IWST(0.5, "logistic")}, "argument `estimator` to be of Gaussian noise, but got IWST"),
        ({"samples": True}, "argument `samples` to be an integer of at least 0, but got True"),
        ({"sample_memory": 0}, "argument `sample_memory` to be a finite number larger than 0, but got 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [SpikingBayes, NoisySpikes])
def test_bad_arguments_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        kind(**options)


def test_no_samples_are_refused_where_some_are_asked_for():
    method, prepared = bayes(small_network())
    with pytest.raises(ValueError, match="argument `count` to be an integer of at least 1, but got 0"):
        method.sampled_outputs(prepared, X, 0)


def test_the_observer_of_a_noisy_run_sees_every_layer_of_neurons():
    method, prepared = bayes(deep_network())
    seen: list[nn.Module] = []
    method.noisy_output(prepared, X, observe=lambda layer, t: seen.append(layer))
    assert seen == [prepared[1][1], prepared[3].branch[0], prepared[4]]


def test_a_run_within_posterior_noise_is_what_the_method_runs():
    method, prepared = bayes(deep_network(), lam=1.0)
    with posterior_noise(1.0, generator=(source := generator())):
        moments = run(prepared, X)
    noise = torch.randn(moments.shape, generator=source)
    expected = moments.expectation + (moments.variance + 1e-8).sqrt() * noise
    torch.testing.assert_close(method.noisy_output(prepared, X, generator()), expected)
    assert sum(isinstance(module, BayesianLayer) for module in prepared.modules()) == 5
