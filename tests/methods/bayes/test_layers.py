"""Bayesian layers: moments and traces against drawn weights, draws against networks of their own, the mean mode against
the plain layer, the KL against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from lightning_snn import run
from lightning_snn.functional import noisy_lif
from lightning_snn.methods.bayes import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.methods.bayes.conversion import to_plain
from lightning_snn.nn import LIF, LeakyIntegrator, Moments, RecurrentLIF, Sign, folded, posterior_noise, weight_draws
from lightning_snn.nn.noise import WeightDraws

DRAWS = 2000
GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": (1, 2)},
    "same": {"padding": "same"},
    "dilation": {"dilation": 2, "padding": 1},
    "groups": {"groups": 2, "stride": (2, 1), "padding": 1},
    "depthwise": {"groups": 4, "padding": 1, "bias": False},
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def conv(geometry: dict) -> tuple[BayesConv2d, nn.Conv2d]:
    """A Bayesian convolution with random moments, and the plain one with its mean weights."""
    layer, plain = BayesConv2d(4, 4, 3, **geometry), nn.Conv2d(4, 4, 3, **geometry)
    randomize(layer)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "log_std" not in name})
    return layer, plain


def randomize(layer: BayesianLayer) -> BayesianLayer:
    with torch.no_grad():
        layer.weight_log_std.uniform_(-2, 0)
        if layer.bias is not None:
            layer.bias.normal_()
            layer.bias_log_std.uniform_(-2, 0)
    return layer


def assert_moments(samples: Tensor, moments: Moments) -> None:
    assert ((samples.mean(0) - moments.expectation).abs() < 5 * (moments.variance / DRAWS).sqrt()).all()
    assert ((samples.var(0) / moments.variance - 1).abs() < 5 * math.sqrt(2 / DRAWS)).all()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_the_moments_of_drawn_weights(bias):
    layer, x = BayesLinear(6, 4, bias=bias), torch.randn(3, 6)
    randomize(layer)
    with posterior_noise():
        moments = layer(x)
    samples = torch.stack([F.linear(x, *layer.sample_weights()) for _ in range(DRAWS)])
    assert_moments(samples, moments)


@torch.no_grad()
@every_geometry
def test_a_convolution_has_the_moments_of_drawn_weights(geometry):
    layer, x = conv(geometry)[0], torch.randn(2, 4, 5, 4)
    with posterior_noise():
        moments = layer(x)
    shape = layer.stride, layer.padding, layer.dilation, layer.groups
    samples = torch.stack([F.conv2d(x, *layer.sample_weights(), *shape) for _ in range(DRAWS)])
    assert_moments(samples, moments)


@torch.no_grad()
@pytest.mark.parametrize(
    "geometry",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": 2, "dilation": 2}, {"padding": "same", "bias": False}],
    ids=str,
)
def test_a_convolution_over_one_dimension_has_the_moments_of_drawn_weights(geometry):
    layer, x = randomize(BayesConv1d(4, 4, 3, **geometry)), torch.randn(2, 4, 7)
    with posterior_noise():
        moments = layer(x)
    shape = layer.stride, layer.padding, layer.dilation, layer.groups
    samples = torch.stack([F.conv1d(x, *layer.sample_weights(), *shape) for _ in range(DRAWS)])
    assert_moments(samples, moments)
    plain = nn.Conv1d(4, 4, 3, **geometry)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "log_std" not in name})
    assert torch.equal(layer(x), plain(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BayesLinear(6, 4), (3, 6)),
        (lambda: BayesConv1d(2, 4, 3, groups=2), (2, 2, 5)),
        (lambda: BayesConv2d(2, 3, 3, 2, 1), (2, 2, 4, 4)),
    ],
    ids=["Linear", "Conv1d", "Conv2d"],
)
def test_of_a_gaussian_input_the_moments_are_those_of_drawn_inputs_and_weights(make, shape):
    layer, draws = randomize(make()), 4000
    x = Moments(torch.randn(shape), torch.rand(shape) + 0.2)
    with posterior_noise():
        moments, of_the_mean = layer(x), layer(x.expectation)
    drawn = x.expectation + x.variance.sqrt() * torch.randn(draws, *shape)
    samples = torch.stack([layer.linear_map(each, *layer.sample_weights()) for each in drawn])
    assert ((samples.mean(0) - moments.expectation).abs() < 5 * (moments.variance / draws).sqrt()).all()
    # products of Gaussians have heavier tails than Gaussians, which the error of a variance depends on
    centered = (samples - samples.mean(0)).square()
    assert ((centered.mean(0) - moments.variance).abs() < 5 * centered.std(0) / math.sqrt(draws)).all()
    assert ((centered.mean(0) - of_the_mean.variance).abs() > 5 * centered.std(0) / math.sqrt(draws)).any()


@torch.no_grad()
@every_geometry
@pytest.mark.parametrize("values", ["spikes", "signs"])
def test_the_shortcut_for_binary_inputs_gives_the_moments_of_the_general_path(geometry, values):
    layer, x = conv(geometry)[0], torch.randint(0, 2, (3, 4, 5, 4)).float()
    x = x if values == "spikes" else 2 * x - 1
    with posterior_noise():
        expected = layer(x)
        layer.input_values = values
        moments = layer(x)
        wrong = layer(x + 0.5)
        layer.input_values = "real"
        right = layer(x + 0.5)
    assert torch.equal(moments.expectation, expected.expectation)
    if values == "spikes":
        assert torch.equal(moments.variance, expected.variance)
    else:  # one row is computed, which a matrix product may sum in another order than many
        torch.testing.assert_close(moments.variance, expected.variance, rtol=1e-6, atol=0)
    assert not torch.allclose(wrong.variance, right.variance, rtol=1e-2)


@every_geometry
def test_outside_posterior_noise_a_convolution_is_the_plain_one(geometry):
    (layer, plain), x = conv(geometry), torch.randn(2, 4, 5, 4)
    assert torch.equal(layer(x), plain(x))
    with posterior_noise():
        assert torch.equal(layer(x).expectation, plain(x))
    with posterior_noise(None):
        assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("bias", [True, False])
def test_outside_posterior_noise_a_linear_layer_is_the_plain_one(bias):
    layer, plain, x = BayesLinear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias), torch.randn(3, 6)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "log_std" not in name})
    assert torch.equal(layer(x), plain(x))


def test_weights_of_a_plain_layer_load_into_the_mean():
    for layer, plain in ((BayesLinear(6, 4), nn.Linear(6, 4)), conv({})):
        missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
        assert set(missing) == {"weight_log_std", "bias_log_std"}
        assert unexpected == []


@pytest.mark.parametrize(
    "make", [lambda: BayesLinear(6, 4, prior_scale=0.7), lambda: BayesConv2d(2, 4, 3, prior_scale=0.7)]
)
def test_the_kl_is_that_of_torch_distributions(make):
    layer = make().double()
    randomize(layer)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    prior = 0.7 / math.sqrt(layer.weight[0].numel()) * one
    expected = (
        kl_divergence(Normal(layer.weight, layer.weight_log_std.exp()), Normal(zero, prior)).sum()
        + kl_divergence(Normal(layer.bias, layer.bias_log_std.exp()), Normal(zero, one)).sum()
    )
    torch.testing.assert_close(layer.kl(), expected, rtol=1e-12, atol=0)


def test_the_kl_of_the_prior_from_itself_is_zero():
    layer = BayesLinear(16, 4, bias=False, kappa=0.8, prior_scale=0.8).double()
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.weight_log_std, math.log(0.8 / 4))
    assert layer.kl().item() == pytest.approx(0, abs=1e-12)
    assert BayesLinear(16, 4, bias=False, kappa=0.5).kl() > 1


def test_the_posterior_starts_with_the_stated_width():
    layer = BayesConv2d(4, 8, 3, kappa=0.3)
    torch.testing.assert_close(layer.variances()[0], torch.full((8, 4, 3, 3), 0.3**2 / 36))


def test_the_log_std_acts_clamped_and_keeps_everything_finite():
    layer, x = BayesLinear(6, 4), torch.randn(3, 6)
    for value, clamped in ((-50.0, -10.0), (50.0, 2.0)):
        nn.init.constant_(layer.weight_log_std, value)
        torch.testing.assert_close(layer.variances()[0], torch.full((4, 6), math.exp(2 * clamped)))
        with posterior_noise():
            moments = layer(x)
        (moments.variance.sum() + layer.kl()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_moments_differentiate_into_mean_and_width():
    layer = BayesLinear(6, 4)
    with posterior_noise():
        moments = layer(torch.rand(3, 6))
    (moments.expectation.sum() + moments.variance.sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_without_input_the_variance_is_that_of_the_bias_and_gradients_stay_finite(mode, lam):
    network = nn.Sequential(BayesLinear(6, 4, bias=False), LIF(), BayesLinear(4, 2))
    network[0].targets = (network[1],)
    seen = []
    with posterior_noise(lam, mode, observe=lambda layer, t: seen.append(t)):
        moments = run(network, torch.zeros(5, 3, 6))
    (moments.expectation.sum() + moments.variance.sum() + sum(t.sum() for t in seen)).backward()
    assert seen[0].isfinite().all()
    torch.testing.assert_close(moments.variance.detach(), network[2].variances()[1].detach().expand(5, 3, 2))
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_network_within_posterior_noise_returns_moments_and_outside_the_plain_output():
    network, x = nn.Sequential(BayesLinear(6, 5), LIF(), BayesLinear(5, 2)), torch.randn(4, 3, 6)
    plain = nn.Sequential(nn.Linear(6, 5), LIF(), nn.Linear(5, 2))
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "log_std" not in name})
    assert torch.equal(run(network, x), run(plain, x))
    with posterior_noise():
        output = run(network, x)
    assert isinstance(output, Moments)
    assert output.shape == (4, 3, 2)


def test_two_draws_of_the_weights_differ():
    layer = BayesLinear(6, 4)
    assert not torch.equal(layer.sample_weights()[0], layer.sample_weights()[0])
    assert BayesLinear(6, 4, bias=False).sample_weights()[1] is None


# noise of weights that are kept for a sequence


def membrane(layer: BayesianLayer, x: Tensor, mode: str, beta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance `[T, B, ...]` of the membranes that decide on spikes, read from two thresholds out of reach."""
    scores = []
    for threshold in (50.0, 60.0):
        network = nn.Sequential(layer, LIF(beta, threshold))
        layer.targets = (network[1],)
        with posterior_noise(1.0, mode, observe=lambda _, t: scores.append(t)):
            assert run(network, x).sum() == 0
    deviation = 10 / (scores[0] - scores[1])
    return tuple(value.unflatten(0, x.shape[:2]) for value in (scores[0] * deviation + 50, deviation.square()))


def static_membranes(layer: BayesianLayer, x: Tensor, beta: float, count: int) -> Tensor:
    """Membranes `[K, T, B, ...]` of `count` networks, each with one draw of the weights for the whole sequence."""
    with weight_draws(count):
        output = run(nn.Sequential(layer, LeakyIntegrator(beta)), x.repeat(1, count, *(1,) * (x.dim() - 2)))
    return output.unflatten(1, (count, -1)).transpose(0, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: BayesLinear(8, 3), (6, 2, 8)),
        (lambda: BayesLinear(8, 3, bias=False), (6, 2, 8)),
        (lambda: BayesLinear(8, 3), (6, 1, 3, 8)),
        (lambda: BayesConv1d(2, 3, 3, padding=1), (6, 1, 2, 4)),
        (lambda: BayesConv2d(2, 4, 3, stride=2, padding=1, groups=2), (6, 1, 2, 4, 4)),
    ],
    ids=["linear", "without_bias", "rows", "conv1d", "conv2d"],
)
def test_a_trace_gives_the_membrane_of_weights_that_are_kept_for_the_sequence(make, shape):
    beta, draws = 0.9, 20_000
    layer, x = randomize(make()).double(), (torch.rand(shape) < 0.3).double()
    x[0].fill_(1)  # every input has fired, so that no variance is 0
    samples = static_membranes(layer, x, beta, draws)
    mean, variance = membrane(layer, x, "trace", beta)
    assert ((samples.mean(0) - mean).abs() < 5 * (variance / draws).sqrt()).all()
    assert ((samples.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / draws)).all()
    # noise that is new at every step adds up to less
    understated = membrane(layer, x, "moment", beta)[1] / variance
    torch.testing.assert_close(understated[0], torch.ones_like(understated[0]), rtol=1e-6, atol=0)
    assert understated[-1].max() < 0.75


@torch.no_grad()
def test_a_moment_is_the_variance_of_the_membranes_that_mode_step_draws():
    draws, beta, threshold = 20_000, 0.8, 60.0
    mean, variance = torch.randn(6, 1).double(), torch.rand(6, 1).double() + 0.2
    layer, scores = LIF(beta, threshold), []
    for mode in ("moment", "step"):
        with posterior_noise(1.0, mode, observe=lambda _, t: scores.append(t.unflatten(0, (6, -1)))), folded(6):
            layer(Moments(mean.expand(6, draws).flatten()[:, None], variance.expand(6, draws).flatten()[:, None]))
    # what is drawn is the membrane without the noise of the step itself
    drawn = scores[1].squeeze(-1) * (variance + 1e-8).sqrt() + threshold
    total_variance, past = torch.zeros(()).double(), torch.zeros(()).double()
    for t in range(6):
        past = beta * past + mean[t, 0]
        total_variance = beta**2 * total_variance + variance[t, 0]
        torch.testing.assert_close(scores[0][t, 0, 0], (past - threshold) / (total_variance + 1e-8).sqrt())
        assert abs(drawn[t].mean() - past) < 5 * (total_variance / draws).sqrt()
        conditional = total_variance - variance[t, 0]
        assert abs(drawn[t].var() - conditional) < 5 * math.sqrt(2 / draws) * conditional + 1e-12


@pytest.mark.parametrize("learn_beta", [False, True])
def test_gradients_through_a_trace_are_those_of_its_equations(learn_beta):
    network = nn.Sequential(randomize(BayesLinear(3, 2)), LIF(0.7, 50.0, learn_beta=learn_beta)).double()
    layer, lif = network
    layer.targets = (lif,)
    x, seen = torch.rand(4, 2, 3, dtype=torch.float64, requires_grad=True), []
    with posterior_noise(1.0, "trace", observe=lambda _, t: seen.append(t)):
        run(network, x)
    past, bias, mean, expected = 0.0, 0.0, 0.0, []
    for current in x:
        past, bias, mean = lif.beta * past + current, lif.beta * bias + 1, lif.beta * mean + layer(current)
        variance = past**2 @ layer.variances()[0].T + bias**2 * layer.variances()[1]
        expected.append((mean - 50) / (variance + 1e-8).sqrt())
    inputs, cotangent = [x, *network.parameters()], torch.randn(8, 2, dtype=torch.float64)
    torch.testing.assert_close(seen[0], torch.cat(expected), rtol=1e-10, atol=0)
    gradients = torch.autograd.grad(seen[0], inputs, cotangent)
    for got, reference in zip(gradients, torch.autograd.grad(torch.cat(expected), inputs, cotangent), strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)


def test_a_trace_of_neurons_with_decays_of_their_own_is_refused():
    network = nn.Sequential(BayesLinear(3, 2), LIF([0.5, 0.9]))
    network[0].targets = (network[1],)
    with (
        pytest.raises(ValueError, match='one decay for all neurons of a layer with noise mode "trace", but got 2'),
        posterior_noise(1.0, "trace"),
    ):
        run(network, torch.rand(4, 2, 3))


@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_one_scale_for_weights_widths_and_thresholds_changes_nothing(mode):
    def scores(scale: float, scaled: str = "all") -> Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(randomize(BayesLinear(6, 5)), LIF(0.8, 1.3 * (scale if scaled == "all" else 1)))
        network[0].targets = (network[1],)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(parameter + math.log(scale) if "log_std" in name else parameter * scale)
        seen = []
        with posterior_noise(0.5, mode, observe=lambda _, t: seen.append(t)):
            spikes = run(network, torch.randn(7, 3, 6))
        assert 0 < spikes.mean() < 1
        return seen[0]

    torch.testing.assert_close(scores(5.0), scores(1.0), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores(5.0, "all but thresholds"), scores(1.0), rtol=0.1)


# recurrent weights


def recurrent(features: int = 4, **options) -> BayesRecurrentLIF:
    layer = BayesRecurrentLIF(features, 0.8, 0.7, gain=2.0, **options).double()
    with torch.no_grad():
        layer.weight_log_std.uniform_(-2, 0)
    return layer


def test_the_kl_of_recurrent_weights_is_that_of_torch_distributions():
    layer = recurrent(prior_scale=0.7)
    prior = Normal(torch.zeros((), dtype=torch.float64), torch.tensor(0.7 / 2, dtype=torch.float64))
    expected = kl_divergence(Normal(layer.weight, layer.weight_log_std.exp()), prior).sum()
    torch.testing.assert_close(layer.kl(), expected, rtol=1e-12, atol=0)
    assert layer.bias is None


@pytest.mark.parametrize("mode", ["moment", "step"])
def test_the_noise_of_recurrent_weights_reaches_the_spikes(mode):
    layer = recurrent()
    mean, variance = torch.rand(5, 30, 4).double(), torch.rand(5, 30, 4).double() + 0.1
    runs = []
    for recurrent_variance in (layer.variances()[0], None):
        torch.manual_seed(1)
        runs.append(noisy_lif(mean, variance, 0.8, 0.7, layer.dynamics, 0.5, mode, layer.weight, recurrent_variance)[0])
    torch.manual_seed(1)
    with posterior_noise(0.5, mode), folded(5):
        spikes = layer(Moments(mean, variance).flatten(0, 1))
    assert torch.equal(spikes.unflatten(0, (5, 30)), runs[0])
    assert not torch.equal(runs[0], runs[1])
    assert torch.autograd.grad(spikes.sum(), layer.weight_log_std)[0].abs().max() > 0


@torch.no_grad()
def test_a_known_input_leaves_the_recurrent_weights_alone_to_be_noisy():
    draws, layer = 20_000, BayesRecurrentLIF(1, 0.5, 1.0)
    layer.weight.fill_(0.4)
    layer.weight_log_std.fill_(math.log(0.3))
    current = torch.tensor([1.5, 0.5]).view(2, 1, 1).expand(2, draws, 1)
    with posterior_noise():
        spikes = run(layer, current)
    assert spikes[0].min() == 1  # nothing is uncertain yet
    membrane = 0.5 * (1.5 - 1) + 0.5 + 0.4
    rate = torch.special.ndtr(torch.tensor((membrane - 1) / 0.3)).item()
    assert abs(spikes[1].mean().item() - rate) < 4.5 * math.sqrt(0.25 / draws)
    assert run(layer, current)[1].max() == 1  # the mean alone


def test_recurrent_noise_of_a_trace_is_refused():
    with pytest.raises(ValueError, match='no recurrent weights with mode "trace"'), posterior_noise(1.0, "trace"):
        run(nn.Sequential(BayesLinear(3, 4).double(), recurrent()), torch.rand(5, 2, 3).double())


def test_outside_posterior_noise_a_recurrent_layer_is_the_plain_one():
    layer, x = recurrent(), torch.rand(6, 3, 4).double()
    plain = RecurrentLIF(4, 0.8, 0.7).double()
    plain.load_state_dict({"weight": layer.weight})
    assert torch.equal(run(layer, x), run(plain, x))
    assert layer.step(x[0])[0].shape == (3, 4)


# draws of weights


def widths() -> nn.Module:
    """A layer of every kind, with posteriors wide enough for draws to differ."""
    network = nn.Sequential(
        BayesConv2d(2, 4, 3, 2, 1, groups=2, gain=3.0),
        LIF(0.7),
        nn.Flatten(2),
        BayesConv1d(4, 3, 2, bias=False, gain=3.0),
        LIF(0.7),
        nn.Flatten(),
        BayesLinear(9, 5, gain=3.0),
        BayesRecurrentLIF(5, 0.7, gain=1.0),
        BayesLinear(5, 2),
        LeakyIntegrator(0.7),
    ).double()
    for layer in network.modules():
        if isinstance(layer, BayesianLayer):
            randomize(layer)
    return network


def each_alone(network: nn.Module, x: Tensor, draws: WeightDraws) -> list[Tensor]:
    """Outputs of the plain networks with draw k of the weights, one network after another."""
    drawn = {layer: layer.draw(draws) for layer in network if isinstance(layer, BayesianLayer)}
    outputs = []
    for k in range(draws.count):
        layers = [
            to_plain(layer, drawn[layer][0][k], None if drawn[layer][1] is None else drawn[layer][1][k])
            if layer in drawn
            else layer
            for layer in network
        ]
        outputs.append(run(nn.Sequential(*layers), x))
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_networks_drawn_side_by_side_are_those_networks_one_by_one(count):
    network, x = widths(), torch.rand(6, 2, 2, 4, 4).double()
    expected = each_alone(network, x, WeightDraws(count, torch.Generator().manual_seed(3)))
    with weight_draws(count, torch.Generator().manual_seed(3)):
        outputs = run(network, x.repeat(1, count, 1, 1, 1))
    assert outputs.shape == (6, 2 * count, 2)
    torch.testing.assert_close(outputs, torch.cat(expected, 1), rtol=1e-9, atol=1e-9)
    if count > 1:
        assert (expected[0] - expected[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("dimensions", [(), (3,), (2, 3)], ids=str)
def test_draws_of_a_linear_layer_act_on_rows_of_any_shape(dimensions):
    layer, x = randomize(BayesLinear(6, 4)).double(), torch.randn(5, 2, *dimensions, 6).double()
    expected = each_alone(nn.Sequential(layer), x, WeightDraws(3, torch.Generator().manual_seed(3)))
    with weight_draws(3, torch.Generator().manual_seed(3)):
        outputs = run(layer, x.repeat(1, 3, *(1,) * (x.dim() - 2)))
    torch.testing.assert_close(outputs, torch.cat(expected, 1), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_layer_that_is_called_twice_keeps_its_draws_until_the_context_ends():
    layer, x = BayesLinear(6, 4), torch.randn(8, 6)
    with weight_draws(2):
        once = layer(x)
        assert torch.equal(layer(x), once)
    with weight_draws(2):
        assert not torch.equal(layer(x), once)


@torch.no_grad()
def test_layers_that_share_a_parameter_share_its_draws():
    layer, other = BayesLinear(6, 6), BayesLinear(6, 6)
    other.weight, other.weight_log_std = layer.weight, layer.weight_log_std
    draws = WeightDraws(2)
    assert torch.equal(layer.draw(draws)[0], other.draw(draws)[0])
    assert not torch.equal(layer.draw(draws)[1], other.draw(draws)[1])


def test_draws_have_the_moments_of_the_posterior_and_differentiate_into_it():
    layer = randomize(BayesLinear(3, 2))
    for drawn, mean, variance in zip(
        layer.draw(WeightDraws(DRAWS)), (layer.weight, layer.bias), layer.variances(), strict=True
    ):
        assert_moments(drawn, Moments(mean, variance))
    layer.draw(WeightDraws(2))[0].sum().backward()
    assert layer.weight.grad.tolist() == [[2.0] * 3] * 2
    assert layer.weight_log_std.grad.abs().min() > 0


@pytest.mark.parametrize("make", [lambda: BayesLinear(3, 2), Sign, LIF], ids=["BayesLinear", "Sign", "LIF"])
def test_a_gaussian_activation_outside_posterior_noise_is_refused(make):
    layer = make()
    moments = Moments(torch.zeros(2, 3), torch.ones(2, 3))
    with (
        pytest.raises(RuntimeError, match=f"{type(layer).__name__} (was|received) .* outside `posterior_noise`"),
        folded(1),
    ):
        layer(moments)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_moments_and_draws_have_the_dtype_of_the_computation(precision):
    network = nn.Sequential(BayesConv2d(1, 2, 3), LIF(), nn.Flatten(), BayesLinear(8, 4), BayesRecurrentLIF(4))
    x = torch.randn(5, 2, 1, 4, 4)
    if precision == torch.float64:
        network, x = network.double(), x.double()
    for context in (posterior_noise(), weight_draws(1), posterior_noise(0.5, "step")):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16), context:
            output = run(network, x)
        assert output.dtype == precision
        gradients = torch.autograd.grad(output.float().sum(), list(network.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(
            gradient.dtype == parameter.dtype
            for gradient, parameter in zip(gradients, network.parameters(), strict=True)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesLinear(6, 4, kappa=0.0), "argument `kappa` to be a finite number larger than 0, but got 0.0"),
        (
            lambda: BayesConv2d(2, 4, 3, prior_scale=-1),
            "argument `prior_scale` to be a finite number larger than 0, but got -1",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_repr_shows_the_geometry():
    assert repr(BayesLinear(6, 4, bias=False)) == "BayesLinear(6, 4, bias=False)"
    assert repr(BayesConv2d(2, 4, 3, 2, 1, groups=2)) == (
        "BayesConv2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=True)"
    )
