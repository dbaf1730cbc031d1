"""Networks as NIR graphs: fields, refusals, metadata, and equality with Euler's method on the fields alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule, run
from lightning_snn.callbacks.hardware import Constrained, HardwareConstraints, export_weights
from lightning_snn.convert import from_nir, to_nir
from lightning_snn.convert.nir.constants import decay_of, time_constant
from lightning_snn.methods import (
    ExpectationPropagation,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.networks import MLP, ResidualConvNet
from lightning_snn.nn import (
    IF,
    LIF,
    AdaptiveLIF,
    DivisiveNormalization,
    LeakyIntegrator,
    MembraneResidual,
    Recurrent,
    RecurrentLIF,
    Scale,
    Sign,
    SynapticDelays,
    SynapticLIF,
)
from tests.convert.nir_cases import CASES, euler, network_of, network_on_a_grid, spikes_of

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.filterwarnings("ignore:NIR has no field for the reset")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_euler_steps_of_the_fields_give_the_spikes(name: str, dtype: torch.dtype):
    network, x, expected = network_of(name, dtype)
    graph = to_nir(network, x.shape[2:])
    assert np.array_equal(euler(graph, x.numpy(), dt=1e-4), expected.numpy())
    # of another step they are others
    assert not np.array_equal(euler(graph, x.numpy(), dt=0.9e-4), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strict", [True, False])
def test_on_a_grid_the_fields_give_the_spikes_for_both_comparisons(strict: bool, dtype: torch.dtype):
    network, x = network_on_a_grid(dtype)
    graph = to_nir(network, (12,), strict=strict)
    expected = spikes_of(network, x).numpy()
    assert np.array_equal(euler(graph, x.numpy(), 1e-4, at_or_above=not strict), expected)
    wrong = euler(to_nir(network, (12,)), x.numpy(), 1e-4, at_or_above=True)
    assert (wrong != expected).sum() > 100


def test_every_field_is_an_array_of_the_shape_of_a_sample():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        LIF([0.5, 0.75, 0.9], threshold=2.0),
        nn.AvgPool2d(2),
        nn.Flatten(),
        IF(),
        LeakyIntegrator(0.5),
    )
    graph = to_nir(network, (2, 6, 6), dt=1e-3)
    assert list(graph.nodes) == ["input", "0", "1", "2", "3", "4", "5", "output"]
    lif, flat, leaky = graph.nodes["1"], graph.nodes["4"], graph.nodes["5"]
    for name in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
        assert getattr(lif, name).shape == (3, 4, 4)
    assert np.allclose(lif.tau[:, 0, 0], [2e-3, 4e-3, 1e-2])  # dt / (1 - beta)
    assert np.allclose(lif.r, lif.tau / 1e-3)
    assert (lif.v_threshold == 2).all()
    assert not lif.v_leak.any()
    assert type(flat).__name__ == "IF"
    assert (flat.r == 1e3).all()
    assert flat.v_threshold.shape == (12,)
    assert type(leaky).__name__ == "LI"
    assert graph.output_type["output"].tolist() == [12]
    assert graph.check_types()


def test_a_graph_is_read_by_the_package_itself(tmp_path):
    network, x, expected = network_of("conv")
    nir.write(tmp_path / "network.nir", to_nir(network, x.shape[2:]))
    graph = nir.read(tmp_path / "network.nir")  # with its checks of shapes
    assert np.array_equal(euler(graph, x.numpy(), 1e-4), expected.numpy())


def test_a_decay_is_that_of_the_time_constant_to_the_bit_in_float32():
    decays = torch.linspace(0.7, 0.999, 64).tolist()
    node = to_nir(LIF(decays), (64,)).nodes["lif"]
    assert np.array_equal(1 - 1e-4 / node.tau, np.array(decays, np.float32))


def test_smaller_decays_are_off_by_two_roundings_at_most():
    decays = np.linspace(0, 0.7, 20_001).astype(np.float32)
    assert np.abs(decay_of(time_constant(decays, 1e-4), 1e-4) - decays).max() <= 2**-23


def test_additions_of_layers_are_edges_to_one_node():
    torch.manual_seed(0)
    branch = nn.Sequential(LIF(reset="zero"), nn.Linear(8, 8))
    network = nn.Sequential(nn.Linear(4, 8), MembraneResidual(branch), LIF(reset="zero"))
    graph = to_nir(network, (4,))
    assert {("0", "2"), ("1.branch.1", "2")} <= set(graph.edges)
    x = 3 * torch.rand(20, 5, 4)
    assert np.array_equal(euler(graph, x.numpy(), 1e-4), spikes_of(network, x).numpy())


def test_a_residual_network_and_flattening_in_forward_are_traced():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = ResidualConvNet((2, 8, 8), 5, (4, 8), 1)

        def forward(self, x):
            return torch.flatten(self.body(x), 1)

    network = Network()
    x = 2 * torch.rand(6, 3, 2, 8, 8)
    outputs = euler(to_nir(network, (2, 8, 8)), x.numpy(), 1e-4, "subtract")
    assert np.allclose(outputs, run(network, x).detach(), atol=1e-5)


def test_delays_factors_integrators_and_sums_are_nodes():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.AvgPool2d(2, divisor_override=1),
        SynapticDelays((3,)),
        Scale(torch.rand(3, 3, 3)),
        nn.Dropout(0.5),
        nn.Identity(),
        LeakyIntegrator(0.8),
        LeakyIntegrator(1.0),
    ).double()
    x = torch.rand(9, 2, 2, 8, 8, dtype=torch.float64)
    graph = to_nir(network, (2, 8, 8))
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert kinds == ["Input", "Conv2d", "SumPool2d", "Delay", "Scale", "LI", "I", "Output"]
    assert np.allclose(euler(graph, x.numpy(), 1e-4), run(network.eval(), x).detach(), rtol=1e-12)
    assert torch.allclose(run(from_nir(graph), x), run(network, x), rtol=1e-12)


@pytest.mark.parametrize("options", [{"groups": 2}, {"kernel_size": (3, 5)}, {"padding": "same"}, {"dilation": 2}])
def test_convolutions_of_any_geometry_come_back(options: dict, tmp_path):
    torch.manual_seed(0)
    geometry = {"kernel_size": 3, "padding": 1, **options}
    network = nn.Sequential(nn.Conv2d(4, 6, **geometry), LIF(reset="zero"))
    x = 4 * torch.rand(6, 2, 4, 7, 9)
    graph = to_nir(network, (4, 7, 9))
    assert np.array_equal(euler(graph, x.numpy(), 1e-4), spikes_of(network, x).numpy())
    assert torch.equal(run(from_nir(graph), x), run(network, x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "normalization": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        (4,),
        r"1: BatchNorm1d \(NIR has no normalization: merge it into the layer before by `torch.nn.utils.fusion",
    ),
    "adaptation": (
        lambda: nn.Sequential(AdaptiveLIF()),
        (4,),
        r"0: AdaptiveLIF \(NIR has no node for its equations, but for LIF",
    ),
    "adaptation in recurrence": (
        lambda: nn.Sequential(Recurrent(AdaptiveLIF(), 4)),
        (4,),
        r"0: Recurrent \(NIR has no node for its AdaptiveLIF\)",
    ),
    "equations of one's own": (
        lambda: nn.Sequential(type("Mine", (LIF,), {"charge": LIF.charge})()),
        (4,),
        r"0: Mine \(a forward of its own|0: Mine \(NIR has no node for its equations, but for LIF",
    ),
    "ReLU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (4,), r"1: ReLU \(.*neurons are the nonlinear nodes"),
    "sign": (lambda: nn.Sequential(Sign()), (4,), r"0: Sign \(NIR has no node for it\)"),
    "maximum": (lambda: nn.Sequential(nn.MaxPool2d(2)), (1, 4, 4), r"0: MaxPool2d \(.*use AvgPool2d\)"),
    "ceil_mode": (
        lambda: nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)),
        (1, 5, 5),
        r"0: AvgPool2d \(NIR has no ceil_mode=True",
    ),
    "padding that is not counted": (
        lambda: nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False)),
        (1, 4, 4),
        r"0: AvgPool2d \(NIR averages over padding, too",
    ),
    "padding mode": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
        (1, 4, 4),
        r"0: Conv2d \(NIR pads by zeros alone",
    ),
    "delays": (
        lambda: nn.Sequential(SynapticDelays((0, 1))),
        (4,),
        r"0: SynapticDelays \(NIR has no concatenation of channels: add the outputs",
    ),
    "features in the last of several dimensions": (
        lambda: nn.Sequential(nn.Linear(4, 4)),
        (3, 4),
        r"0: Linear \(NIR multiplies a matrix with an input \[N\], but the input is \[3, 4\]: flatten it",
    ),
    "one decay of 1": (lambda: nn.Sequential(LIF([1.0, 0.5])), (2,), r"0: LIF \(a decay of 1.*use a decay slightly"),
    "a current that stays": (
        lambda: nn.Sequential(SynapticLIF(1.0, 0.5)),
        (2,),
        r"0: SynapticLIF \(a decay of the synaptic current of 1",
    ),
    "input divided by its past": (
        lambda: nn.Sequential(DivisiveNormalization()),
        (4,),
        r"0: DivisiveNormalization \(NIR has no normalization: networks leave it out with input_rms=None\)",
    ),
    "a layer over sequences": (lambda: nn.Sequential(nn.GRU(4, 4)), (4,), r"0: GRU \(.*OverTime"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_node_is_refused_by_name(name: str):
    make, shape, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"^Expected a network that NIR can represent, but got " + message):
        to_nir(make(), shape)


def test_all_refused_layers_are_named_at_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), AdaptiveLIF(), nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"1: ReLU .*; 2: AdaptiveLIF .*; 4: ReLU "):
        to_nir(network, (4,))


class Multiplied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), LIF()

    def forward(self, x):
        return self.two(self.one(x) * 2)


class Conditional(Multiplied):
    def forward(self, x):
        return self.two(x) if x.sum() > 0 else self.one(x)


class Doubled(Multiplied):
    def forward(self, x):
        current = self.one(x)
        return self.two(current + current)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Multiplied(), r"mul: mul \(between layers, NIR has additions and flattening alone: make it a layer\)"),
        (Conditional(), r"forward pass that does not depend on the values of its input, but tracing it failed"),
        (Doubled(), r"one is added to itself.*Multiply it by a `lightning_snn.nn.Scale\(2.0\)`"),
    ],
)
def test_operations_between_layers_are_refused_by_name(network: nn.Module, message: str):
    with pytest.raises(ValueError, match=message):
        to_nir(network, (4,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt": 0.0}, "`dt` to be a finite number larger than 0"),
        ({"input_shape": (0,)}, "`input_shape` to be an integer of at least 1"),
        ({"input_shape": (5,)}, r"`input_shape` to be the shape of a sample that the network takes, but got \(5,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        to_nir(nn.Sequential(nn.Linear(4, 4), LIF()), **{"input_shape": (4,), **arguments})


def test_a_layer_that_is_called_twice_is_two_nodes():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.neurons = nn.Linear(4, 4), LIF(reset="zero")

        def forward(self, x):
            return self.neurons(self.linear(self.neurons(self.linear(x))))

    torch.manual_seed(0)
    network = Twice()
    with torch.no_grad():
        network.linear.weight.mul_(4)
    x = 2 * torch.rand(20, 5, 4)
    graph = to_nir(network, (4,))
    assert sorted(graph.nodes) == ["input", "linear", "linear#1", "neurons", "neurons#1", "output"]
    assert np.array_equal(euler(graph, x.numpy(), 1e-4), spikes_of(network, x).numpy())


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), LIF(0.8, reset="zero"), nn.Linear(16, 3))


@pytest.mark.parametrize("method", [SurrogateGradient(), RateBackprop(), NoisySpikes(), SpikingBayes()], ids=repr)
def test_a_module_leaves_as_its_deterministic_prediction(method):
    module = SpikingModule(small(), method, num_classes=3)
    x = 3 * torch.rand(20, 5, 4)
    outputs = euler(to_nir(module, (4,)), x.numpy(), 1e-4)
    plain = module.method.posterior_mean(module.network) if isinstance(method, SpikingBayes) else module.network
    assert np.allclose(outputs, run(plain, x).detach(), atol=1e-5)
    assert np.allclose(outputs, module(x).detach(), atol=1e-5)


def test_a_posterior_leaves_as_its_mean_or_as_a_sample():
    module = SpikingModule(small(), SpikingBayes(), num_classes=3)
    sample = module.method.posterior_sample(module.network, torch.Generator().manual_seed(1))
    graphs = [to_nir(each, (4,)) for each in (module, sample)]
    assert np.array_equal(graphs[0].nodes["0"].weight, module.network[0].weight.detach())
    assert np.array_equal(graphs[1].nodes["0"].weight, sample[0].weight.detach())
    assert not np.array_equal(graphs[0].nodes["0"].weight, graphs[1].nodes["0"].weight)
    with pytest.raises(
        ValueError, match=r"0: BayesLinear \(its weights have a posterior: export `method.posterior_mean"
    ):
        to_nir(module.network, (4,))
    recurrent = SpikingModule(nn.Sequential(nn.Linear(4, 8), RecurrentLIF(8)), SpikingBayes(), num_classes=8)
    with pytest.raises(ValueError, match=r"1: BayesRecurrentLIF \(its weights have a posterior"):
        to_nir(recurrent.network, (4,))
    assert np.array_equal(
        to_nir(recurrent, (4,)).nodes["1"].nodes["w_rec"].weight, recurrent.network[1].weight.detach()
    )


def test_first_spikes_and_messages_are_refused_by_name():
    first = SpikingModule(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), TimeToFirstSpike(), num_classes=3)
    with pytest.raises(ValueError, match=r"the network: TTFSNetwork \(its neurons spike once, at a continuous time"):
        to_nir(first, (4,))
    messages = SpikingModule(MLP(4, 3, (8,)), ExpectationPropagation(), num_classes=3)
    with pytest.raises(ValueError, match=r"it passes messages, which no node of NIR does"):
        to_nir(messages, (4,))


@pytest.mark.parametrize("ranges", ["layer", "channel"])
def test_quantized_weights_leave_with_their_integers(ranges, tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 3, 3), LIF(reset="zero"), nn.Flatten(), nn.Linear(48, 4, bias=False))
    constraints = HardwareConstraints(weight_bits=3, weight_ranges=ranges)
    nir.write(tmp_path / "network.nir", to_nir(network, (2, 6, 6), quantization=constraints))
    graph = nir.read(tmp_path / "network.nir")
    integers = export_weights(network, constraints)
    for name in ("0", "3"):
        notes, node = graph.nodes[name].metadata["lightning_snn"], graph.nodes[name]
        assert np.array_equal(notes["codes"], integers[name].codes)
        assert np.array_equal(notes["scale"], integers[name].scale)
        assert notes["bits"] == 3
        assert np.allclose(node.weight, notes["offset"] + notes["scale"] * notes["codes"], atol=1e-7)
    x = 4 * torch.rand(8, 3, 2, 6, 6)
    with Constrained(network, constraints):
        expected = run(network, x)
    assert torch.equal(run(from_nir(graph), x), expected)
    assert not torch.equal(run(network, x), expected)


def test_recurrence_is_a_subgraph_with_an_edge_back():
    graph = to_nir(nn.Sequential(nn.Linear(4, 8), RecurrentLIF(8)), (4,))
    inside = graph.nodes["1"]
    assert {name: type(node).__name__ for name, node in inside.nodes.items()} == {
        "input": "Input",
        "lif": "LIF",
        "w_rec": "Linear",
        "output": "Output",
    }
    assert set(inside.edges) == {("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")}
