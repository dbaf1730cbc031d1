"""Every neuron streamed, sampled, copied, saved and wrapped gives the same spikes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import Method, NoisySpikes, SpikingBayes, SurrogateGradient
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn import (
    LeakyIntegrator,
    Moments,
    Recurrent,
    RecurrentLIF,
    folded,
    posterior_noise,
    recurrent,
    weight_draws,
)
from lightning_snn.nn.noise import draws
from lightning_snn.nn.observation import observe
from tests.nn.neurons.cases import NEURONS, current
from tests.support.training import trainer

neurons = pytest.mark.parametrize("name", NEURONS)
SAMPLES = 4


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 4), NEURONS[name](), nn.Linear(4, 3)).to(dtype)
    with torch.no_grad():
        nn.init.normal_(made[0].weight, std=0.9)
        nn.init.constant_(made[0].bias, 0.3)
    return made


@neurons
@pytest.mark.parametrize("windows", [1, 3, 12])
def test_streamed_rates_have_the_values_and_gradients_of_rates(name, windows):
    made = network(name)
    if windows < 12 and not made[1].independent:
        pytest.skip("recurrence needs windows of one step")
    x = torch.rand(12, 5, 4, dtype=torch.float64)
    outputs, gradients = [], []
    for streaming in (False, True):
        outputs.append(rate_run(made, x, windows, streaming))
        loss = outputs[-1].square().sum()
        gradients.append(torch.autograd.grad(loss, list(made.parameters()), allow_unused=True, materialize_grads=True))
    assert torch.equal(*outputs)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0][:2])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@neurons
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_and_chunks_are_the_scan(name, dtype):
    layer, x = NEURONS[name](), current(dtype=dtype)
    layer = layer.double() if dtype == torch.float64 else layer
    spikes, last = layer.scan(x)
    assert 0 < spikes.float().mean() < 1
    state, steps = None, []
    for each in x:
        output, state = layer.step(each, state)
        steps.append(output)
    assert torch.equal(torch.stack(steps), spikes)
    held = torch.promote_types(dtype, torch.float32)
    assert all(leaf.dtype == held for leaf in (*tree_leaves(state), *tree_leaves(last)))
    state, parts = None, []
    for part in x.split([7, 1, len(x) - 8]):
        output, state = layer.scan(part, state)
        parts.append(output)
    assert torch.equal(torch.cat(parts), spikes)
    torch.testing.assert_close(tree_leaves(state), tree_leaves(last))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.scan(x)[0], spikes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_of_a_leaky_integrator_accumulate_as_its_scan(dtype):
    layer, x = LeakyIntegrator(0.97), torch.rand(200, 2, 4).to(dtype)
    outputs, last = layer.scan(x)
    state, steps = None, []
    for each in x:
        output, state = layer.step(each, state)
        steps.append(output)
    assert torch.equal(torch.stack(steps), outputs)
    assert state.dtype == torch.float32
    assert torch.equal(state, last)


@neurons
def test_copies_give_the_same_spikes(name):
    layer, x = NEURONS[name]().double(), current()
    spikes = layer.scan(x)[0]
    loaded = NEURONS[name]().double()
    for parameter in loaded.parameters():
        parameter.data.add_(0.5)
    loaded.load_state_dict(layer.state_dict())
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert list(made.state_dict()) == list(layer.state_dict())
        assert torch.equal(made.scan(x)[0], spikes)


@neurons
def test_a_trained_network_is_saved_and_loaded_by_a_checkpoint(name, tmp_path: Path):
    module = SpikingModule(network(name, torch.float32), SurrogateGradient(), num_classes=3)
    x, y = torch.rand(12, 6, 4), torch.arange(6) % 3
    before = copy.deepcopy(module.network)
    made = trainer(default_root_dir=tmp_path)
    made.fit(module, DataLoader([(x, y)] * 3, batch_size=None))
    made.save_checkpoint(tmp_path / "last.ckpt")
    fresh = network(name, torch.float32)
    loaded = SpikingModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=fresh, method=SurrogateGradient(), num_classes=3, weights_only=False
    )
    outputs = run(loaded.network.cpu(), x)
    assert torch.equal(outputs, run(module.network, x))
    assert not torch.equal(outputs, run(before, x))


METHODS = {
    "noise": lambda: SpikingBayes(noise_mode="step", samples=SAMPLES, sampling="noise"),
    "weights": lambda: SpikingBayes(noise_mode="step", samples=SAMPLES, sampling="weights"),
    "plain_noise": lambda: NoisySpikes(noise_mode="step", samples=SAMPLES),
}


def predicting(name: str, method: Method, dtype: torch.dtype = torch.float32) -> SpikingModule:
    return SpikingModule(network(name, dtype), method, num_classes=3).to(dtype).eval()


@neurons
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast", [False, True])
def test_samples_are_observed_once_and_right(name, method, autocast):
    module, calls = predicting(name, METHODS[method]()), []
    wrapped = isinstance(module.network[1], nn.Sequential)
    assert wrapped == (method == "plain_noise")
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        observe(
            module.network,
            lambda call: calls.append((call.name, call.spikes, call.membrane(), call.threshold)),
            membranes=True,
        ),
    ):
        prediction = module.method.predict(module.network, 2 * torch.rand(6, 5, 4))
    assert prediction.samples.shape == (SAMPLES, 5, 3)
    assert {call[0] for call in calls} == {"1.1" if wrapped else "1"}
    assert sum(call[1].shape[1] for call in calls) == SAMPLES * 5
    for _, spikes, potentials, threshold in calls:
        assert 0 < spikes.float().mean() < 1
        assert torch.equal(potentials > threshold, spikes.bool())


@neurons
def test_draws_of_weights_side_by_side_are_plain_networks(name):
    module = predicting(name, METHODS["weights"](), torch.float64)
    x = 2 * torch.rand(6, 5, 4, dtype=torch.float64)
    with torch.no_grad(), weight_draws(SAMPLES, torch.Generator().manual_seed(1)):
        outputs = run(module.network, x.repeat(1, SAMPLES, 1)).unflatten(1, (SAMPLES, 5))
        drawn = dict(draws().drawn)
    assert drawn
    assert not torch.allclose(outputs[:, 0], outputs[:, 1])
    for index in range(SAMPLES):
        plain = module.method.posterior_mean(module.network)
        parameters = dict(plain.named_parameters())
        for key, parameter in module.network.named_parameters():
            if parameter in drawn:
                parameters[key].data.copy_(drawn[parameter][index])
        torch.testing.assert_close(run(plain, x), outputs[:, index], rtol=0, atol=1e-9)


@neurons
def test_the_posterior_mean_and_a_sample_are_plain_networks_with_the_neurons(name):
    module = predicting(name, METHODS["weights"](), torch.float64)
    x = 2 * torch.rand(6, 5, 4, dtype=torch.float64)
    mean = module.method.posterior_mean(module.network)
    drawn = module.method.posterior_sample(module.network, torch.Generator().manual_seed(1))
    for made in (mean, drawn):
        assert [type(layer) for layer in made] == [type(layer) for layer in network(name)]
        assert list(made.state_dict()) == list(network(name).state_dict())
    torch.testing.assert_close(run(mean, x), run(module.network, x))
    assert not torch.allclose(run(drawn, x), run(mean, x))


@pytest.mark.parametrize("name", [name for name in NEURONS if not name.startswith("recurrent")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noisy_images_of_any_layout_fire_by_the_equations(name, layout):
    layer = NEURONS[name]().double()
    mean = torch.randn(18, 4, 5, 2, dtype=torch.float64).add(0.3).to(memory_format=layout)
    variance = torch.rand(18, 4, 5, 2, dtype=torch.float64).to(memory_format=layout)
    seen: list[tuple[Tensor, Tensor | None]] = []
    with (
        observe(layer, lambda call: seen.append((call.spikes, call.current)), membranes=True),
        posterior_noise(0.5, "step"),
        folded(6),
    ):
        spikes = layer(Moments(mean.requires_grad_(), variance))
    spikes.sum().backward()
    assert mean.grad.isfinite().all()
    assert mean.grad.abs().max() > 0
    ((observed, drawn),) = seen
    assert torch.equal(observed.flatten(0, 1), spikes)
    assert torch.equal(layer.scan(drawn)[0], observed)
    assert torch.equal(layer.scan(drawn.contiguous())[0], observed)


FIXED_AND_LEARNED = {
    "fixed": {},
    "learned": {"learn_beta": True, "learn_threshold": True},
    "learned_channels": {"learn_threshold": True, "channels": 4},
    "fixed_channels": {"beta": [0.5, 0.6, 0.7, 0.8]},
    "mixed": {"beta": [0.5, 0.6, 0.7, 0.8], "threshold": [1.0, 2.0, 1.0, 0.5], "learn_threshold": True},
}


@pytest.mark.parametrize("options", FIXED_AND_LEARNED)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_neurons_around_others_are_those_built_directly(options, frozen, dtype):
    source = LIF(reset="zero", detach_reset=True, **FIXED_AND_LEARNED[options]).to(dtype)
    for parameter in source.parameters():
        parameter.requires_grad_(not frozen)
        parameter.data.add_(0.2)
    made = recurrent(source, 4)
    direct = RecurrentLIF(4, reset="zero", detach_reset=True, **FIXED_AND_LEARNED[options]).to(dtype)
    assert list(made.state_dict()) == list(direct.state_dict())
    assert [key for key, _ in made.named_parameters()] == [key for key, _ in direct.named_parameters()]
    if options != "fixed":
        assert {value.dtype for value in made.state_dict().values()} == {dtype}
    assert {each.requires_grad for key, each in made.named_parameters() if key != "weight"} <= {not frozen}
    assert all(own is not other for own in made.parameters() for other in source.parameters())
    for value in ("beta", "threshold"):
        torch.testing.assert_close(made.value(value), source.value(value), rtol=0, atol=0)
    made, generic = made.to(dtype), Recurrent(copy.deepcopy(source), 4).to(dtype)
    generic.weight.data.copy_(made.weight)
    assert torch.equal(made.scan(current(dtype=dtype))[0], generic.scan(current(dtype=dtype))[0])
