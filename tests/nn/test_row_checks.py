"""Layers that take rows for time steps, or keep a state: refused in `run` and in `prepare`, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn import unfold

MIXING: dict[str, Callable[[], nn.Module]] = {
    "GRU": lambda: nn.GRU(8, 8),
    "LSTM": lambda: nn.LSTM(8, 8, batch_first=True),
    "RNN": lambda: nn.RNN(8, 8),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0),
    "Leaky": lambda: snntorch.Leaky(0.9, init_hidden=True),
    "Synaptic": lambda: snntorch.Synaptic(0.8, 0.9),
}


class Middle(nn.Module):
    """A network whose middle layer may return a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before, self.neurons, self.layer, self.after = nn.Linear(4, 8), LIF(), layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.neurons(self.before(x)))
        return self.after(x[0] if isinstance(x, tuple) else x)


@pytest.mark.parametrize("name", MIXING)
def test_run_refuses_a_layer_that_mixes_rows_by_name(name):
    with pytest.raises(
        ValueError, match=rf"5 \* 4 rows.*independent, but got layer: {name} \(.*wrap (it|this layer) in `lightning_"
    ):
        run(Middle(MIXING[name]()), torch.rand(5, 4, 4))


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize(
    "method",
    [SurrogateGradient, NoisySpikes, SpikingBayes, RateBackprop, TimeToFirstSpike, ExpectationPropagation],
    ids=lambda kind: kind.__name__,
)
def test_prepare_refuses_it_where_it_receives_folded_rows_for_certain(method: type[Method], name):
    layer = MIXING[name]()
    if getattr(layer, "batch_first", False) and method is SurrogateGradient:
        pytest.skip("the rank of its input decides, so `run` refuses it")
    network = nn.Sequential(nn.Linear(4, 8), LIF(), layer, nn.Linear(8, 3))
    with pytest.raises(ValueError, match=rf"a network that {method.__name__} can train, but got 2.*: {name} \("):
        SpikingModule(network, method(), num_classes=3)


class TokenAttention(nn.Module):
    """Attention over the N tokens of a frame, `[T*B, N, F]`."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    "layer",
    [TokenAttention(True), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)],
    ids=["attention", "encoder layer"],
)
def test_attention_over_the_tokens_of_a_frame_is_right_and_allowed(layer):
    network = nn.Sequential(nn.Linear(4, 8), LIF(), layer).eval()
    x = torch.rand(5, 3, 7, 4)
    whole = run(network, x)
    assert SpikingModule(network, num_classes=8).network is not None
    for index in range(3):
        torch.testing.assert_close(run(network, x[:, index : index + 1])[:, 0], whole[:, index], rtol=1e-5, atol=1e-5)


def test_attention_whose_batch_is_the_second_dimension_is_refused():
    network = nn.Sequential(nn.Linear(4, 8), LIF(), TokenAttention(False))
    with pytest.raises(ValueError, match=r"got 2\.attention: MultiheadAttention \(it takes rows.*batch_first=True"):
        run(network, torch.rand(5, 3, 7, 4))


class Recurrence(nn.Module):
    """A recurrent layer on the sequence that it unfolds itself, which is right."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.cell = nn.GRU(4, 4), nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in self.gru(unfold(x, self))[0].unbind(0):
            state = self.cell(step, state)
            outputs.append(state)
        return torch.stack(outputs).flatten(0, 1)


def test_a_module_that_unfolds_time_itself_may_use_recurrent_layers():
    network, x = Recurrence().double(), torch.rand(5, 3, 4, dtype=torch.float64)
    whole = run(network, x)
    for index in range(3):
        torch.testing.assert_close(run(network, x[:, index : index + 1])[:, 0], whole[:, index], rtol=1e-12, atol=1e-12)


class OwnLoop(nn.Module):
    """A loop over time around a layer of snntorch that keeps its state."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self.leaky, self.reset = snntorch.Leaky(0.9, init_hidden=True), reset

    def forward(self, x: Tensor) -> Tensor:
        if self.reset:
            self.leaky.reset_mem()
        return torch.stack([self.leaky(step) for step in unfold(x, self).unbind(0)]).flatten(0, 1)


def test_state_left_by_an_earlier_run_is_refused_and_a_reset_allowed():
    x = torch.rand(5, 3, 4)
    with torch.no_grad():
        right = OwnLoop(reset=True)
        assert torch.equal(run(right, x), run(right, x))
        leaking = OwnLoop(reset=False)
        run(leaking, x)
        with pytest.raises(ValueError, match=r"got leaky: Leaky \(it starts from the state that an earlier run left"):
            run(leaking, x)


def test_a_layer_put_into_a_network_after_its_first_run_is_found():
    network = nn.Sequential(nn.Linear(4, 8), nn.Identity())
    run(network, torch.rand(5, 3, 4))
    network[1] = nn.GRU(8, 8)
    with pytest.raises(ValueError, match="got 1: GRU"):
        run(network, torch.rand(5, 3, 4))


def test_nothing_is_left_on_the_layers():
    network = nn.Sequential(TokenAttention(True))
    run(network, torch.rand(5, 3, 7, 8))
    assert not network[0].attention._forward_pre_hooks
