"""Neurons that fire by the noise of their current: exact potentials, and gradients of the expected spikes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.estimators import estimator_named
from lightning_snn.nn import LIF, AdaptiveLIF, Moments, Neuron, SynapticLIF, folded, posterior_noise
from lightning_snn.nn.noise import SpikeNoise
from lightning_snn.nn.observation import Traces, observe
from tests.nn.neurons.cases import FEATURES, NEURONS, Quadratic, current

FUSED = ("if", "lif", "lif_zero", "lif_learned", "recurrent_lif")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def moments(dtype: torch.dtype, steps: int = 100) -> tuple[Tensor, Tensor]:
    return current(steps, 3, dtype), (0.1 + current(steps, 3, dtype, seed=1).square()).to(dtype)


def noisy_call(layer: Neuron, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, float | Tensor, Tensor]:
    """Spikes as the network receives them, and spikes, potentials, thresholds and current as an observer does."""
    calls: list = []
    torch.manual_seed(3)
    with (
        observe(layer, lambda call: calls.append((call.spikes, call.membrane(), call.threshold, call.current)), True),
        posterior_noise(0.5, "step"),
        folded(len(mean)),
    ):
        spikes = layer(Moments(mean.flatten(0, 1), variance.flatten(0, 1))).unflatten(0, mean.shape[:2])
    ((seen, potential, threshold, drawn),) = calls
    assert torch.equal(seen, spikes)
    return spikes, potential, threshold, drawn


@DTYPES
@pytest.mark.parametrize("name", [name for name in NEURONS if name not in FUSED])
def test_observed_potentials_of_drawn_currents_exceed_the_threshold_where_the_neuron_spiked(name, dtype):
    layer = NEURONS[name]().to(torch.promote_types(dtype, torch.float32))
    mean, variance = moments(dtype)
    spikes, potential, threshold, drawn = noisy_call(layer, mean, variance)
    assert spikes.dtype == dtype
    assert 0.1 < spikes.float().mean() < 0.9
    assert potential.dtype == drawn.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(potential > threshold, spikes.bool())
    # potentials of the mean current do not show the spikes
    of_mean, mean_threshold = layer.potentials(mean, spikes)
    assert not torch.equal(of_mean > mean_threshold, spikes.bool())


@pytest.mark.parametrize("name", FUSED)
def test_observed_potentials_of_fused_neurons_are_those_of_the_drawn_current_up_to_rounding(name):
    layer = NEURONS[name]().double()
    mean, variance = moments(torch.float64)
    spikes, potential, threshold, drawn = noisy_call(layer, mean, variance)
    assert torch.equal(potential > threshold, spikes.bool())
    # the generic scan on the same draws
    torch.manual_seed(3)
    noise = SpikeNoise(estimator_named(0.5), "step", drawn={layer: None})
    assert torch.equal(Neuron.noisy_scan(layer, mean, variance, noise)[0], spikes)
    torch.testing.assert_close(drawn, noise.drawn[layer], rtol=1e-12, atol=1e-12)


def test_traces_keep_drawn_potentials_and_thresholds():
    layer, traces = AdaptiveLIF(0.8, rho=0.9), Traces(samples=2, membranes=True)
    mean, variance = moments(torch.float32, 20)
    with traces.recording(layer), posterior_noise(0.5, "step"), folded(20):
        layer(Moments(mean.flatten(0, 1), variance.flatten(0, 1)))
    trace = traces.found()["AdaptiveLIF"]
    assert trace.membrane.shape == trace.threshold.shape == (20, 2, FEATURES)
    assert torch.equal(trace.membrane > trace.threshold, trace.spikes.bool())


def test_an_unobserved_run_draws_the_same_numbers_and_hands_out_nothing():
    layer = SynapticLIF()
    mean, variance = moments(torch.float32, 20)
    observed = noisy_call(layer, mean, variance)[0]
    torch.manual_seed(3)
    noise = SpikeNoise(estimator_named(0.5), "step")
    assert torch.equal(layer.noisy_scan(mean, variance, noise)[0], observed)
    assert noise.drawn == {}


@pytest.mark.parametrize("make", [LIF, AdaptiveLIF, SynapticLIF, Quadratic])
def test_without_variance_the_spikes_are_those_of_the_mean_current(make):
    layer, mean = make(), current()
    spikes, _ = layer.noisy_scan(mean, torch.zeros_like(mean), SpikeNoise(estimator_named(0.5), "step"))
    # a floor of 1e-8 under the variance moves no potential across its threshold here
    assert torch.equal(spikes, layer.scan(mean)[0])


MEAN, VARIANCE = (0.9, 0.7, 0.5), (0.3, 0.2, 0.4)
SAMPLES, SHIFT = 400_000, 0.05


def expected_spikes(layer: Neuron, mean: Tensor) -> Tensor:
    """Monte Carlo estimate of the expected number of spikes in three steps, always from the same draws."""
    noise = torch.randn(3, SAMPLES, 1, generator=torch.Generator().manual_seed(11))
    std = torch.tensor(VARIANCE).sqrt().view(3, 1, 1)
    return layer.scan(mean.view(3, 1, 1) + std * noise)[0].double().mean(1).sum()


def finite_differences(layer: Neuron) -> Tensor:
    """Derivative of the expected number of spikes with respect to the mean current of each step.

    Common draws: the difference counts about ``2 * SHIFT * density * SAMPLES`` = 20,000 flips, so its relative standard
    error is below 1 %; the second-order error of the difference is ``(SHIFT / std)^2 / 6``, below 0.3 %.
    """
    mean, found = torch.tensor(MEAN), []
    with torch.no_grad():
        for step in range(3):
            shift = torch.zeros(3)
            shift[step] = SHIFT
            found.append((expected_spikes(layer, mean + shift) - expected_spikes(layer, mean - shift)) / (2 * SHIFT))
    return torch.stack(found)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "make",
    [lambda: LIF(0.8), lambda: AdaptiveLIF(0.8, rho=0.9, strength=0.5), lambda: SynapticLIF(0.5, 0.8)],
    ids=["lif", "adaptive", "synaptic"],
)
def test_gradients_are_those_of_the_expected_spikes_up_to_the_bias_of_the_estimator(make, lam):
    layer = make()
    reference = finite_differences(layer)

    def gradient(steps: slice) -> Tensor:
        """Gradient of the mean number of spikes in some steps."""
        mean = torch.tensor(MEAN, requires_grad=True)
        shape = (3, SAMPLES, 1)
        variance = torch.tensor(VARIANCE).view(3, 1, 1).expand(shape)
        noise = SpikeNoise(estimator_named(lam), "step", torch.Generator().manual_seed(12))
        spikes, _ = layer.noisy_scan(mean.view(3, 1, 1).expand(shape), variance, noise)
        return torch.autograd.grad(spikes[steps].sum() / SAMPLES, mean)[0].double()

    found = gradient(slice(None))
    # that of the last step goes through one spike: exact in expectation, so 2 % are standard errors
    assert found[2].item() == pytest.approx(reference[2].item(), rel=0.02)
    # IW-ST is biased through time, here by at most 3 % of the whole gradient
    assert (found - reference).norm() < 0.04 * reference.norm()
    # without the paths through time it is clearly another
    alone = torch.stack([gradient(slice(step, step + 1))[step] for step in range(3)])
    assert (alone - reference).norm() > 0.1 * reference.norm()
