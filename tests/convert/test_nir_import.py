"""NIR graphs as networks: equality with Euler's method on the fields, and refusals by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_snn import SpikingModule, run
from lightning_snn.convert import from_nir, to_nir, write_nir
from lightning_snn.convert.nir.importer import GraphNetwork
from lightning_snn.functional import Triangular
from lightning_snn.methods import (
    ExpectationPropagation,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn import (
    IF,
    LIF,
    DetachedLIF,
    LeakyIntegrator,
    Recurrent,
    RecurrentLIF,
    Scale,
    SynapticDelays,
    SynapticLIF,
)
from tests.convert.nir_cases import CASES, euler, network_of, network_on_a_grid, spikes_of

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.filterwarnings("ignore:NIR has no field for the reset")
DT = 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_a_network_comes_back_with_the_same_spikes(name: str, dtype: torch.dtype):
    network, x, expected = network_of(name, dtype)
    back = from_nir(to_nir(network, x.shape[2:]))
    assert str(back) == str(network)
    assert torch.equal(run(back, x), expected)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_on_a_grid_comes_back_with_the_same_spikes(dtype: torch.dtype, strict: bool, reset: Any):
    network, x = network_on_a_grid(dtype, reset)
    back = from_nir(to_nir(network, (12,), strict=strict))
    assert torch.equal(run(back, x), spikes_of(network, x))
    assert str(back) == str(network)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "learned values per channel": lambda: LIF([0.3, 0.6, 0.9], [0.5, 1.0, 2.0], learn_beta=True, learn_threshold=True),
    "learned numbers": lambda: SynapticLIF(0.31, 0.77, learn_alpha=True, learn_beta=True, learn_threshold=True),
    "values per channel": lambda: SynapticLIF([0.3, 0.6, 0.95], 0.9, [0.1, 0.2, 0.3], order="leak_then_reset"),
    "surrogate": lambda: LIF(0.123456789, surrogate=Triangular(0.7), detach_reset=True),
    "pending reset": lambda: LIF(0.4, order="leak_then_reset"),
    "learned threshold": lambda: IF(0.7, learn_threshold=True),
    "no decay": lambda: LIF(0.0),
    "integrator": lambda: LeakyIntegrator([0.2, 0.5, 0.99], learn_beta=True),
    "recurrent": lambda: RecurrentLIF(3, [0.3, 0.6, 0.9], learn_beta=True),
    "wrapped": lambda: Recurrent(LIF(0.3), 3),
    "wrapped current": lambda: Recurrent(SynapticLIF(0.3, learn_alpha=True), 3),
    "delay": lambda: SynapticDelays((4,)),
    "factors": lambda: Scale(torch.rand(3, dtype=torch.float64)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_comes_back_to_the_last_bit(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), LAYERS[name]()).to(dtype)
    assert_same(from_nir(to_nir(network, (3,), dt=1e-3)), network)


def assert_same(back: nn.Module, network: nn.Module) -> None:
    assert str(back) == str(network)
    state, expected = back.state_dict(), network.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    numbers = [[getattr(each, "fixed_numbers", None) for each in part.modules()] for part in (back, network)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_layers_come_back_from_a_file_to_the_last_bit(dtype: torch.dtype, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), *(make() for make in LAYERS.values())).to(dtype)
    assert_same(from_nir(write_nir(tmp_path / "network.nir", to_nir(network, (3,), dt=1e-3))), network)


def test_fields_count_where_metadata_disagree():
    graph = to_nir(nn.Sequential(LIF(0.9, learn_beta=True, reset="zero")), (3,))
    graph.nodes["0"].tau[:] = DT / (1 - 0.5)  # another program changes the graph
    graph.nodes["0"].r[:] = 2
    graph.nodes["0"].v_threshold[:] = 3.0
    layer = from_nir(graph)[0]
    assert layer.value("beta").item() == pytest.approx(0.5)
    assert layer.value("threshold") == 3.0


def lif(**fields: Any) -> Any:
    """A LIF node of 3 neurons; each field a number or an array."""
    values = {"tau": 1e-3, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **fields}
    return nir.LIF(
        **{name: np.broadcast_to(np.asarray(each, np.float64), (3,)).copy() for name, each in values.items()}
    )


def chain(*nodes: Any, shape: tuple[int, ...] = (3,)) -> Any:
    """A graph of nodes in a row."""
    names = [f"n{index}" for index in range(len(nodes))]
    known = {"input": nir.Input(input_type=np.array(shape)), **dict(zip(names, nodes, strict=True))}
    known["output"] = nir.Output(output_type=None)
    edges = list(zip(["input", *names], [*names, "output"], strict=True))
    return nir.NIRGraph(known, edges, type_check=False)


def inputs(shape: tuple[int, ...] = (3,), steps: int = 40) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(steps, 20, *shape, dtype=torch.float64)


FIELDS: dict[str, Callable[[], Any]] = {
    "input of another weight": lambda: lif(r=1.0, v_threshold=0.04),
    "inputs of several weights": lambda: lif(r=[1.0, 5.0, 20.0], v_threshold=0.1),
    "leak to another potential": lambda: lif(v_leak=-0.5, v_reset=-0.5),
    "time constants that differ": lambda: lif(tau=[2e-4, 1e-3, 1e-2], r=[2.0, 10.0, 100.0]),
    "integrators": lambda: nir.IF(r=np.full(3, 5e3), v_threshold=np.full(3, 1.5)),
    "two filters": lambda: nir.CubaLIF(
        tau_syn=np.full(3, 3e-4),
        tau_mem=np.full(3, 7e-4),
        r=np.full(3, 2.0),
        v_leak=np.zeros(3),
        v_threshold=np.full(3, 1.0),
        w_in=np.array([1.0, 2.0, 4.0]),
    ),
    "potential": lambda: nir.LI(tau=np.full(3, 1e-3), r=np.array([1.0, 2.0, 3.0]), v_leak=np.zeros(3)),
    "sum": lambda: nir.I(r=np.full(3, 300.0)),
    "factor": lambda: nir.Scale(scale=np.array([1.0, -2.0, 0.5])),
    "delay": lambda: nir.Delay(delay=np.full(3, 3 * DT)),
}


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_any_size_are_those_of_eulers_method(name: str, reset: Any):
    graph, x = chain(FIELDS[name]()), inputs()
    if (name, reset) == ("leak to another potential", "subtract"):
        with pytest.raises(ValueError, match=r"its v_leak is not 0, and neurons here subtract their threshold above"):
            from_nir(graph, dt=DT, reset=reset)
        return
    outputs = run(from_nir(graph, dt=DT, reset=reset, dtype=torch.float64), x)
    expected = euler(graph, x.numpy(), DT, reset)
    assert np.allclose(outputs.detach(), expected, rtol=1e-12, atol=1e-12)
    assert (expected != 0).mean() > 0.02


def test_two_filters_without_spikes_are_two_integrators():
    fields = {"tau_syn": 3e-4, "tau_mem": 7e-4, "r": 2.0, "v_leak": 0.0, "w_in": 4.0}
    graph = chain(nir.CubaLI(**{name: np.full(3, each) for name, each in fields.items()}))
    current, v, expected = np.zeros((20, 3)), np.zeros((20, 3)), []
    for step in inputs().numpy():
        current = current + DT / 3e-4 * (4 * step - current)
        v = v + DT / 7e-4 * (2 * current - v)
        expected.append(v)
    outputs = run(from_nir(graph, dtype=torch.float64), inputs())
    assert np.allclose(outputs, np.stack(expected), rtol=1e-12)


def test_a_weight_of_one_step_is_read_as_sinabs_and_snntorch_write_it():
    node = nir.IF(r=np.ones(3), v_threshold=np.full(3, 1.5))
    x = inputs()
    for dt in (None, 1e-4, 1.0):
        assert np.array_equal(run(from_nir(chain(node), dt=dt), x), euler(chain(node), x.numpy(), 1.0))


def test_scalar_fields_as_other_exporters_write_them_are_read():
    node = nir.LIF(
        **{name: np.float64(each) for name, each in (("tau", 1e-3), ("r", 10), ("v_leak", 0), ("v_threshold", 1))}
    )
    assert str(from_nir(chain(node))[0]).startswith("LIF(beta=0.9, threshold=1, reset=zero")


def recurrent_graph(bias: bool, nested: bool) -> Any:
    torch.manual_seed(0)
    weights = {"weight": 2 * torch.randn(3, 3).double().numpy()}
    back = nir.Affine(**weights, bias=np.array([0.1, -0.2, 0.3])) if bias else nir.Linear(**weights)
    before = nir.Affine(weight=2 * np.eye(3), bias=np.zeros(3))
    ends = {"input": nir.Input(input_type=np.array([3])), "output": nir.Output(output_type=np.array([3]))}
    loop = [("lif", "w_rec"), ("w_rec", "lif")]
    if not nested:
        nodes = {**ends, "w_rec": back, "fc": before, "lif": lif()}
        return nir.NIRGraph(nodes, [*loop, ("lif", "output"), ("fc", "lif"), ("input", "fc")], type_check=False)
    inside = nir.NIRGraph(
        {**copy.deepcopy(ends), "lif": lif(), "w_rec": back},
        [("input", "lif"), *loop, ("lif", "output")],
        type_check=False,
    )
    return nir.NIRGraph(
        {**ends, "fc": before, "layer": inside}, [("input", "fc"), ("fc", "layer"), ("layer", "output")]
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_an_edge_back_makes_recurrent_neurons(nested: bool, bias: bool):
    graph, x = recurrent_graph(bias, nested), inputs()
    network = from_nir(graph)
    assert [name for name, _ in network.named_children()] == ["fc", "layer" if nested else "lif"]
    assert isinstance(network[1], RecurrentLIF)
    assert np.array_equal(run(network, x).detach(), euler(graph, x.numpy(), DT))


def test_a_bias_of_recurrent_weights_without_a_layer_that_takes_it_is_refused():
    graph = recurrent_graph(bias=True, nested=False)
    del graph.nodes["fc"]
    graph.edges = [edge for edge in graph.edges if "fc" not in edge] + [("input", "lif")]
    with pytest.raises(ValueError, match=r"lif: LIF \(its recurrent weights have a bias, which is a constant input"):
        from_nir(graph)


def branching() -> Any:
    nodes = {
        "input": nir.Input(input_type=np.array([3])),
        "a": nir.Linear(weight=np.eye(3) * 2),
        "b": nir.Linear(weight=np.full((3, 3), 0.3)),
        "for": lif(r=10.0),
        "c.d": nir.Linear(weight=np.eye(3)[::-1].copy()),
        "output": nir.Output(output_type=np.array([3])),
    }
    edges = [
        ("input", "a"),
        ("input", "b"),
        ("a", "for"),
        ("b", "for"),
        ("for", "c.d"),
        ("c.d", "output"),
        ("a", "output"),
    ]
    return nir.NIRGraph(nodes, edges, type_check=False)


def test_nodes_with_several_sources_receive_their_sum():
    graph, x = branching(), inputs()
    network = from_nir(graph)
    assert isinstance(network, GraphNetwork)
    assert set(network.layers) == {"a", "b", "for_", "c_d"}
    assert np.allclose(run(network, x).detach(), euler(graph, x.numpy(), DT), rtol=1e-12)
    again = to_nir(network, (3,))
    assert torch.equal(run(from_nir(again), x), run(network, x))
    assert torch.equal(run(copy.deepcopy(network), x), run(network, x))


@pytest.mark.parametrize("method", [SurrogateGradient(), RateBackprop(), NoisySpikes(), SpikingBayes()], ids=repr)
def test_a_branching_graph_is_trained_by_methods(method):
    network = from_nir(branching(), dtype=torch.float32)
    module = SpikingModule(network, method, num_classes=3)
    module.method.progress = module.method.progress.__class__(train_size=20)
    step = module.method.training_step(module.network, inputs().float(), torch.arange(20) % 3)
    step.objective.backward()
    assert all(parameter.grad is not None for parameter in module.network.parameters())


@pytest.mark.parametrize("method", [ExpectationPropagation(), TimeToFirstSpike()], ids=lambda each: type(each).__name__)
def test_a_chain_is_prepared_by_methods_that_read_layers(method):
    network = nn.Sequential(nn.Linear(4, 8), LIF(reset="zero"), nn.Linear(8, 3))
    SpikingModule(from_nir(to_nir(network, (4,))), method, num_classes=3)


def test_a_node_before_neurons_that_scales_is_trained_by_rates():
    graph = chain(nir.Linear(weight=np.eye(3)), nir.Scale(scale=np.array([1.0, 2.0, 3.0])), lif())
    module = SpikingModule(from_nir(graph, dtype=torch.float32), RateBackprop(), num_classes=3)
    one_step = inputs(steps=1).float()
    module.method.training_step(module.network, one_step, torch.arange(20) % 3).objective.backward()
    rate = module.network[0].weight.grad.clone()
    module.network.zero_grad()
    step = SurrogateGradient().training_step(module.network, one_step, torch.arange(20) % 3)
    step.objective.backward()
    assert torch.allclose(rate, module.network[0].weight.grad)
    assert rate.abs().sum() > 0


def test_names_of_nodes_are_never_code():
    graph = chain(nir.Linear(weight=np.eye(3)))
    hostile = 'a"); raise SystemExit(("'
    graph.nodes = {hostile if name == "n0" else name: node for name, node in graph.nodes.items()}
    graph.edges = [("input", hostile), (hostile, "output")]
    network = from_nir(graph)
    assert [name for name, _ in network.named_children()] == ["a____raise_SystemExit___"]
    graph.nodes = {"forward" if name == hostile else name: node for name, node in graph.nodes.items()}
    graph.edges = [("input", "forward"), ("forward", "output")]
    assert [name for name, _ in from_nir(graph).named_children()] == ["forward_"]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "threshold alone": (
        lambda: chain(nir.Threshold(threshold=np.ones(3))),
        r"n0: Threshold \(no layer does the same: replace the node",
    ),
    "reset elsewhere": (lambda: chain(lif(v_reset=-0.3)), r"n0: LIF \(its v_reset is not the potential at rest"),
    "threshold below rest": (
        lambda: chain(lif(v_threshold=-1)),
        r"its v_threshold is not larger than its v_leak",
    ),
    "time constant of another step": (
        lambda: chain(lif(tau=1e-5)),
        r"its tau of 1e-05 s is smaller than dt",
    ),
    "negative time constant": (
        lambda: chain(lif(tau=-1.0)),
        r"its tau holds values that are not finite",
    ),
    "nan": (lambda: chain(lif(v_threshold=np.nan)), r"its v_threshold holds values that are not finite"),
    "negative input": (lambda: chain(lif(r=-1.0)), r"its input has a weight .* that is not larger than 0"),
    "integrator of an unknown step": (
        lambda: chain(nir.IF(r=np.full(3, 1e3), v_threshold=np.ones(3))),
        r"its r of 1000 is a weight of 0.1 at dt = 0.0001 s, which is a guess: pass dt, which is 0.001 s",
    ),
    "potential that leaks elsewhere": (
        lambda: chain(nir.LI(tau=np.full(3, 1e-3), r=np.ones(3), v_leak=np.ones(3))),
        r"its v_leak is not 0",
    ),
    "delay between steps": (lambda: chain(nir.Delay(delay=np.full(3, 1.5 * DT))), r"its delay is no multiple of dt"),
    "delays that differ": (lambda: chain(nir.Delay(delay=np.array([0, DT, DT]))), r"its delay differs between neurons"),
    "values of another shape": (
        lambda: chain(lif(), shape=(4,)),
        r"inputs of shape \[4\], but got n0: LIF \(its fields are of shape \[3\]\)",
    ),
    "weights of another shape": (lambda: chain(nir.Linear(weight=np.eye(3)), shape=(4,)), r"got n0: Linear \(mat1"),
    "no matrix": (
        lambda: chain(nir.Linear(weight=np.ones((2, 3, 3)))),
        r"its weight is of shape \[2, 3, 3\]",
    ),
    "a loop over two layers": (
        lambda: _edited(chain(nir.Linear(weight=np.eye(3)), lif(), lif()), [("n2", "n0")]),
        r"one over n0, n1, n2, output: layers of neurons receive the spikes of their own layer alone",
    ),
    "an edge to nowhere": (lambda: _edited(chain(lif()), [("n0", "n9")]), r"n0 -> n9, and there is no n9"),
    "a node without input": (
        lambda: _edited(chain(lif(), lif()), [], [("input", "n0")]),
        r"Expected every node to receive an input, but n0 receive none",
    ),
    "a node that leads nowhere": (
        lambda: _edited(chain(lif(), lif()), [("n0", "output")], [("n1", "output")]),
        r"Expected every node to lead to the output, but n1 lead nowhere",
    ),
    "two inputs": (lambda: _second_input(chain(lif())), r"Expected a graph with one Input node, but got input, second"),
    "an input of any size": (
        lambda: chain(lif(), shape=(2**20, 2**20)),
        r"an Input node of a shape that fits",
    ),
}


def _edited(graph: Any, added: list[tuple[str, str]], removed: list[tuple[str, str]] = ()) -> Any:
    graph.edges = [edge for edge in graph.edges if edge not in removed] + added
    return graph


def _second_input(graph: Any) -> Any:
    graph.nodes["second"] = nir.Input(input_type=np.array([3]))
    return _edited(graph, [("second", "n0")])


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layer_is_refused_by_name(name: str):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        from_nir(make())


def test_values_that_differ_within_a_channel_are_refused():
    tau = np.full((2, 3, 3), 1e-3)
    tau[1] = 2e-3
    same = nir.LIF(tau=tau, r=tau / DT, v_leak=0 * tau, v_threshold=1 + 0 * tau)
    assert from_nir(chain(same, shape=(2, 3, 3)))[0].value("beta").tolist() == pytest.approx([0.9, 0.95])
    tau[1, 0, 0] = 3e-3
    with pytest.raises(ValueError, match=r"n0: LIF \(its decay beta differs within a channel"):
        from_nir(chain(same, shape=(2, 3, 3)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"reset": "explode"}, "the reset 'explode', which is unknown"),
        ({"reset": np.ones(3)}, "the reset"),
        ({"surrogate": "os.system"}, "the surrogate 'os.system', which is unknown"),
        ({"numbers": {"beta": "x"}}, "its metadata are damaged"),
        ({"width": -1.0}, "its metadata are damaged"),
    ],
)
def test_metadata_that_are_not_ours_are_refused(metadata: dict, message: str):
    node = lif()
    node.metadata = {"lightning_snn": metadata}
    with pytest.raises(ValueError, match=rf"n0: LIF \(its metadata|n0: LIF \(.*{message}"):
        from_nir(chain(node))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt": -1.0}, "`dt` to be a finite number larger than 0"),
        ({"reset": "hard"}, "`reset` to be one of None, 'subtract', 'zero'"),
        ({"dtype": torch.float16}, "`dtype` to be one of"),
        ({"graph": 3}, "`graph` to be a NIRGraph or the path of its file, but got 3"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        from_nir(**{"graph": chain(lif()), **arguments})


def test_subclasses_without_other_equations_are_exported_as_their_base():
    network = nn.Sequential(DetachedLIF(0.2))
    layer = from_nir(to_nir(network, (3,)))[0]
    assert layer.detach_reset
    assert str(layer.surrogate) == str(network[0].surrogate)
