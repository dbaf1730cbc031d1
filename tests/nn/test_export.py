"""Networks within exporters, tracers and the transforms of `torch.func`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from lightning_snn import LIF, SpikingModule, advance, run
from lightning_snn.methods import SpikingBayes
from lightning_snn.networks import MLP
from lightning_snn.nn import AdaptiveLIF, LeakyIntegrator, OverTime, RecurrentLIF, SynapticDelays, SynapticLIF
from tests.contract.table import LAYERS
from tests.nn.neurons.test_observers import Izhikevich
from tests.nn.test_streaming import NETWORKS


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


def of_layer(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layer = make()
    width = 4 * len(layer.delays) if isinstance(layer, SynapticDelays) else 4
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(width, 3), LeakyIntegrator(0.7)).eval()


def of_library(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name][0]().eval()


def posterior_mean() -> nn.Module:
    torch.manual_seed(0)
    module = SpikingModule(MLP(4, 3, (8, 8)), SpikingBayes(), num_classes=3).eval()
    return module.method.posterior_mean(module.network)


# network, shape and scale of its input
STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    **{row.name: ((lambda row=row: of_layer(row.make)), (4,), 2.0) for row in LAYERS},
    "izhikevich": (lambda: of_layer(Izhikevich), (4,), 2.0),
    **{name: ((lambda name=name: of_library(name)), NETWORKS[name][1], 8.0) for name in NETWORKS},
    "posterior_mean": (posterior_mean, (4,), 2.0),
}
_IN_TEST_COMMAND = ("lif", "lif_learned", "adaptive_lif_learned", "recurrent_around_adaptive_lif", "RecurrentNet")


def example(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, a sequence and its outputs."""
    make, shape, scale = STEPS[name]
    network = make()
    x = scale * torch.rand(24, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = run(network, x)
    assert outputs.std() > 1e-3
    return network, x, outputs


def streamed(step: Callable[[Tensor, Any], tuple[Tensor, Any]], network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        first, state = advance(network, x[:1])
        outputs = [first[0]]
        for each in x[1:]:
            output, state = step(each, state)
            outputs.append(output)
    return torch.stack(outputs)


def states_of(network: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return advance(network, x[:1])[1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _IN_TEST_COMMAND else pytest.mark.slow) for name in STEPS]
)
def test_an_exported_step_with_explicit_states_streams_as_the_network_runs(name):
    network, x, expected = example(name)
    exported = torch.export.export(Step(network), (x[1], states_of(network, x))).module()
    torch.testing.assert_close(streamed(exported, network, x), expected, rtol=1e-5, atol=1e-5)


def any_batch(state: Any) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {"x": {0: batch}, "state": tree_map(lambda leaf: {0: batch}, state)}


def test_an_exported_step_takes_any_number_of_samples():
    network, x, _ = example("adaptive_lif")
    state = states_of(network, x)
    exported = torch.export.export(Step(network), (x[1], state), dynamic_shapes=any_batch(state)).module()
    other = 2 * torch.rand(24, 7, 4)
    torch.testing.assert_close(streamed(exported, network, other), run(network, other).detach(), rtol=1e-5, atol=1e-5)


def test_a_step_that_cannot_advance_is_not_exported_and_named():
    network = nn.Sequential(nn.Linear(4, 4), OverTime(nn.GRU(4, 4)))
    with pytest.raises(RuntimeError, match="OverTime mixes time steps and defines no `scan"):
        torch.export.export(Step(network), (torch.rand(3, 4), None))


class OnnxStep:
    """A step with its states in ONNX Runtime."""

    def __init__(self, network: nn.Module, x: Tensor, state: Any, **options: Any) -> None:
        runtime = pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime")
        pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # the last of the positional arguments would be taken for keywords if it is a dict
        program = torch.onnx.export(Step(network), (x,), kwargs={"state": state}, dynamo=True, verbose=False, **options)
        self.session = runtime.InferenceSession(program.model_proto.SerializeToString())
        self.structure = torch.utils._pytree.tree_structure(state)

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        names = [each.name for each in self.session.get_inputs()]
        given = [tensor.numpy() for tensor in (x, *tree_leaves(state))]
        outputs = self.session.run(None, dict(zip(names, given, strict=True)))
        output, *leaves = (torch.from_numpy(each) for each in outputs)
        return output, tree_unflatten(leaves, self.structure)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_step_in_onnx_streams_as_the_network_runs(name):
    network, x, expected = example(name)
    step = OnnxStep(network, x[1], states_of(network, x))
    torch.testing.assert_close(streamed(step, network, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_step_in_onnx_takes_any_number_of_samples():
    network, x, _ = example("adaptive_lif")
    state = states_of(network, x)
    step = OnnxStep(network, x[1], state, dynamic_shapes=any_batch(state))
    other = 2 * torch.rand(24, 7, 4)
    torch.testing.assert_close(streamed(step, network, other), run(network, other).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NEURONS)
def test_a_step_with_explicit_states_compiles_as_one_graph(name):
    network, x = whole(name).network, 2 * torch.rand(9, 3, 4)
    _, state = advance(network, x[:1])
    torch._dynamo.reset()
    output, after = torch.compile(Step(network), backend="aot_eager", fullgraph=True)(x[1], state)
    expected, right = advance(network, x[1:2], state)
    assert torch.equal(output, expected[0])
    assert after.keys() == right.keys()
