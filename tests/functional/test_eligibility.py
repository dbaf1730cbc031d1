"""Rates and eligibilities in one pass against autograd of the unrolled neuron, in chunks, windows and blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_snn.functional import ArcTangent, Dynamics, Sigmoid, Smooth, eligibility, lif, lif_step
from lightning_snn.functional.eligibility import lif_rate
from lightning_snn.functional.scans import rate_loop
from lightning_snn.functional.step_eligibility import StepRecord, step_rate
from lightning_snn.functional.surrogate import SURROGATES
from lightning_snn.nn import membrane

RESETS, ORDERS = ("subtract", "zero"), ("reset_then_leak", "leak_then_reset")
DYNAMICS = [
    Dynamics(reset, order, detach, Sigmoid()) for reset, order, detach in product(RESETS, ORDERS, (False, True))
]
every_dynamics = pytest.mark.parametrize(
    "dynamics",
    DYNAMICS,
    ids=lambda dynamics: f"{dynamics.reset}-{dynamics.order}-{'detached' if dynamics.detach_reset else 'attached'}",
)
every_decay = pytest.mark.parametrize("beta", [0.0, 0.2, 0.9, 1.0])
every_shape = pytest.mark.parametrize("shape", [(), (3, 1, 1), (2, 3, 2, 2)], ids=str)
THRESHOLD = 0.8
BOTH = (True, True)

Step = Callable[..., tuple[Tensor, Any]]


def current(steps: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(steps, 2, 3, 2, 2, dtype=torch.float64) + 0.4).to(dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def neuron(dynamics: Dynamics, *fixed: float | Tensor) -> Step:
    return lambda x, state, *parameters: lif_step(x, state, *(parameters or fixed), dynamics)


def by_autograd(step: Step, x: Tensor, *parameters: Tensor, state: Any = None) -> tuple[list[Tensor], Any]:
    """Mean output of each neuron of the unrolled `step`, its derivatives by a current and by each parameter, and the
    last state. Neurons are independent, so the gradient of the sum holds the derivative of each."""
    shift = torch.zeros_like(x[0])
    inputs = [value.expand_as(x[0]).clone().requires_grad_() for value in (shift, *parameters)]
    outputs = []
    for now in x:
        output, state = step(now + inputs[0], state, *inputs[1:])
        outputs.append(output)
    rate = torch.stack(outputs).mean(0)
    return [rate.detach(), *torch.autograd.grad(rate.sum(), inputs)], state


def assert_close(got: Any, expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def flattened(record: StepRecord) -> list[Tensor]:
    return [record.rate, record.eligibility, *record.parameters]


@every_decay
@every_dynamics
def test_the_eligibility_is_the_derivative_of_the_rate_by_a_constant_current(dynamics, beta):
    x, step = current(), neuron(dynamics, beta, THRESHOLD)
    expected, _ = by_autograd(step, x)
    closed, differentiated = lif_rate(x, beta, THRESHOLD, dynamics)[1].record(), step_rate(step, x)[1].record()
    assert expected[0].sum() > 0
    assert_close(closed[:2], expected)
    assert_close(flattened(differentiated), expected)
    assert closed.beta is None
    assert closed.threshold is None


@every_shape
@every_dynamics
def test_learned_decay_and_threshold_have_their_derivatives(dynamics, shape):
    x, step = current(), neuron(dynamics)
    beta, threshold = torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.3
    expected, _ = by_autograd(step, x, beta, threshold)
    assert_close(lif_rate(x, beta, threshold, dynamics, wanted=BOTH)[1].record(), expected)
    assert_close(flattened(step_rate(step, x, parameters=[beta, threshold])[1].record()), expected)


@every_decay
@every_dynamics
def test_the_derivatives_by_a_decay_and_threshold_given_as_numbers_are_those_of_tensors(dynamics, beta):
    x = current()
    numbers = lif_rate(x, beta, THRESHOLD, dynamics, wanted=BOTH)[1].record()
    tensors = (torch.tensor(beta, dtype=torch.float64), torch.tensor(THRESHOLD, dtype=torch.float64))
    assert_close(numbers, by_autograd(neuron(dynamics), x, *tensors)[0])


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_wanted_is_traced(wanted):
    x = current()
    some = lif_rate(x, 0.7, THRESHOLD, DYNAMICS[0], wanted=wanted)[1].record()
    full = lif_rate(x, 0.7, THRESHOLD, DYNAMICS[0], wanted=BOTH)[1].record()
    for want, got, expected in zip((True, True, *wanted), some, full, strict=True):
        assert (got is not None) == want
        assert got is None or torch.equal(got, expected)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))
def test_derivatives_are_exact_for_a_smooth_spike(reset, order, name):
    dynamics, small = Dynamics(reset, order, surrogate=Smooth(SURROGATES[name](0.8))), 1e-6
    x = current()

    def rate(shift: float = 0.0, beta: float = 0.0, threshold: float = 0.0) -> Tensor:
        return lif(x + shift, 0.6 + beta, THRESHOLD + threshold, dynamics)[0].mean(0)

    differences = [
        (rate(**{name: small}) - rate(**{name: -small})) / (2 * small) for name in ("shift", "beta", "threshold")
    ]
    assert_close(lif_rate(x, 0.6, THRESHOLD, dynamics, wanted=BOTH)[1].record(), [rate(), *differences], 1e-8)


def test_every_reset_has_an_eligibility_of_its_own():
    x = current()
    # with a reset to zero, the two orders are one neuron
    distinct = [dynamics for dynamics in DYNAMICS if dynamics.reset == "subtract" or dynamics.order == ORDERS[0]]
    found = [lif_rate(x, 0.9, THRESHOLD, dynamics)[1].record().eligibility for dynamics in distinct]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("chunk", [1, 3])
@every_dynamics
def test_a_sequence_in_chunks_is_the_sequence(dynamics, chunk, shape):
    x, beta = current(6), torch.rand(shape, dtype=torch.float64)
    step, parameters = neuron(dynamics), [beta, torch.tensor(THRESHOLD, dtype=torch.float64)]
    spikes, whole = lif_rate(x, beta, THRESHOLD, dynamics, wanted=BOTH)
    parts, state, stepped = [], None, None
    for part in x.split(chunk):
        some, state = lif_rate(part, beta, THRESHOLD, dynamics, state, wanted=BOTH)
        others, stepped = step_rate(step, part, stepped, parameters)
        assert torch.equal(some, others)
        parts.append(some)
    assert torch.equal(torch.cat(parts), spikes)
    assert torch.equal(state.membrane, whole.membrane)
    assert_close(state.record(), list(whole.record()))
    assert_close(flattened(stepped.record()), list(whole.record()))


@every_shape
@every_dynamics
def test_a_window_starts_from_a_constant_membrane(dynamics, shape):
    x, step = current(6), neuron(dynamics)
    parameters = [torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.3]
    states: list[Any] = [None, None, None]
    spikes = []
    for part in x.split(3):
        expected, after = by_autograd(step, part, *parameters, state=states[0])
        some, closed = lif_rate(part, *parameters, dynamics, states[1], wanted=BOTH)
        _, stepped = step_rate(step, part, states[2], parameters)
        spikes.append(some)
        assert_close(closed.record(), expected)
        assert_close(flattened(stepped.record()), expected)
        states = [tree_map(Tensor.detach, after), closed.next_window(), stepped.next_window()]
    assert torch.equal(torch.cat(spikes), lif(x, *parameters, dynamics)[0])


def test_without_a_new_window_the_traces_go_on():
    x, dynamics = current(), DYNAMICS[0]
    _, state = lif_rate(x[:4], 0.9, THRESHOLD, dynamics)
    before = state.record().eligibility * 4
    _, state = lif_rate(x[4:], 0.9, THRESHOLD, dynamics, state)
    second = (state.record().eligibility * 8 - before) / 4
    fresh = lif_rate(x[:4], 0.9, THRESHOLD, dynamics)[1].next_window()
    windowed = lif_rate(x[4:], 0.9, THRESHOLD, dynamics, fresh)[1].record().eligibility
    assert (second - windowed).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        channels_last,
        lambda x: x.permute(4, 2, 0, 3, 1),
        lambda x: x[::2, 1:],
        lambda x: x[:1].expand(5, *x.shape[1:]),
        lambda x: x[:, :, :, :1, 0],
    ],
    ids=["contiguous", "channels_last", "permuted", "strided", "expanded", "thin"],
)
@every_dynamics
def test_spikes_and_membrane_are_those_of_lif_bit_for_bit(dynamics, view, dtype):
    x = view(current(dtype=dtype))
    spikes, state = lif_rate(x, 0.9, THRESHOLD, dynamics)
    expected, after = lif(x, 0.9, THRESHOLD, dynamics)
    assert torch.equal(spikes, expected)
    assert spikes.dtype == dtype
    assert torch.equal(state.membrane, membrane(after))
    assert torch.equal(state.record().rate, expected.to(state.membrane.dtype).sum(0) / len(x))
    again, _ = lif_rate(x, 0.9, THRESHOLD, dynamics, state)
    assert torch.equal(again, lif(x, 0.9, THRESHOLD, dynamics, after)[0])


def test_layouts_are_kept_and_may_change_between_calls():
    x, dynamics = current(), DYNAMICS[0]
    spikes, state = lif_rate(channels_last(x), 0.9, THRESHOLD, dynamics)
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert state.record().eligibility.is_contiguous(memory_format=torch.channels_last)
    assert lif_rate(x, 0.9, THRESHOLD, dynamics)[0].is_contiguous()
    _, state = lif_rate(x, 0.9, THRESHOLD, dynamics, state)
    whole = lif_rate(torch.cat([x, x]), 0.9, THRESHOLD, dynamics)[1]
    assert_close(state.record()[:2], list(whole.record()[:2]))


@pytest.mark.parametrize("layout", [lambda x: x, channels_last], ids=["contiguous", "channels_last"])
@every_shape
@every_dynamics
def test_blocks_of_neurons_change_nothing(dynamics, shape, layout, monkeypatch):
    x, beta = layout(current()), torch.rand(shape, dtype=torch.float64)
    spikes, whole = lif_rate(x, beta, beta + 0.3, dynamics, wanted=BOTH)
    monkeypatch.setattr(rate_loop, "CACHED_ELEMENTS", 5)  # 24 neurons: the last block is a short one
    in_blocks, state = lif_rate(x, beta, beta + 0.3, dynamics, wanted=BOTH)
    assert torch.equal(in_blocks, spikes)
    assert_close(state.record(), list(whole.record()))


@every_shape
def test_a_detached_subtraction_keeps_no_tangent_a_neuron(shape):
    beta, dynamics = torch.rand(shape), Dynamics(detach_reset=True)
    x = current(dtype=torch.float32)
    _, state = lif_rate(x, beta, 1.0, dynamics)
    assert state.input.tangent.shape == shape
    assert lif_rate(x, 0.2, 1.0, dynamics)[1].input.tangent is None
    assert lif_rate(x, 0.2, 1.0, Dynamics())[1].input.tangent.shape == x.shape[1:]


@every_dynamics
def test_streaming_writes_over_the_same_buffers_and_leaves_records_alone(dynamics):
    def addresses(state: eligibility.RateState) -> list[int]:
        held = [state.membrane, state.spikes, state.input.total, *state.beta, *state.threshold]
        return [tensor.data_ptr() for tensor in held]

    x, state, places = current(), None, []
    for now in x.split(1):
        given = now.clone()
        _, state = lif_rate(given, 0.9, THRESHOLD, dynamics, state, wanted=BOTH)
        assert torch.equal(given, now)
        places.append(addresses(state))
    assert all(place == places[0] for place in places)
    record = state.record()
    copies = [value.clone() for value in record]
    lif_rate(x, 0.9, THRESHOLD, dynamics, state.next_window(), wanted=BOTH)
    assert all(map(torch.equal, record, copies))


@every_dynamics
def test_narrow_input_has_the_traces_of_float32(dynamics):
    narrow = current(8, torch.bfloat16)
    for run in (
        lambda x: lif_rate(x, 0.9, THRESHOLD, dynamics),
        lambda x: step_rate(neuron(dynamics, 0.9, THRESHOLD), x),
    ):
        (spikes, state), (expected, reference) = run(narrow), run(narrow.float())
        assert spikes.dtype == torch.bfloat16
        assert torch.equal(spikes.float(), expected)
        for got, wide in zip(state.record()[:2], reference.record()[:2], strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, wide)


def test_no_graph_is_built_and_a_record_may_be_saved_for_a_backward():
    x = current().requires_grad_()
    beta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    spikes, state = lif_rate(x, beta, beta, wanted=BOTH)
    outputs, stepped = step_rate(neuron(Dynamics()), x, parameters=[beta, beta])
    for value in (spikes, outputs, state.membrane, *state.record(), stepped.state, *flattened(stepped.record())):
        assert not value.requires_grad
    rate = torch.ones_like(x[0]).requires_grad_()
    (gradient,) = torch.autograd.grad((rate * state.record().eligibility).sum(), rate)
    assert torch.equal(gradient, state.record().eligibility)


def fire(distance: Tensor) -> Tensor:
    """A hard spike with the derivative of a smooth one, by nothing but differentiable operations."""
    smooth = ArcTangent().primitive(distance)
    return (distance > 0).to(distance.dtype) + smooth - smooth.detach()


def synaptic(x: Tensor, state: Any, decay: Tensor, threshold: Tensor) -> tuple[Tensor, Any]:
    """Neuron with a synaptic current of its own decay, whose threshold adapts to the spikes."""
    if state is None:
        state = {"current": torch.zeros_like(x), "membrane": [torch.zeros_like(x), (torch.zeros_like(x), None)]}
    (membrane, (adaptation, _)) = state["membrane"]
    synapse = decay * state["current"] + x
    membrane = 0.8 * membrane + synapse
    spikes = fire(membrane - threshold - 0.3 * adaptation)
    return spikes, {"current": synapse, "membrane": [membrane - spikes * threshold, (0.7 * adaptation + spikes, None)]}


@every_shape
def test_a_neuron_of_another_kind_gets_its_eligibility_from_its_step(shape):
    x = 0.5 * current(8)
    parameters = [torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64) + 0.5]
    reference: Any = None
    state = None
    for part in x.split(4):
        expected, reference = by_autograd(synaptic, part, *parameters, state=reference)
        assert expected[0].sum() > 0
        for now in part.split(1):
            _, state = step_rate(synaptic, now, state, parameters)
        assert_close(flattened(state.record()), expected)
        state = state.next_window()
        reference = {
            "current": reference["current"].detach(),
            "membrane": [
                reference["membrane"][0].detach(),
                (reference["membrane"][1][0].detach(), reference["membrane"][1][1]),
            ],
        }


@every_decay
def test_a_leaky_integrator_weighs_a_constant_current_by_what_is_left_of_it(beta):
    def integrate(x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        membrane = x.clone() if state is None else beta * state + x
        return membrane, membrane

    x = current(6)
    outputs, state = step_rate(integrate, x)
    weight = sum((6 - k) * beta**k for k in range(6)) / 6
    assert_close([state.record().eligibility], [torch.full_like(x[0], weight)])
    assert_close([state.record().rate], [outputs.mean(0)])


def test_connected_neurons_have_no_such_derivative():
    weight = torch.rand(2, 2, dtype=torch.float64)
    x = current()
    mixed = step_rate(lambda x, state: (torch.tanh(x @ weight), state), x)[1].record().eligibility
    derivative = 1 - torch.tanh(x @ weight).square()
    assert (mixed - (derivative * weight.diagonal()).mean(0)).abs().max() > 1e-2
    assert_close([mixed], [(derivative * weight.sum(0)).mean(0)])


def test_an_output_that_ignores_its_input_has_no_eligibility():
    record = step_rate(lambda x, state: (torch.ones_like(x), state), current())[1].record()
    assert torch.equal(record.eligibility, torch.zeros_like(record.rate))


def test_a_spike_without_a_forward_derivative_is_refused():
    class BackwardOnly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.raises(RuntimeError, match="jvp"):
        step_rate(lambda x, state: (BackwardOnly.apply(x), state), current())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: lif_rate(x[0, 0, 0, 0], 0.9), "`x` to be of shape"),
        (lambda x: lif_rate(x[:0], 0.9), "`x` to be of shape"),
        (lambda x: lif_rate(x.long(), 0.9), "`x` to be of a floating dtype"),
        (lambda x: lif_rate(x, 0.9, 1.0, Dynamics("none")), "`reset` to be one of"),
        (lambda x: lif_rate(x[:, :1], 0.9, state=lif_rate(x, 0.9)[1]), "`state` to have the shape"),
        (lambda x: lif_rate(x, 0.9, state=lif_rate(x, 0.9)[1], wanted=BOTH), "`wanted` to be"),
        (lambda x: step_rate(neuron(Dynamics(), 0.9, THRESHOLD), x.long()), "`x` to be of a floating dtype"),
        (
            lambda x: step_rate(
                neuron(Dynamics(), 0.9, THRESHOLD),
                x,
                step_rate(neuron(Dynamics(), 0.9, THRESHOLD), x)[1],
                [torch.tensor(0.9)],
            ),
            "`parameters` to hold 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(current())


def test_a_window_without_steps_has_no_record():
    for state in (lif_rate(current(), 0.9)[1], step_rate(neuron(Dynamics(), 0.9, THRESHOLD), current())[1]):
        with pytest.raises(RuntimeError, match="at least one step"):
            state.next_window().record()
