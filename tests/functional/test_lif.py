"""The LIF recurrence: trajectories, gradients against an independent reference, dtypes, memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_snn.functional import Dynamics, Smooth, leaky_integrate, lif, lif_step
from lightning_snn.functional.dynamics import LIFState, PendingState, lif_rest
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.loop import forward_loop
from lightning_snn.functional.surrogate import SURROGATES
from lightning_snn.nn import membrane

RESETS, ORDERS = ("subtract", "zero"), ("reset_then_leak", "leak_then_reset")
every_dynamics = pytest.mark.parametrize(
    "dynamics",
    [
        pytest.param(
            Dynamics(reset, order, detach, kind()), id=f"{reset}-{order}-{'detached' if detach else 'attached'}-{name}"
        )
        for reset, order, detach, (name, kind) in product(RESETS, ORDERS, (False, True), SURROGATES.items())
    ],
)
every_reset_and_order = pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))


def double(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()


def stepped(x: Tensor, beta, threshold, dynamics: Dynamics, state: LIFState | None = None) -> tuple[Tensor, LIFState]:
    """The recurrence as a loop over `lif_step`."""
    spikes = []
    for current in x:
        spike, state = lif_step(current, state, beta, threshold, dynamics)
        spikes.append(spike)
    return torch.stack(spikes), state


def textbook(
    x: Tensor, beta, threshold, dynamics: Dynamics, state: LIFState | None = None, recurrent: Tensor | None = None
) -> tuple[Tensor, LIFState]:
    """The recurrence under plain autograd: hard spikes with the gradient of the primitive, nothing hand-written."""

    def fire(membrane: Tensor) -> Tensor:
        distance = membrane - threshold
        smooth = dynamics.surrogate.primitive(distance)
        return (distance > 0).to(x.dtype) + smooth - smooth.detach()

    late = dynamics.order == "leak_then_reset" and dynamics.reset == "subtract"
    membrane, before = state if isinstance(state, PendingState) else (state, None)
    membrane = torch.zeros_like(x[0]) if membrane is None else membrane
    before = torch.zeros_like(x[0]) if before is None else before
    spikes: list[Tensor] = []
    for current in x:
        membrane = beta * membrane + current
        if late:
            detached = dynamics.detach_reset and (bool(spikes) or recurrent is not None)
            membrane = membrane - threshold * (before.detach() if detached else before)
        if recurrent is not None:
            membrane = membrane + before @ recurrent.T
        before = fire(membrane)
        spikes.append(before)
        reset = before.detach() if dynamics.detach_reset else before
        if not late:
            membrane = membrane - threshold * reset if dynamics.reset == "subtract" else membrane * (1 - reset)
    if late and recurrent is None and dynamics.detach_reset:
        before = before.detach()
    return torch.stack(spikes), PendingState(membrane, before) if late or recurrent is not None else membrane


def state_of(dynamics: Dynamics, *tensors: Tensor, recurrent: bool = False) -> LIFState | None:
    """A given state from its tensors, for the dynamics that carry the last spikes and those that do not."""
    if not tensors:
        return None
    return PendingState(*tensors) if dynamics.pending_reset or recurrent else tensors[0]


def assert_same_values_and_gradients(
    one: Callable, other: Callable, inputs: list[Tensor], tolerance: float = 1e-12
) -> None:
    """Both functions of `inputs` agree in every output and in every gradient for the same random cotangents."""
    ours, theirs = tree_leaves(one(*inputs)), tree_leaves(other(*inputs))
    cotangents = [torch.randn_like(output) for output in ours]
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert [output.requires_grad for output in ours] == [output.requires_grad for output in theirs]
    ours, theirs, cotangents = zip(
        *(each for each in zip(ours, theirs, cotangents, strict=True) if each[0].requires_grad), strict=True
    )
    gradients = torch.autograd.grad(ours, inputs, cotangents, allow_unused=True)
    references = torch.autograd.grad(theirs, inputs, cotangents, allow_unused=True)
    for got, expected in zip(gradients, references, strict=True):
        if expected is None:
            assert got is None
            continue
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


INPUT = [0.75, 0.75, 0.75, 0.0, 3.5, 0.0, 0.0, 0.5, 1.5]
TRAJECTORIES = {
    ("subtract", "reset_then_leak"): (
        [0, 1, 0, 0, 1, 1, 0, 0, 1],
        [0.75, 0.125, 0.8125, 0.40625, 2.703125, 0.3515625, 0.17578125, 0.587890625, 0.7939453125],
    ),
    ("subtract", "leak_then_reset"): (
        [0, 1, 0, 0, 1, 0, 0, 0, 1],
        [0.75, 1.125, 0.3125, 0.15625, 3.578125, 0.7890625, 0.39453125, 0.697265625, 1.8486328125],
    ),
    ("zero", "reset_then_leak"): ([0, 1, 0, 0, 1, 0, 0, 0, 1], [0.75, 0, 0.75, 0.375, 0, 0, 0, 0.5, 0]),
    ("zero", "leak_then_reset"): ([0, 1, 0, 0, 1, 0, 0, 0, 1], [0.75, 0, 0.75, 0.375, 0, 0, 0, 0.5, 0]),
}


@every_reset_and_order
def test_nine_steps_go_as_written_out(reset, order):
    expected_spikes, expected_membranes = TRAJECTORIES[reset, order]
    x = torch.tensor(INPUT, dtype=torch.float64).view(9, 1, 1)
    dynamics = Dynamics(reset, order)
    assert lif(x, 0.5, 1.0, dynamics)[0].flatten().tolist() == expected_spikes
    assert [membrane(lif(x[: t + 1], 0.5, 1.0, dynamics)[1]).item() for t in range(9)] == expected_membranes
    state, membranes, spikes = None, [], []
    for current in x:
        spike, state = lif_step(current, state, 0.5, 1.0, dynamics)
        spikes.append(spike.item())
        membranes.append(membrane(state).item())
    assert (spikes, membranes) == (expected_spikes, expected_membranes)


def test_the_four_trajectories_tell_resets_and_orders_apart():
    spikes = {key: tuple(value[0]) for key, value in TRAJECTORIES.items()}
    assert spikes["subtract", "reset_then_leak"] != spikes["subtract", "leak_then_reset"]
    assert spikes["subtract", "reset_then_leak"] != spikes["zero", "reset_then_leak"]


@every_reset_and_order
def test_without_memory_a_neuron_compares_its_input_with_the_threshold(reset, order):
    x = double(20, 3, 4, low=-2, high=3)
    spikes, _ = lif(x, 0.0, 0.7, Dynamics(reset, "reset_then_leak"))
    assert torch.equal(spikes, (x > 0.7).double())


def test_without_leak_the_membrane_is_what_came_in_less_what_was_fired():
    x = torch.randint(-8, 17, (40, 3, 5)).double() / 16
    spikes, potential = lif(x, 1.0, 1.0)
    assert spikes.sum() > 0
    assert torch.equal(potential, x.sum(0) - spikes.sum(0))


@every_reset_and_order
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_gradients_are_right_at_the_ends_of_the_range_of_the_decay(reset, order, beta):
    dynamics = Dynamics(reset, order)
    assert_same_values_and_gradients(
        lambda x: lif(x, beta, 1.0, dynamics)[:1],
        lambda x: textbook(x, beta, 1.0, dynamics)[:1],
        [double(7, 2, 3, high=2)],
    )


@every_dynamics
def test_the_scan_is_the_unrolled_recurrence(dynamics):
    inputs = [double(7, 2, 3, 2, high=2), double(3, 1, low=0), double(3, 1, low=0.3)]
    states = [double(2, 3, 2, high=2), double(2, 3, 2, low=0)][: 2 if dynamics.pending_reset else 1]
    for reference in (stepped, textbook):
        for given in ([*inputs, *states], inputs):  # from a given state, and from rest
            assert_same_values_and_gradients(
                lambda x, beta, threshold, *state: lif(x, beta, threshold, dynamics, state_of(dynamics, *state)),
                lambda x, beta, threshold, *state: reference(  # noqa: B023
                    x, beta, threshold, dynamics, state_of(dynamics, *state)
                ),
                given,
            )


@every_dynamics
def test_the_recurrent_scan_is_the_unrolled_recurrence(dynamics):
    inputs = [double(7, 2, 4, high=2), double(4, low=0), double(4, low=0.3), double(4, 4)]
    for states in ([double(2, 4, high=2), double(2, 4, low=0)], []):  # from a given state, and from rest
        assert_same_values_and_gradients(
            lambda x, beta, threshold, weight, *state: lif(
                x, beta, threshold, dynamics, state_of(dynamics, *state, recurrent=True), weight
            ),
            lambda x, beta, threshold, weight, *state: textbook(
                x, beta, threshold, dynamics, state_of(dynamics, *state, recurrent=True), weight
            ),
            [*inputs, *states],
        )


@every_reset_and_order
def test_at_rest_no_reset_is_pending_and_an_explicit_state_of_rest_changes_nothing(reset, order):
    dynamics = Dynamics(reset, order)
    assert_same_values_and_gradients(
        lambda x, threshold: lif(x, 0.8, threshold, dynamics, lif_rest(x[0], dynamics)),
        lambda x, threshold: lif(x, 0.8, threshold, dynamics),
        [double(5, 2, 3, high=2), double(3, low=0.3)],
    )


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (3, 2, 2), (2, 3, 2, 2)], ids=str)
def test_decay_and_threshold_broadcast_to_a_step(shape):
    assert_same_values_and_gradients(
        lambda x, beta, threshold: lif(x, beta, threshold),
        lambda x, beta, threshold: textbook(x, beta, threshold, Dynamics()),
        [double(6, 2, 3, 2, 2, high=2), double(*shape, low=0.1), double(*shape, low=0.3)],
    )


def test_attached_and_detached_resets_have_different_gradients():
    x = double(6, 2, 3, high=2)
    gradients = [
        torch.autograd.grad(lif(x, 0.8, 1.0, Dynamics(detach_reset=detach))[0].sum(), x)[0] for detach in (False, True)
    ]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


@every_reset_and_order
@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_are_exact_for_a_smooth_spike(reset, order, name):
    dynamics = Dynamics(reset, order, surrogate=Smooth(SURROGATES[name](0.8)))
    inputs = [double(4, 2, 3), double(3, low=0.1), double(3, low=0.3), double(2, 3)]
    inputs += [double(2, 3, low=0)] if dynamics.pending_reset else []
    assert torch.autograd.gradcheck(
        lambda x, beta, threshold, *state: tuple(
            tree_leaves(lif(x, beta, threshold, dynamics, state_of(dynamics, *state)))
        ),
        tuple(inputs),
    )


@every_reset_and_order
def test_recurrent_gradients_are_exact_for_a_smooth_spike(reset, order):
    dynamics = Dynamics(reset, order, surrogate=Smooth())
    inputs = (double(4, 2, 3), double(3, low=0.1), double(3, low=0.3), double(3, 3), double(2, 3), double(2, 3, low=0))
    assert torch.autograd.gradcheck(
        lambda x, beta, threshold, weight, *state: tuple(
            tree_leaves(lif(x, beta, threshold, dynamics, PendingState(*state), weight))
        ),
        inputs,
    )


def test_a_smooth_spike_with_a_detached_reset_has_no_exact_gradient():
    dynamics = Dynamics(detach_reset=True, surrogate=Smooth())
    assert not torch.autograd.gradcheck(lambda x: lif(x, 0.9, 1.0, dynamics), (double(4, 2, 3),), raise_exception=False)


@every_reset_and_order
def test_a_sequence_in_two_parts_is_the_sequence(reset, order):
    dynamics, x = Dynamics(reset, order), double(9, 2, 3, high=2)

    def in_parts(x: Tensor) -> tuple[Tensor, Tensor]:
        first, state = lif(x[:4], 0.8, 1.0, dynamics)
        second, state = lif(x[4:], 0.8, 1.0, dynamics, state)
        return torch.cat([first, second]), state

    assert_same_values_and_gradients(lambda x: lif(x, 0.8, 1.0, dynamics), in_parts, [x])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.permute(2, 0, 1, 3),
        lambda x: x[::2, 1:],
        lambda x: x.flip(0),
        lambda x: x[:1].expand(5, *x.shape[1:]),
    ],
    ids=["permuted", "strided", "flipped", "expanded"],
)
def test_strides_of_the_input_and_of_the_cotangent_do_not_matter(view):
    base = double(4, 3, 6, 2, high=2)
    x = view(base)
    contiguous = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    cotangent = torch.randn(*x.shape[:-1], 2 * x.shape[-1], dtype=torch.float64)[..., ::2]
    spikes, expected = lif(x, 0.8)[0], lif(contiguous, 0.8)[0]
    assert torch.equal(spikes, expected)
    (gradient,) = torch.autograd.grad(spikes, x, cotangent)
    (reference,) = torch.autograd.grad(expected, contiguous, cotangent.contiguous())
    torch.testing.assert_close(gradient, reference, rtol=0, atol=0)


@every_reset_and_order
def test_channels_last_input_gives_the_same_and_keeps_its_layout(reset, order):
    contiguous = torch.randn(4, 2, 3, 5, 6, dtype=torch.float64)
    last = contiguous.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    beta, threshold = double(3, 1, 1, low=0.1), double(3, 1, 1, low=0.3)
    cotangent, results = torch.randn_like(contiguous), []
    for x in (contiguous.requires_grad_(), last.requires_grad_()):
        spikes, state = lif(x, beta, threshold, Dynamics(reset, order))
        results.append([spikes, membrane(state), *torch.autograd.grad(spikes, [x, beta, threshold], cotangent)])
        assert spikes.stride() == x.stride()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@every_reset_and_order
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_input_keeps_a_float32_membrane(reset, order, dtype):
    dynamics = Dynamics(reset, order)
    narrow = (torch.randn(50, 8, 16) + 0.2).to(dtype).requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    spikes, state = lif(narrow, 0.95, 1.0, dynamics)
    expected, expected_state = lif(wide, 0.95, 1.0, dynamics)
    assert {leaf.dtype for leaf in tree_leaves(state)} == {torch.float32}
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), expected)
    assert all(map(torch.equal, tree_leaves(state), tree_leaves(expected_state)))
    cotangent = torch.randn_like(expected).to(dtype)
    (gradient,) = torch.autograd.grad(spikes, narrow, cotangent)
    (reference,) = torch.autograd.grad(expected, wide, cotangent.float())
    torch.testing.assert_close(gradient, reference.to(dtype), rtol=0.01, atol=1e-6)
    assert torch.equal(stepped(narrow, 0.95, 1.0, dynamics)[0].float(), expected)


def test_a_membrane_in_bfloat16_would_give_other_spikes():
    x = (torch.randn(50, 8, 16) + 0.2).bfloat16()
    membrane, mismatches = torch.zeros_like(x[0]), 0
    for current, expected in zip(x, lif(x, 0.95)[0], strict=True):
        membrane = 0.95 * membrane + current
        spike = (membrane > 1).to(x.dtype)
        membrane = membrane - spike
        mismatches += int((spike != expected).sum())
    assert mismatches > 10


def test_autocast_changes_nothing_in_the_recurrence():
    x, weight = torch.randn(9, 4, 6).requires_grad_(), torch.randn(6, 6).requires_grad_()
    for recurrent in (None, weight):
        inputs = [x] if recurrent is None else [x, weight]
        expected = lif(x, 0.9, recurrent=recurrent)[0]
        with torch.autocast("cpu", torch.bfloat16):
            spikes = lif(x, 0.9, recurrent=recurrent)[0]
        assert torch.equal(spikes, expected)
        cotangent = torch.randn_like(x)
        for got, reference in zip(
            torch.autograd.grad(spikes, inputs, cotangent),
            torch.autograd.grad(expected, inputs, cotangent),
            strict=True,
        ):
            assert torch.equal(got, reference)


def test_a_compiled_scan_equals_the_eager_one_without_a_graph_break():
    dynamics = Dynamics()
    x, beta = torch.randn(4, 2, 3).requires_grad_(), torch.tensor(0.8).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, beta: lif(x, beta, 1.0, dynamics)[0], backend="aot_eager", fullgraph=True)
    spikes, expected = compiled(x, beta), lif(x, beta, 1.0, dynamics)[0]
    assert torch.equal(spikes, expected)
    cotangent = torch.randn_like(x)
    for got, reference in zip(
        torch.autograd.grad(spikes, (x, beta), cotangent),
        torch.autograd.grad(expected, (x, beta), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, reference, rtol=1e-6, atol=1e-7)


class LargeAllocations(TorchDispatchMode):
    """Storages of at least `size` elements that operations bring into being."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.storages: set[int] = set()
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().nbytes() >= self.size * made.element_size():
                self.storages.add(made.untyped_storage().data_ptr())
                self._alive.append(made)
        return result


@pytest.mark.parametrize("order", ORDERS)
def test_no_membranes_are_kept_where_no_gradient_is_wanted(order):
    x = torch.randn(32, 4, 8)

    def storages(requires_grad: bool) -> int:
        given = x.clone().requires_grad_(requires_grad)
        with LargeAllocations(x.numel()) as allocations:
            lif(given, 0.9, 1.0, Dynamics(order=order))
        return len(allocations.storages - {given.untyped_storage().data_ptr()})

    assert storages(requires_grad=True) == 2  # spikes and membranes
    assert storages(requires_grad=False) == 1  # spikes
    with torch.no_grad():
        assert storages(requires_grad=True) == 1
    for keeps, expected in ((True, 2), (False, 1)):  # within the operator
        with LargeAllocations(x.numel()) as allocations:
            forward_loop(x, 0.9, 1.0, None, None, None, Dynamics(order=order), keeps)
        assert len(allocations.storages - {x.untyped_storage().data_ptr()}) == expected


@every_reset_and_order
@pytest.mark.parametrize("steps", [1, 8, 64])
def test_one_tensor_of_the_size_of_the_input_is_saved_in_one_node(reset, order, steps):
    x = torch.randn(steps, 3, 5).requires_grad_()
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        spikes, _ = lif(x, 0.9, 1.0, Dynamics(reset, order))
    assert saved == [x.numel() * x.element_size()]
    (parent,) = [node for node, _ in spikes.grad_fn.next_functions if node is not None]
    assert type(parent).__name__ == "AccumulateGrad"


def test_the_unrolled_recurrence_saves_more():
    x = torch.randn(8, 3, 5).requires_grad_()
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        stepped(x, 0.9, 1.0, Dynamics("zero"))
    assert len(saved) > len(x)
    assert sum(saved) > x.numel() * x.element_size()


def test_a_returned_state_survives_a_reused_input_buffer():
    for reset, order in product(RESETS, ORDERS):
        buffer = torch.full((1, 2), 0.6)
        _, state = lif_step(buffer, None, 0.9, 1.0, Dynamics(reset, order))
        buffer.zero_()
        assert torch.equal(membrane(state), torch.full((1, 2), 0.6))


def test_inputs_and_given_states_are_left_as_they_are():
    x, state = torch.randn(5, 2, 3), (torch.randn(2, 3), torch.rand(2, 3))
    before = [value.clone() for value in (x, *state)]
    for order in ORDERS:
        dynamics = Dynamics(order=order)
        lif(x, 0.9, 1.0, dynamics, state_of(dynamics, *state))
    assert all(map(torch.equal, (x, *state), before))


def test_a_gradient_comes_only_where_one_was_asked_for():
    x = torch.randn(5, 2, 3)
    beta = torch.tensor(0.9).requires_grad_()
    threshold = torch.tensor(1.0)
    lif(x, beta, threshold)[0].sum().backward()
    assert beta.grad is not None
    assert x.grad is None
    assert threshold.grad is None
    assert not lif(x, 0.9)[0].requires_grad


@every_dynamics
def test_second_derivatives_are_those_of_autograd_on_the_unrolled_recurrence(dynamics):
    found = {}
    for name, function in {"fused": lif, "autograd": textbook, "by step": stepped}.items():
        torch.manual_seed(0)
        x, beta, threshold = double(5, 2, 3, low=-1, high=2), double(3, low=0.5, high=0.9), double(3, low=0.7, high=1.2)
        spikes, state = function(x, beta, threshold, dynamics)
        weights = torch.randn(5, 2, 3, dtype=torch.float64)
        loss = (weights * spikes).sum().square() + membrane(state).square().sum()
        leaves = (x, beta, threshold)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
        found[name] = (*first, *second)
    for name in ("fused", "by step"):
        for got, expected in zip(found[name], found["autograd"], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@every_dynamics
def test_third_derivatives_are_those_of_autograd_on_the_unrolled_recurrence(dynamics):
    found = []
    for function in (lif, textbook):
        torch.manual_seed(0)
        leaves = double(4, 2, 3, low=-1, high=2), double(3, low=0.5, high=0.9), double(3, low=0.7, high=1.2)
        spikes, state = function(*leaves, dynamics)
        weights = torch.randn(4, 2, 3, dtype=torch.float64)
        gradients = [(weights * spikes).sum().square() + membrane(state).square().sum()]
        for _ in range(3):
            loss = sum(gradient.square().sum() for gradient in gradients)
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            found.append(gradients)
    for ours, theirs in zip(found[:3], found[3:], strict=True):
        for got, expected in zip(ours, theirs, strict=True):
            assert expected.abs().max() > 0
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))


def test_second_derivatives_through_recurrent_weights_are_those_of_autograd():
    found = []
    for function in (lif, textbook):
        torch.manual_seed(0)
        x, weight = double(5, 2, 3, low=-1, high=2), double(3, 3)
        if function is lif:
            spikes = lif(x, 0.8, 1.0, recurrent=weight)[0]
        else:
            spikes = textbook(x, 0.8, 1.0, Dynamics(), recurrent=weight)[0]
        first = torch.autograd.grad(spikes.sum().square(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), (x, weight))
        found.append((*first, *second))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@every_dynamics
def test_the_plain_operations_of_exporters_equal_the_fused_scan(dynamics):
    x, weight = double(6, 2, 3, low=-1, high=2), double(3, 3)
    for recurrent in (None, weight):
        leaves = (x,) if recurrent is None else (x, recurrent)
        spikes, state = lif(x, 0.8, 0.9, dynamics, recurrent=recurrent)
        plain, plain_state = unrolled_lif(x, 0.8, 0.9, dynamics, recurrent=recurrent)
        assert torch.equal(spikes, plain)
        torch.testing.assert_close(membrane(state), membrane(plain_state), rtol=1e-12, atol=1e-12)
        for got, expected in zip(
            torch.autograd.grad(plain.sin().sum() + membrane(plain_state).sum(), leaves),
            torch.autograd.grad(spikes.sin().sum() + membrane(state).sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_plain_operations_pass_the_gradient_of_given_spikes_as_the_fused_scan_does(detached, recurrent):
    dynamics = Dynamics(order="leak_then_reset", detach_reset=detached)
    inputs = [double(5, 2, 3, high=2), double(2, 3, high=2), double(2, 3, low=0), double(3, 3)]
    assert_same_values_and_gradients(
        lambda x, v, s, w: lif(x, 0.8, 0.9, dynamics, PendingState(v, s), w if recurrent else None),
        lambda x, v, s, w: unrolled_lif(x, 0.8, 0.9, dynamics, v, s, w if recurrent else None),
        inputs,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lif(torch.rand(3), 0.9), r"argument `x` to be of shape \[T, B, \.\.\.\].*got \(3,\)"),
        (lambda: lif(torch.rand(0, 3), 0.9), r"argument `x` to be of shape \[T, B, \.\.\.\].*got \(0, 3\)"),
        (
            lambda: lif(torch.ones(2, 3, dtype=torch.int64), 0.9),
            "argument `x` to be of a floating dtype, but got torch.int64",
        ),
        (lambda: leaky_integrate(torch.rand(3), 0.9), "argument `x` to be of shape"),
        (
            lambda: lif(torch.rand(2, 3, 4), 0.9, recurrent=torch.rand(4, 3)),
            r"argument `recurrent` to be of shape \[N, N\].*got \(4, 3\) for \(2, 3, 4\)",
        ),
        (lambda: lif(torch.rand(2, 3), 0.9, 1.0, Dynamics(reset="none")), "argument `reset` to be one of.*got 'none'"),
        (lambda: lif(torch.rand(2, 3), 0.9, 1.0, Dynamics(order="late")), "argument `order` to be one of.*got 'late'"),
    ],
)
def test_what_the_scan_cannot_take_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lif(torch.rand(2, 3, 4), 0.9, state=torch.rand(3, 4), recurrent=torch.rand(4, 4)),
            "argument `state` to be a PendingState, but got Tensor",
        ),
        (
            lambda: lif(torch.rand(2, 3, 4), 0.9, state=PendingState(torch.rand(3, 4), torch.rand(3, 4))),
            "argument `state` to be a tensor, but got PendingState",
        ),
    ],
)
def test_a_state_of_other_dynamics_is_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_leaky_integrator_is_a_discounted_sum():
    x, beta = double(8, 2, 3), 0.7
    powers = torch.tensor(
        [[beta ** (t - k) if k <= t else 0.0 for k in range(8)] for t in range(8)], dtype=torch.float64
    )
    torch.testing.assert_close(leaky_integrate(x, beta), torch.einsum("tk,kbn->tbn", powers, x), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(leaky_integrate, (double(4, 2, 3), double(3, low=0.1)))


def test_a_leaky_integrator_accumulates_bfloat16_input_in_float32():
    x = torch.rand(200, 2, 3).bfloat16()
    assert torch.equal(leaky_integrate(x, 1.0), leaky_integrate(x.float(), 1.0).bfloat16())
