"""Networks of snntorch: spikes and gradients equal to its own loop and autograd, or refused by name."""

from __future__ import annotations

import copy

import pytest
import snntorch
import torch
import torch.nn.functional as F
from snntorch import surrogate
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.convert import SnntorchLIF, from_snntorch
from lightning_snn.nn import LeakyIntegrator, Recurrent, SynapticLIF
from tests.convert.peers import keep_dtype, run_snntorch, scale_weights

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def options(reset: str = "subtract", delay: bool = True) -> dict:
    return {"reset_mechanism": reset, "reset_delay": delay, "init_hidden": True}


NEURONS = {
    "leaky": (lambda: snntorch.Leaky(0.8, **options()), LIF),
    "leaky_zero": (lambda: snntorch.Leaky(0.8, **options("zero")), LIF),
    "leaky_zero_at_once": (lambda: snntorch.Leaky(0.8, **options("zero", False)), LIF),
    "leaky_at_once": (lambda: snntorch.Leaky(0.8, **options(delay=False)), SnntorchLIF),
    "leaky_no_reset": (lambda: snntorch.Leaky(0.8, **options("none")), SnntorchLIF),
    "leaky_per_neuron": (lambda: snntorch.Leaky(torch.rand(8), threshold=torch.rand(8) + 0.5, init_hidden=True), LIF),
    "lapicque": (lambda: snntorch.Lapicque(R=2.0, C=1.3, time_step=0.9, init_hidden=True), LIF),
    "lapicque_beta": (lambda: snntorch.Lapicque(beta=0.4, init_hidden=True), LIF),
    "lapicque_zero": (lambda: snntorch.Lapicque(0.4, reset_mechanism="zero", init_hidden=True), SnntorchLIF),
    "synaptic": (lambda: snntorch.Synaptic(0.7, 0.8, **options()), SynapticLIF),
    "synaptic_zero": (lambda: snntorch.Synaptic(0.7, 0.8, **options("zero")), SnntorchLIF),
    "synaptic_zero_at_once": (lambda: snntorch.Synaptic(0.7, 0.8, **options("zero", False)), SynapticLIF),
    "synaptic_at_once": (lambda: snntorch.Synaptic(0.7, 0.8, **options(delay=False)), SnntorchLIF),
    "rleaky": (lambda: snntorch.RLeaky(0.8, linear_features=8, **options()), SnntorchLIF),
    "rleaky_without_bias": (lambda: without_bias(snntorch.RLeaky(0.8, linear_features=8, **options())), Recurrent),
    "rleaky_to_itself": (lambda: snntorch.RLeaky(0.8, V=-0.4, all_to_all=False, **options()), SnntorchLIF),
    "rleaky_zero_at_once": (lambda: snntorch.RLeaky(0.8, linear_features=8, **options("zero", False)), SnntorchLIF),
    "rsynaptic": (lambda: snntorch.RSynaptic(0.7, 0.8, linear_features=8, **options()), SnntorchLIF),
    "rsynaptic_without_bias": (
        lambda: without_bias(snntorch.RSynaptic(0.7, 0.8, linear_features=8, **options())),
        Recurrent,
    ),
}


def without_bias(neuron: nn.Module) -> nn.Module:
    nn.init.zeros_(neuron.recurrent.bias).requires_grad_(False)
    return neuron


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@dtypes
@pytest.mark.parametrize("name", NEURONS)
def test_spikes_and_gradients_equal_those_of_snntorch(name: str, dtype: torch.dtype):
    """Surrogate gradients of all layers through time, against snntorch's own autograd."""
    make, kind = NEURONS[name]
    network = nn.Sequential(nn.Linear(6, 8), make(), nn.Linear(8, 8), make()).to(dtype)
    scale_weights(network)
    converted = from_snntorch(network)
    assert type(converted[1]) is kind
    keep_dtype(network)
    x, weight = 2 * torch.rand(15, 3, 6, dtype=dtype), torch.rand(15, 3, 8, dtype=dtype)
    expected, found = run_snntorch(network, x), run(converted, x)
    assert 0.02 < expected.mean() < 0.9
    assert torch.equal(expected, found)
    ours = gradients((found * weight).sum(), converted)
    for key, gradient in gradients((expected * weight).sum(), network).items():
        name = key.replace("recurrent.V", "V").replace("recurrent.", "recurrent_").replace("V", "recurrent_weight")
        name = name if name in ours else key.replace("recurrent.", "")
        # snntorch's surrogates return float32 in any dtype
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-6 * gradient.abs().max().item())


def test_a_reset_at_once_is_taken_twice_by_snntorch_above_the_threshold():
    """`LIF` resets once, so it is not the counterpart of Leaky with reset_delay=False."""
    layer = snntorch.Leaky(0.9, **options(delay=False))
    x = torch.tensor([2.5, 0.0, 0.0, 0.0]).view(4, 1, 1)
    expected = run_snntorch(layer, x)
    assert torch.equal(run(from_snntorch(layer), x), expected)
    assert not torch.equal(run(LIF(0.9), x), expected)


def test_learned_decays_and_thresholds_keep_their_values_and_gradients():
    """The gradient of a logit is that of the decay times its derivative."""
    network = nn.Sequential(
        nn.Linear(6, 8), snntorch.Leaky(0.8, threshold=0.7, learn_beta=True, learn_threshold=True, init_hidden=True)
    )
    converted = from_snntorch(network)
    assert converted[1].beta.item() == network[1].beta.item()
    assert converted[1].threshold.item() == network[1].threshold.item()
    x = 2 * torch.rand(15, 3, 6)
    expected = gradients(run_snntorch(network, x).sum(), network)
    found = gradients(run(converted, x).sum(), converted)
    beta, threshold = network[1].beta.detach(), network[1].threshold.detach()
    torch.testing.assert_close(found["1.beta_logit"], expected["1.beta"] * beta * (1 - beta), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["1.threshold_log"], expected["1.threshold"] * threshold, rtol=1e-4, atol=0)


def test_learned_values_without_an_exact_logit_are_named_in_a_warning():
    decays = torch.rand(500) * 0.3 + 0.01
    network = nn.Sequential(nn.Linear(6, 500), snntorch.Leaky(decays, learn_beta=True, init_hidden=True))
    with pytest.warns(UserWarning, match=r"relative difference: 1\.beta by [0-9.]+e-0[78]"):
        converted = from_snntorch(network)
    torch.testing.assert_close(converted[1].beta, decays, rtol=5e-7, atol=0)
    network = nn.Sequential(nn.Linear(6, 5), snntorch.Leaky(torch.tensor(1.0), learn_beta=True, init_hidden=True))
    with pytest.raises(ValueError, match=r"1: Leaky \(its learned beta reaches 1, .*clamp"):
        from_snntorch(network)


def tutorial() -> nn.Module:
    """The convolutional network of snntorch's tutorials, smaller."""
    neuron = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), snntorch.Leaky(**neuron)),
        *(nn.Conv2d(4, 6, 2), nn.MaxPool2d(2), snntorch.Leaky(**neuron)),
        *(nn.Flatten(), nn.Linear(6, 10), snntorch.Leaky(**neuron, output=True)),
    )


class PerStep(nn.Module):
    """One step, with states as arguments and results, functions between layers, and a constant batch size."""

    batch_size = 20

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.lif1 = snntorch.Leaky(beta=0.9)
        self.fc2 = nn.Linear(4 * 16, 10)
        self.lif2 = snntorch.Synaptic(alpha=0.7, beta=0.8)

    def forward(self, x, mem1=None, syn2=None, mem2=None):
        cur1 = F.max_pool2d(self.conv1(x), 2)
        spk1, mem1 = self.lif1(cur1, mem1)
        cur2 = self.fc2(spk1.view(self.batch_size, -1))
        spk2, syn2, mem2 = self.lif2(cur2, syn2, mem2)
        return spk2, mem1, syn2, mem2


class Residual(nn.Module):
    """A graph that is no chain, neurons of blocks, and hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.flatten = nn.Flatten()
        self.first, self.second = self._block(64), self._block(12)
        self.out = nn.Linear(12, 10)

    def _block(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 12), snntorch.Leaky(0.8, init_hidden=True))

    def forward(self, x):
        x = self.first(self.flatten(x) * self.scale)
        return self.out(F.relu(x + self.second(x)))


@dtypes
@pytest.mark.parametrize("kind", [tutorial, PerStep, Residual], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_networks_have_no_mismatch_on_20_inputs(kind, dtype: torch.dtype):
    network = kind().to(dtype)
    scale_weights(network)
    converted = from_snntorch(network)
    keep_dtype(network)
    x = 2 * torch.rand(12, 20, 1, 8, 8, dtype=dtype)
    expected = explicit(network, x) if kind is PerStep else run_snntorch(network, x)
    found = run(converted, x)
    assert expected.abs().mean() > 0.02
    assert torch.equal(expected, found) if kind is not Residual else torch.allclose(expected, found)


def explicit(network: nn.Module, x: Tensor) -> Tensor:
    states, outputs = (), []
    for part in network.modules():
        if isinstance(part, snntorch.SpikingNeuron):
            part.reset_mem()
    for step in x:
        output, *states = network(step, *states)
        outputs.append(output)
    return torch.stack(outputs)


def test_a_chain_becomes_a_sequential_under_its_own_names():
    converted = from_snntorch(PerStep())
    assert type(converted) is nn.Sequential
    assert [name for name, _ in converted.named_children()] == ["conv1", "max_pool2d", "lif1", "view", "fc2", "lif2"]
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True)), nn.Linear(4, 2))
    assert from_snntorch(nested).state_dict().keys() == {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}


def test_a_returned_membrane_potential_becomes_a_leaky_integrator():
    class Regression(nn.Module):
        def __init__(self, reset: str) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 2)
            self.lif1 = snntorch.Leaky(0.9)
            self.lif2 = snntorch.Leaky(0.7, reset_mechanism=reset)

        def forward(self, x, mem1=None, mem2=None):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            return mem2

    network = Regression("none")
    converted = from_snntorch(network)
    assert isinstance(converted.lif2, LeakyIntegrator)
    x = 3 * torch.rand(10, 4, 6)
    mem1 = mem2 = None
    for t, step in enumerate(x):
        spk1, mem1 = network.lif1(network.fc1(step), mem1)
        _, mem2 = network.lif2(network.fc2(spk1), mem2)
        torch.testing.assert_close(run(converted, x)[t], mem2)
    with pytest.raises(ValueError, match=r"lif2: Leaky \(its membrane potential is the output, .*reset_mechanism"):
        from_snntorch(Regression("subtract"))


class Counting(snntorch.Leaky):
    """A neuron of one's own."""


def test_everything_that_has_no_counterpart_is_listed_with_what_to_do():
    hidden = {"init_hidden": True}
    network = nn.Sequential(
        *(nn.Linear(6, 8), snntorch.Leaky(0.9, **hidden, inhibition=True), nn.GRU(8, 8)),
        *(snntorch.Leaky(0.9, **hidden, graded_spikes_factor=2.0), snntorch.Alpha(0.9, 0.8, **hidden)),
        *(Counting(0.9, **hidden), snntorch.Leaky(0.9, **hidden, spike_grad=surrogate.SSO()), nn.Flatten(0)),
        snntorch.RSynaptic(0.5, 0.9, linear_features=8, reset_delay=False, **hidden),
    )
    with pytest.raises(ValueError, match="from_snntorch can convert exactly") as raised:
        from_snntorch(network)
    message = str(raised.value)
    for part in (
        "1: Leaky (inhibition=True lets only the strongest neuron of a layer spike: set it to False)",
        "2: GRU (its state over time is not converted: use `lightning_snn.nn.OverTime` or `PerStep`)",
        "3: Leaky (its spikes are graded: set graded_spikes_factor to 1",
        "4: Alpha (its membrane potential does not depend on the current of the same step",
        "5: Counting (it is a class of your own",
        "6: Leaky (its surrogate SSO has no counterpart: set `layer.spike_grad`",
        "7: Flatten (it flattens from dimension 0",
        "8: RSynaptic (snntorch resets it by the spikes that it is given",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), LIF()), "with layers of snntorch, but got a Sequential without any"),
        (
            nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9)).half(),
            "float32 or all in float64, but got torch.float16",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 1), snntorch.Leaky(torch.rand(4), init_hidden=True)),
            r"1: Leaky \(its beta of shape \[4\] is not one value per channel .*\[C, 1, 1\] after a convolution",
        ),
    ],
)
def test_other_networks_are_refused(network: nn.Module, message: str):
    with pytest.raises(ValueError, match=message):
        from_snntorch(network)


def test_values_of_channels_after_a_convolution():
    beta = torch.tensor([0.9, 0.5, 0.1, 0.3]).view(4, 1, 1)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), snntorch.Leaky(beta, init_hidden=True))
    converted = from_snntorch(network)
    assert converted[1].beta.tolist() == beta.flatten().tolist()
    x = 3 * torch.rand(10, 2, 1, 4, 4)  # as many rows as channels
    assert torch.equal(run_snntorch(network, x), run(converted, x))


def test_the_original_stays_as_it_is_even_with_states_of_a_graph():
    network = nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(0.9, init_hidden=True, output=True))
    run_snntorch(network, torch.rand(5, 2, 6))
    before = copy.deepcopy(network.state_dict())
    converted = from_snntorch(network)
    with torch.no_grad():
        converted[0].weight.zero_()
    assert network[1].mem.requires_grad
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def test_a_state_that_two_neurons_share_is_refused():
    class Crossed(PerStep):
        def forward(self, x, mem1=None, syn2=None):
            spk1, mem1 = self.lif1(self.conv1(x), mem1)
            spk2, syn2, _ = self.lif2(self.fc2(spk1.flatten(1)), syn2, mem1)
            return spk2, mem1, syn2

    with pytest.raises(ValueError, match=r"lif2: Synaptic \(it receives a state that the step computes"):
        from_snntorch(Crossed())


def test_names_of_arguments_and_constants_are_followed():
    class Named(PerStep):
        def forward(self, x, mem1=None, syn2=None, mem2=None):
            spk1, mem1 = self.lif1(mem=mem1, input_=self.conv1(x) * torch.tensor(2.0))
            spk2, syn2, mem2 = self.lif2(self.fc2(F.avg_pool2d(spk1, 2).flatten(1)), mem=mem2, syn=syn2)
            return spk2, mem1, syn2, mem2

    network = Named()
    scale_weights(network)
    attributes = set(vars(network))
    converted = from_snntorch(network)
    assert set(vars(network)) == attributes
    x = torch.rand(12, 20, 1, 8, 8)
    expected = explicit(network, x)
    assert expected.mean() > 0.02
    assert torch.equal(expected, run(converted, x))


def test_a_neuron_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snntorch.Leaky(0.9, init_hidden=True)

        def forward(self, x):
            return self.lif(self.lif(x))

    with pytest.raises(ValueError, match=r"lif: Leaky \(it is called more than once: if this is a loop over time"):
        from_snntorch(Twice())
