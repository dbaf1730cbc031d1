"""Networks within exporters, tracers and the transforms of `torch.func`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lightning_snn import LIF, advance, run
from lightning_snn.nn import AdaptiveLIF, LeakyIntegrator, RecurrentLIF, SynapticDelays, SynapticLIF


class Whole(nn.Module):
    """A module of `[T, B, ...]`, as exporters take it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return run(self.network, x)


NEURONS = {
    "lif": LIF,
    "lif_learned": lambda: LIF([0.5, 0.6, 0.7, 0.8, 0.9], learn_beta=True, learn_threshold=True),
    "leak_then_reset": lambda: LIF(order="leak_then_reset"),
    "recurrent": lambda: RecurrentLIF(5),
    "adaptive": AdaptiveLIF,
    "synaptic": SynapticLIF,
    "integrator": LeakyIntegrator,
}


def whole(name: str) -> Whole:
    return Whole(nn.Sequential(nn.Linear(4, 5), NEURONS[name](), SynapticDelays((0, 1)), nn.Linear(10, 3))).eval()


@pytest.mark.parametrize("name", NEURONS)
def test_an_exported_network_runs_with_gradients_enabled_and_equals_it(name):
    network, x = whole(name), 2 * torch.rand(6, 3, 4)
    exported = torch.export.export(network, (x,)).module()
    other = 2 * torch.rand(6, 3, 4)
    torch.testing.assert_close(exported(other), network(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NEURONS)
def test_a_traced_network_equals_it(name):
    network, x = whole(name), 2 * torch.rand(6, 3, 4)
    traced = torch.jit.trace(network, x)
    other = 2 * torch.rand(6, 3, 4)
    torch.testing.assert_close(traced(other), network(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NEURONS)
def test_a_network_compiles_as_one_graph_with_its_gradients(name):
    network, x = whole(name), 2 * torch.rand(4, 3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    found = [torch.autograd.grad(each(x).square().sum(), network.parameters()) for each in (compiled, network)]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NEURONS)
def test_gradients_by_sample_from_torch_func_are_those_of_one_sample_after_the_other(name):
    network, x = whole(name).double(), 2 * torch.rand(6, 3, 4, dtype=torch.float64)
    parameters = dict(network.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(network, parameters, (sample[:, None],)).square().sum()

    found = vmap(grad(loss), (None, 1))(parameters, x)
    for index in range(3):
        expected = torch.autograd.grad(network(x[:, index : index + 1]).square().sum(), network.parameters())
        for got, right in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(got[index], right, rtol=1e-9, atol=1e-9)


class Step(nn.Module):
    """One step of a network, with its states as input and output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, state: dict[str, object]) -> tuple[Tensor, dict[str, object]]:
        outputs, state = advance(self.network, x[None], state)
        return outputs[0], state


@pytest.mark.parametrize("name", NEURONS)
def test_an_exported_step_with_explicit_states_streams_as_the_network_runs(name):
    network, x = whole(name).network, 2 * torch.rand(9, 3, 4)
    first, state = advance(network, x[:1])
    exported = torch.export.export(Step(network), (x[1], state)).module()
    outputs = [first[0]]
    for step in x[1:]:
        output, state = exported(step, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs), run(network, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NEURONS)
def test_a_step_with_explicit_states_compiles_as_one_graph(name):
    network, x = whole(name).network, 2 * torch.rand(9, 3, 4)
    _, state = advance(network, x[:1])
    torch._dynamo.reset()
    output, after = torch.compile(Step(network), backend="aot_eager", fullgraph=True)(x[1], state)
    expected, right = advance(network, x[1:2], state)
    assert torch.equal(output, expected[0])
    assert after.keys() == right.keys()
