"""A network that advances by some steps, or step by step, against one run over the whole sequence."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lightning_snn import Stream, advance, run
from lightning_snn.networks import MLP, VGG, EventConvNet, RecurrentNet, ResidualConvNet, ResidualMLP, ResNet
from lightning_snn.nn import LIF, AdaptiveLIF, LeakyIntegrator, OverTime, SynapticDelays, SynapticLIF, posterior_noise
from lightning_snn.nn.observation import Traces
from tests.contract.strangers import OwnEquations, OwnForward, Unfolding, WithStep
from tests.contract.table import LAYERS
from tests.nn.neurons.test_observers import Izhikevich

T, B = 12, 3


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, B, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_pieces(network: nn.Module, x: Tensor, *cuts: int) -> Tensor:
    state, outputs = None, []
    for piece in x.tensor_split(list(cuts)):
        output, state = advance(network, piece, state)
        outputs.append(output)
    return torch.cat(outputs)


def step_by_step(network: nn.Module, x: Tensor) -> Tensor:
    stream = Stream(network)
    return torch.stack([stream(step) for step in x])


def assert_equal(one: Tensor, other: Tensor) -> None:
    """Spikes are equal; matrix products of other numbers round by the number of their rows."""
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def deep(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    width = 4 * len(layers[0].delays) if isinstance(layers[0], SynapticDelays) else 4
    return nn.Sequential(nn.Linear(4, 4), layers[0], nn.Linear(width, 4), *layers[1:]).double()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: MLP(6, 3, (8, 8)), (6,)),
    "VGG": (lambda: VGG((2, 8, 8), 3, (4, "A", 6), lambda: LIF(0.5, 0.1)), (2, 8, 8)),
    "EventConvNet": (lambda: EventConvNet((2, 16, 16), 3), (2, 16, 16)),
    "RecurrentNet": (lambda: RecurrentNet(6, 3, (8, 8)), (6,)),
    "ResidualConvNet": (lambda: ResidualConvNet((2, 8, 8), 3, (4, 6), 1), (2, 8, 8)),
    "ResidualMLP": (lambda: ResidualMLP(6, 3, 3, 8, LIF), (6,)),
    "ResNet": (lambda: ResNet((2, 8, 8), 3, (4, 6)), (2, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_of_each_network_gives_what_a_run_gives(name):
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    network, x = make().double().eval(), 8 * inputs(*shape)
    with torch.no_grad():
        expected = run(network, x)
        fresh = torch.stack([advance(network, step[None])[0][0] for step in x])
    assert_equal(step_by_step(network, x), expected)
    assert_equal(in_pieces(network, x, 1, 5, 6).detach(), expected)
    # the states matter
    assert (fresh - expected).abs().max() > 1e-2


@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
def test_every_layer_with_a_state_advances_with_its_gradients(row):
    network, x = deep(row.make(), LeakyIntegrator(0.7)), inputs(4)
    weight = torch.randn(T, B, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    whole, pieces = run(network, x), in_pieces(network, x, 1, 5, 6)
    assert_equal(pieces, whole)
    assert_equal(step_by_step(network, x), whole.detach())
    expected = torch.autograd.grad((whole * weight).sum(), trained, allow_unused=True)
    got = torch.autograd.grad((pieces * weight).sum(), trained, allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradients_flow_through_the_states():
    network, x = deep(AdaptiveLIF(0.9)), inputs(4)
    weight = network[0].weight
    expected = torch.autograd.grad(run(network, x)[-3:].sum(), weight)[0]
    _, state = advance(network, x[:-3])
    got = torch.autograd.grad(advance(network, x[-3:], state)[0].sum(), weight, retain_graph=True)[0]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    detached = {name: type(each)(*(leaf.detach() for leaf in each)) for name, each in state.items()}
    cut = torch.autograd.grad(advance(network, x[-3:], detached)[0].sum(), weight)[0]
    assert not torch.allclose(cut, expected, rtol=1e-3)


def test_a_neuron_of_ones_own_streams():
    network, x = deep(Izhikevich()), inputs(4)
    expected = run(network, x).detach()
    assert torch.equal(step_by_step(network, x), expected)
    stream = Stream(network)
    for step in x[:5]:
        stream(step)
    assert stream.state["1"].v.amin() < -40  # far from zero, so the state of rest is not zeros
    stream.reset([1])
    assert stream.state["1"].v[1].tolist() == [-70.0] * 4


@pytest.mark.parametrize("make", [OwnEquations, OwnForward])
def test_a_subclass_with_equations_or_a_forward_of_its_own_streams(make):
    network, x = deep(make()), inputs(4)
    assert torch.equal(step_by_step(network, x), run(network, x).detach())


@pytest.mark.parametrize("make", [Unfolding, WithStep, lambda: OverTime(nn.GRU(4, 4))])
def test_a_layer_that_takes_no_state_is_refused_by_name(make):
    layer = make().double()
    with pytest.raises(RuntimeError, match=rf"{type(layer).__name__} mixes time steps and defines no `scan"):
        advance(deep(layer), inputs(4))


def test_a_layer_in_two_places_has_two_states():
    layer = LIF(0.9)
    network, x = deep(layer, layer), inputs(4)
    output, state = advance(network, x)
    assert list(state) == ["1", "1#1"]
    assert not torch.equal(state["1"], state["1#1"])
    assert torch.equal(step_by_step(network, x), output.detach())


def test_another_number_of_samples_is_refused():
    network, x = deep(LIF()), inputs(4)
    _, state = advance(network, x)
    with pytest.raises(ValueError, match=r"B = 3 samples, as those of the state of 1, but got 1\. "):
        advance(network, x[:, :1], state)
    stream = Stream(network)
    stream(x[0])
    with pytest.raises(ValueError, match="but got 2"):
        stream(x[0, :2])
    stream.reset()
    assert stream(x[0, :2]).shape == (2, 4)


def test_states_of_another_network_are_refused():
    _, state = advance(deep(LIF()), inputs(4))
    with pytest.raises(ValueError, match=r"to hold a state of 3, but got those of 1\."):
        advance(deep(LIF(), LIF()), inputs(4), state)
    _, state = advance(deep(LIF(), LIF()), inputs(4))
    with pytest.raises(ValueError, match="3 was not called"):
        advance(deep(LIF()), inputs(4), state)


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = LIF(), LIF()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else self.second(x)


def test_other_layers_than_in_the_pass_before_are_refused():
    network = Sometimes()
    _, state = advance(network, torch.ones(2, 1, 3))
    with pytest.raises(ValueError, match="to hold a state of second, but got those of first"):
        advance(network, -torch.ones(2, 1, 3), state)


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [LIF()]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def test_a_layer_that_is_no_part_of_the_network_is_refused():
    with pytest.raises(ValueError, match="LIF is none"):
        advance(Elsewhere(), torch.ones(2, 1, 3))


class WithRunInside(nn.Module):
    """Scores each row by a network that runs over a sequence of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = LIF(0.9), LIF(0.9)

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.expand(5, *x.shape)
        return self.outer(run(self.inner, repeated).mean(0) + x)


def test_a_run_inside_the_network_starts_from_rest():
    network, x = WithRunInside(), inputs(4)
    _, state = advance(network, x)
    assert list(state) == ["outer"]
    assert torch.equal(step_by_step(network, x), run(network, x))


@pytest.mark.parametrize("rows", [1, [1], torch.tensor([False, True, False])], ids=["index", "indices", "mask"])
def test_a_sample_is_reset_to_rest(rows):
    network, x = deep(AdaptiveLIF(), SynapticDelays((0, 2))), inputs(4)
    stream, untouched, fresh = Stream(network), Stream(network), Stream(network)
    for step in x[:6]:
        stream(step), untouched(step)
    stream.reset(rows)
    for step in x[6:]:
        got, others, rested = stream(step), untouched(step), fresh(step)
        assert torch.equal(got[1], rested[1])
        assert torch.equal(got[[0, 2]], others[[0, 2]])
    assert not torch.equal(got[0], rested[0])
    with pytest.raises(IndexError):
        stream.reset(7)


@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
def test_a_saved_stream_goes_on(row):
    network, x = deep(row.make()), inputs(4)
    stream, file = Stream(network), io.BytesIO()
    for step in x[:6]:
        stream(step)
    torch.save(stream.state_dict(), file)
    file.seek(0)
    loaded = Stream(network)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for step in x[6:]:
        assert torch.equal(loaded(step), stream(step))
    loaded.reset([0])
    with pytest.raises(ValueError, match="but got that of 'elsewhere'"):
        Stream(network).load_state_dict({"elsewhere": (torch.zeros(3, 4),)})


def test_a_stream_keeps_no_graph_and_leaves_nothing_on_the_network():
    network, x = deep(LIF()), inputs(4)
    keys, attributes = list(network.state_dict()), set(vars(network[1]))
    stream = Stream(network)
    assert not stream(x[0]).requires_grad
    assert not stream.state["1"].requires_grad
    assert list(network.state_dict()) == keys
    assert set(vars(network[1])) == attributes


def test_noise_and_statistics_of_a_batch_are_refused():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), LIF()).double()
    with pytest.raises(ValueError, match="got 1: BatchNorm2d in training mode. Call `network.eval"):
        advance(network, inputs(2, 4, 4))
    assert advance(network.eval(), inputs(2, 4, 4))[0].shape == (T, B, 3, 4, 4)
    network[1].running_mean = None
    with pytest.raises(ValueError, match="got 1: BatchNorm2d without any"):
        advance(network, inputs(2, 4, 4))
    with posterior_noise(), pytest.raises(ValueError, match="posterior_noise"):
        advance(network, inputs(2, 4, 4))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.last = deep(LIF()), nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(x)
        return self.last(features)


class Checkpointed(nn.Module):
    def __init__(self, block: nn.Module, reentrant: bool):
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


def test_a_checkpointed_block_recomputes_with_the_states_of_its_pass():
    block, x = deep(AdaptiveLIF(0.9), LIF()), inputs(4)
    expected = torch.autograd.grad(run(block, x).sum(), block[0].weight)[0]
    in_pieces(Checkpointed(block, reentrant=False), x, 5).sum().backward()
    torch.testing.assert_close(block[0].weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_reentrant_checkpointing_that_would_cut_the_gradient_of_the_states_is_refused():
    network, x = Checkpointed(deep(LIF()), reentrant=True), inputs(4).requires_grad_()
    with pytest.raises(RuntimeError, match=r"use_reentrant=False around block\.1: LIF"):
        in_pieces(network, x, 5).sum().backward()
    two_calls = Checkpointed(deep(*[LIF()] * 2), reentrant=False)
    with pytest.raises(RuntimeError, match=r"around block\.1: LIF, which is called 2 times"):
        in_pieces(two_calls, x, 5).sum().backward()


def test_a_frozen_part_streams_without_gradients():
    network, x = Frozen(), inputs(4)
    in_pieces(network, x, 5).sum().backward()
    assert network.last.weight.grad is not None
    assert_equal(in_pieces(network, x, 5), run(network, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_stream_in_lower_precision_gives_what_a_run_gives_and_keeps_wide_potentials(dtype):
    network, x = deep(AdaptiveLIF(), SynapticLIF(), LeakyIntegrator()).to(dtype), inputs(4).to(dtype)
    stream = Stream(network)
    outputs = torch.stack([stream(step) for step in x])
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, run(network, x).detach(), rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=0)
    assert all(leaf.dtype == torch.float32 for leaf in tree_leaves(stream.state))
    stream.reset([1])
    stream.load_state_dict(stream.state_dict())
    assert stream(x[0]).dtype == dtype


def test_a_stream_under_autocast_gives_what_a_run_gives():
    network, x = deep(AdaptiveLIF(), LIF()).float(), inputs(4).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = step_by_step(network, x)
        assert outputs.dtype == torch.bfloat16
        assert torch.equal(outputs, run(network, x))


def test_a_stream_goes_on_inside_and_outside_of_inference_mode():
    network, x = deep(AdaptiveLIF(), SynapticDelays((0, 2)), LIF()), inputs(4)
    stream, expected = Stream(network), run(network, x).detach()
    outputs = [stream(x[0])]
    with torch.inference_mode():
        outputs += [stream(step) for step in x[1:5]]
        stream.load_state_dict(stream.state_dict())
    outputs += [stream(step) for step in x[5:]]
    assert_equal(torch.stack(outputs), expected)
    with torch.inference_mode():
        stream.reset([1])
    stream.reset([0])
    stream(x[0])


def test_several_streams_of_a_network_and_copies_of_a_stream_are_independent():
    network, x = deep(AdaptiveLIF(), LIF()), inputs(4)
    one, other = Stream(network), Stream(network)
    backward = x.flip(0)
    found = [(one(x[t]), other(backward[t])) for t in range(T)]
    for outputs, sequence in zip(zip(*found, strict=True), (x, backward), strict=True):
        assert_equal(torch.stack(outputs), run(network, sequence).detach())
    copies = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
    expected = one(x[0])
    for copied in copies:
        assert torch.equal(copied(x[0]), expected)
    assert not torch.equal(one(x[0]), expected)


@pytest.mark.parametrize("in_place", [False, True], ids=["compiled", "compiled_in_place"])
def test_a_compiled_network_streams_with_the_states_of_the_network(in_place):
    network, x = nn.Sequential(nn.Linear(4, 4), AdaptiveLIF(), SynapticDelays((0, 1))).double(), inputs(4)
    expected = run(network, x).detach()
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, given: list[Tensor]) -> object:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compiled = Whole(network) if in_place else torch.compile(network, backend=backend, fullgraph=True)
    if in_place:
        compiled.compile(backend=backend, fullgraph=True)
    stream = Stream(compiled)
    outputs = [stream(step) for step in x]
    assert_equal(torch.stack(outputs), expected)
    # the step from rest and the others
    assert len(graphs) == 2
    if not in_place:
        uncompiled = Stream(network)
        uncompiled.load_state_dict(stream.state_dict())
        assert_equal(uncompiled(x[0]), stream(x[0]))


class Whole(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_states_follow_the_network_to_another_device():
    network = deep(AdaptiveLIF(), LIF(order="leak_then_reset"), SynapticDelays((0, 1)))
    stream = Stream(network[:-1])
    stream(inputs(4)[0])
    network.to("meta")
    assert stream(inputs(4)[0].to("meta")).device.type == "meta"
    assert all(leaf.device.type == "meta" for leaf in tree_leaves(stream.state))


def test_observers_see_the_potentials_of_a_stream():
    network, x = deep(AdaptiveLIF(0.9), SynapticLIF()), inputs(4)
    whole, pieces = Traces(B, membranes=True), Traces(B, membranes=True)
    with whole.recording(network):
        run(network, x)
    with pieces.recording(network):
        step_by_step(network, x)
    for name, trace in whole.found().items():
        assert_equal(pieces.found()[name].spikes, trace.spikes)
        assert_equal(pieces.found()[name].membrane, trace.membrane)
        assert trace.spikes.any()
    assert torch.equal(pieces.found()["1"].membrane > pieces.found()["1"].threshold, pieces.found()["1"].spikes.bool())
