"""Networks of SpikingJelly: spikes and gradients equal to its own, on a grid too, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.convert import from_spikingjelly, to_spikingjelly
from lightning_snn.functional import ArcTangent, FastSigmoid, Sigmoid, Triangular
from lightning_snn.nn import IF, AdaptiveLIF, Recurrent, SynapticLIF
from tests.convert.peers import run_spikingjelly, scale_weights, spikingjelly

functional, layer, neuron, surrogate = spikingjelly().parts

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
step_modes = pytest.mark.parametrize("step_mode", ["s", "m"])

NEURONS = {
    "if": (lambda v: neuron.IFNode(v_reset=v, surrogate_function=surrogate.ATan()), IF),
    "if_simple": (lambda v: neuron.SimpleIFNode(v_reset=v, surrogate_function=surrogate.ATan(4.0)), IF),
    "lif": (lambda v: neuron.LIFNode(tau=1.7, v_threshold=0.6, v_reset=v), LIF),
    "lif_detached": (
        lambda v: neuron.LIFNode(
            decay_input=False, v_reset=v, detach_reset=True, surrogate_function=surrogate.PiecewiseQuadratic(0.5)
        ),
        LIF,
    ),
    "parametric": (
        lambda v: neuron.ParametricLIFNode(
            1.7, decay_input=False, v_reset=v, surrogate_function=surrogate.PiecewiseExp()
        ),
        LIF,
    ),
    "cuba": (lambda v: neuron.CUBALIFNode(0.6, 0.8, 1.0, v, surrogate_function=surrogate.Erf()), SynapticLIF),
}


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@dtypes
@step_modes
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.5])
@pytest.mark.parametrize("name", NEURONS)
def test_spikes_and_gradients_equal_those_of_spikingjelly(name: str, v_reset: Any, step_mode: str, dtype: torch.dtype):
    """Surrogate gradients of all layers through time, against SpikingJelly's own autograd."""
    if v_reset == -0.5 and name in ("if_simple", "cuba"):
        pytest.skip("it starts at 0 or leaks to 0, and is reset to another value: refused")
    make, kind = NEURONS[name]
    network = nn.Sequential(layer.Linear(6, 8), make(v_reset), layer.Linear(8, 8), make(v_reset)).to(dtype)
    functional.set_step_mode(network, step_mode)
    scale_weights(network, 6.0)
    converted = from_spikingjelly(network)
    assert type(converted[1]) is kind
    x, weight = 2 * torch.rand(15, 3, 6, dtype=dtype), torch.rand(15, 3, 8, dtype=dtype)
    expected, found = run_spikingjelly(network, x, step_mode), run(converted, x)
    assert 0.02 < expected.mean() < 0.9
    assert torch.equal(expected, found)
    ours = gradients((found * weight).sum(), converted)
    for key, gradient in gradients((expected * weight).sum(), network).items():
        # the weight of a ParametricLIFNode is minus the logit of the decay
        own = -ours[key.replace(".w", ".beta_logit")] if key.endswith(".w") else ours[key]
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(own, gradient, rtol=tolerance, atol=tolerance * gradient.abs().max().item())


def grid_network(dtype: torch.dtype, v_reset: float | None, **options: Any) -> nn.Module:
    """Weights in {-1/2, 0, 1/2, 1} and no bias, so that potentials of integer inputs often are the threshold."""
    made = nn.Sequential(
        *(layer.Linear(6, 16, bias=False), neuron.IFNode(v_reset=v_reset, **options)),
        *(layer.Linear(16, 8, bias=False), neuron.IFNode(v_reset=v_reset, **options)),
    )
    functional.set_step_mode(made, "m")
    with torch.no_grad():
        for part in (made[0], made[2]):
            part.weight.copy_(torch.randint(-1, 3, part.weight.shape) / 2)
    return made.to(dtype)


@dtypes
@pytest.mark.parametrize("v_reset", [None, 0.0], ids=["subtract", "zero"])
@torch.no_grad()
def test_potentials_that_meet_the_threshold_exactly_spike(v_reset: float | None, dtype: torch.dtype):
    """SpikingJelly spikes at v >= theta; a threshold of theta would miss these spikes."""
    network = grid_network(dtype, v_reset)
    converted = from_spikingjelly(network)
    x = torch.randint(0, 2, (200, 5, 6)).to(dtype)
    expected = run_spikingjelly(network, x)
    potentials, _ = converted[1].potentials(torch.nn.functional.linear(x, converted[0].weight), run(converted[:2], x))
    exact = potentials.float().eq(1).sum() if v_reset == 0.0 else potentials.sub(1).abs().lt(1e-4).sum()
    assert exact > 500
    assert torch.equal(run(converted, x), expected)
    assert converted[1].threshold == torch.nextafter(*torch.tensor([1.0, 0.0], dtype=dtype)).item()
    for part in (converted[1], converted[3]):
        part.take_values(IF(1.0))
    assert not torch.equal(run(converted, x), expected)  # with v > 1
    back = to_spikingjelly(from_spikingjelly(network))
    assert back[1].v_threshold == 1.0
    assert torch.equal(run_spikingjelly(back, x), expected)


def csnn(step_mode: str, normalized: bool = True) -> nn.Module:
    """The convolutional network of SpikingJelly's tutorials, smaller."""
    options = {"surrogate_function": surrogate.ATan()}
    made = nn.Sequential(
        *(layer.Conv2d(1, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4) if normalized else nn.Identity()),
        *(neuron.IFNode(**options), layer.MaxPool2d(2, 2)),
        *(layer.Flatten(), layer.Linear(64, 16, bias=False), neuron.IFNode(**options)),
        *(layer.Linear(16, 10, bias=False), neuron.LIFNode(**options)),
    )
    functional.set_step_mode(made, step_mode)
    return made


@dtypes
@step_modes
@torch.no_grad()
def test_a_convolutional_network_has_no_mismatch_on_20_inputs(step_mode: str, dtype: torch.dtype):
    network = csnn(step_mode).to(dtype)
    scale_weights(network)
    run_spikingjelly(network, torch.rand(8, 6, 1, 8, 8, dtype=dtype), step_mode)  # statistics of the normalization
    converted = from_spikingjelly(network.eval())
    assert [type(part) for part in converted] == [
        *(nn.Conv2d, nn.BatchNorm2d, IF, nn.MaxPool2d, nn.Flatten, nn.Linear, IF, nn.Linear, LIF)
    ]
    x = torch.rand(8, 20, 1, 8, 8, dtype=dtype)
    expected = run_spikingjelly(network, x, step_mode)
    assert expected.mean() > 0.02
    assert torch.equal(run(converted, x), expected)


def test_training_normalizes_over_all_steps_as_step_mode_m_does():
    network = csnn("m")
    converted = from_spikingjelly(network)
    assert converted.training
    x = torch.rand(8, 4, 1, 8, 8)
    torch.testing.assert_close(run(converted, x), run_spikingjelly(network, x))
    torch.testing.assert_close(converted[1].running_mean, network[1].running_mean)
    assert not torch.equal(converted[1].running_mean, torch.zeros(4))


class PerStep(nn.Module):
    """A module of one's own in step mode "s", and with sums in step mode "m"."""

    def __init__(self, step_mode: str) -> None:
        super().__init__()
        self.first = nn.Sequential(layer.Linear(6, 8), neuron.LIFNode())
        self.second = nn.Sequential(layer.Linear(8, 8), neuron.LIFNode())
        functional.set_step_mode(self, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.second(x)


@step_modes
@torch.no_grad()
def test_a_module_of_ones_own_is_traced(step_mode: str):
    network = PerStep(step_mode)
    scale_weights(network)
    x = 2 * torch.rand(15, 3, 6)
    expected = run_spikingjelly(network, x, step_mode)
    assert expected.mean() > 0.05
    assert torch.equal(run(from_spikingjelly(network), x), expected)


@torch.no_grad()
def test_containers_and_plain_layers_in_step_mode_m():
    network = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)),
        layer.MultiStepContainer(neuron.IFNode(v_threshold=0.2)),
        nn.Flatten(2),
        nn.Linear(12, 5),
        neuron.IFNode(v_threshold=0.2, step_mode="m"),
    ).eval()
    converted = from_spikingjelly(network)
    assert converted[2].start_dim == 1
    x = torch.rand(10, 3, 1, 4, 4)
    expected = run_spikingjelly(network, x)
    assert expected.mean() > 0.02
    assert torch.equal(run(converted, x), expected)


@dtypes
@torch.no_grad()
def test_recurrent_weights_round_trip(dtype: torch.dtype):
    container = layer.LinearRecurrentContainer(neuron.IFNode(v_reset=None), 6, 6, step_mode="m")
    network = nn.Sequential(layer.Linear(5, 6), container).to(dtype)
    functional.set_step_mode(network, "m")
    scale_weights(network)
    converted = from_spikingjelly(network)
    assert isinstance(converted[1][1], Recurrent)
    x = 2 * torch.rand(15, 3, 5, dtype=dtype)
    expected = run_spikingjelly(network, x)
    assert expected.mean() > 0.05
    assert torch.equal(run(converted, x), expected)
    assert torch.equal(run_spikingjelly(to_spikingjelly(converted), x), expected)


def test_everything_that_has_no_counterpart_is_listed_with_what_to_do():
    network = nn.Sequential(
        *(layer.Linear(4, 8), neuron.QIFNode(), layer.Dropout(0.5), nn.Softmax(1)),
        *(neuron.IFNode(v_threshold=1.0, v_reset=2.0), neuron.LIFNode(surrogate_function=surrogate.S2NN())),
        *(neuron.SimpleIFNode(v_reset=-1.0), neuron.CUBALIFNode(v_reset=-1.0, surrogate_function=surrogate.ATan())),
    )
    functional.set_step_mode(network, "m")
    with pytest.raises(ValueError, match="from_spikingjelly can convert exactly") as raised:
        from_spikingjelly(network)
    message = str(raised.value)
    for part in (
        "1: QIFNode (its charge is quadratic: write it as a `lightning_snn.nn.Neuron`",
        "2: Dropout (its mask stays for all steps: use nn.Dropout",
        "3: Softmax (it receives [T, B, ...] and may take it for something else",
        "4: IFNode (its v_threshold 1 is not larger than its v_reset 2",
        "5: LIFNode (its surrogate function S2NN has no counterpart: set `layer.surrogate_function`",
        "6: SimpleIFNode (it starts at 0 and is reset to -1: use IFNode",
        "7: CUBALIFNode (it leaks towards 0 and is reset to -1: use v_reset=0.0 or None",
    ):
        assert part in message


def test_a_neuron_by_itself_is_converted_in_the_default_dtype():
    assert from_spikingjelly(neuron.IFNode()).threshold == torch.nextafter(*torch.tensor([1.0, 0.0])).item()
    assert type(to_spikingjelly(IF())) is neuron.IFNode


def test_mixed_step_modes_are_refused():
    network = nn.Sequential(layer.Linear(4, 8), neuron.IFNode(step_mode="m"))
    with pytest.raises(ValueError, match=r'one step mode, but got "m" in 1 and "s" in 0. Call `.*set_step_mode'):
        from_spikingjelly(network)


def test_a_learned_scale_of_the_input_is_named_in_a_warning():
    network = nn.Sequential(layer.Linear(4, 8), neuron.ParametricLIFNode())
    with pytest.warns(UserWarning, match="from_spikingjelly: 1 divide their input by a tau that they learn"):
        from_spikingjelly(network)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (surrogate.ATan(), ArcTangent()),
        (surrogate.Sigmoid(), Sigmoid()),
        (surrogate.SoftSign(), FastSigmoid()),
        (surrogate.PiecewiseQuadratic(), Triangular()),
        (surrogate.SuperSpike(3.0), None),
        (surrogate.ATan(5.0), None),
        (surrogate.Erf(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_surrogates_have_their_derivatives_and_return(function: Any, expected: Any):
    found = from_spikingjelly(nn.Sequential(nn.Linear(2, 2), neuron.IFNode(surrogate_function=function)))[1]
    assert expected is None or found.surrogate == expected
    back = to_spikingjelly(nn.Sequential(nn.Linear(2, 2), found))[1].surrogate_function
    assert expected is None or type(back) is type(function)
    distance = torch.linspace(-2, 2, 41, requires_grad=True)
    for spike in (function, back):
        (gradient,) = torch.autograd.grad(spike(distance).sum(), distance)
        torch.testing.assert_close(found.surrogate.derivative(distance.detach()), gradient)


def test_networks_without_a_counterpart_in_spikingjelly_are_refused():
    network = nn.Sequential(
        *(nn.Linear(4, 8), LIF(order="leak_then_reset"), nn.Linear(8, 8), AdaptiveLIF()),
        *(nn.Linear(8, 8), LIF(channels=8), nn.Linear(8, 8), LIF(learn_threshold=True), nn.Linear(8, 8), LIF(0.0)),
    )
    with pytest.raises(ValueError, match="to_spikingjelly can convert exactly") as raised:
        to_spikingjelly(network)
    for part in (
        '1: LIF (SpikingJelly resets at once: use order="reset_then_leak")',
        "3: AdaptiveLIF (it has no counterpart in SpikingJelly)",
        "5: LIF (its beta is learned or per channel",
        "7: LIF (its threshold is learned or per channel",
        "9: LIF (its beta is 0",
    ):
        assert part in str(raised.value)
    with pytest.raises(ValueError, match='in step_mode="m" to be an nn.Sequential, but got a PerStep.*step_mode="s"'):
        to_spikingjelly(from_spikingjelly(PerStep("m")))
