"""The LIF scan as an operator: its contract with PyTorch, and compiled functions and networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lightning_snn import LIF, run
from lightning_snn.functional import ArcTangent, Dynamics, FastSigmoid, PendingState, Sigmoid, Smooth, Triangular, lif
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.variants import BUILT_IN, built_in
from lightning_snn.functional.surrogate import SURROGATES

OPERATORS = torch.ops.lightning_snn
every_reset_and_order = pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(5, 2, 3, 4, 6),
    "channels last": lambda: torch.randn(5, 2, 4, 6, 3).permute(0, 1, 4, 2, 3),
    "batch first": lambda: torch.randn(2, 5, 3, 4, 6).transpose(0, 1),
    "every second": lambda: torch.randn(5, 2, 3, 4, 12)[..., ::2],
    "constant over time": lambda: torch.randn(1, 2, 3, 4, 6).expand(5, 2, 3, 4, 6),
    "no neurons": lambda: torch.randn(5, 2, 3, 0, 6),
    "one step": lambda: torch.randn(1, 2, 3, 4, 6),
    "bfloat16": lambda: torch.randn(5, 2, 3, 4, 6).bfloat16(),
    "float64": lambda: torch.randn(5, 2, 3, 4, 6, dtype=torch.float64),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def step_like(x: Tensor) -> Tensor:
    return torch.rand_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32))


@every_layout
@pytest.mark.parametrize(
    ("reset", "order", "keeps"),
    [("subtract", "leak_then_reset", True), ("zero", "reset_then_leak", True), ("subtract", "reset_then_leak", False)],
)
def test_the_forward_operator_keeps_its_contract(layout, reset, order, keeps):
    x, channels = LAYOUTS[layout](), torch.rand(3, 1, 1)
    tensors = (channels, 0.0, channels + 0.5, 0.0, step_like(x), step_like(x).round())
    given = tensors if keeps else (None, 0.9, None, 1.0, None, None)
    torch.library.opcheck(OPERATORS.lif_forward, (x, *given, reset, order, keeps))


@every_layout
@pytest.mark.parametrize(
    ("reset", "order", "wanted"),
    [("subtract", "leak_then_reset", True), ("zero", "reset_then_leak", True), ("subtract", "reset_then_leak", False)],
)
def test_the_backward_operator_keeps_its_contract(layout, reset, order, wanted):
    x, channels = LAYOUTS[layout](), torch.rand(3, 1, 1)
    state, before = step_like(x), step_like(x).round()
    given = (channels, 0.0, channels + 0.5, 0.0, state, before) if wanted else (None, 0.9, None, 1.0, None, None)
    spikes, final, membranes = OPERATORS.lif_forward(x, *given, reset, order, True)
    names = (reset, order, False, "arctangent", 0.3, x.dtype, wanted, wanted, wanted)
    gradients = (torch.randn_like(spikes), torch.randn_like(final), None) if wanted else (None, None, None)
    torch.library.opcheck(OPERATORS.lif_backward, (membranes, *given, *gradients, *names))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch first", "every second", "no neurons"])
def test_the_backward_operator_takes_the_input_in_16_bits_for_the_potentials(layout):
    x, channels = LAYOUTS[layout]().bfloat16(), torch.rand(3, 1, 1)
    given = (channels, 0.0, channels + 0.5, 0.0, step_like(x), step_like(x).round())
    spikes, final, membranes = OPERATORS.lif_forward(x, *given, *("subtract", "leak_then_reset"), True)
    names = ("subtract", "leak_then_reset", False, "arctangent", 0.3, x.dtype, True, True, True)
    gradients = (torch.randn_like(spikes), torch.randn_like(final), None)
    torch.library.opcheck(OPERATORS.lif_backward, (x, *given, *gradients, *names))
    of_input, of_potentials = (OPERATORS.lif_backward(each, *given, *gradients, *names) for each in (x, membranes))
    for one, other in zip(of_input, of_potentials, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_the_backward_operator_keeps_its_contract_for_second_derivatives():
    x = LAYOUTS["channels last"]()
    spikes, _, membranes = OPERATORS.lif_forward(x, None, 0.9, None, 1.0, None, None, *("zero", ORDERS[0]), True)
    given = (None, 0.9, None, 1.0, None, None, torch.randn_like(spikes), None, torch.randn_like(membranes))
    names = ("zero", ORDERS[0], True, "triangular", 0.3, x.dtype, False, False, False)
    torch.library.opcheck(OPERATORS.lif_backward, (membranes, *given, *names))


def test_the_operators_know_the_surrogates_of_the_library_by_their_exact_type():
    assert BUILT_IN == SURROGATES
    for kind in (ArcTangent, FastSigmoid, Sigmoid, Triangular):
        assert BUILT_IN[built_in(kind(0.7))[0]](built_in(kind(0.7))[1]) == kind(0.7)

    class Steeper(ArcTangent):
        pass

    assert built_in(Steeper(0.7)) is None
    assert built_in(Smooth()) is None


class Recompilations:
    """Compiler backend that counts its graphs after the first call, for which a graph may be traced again."""

    def __init__(self, backend: str) -> None:
        self.count = CompileCounterWithBackend(backend)
        self.first: int | None = None

    def __call__(self, *arguments: Any) -> Any:
        return self.count(*arguments)

    @property
    def since_the_first_call(self) -> int:
        if self.first is None:
            self.first = self.count.frame_count
        return self.count.frame_count - self.first


class Doubled(ArcTangent):
    """A surrogate of a user's own: a subclass that changes the derivative."""

    def derivative_(self, distance: Tensor) -> Tensor:
        return super().derivative_(distance).mul_(2)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_subclass_of_a_surrogate_has_its_own_derivative(compiled):
    x = torch.randn(4, 2, 3, requires_grad=True)

    def gradient(surrogate: ArcTangent) -> Tensor:
        function = lambda x: lif(x, 0.9, 1.0, Dynamics(detach_reset=True, surrogate=surrogate))[0]  # noqa: E731
        if compiled:
            torch._dynamo.reset()
            function = torch.compile(function, backend="aot_eager", fullgraph=True)
        (found,) = torch.autograd.grad(function(x).sum(), x)
        return found

    torch.testing.assert_close(gradient(Doubled()), 2 * gradient(ArcTangent()))


def compared(compiled: Callable, eager: Callable, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return every output and gradient of the compiled function with that of the eager one."""
    pairs = []
    outputs = [tree_leaves(function(*inputs)) for function in (compiled, eager)]
    pairs += zip(*outputs, strict=True)
    cotangents = [torch.randn_like(each) for each in outputs[1] if each.requires_grad]
    found = [
        torch.autograd.grad([each for each in leaves if each.requires_grad], inputs, cotangents, allow_unused=True)
        for leaves in outputs
    ]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert other.abs().max() > 0
            pairs.append((one, other))
    return pairs


# no two sizes are equal, because the compiler takes equal sizes for the same variable
STEPS = (4, 5, 7, 16)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("reset", "order", "learned"),
    [
        ("subtract", "reset_then_leak", False),
        ("subtract", "leak_then_reset", True),
        ("zero", "reset_then_leak", True),
        ("zero", "leak_then_reset", False),
    ],
)
def test_one_graph_serves_every_number_of_steps_and_equals_the_eager_scan(backend, reset, order, learned):
    dynamics = Dynamics(reset, order, surrogate=Sigmoid(0.3))

    def scan(x: Tensor, *parameters: Tensor) -> Any:
        return lif(x, *(parameters or (0.9, 0.8)), dynamics)

    torch._dynamo.reset()
    counter = Recompilations(backend)
    compiled = torch.compile(scan, backend=counter, fullgraph=True, dynamic=True)
    parameters = (torch.rand(3, 1).requires_grad_(), (torch.rand(3, 1) + 0.5).requires_grad_()) if learned else ()
    for steps in STEPS:
        x = torch.randn(steps, 2, 3, 6, requires_grad=True)
        for got, expected in compared(compiled, scan, (x, *parameters)):
            # inductor adds the gradients of a parameter over its neurons in another order
            tolerance = 0.0 if backend == "aot_eager" else 1e-6 * float(expected.detach().abs().max())
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
        assert counter.since_the_first_call == 0


def test_the_unrolled_loop_of_other_surrogates_is_compiled_once_for_each_number_of_steps():
    dynamics = Dynamics(surrogate=Doubled())
    torch._dynamo.reset()
    counter = Recompilations("eager")
    compiled = torch.compile(lambda x: lif(x, 0.9, 1.0, dynamics), backend=counter, fullgraph=True, dynamic=True)
    for index, steps in enumerate(STEPS[:2]):
        compiled(torch.randn(steps, 2, 3, 6, requires_grad=True))
        assert counter.since_the_first_call == index


@pytest.mark.parametrize("order", ORDERS)
def test_a_given_state_is_compiled_with_its_gradients(order):
    dynamics = Dynamics(order=order)

    def scan(x: Tensor, membrane: Tensor) -> Any:
        state = PendingState(membrane, (membrane > 1).to(membrane.dtype)) if dynamics.pending_reset else membrane
        return lif(x, 0.9, 1.0, dynamics, state)

    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    x, membrane = torch.randn(4, 2, 3, requires_grad=True), (2 * torch.rand(2, 3)).requires_grad_()
    for got, expected in compared(compiled, scan, (x, membrane)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch first", "constant over time"])
def test_layouts_are_those_of_the_eager_scan(layout):
    x = LAYOUTS[layout]().requires_grad_()

    def scan(x: Tensor) -> Any:
        return lif(x, 0.9, 1.0)

    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for got, expected in compared(compiled, scan, (x,)):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        LIF([0.5, 0.6, 0.7], learn_beta=True, learn_threshold=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3 * 4 * 5, 7),
        LIF(order="leak_then_reset", surrogate="triangular"),
    )


def gradients_of(model: nn.Module, runner: nn.Module, x: Tensor, cotangent: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the spikes of a run and the gradients of the parameters of `model`; `runner` may be it, compiled."""
    spikes = run(runner, x)
    return spikes.detach(), list(torch.autograd.grad(spikes, tuple(model.parameters()), cotangent))


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("aot_eager", torch.float32, 0.0),
        pytest.param("inductor", torch.float64, 1e-12, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_network_in_channels_last_equals_the_eager_one(backend, dtype, tolerance):
    model = network().to(memory_format=torch.channels_last, dtype=dtype)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for steps in STEPS[:2]:
        x, cotangent = torch.randn(steps, 3, 2, 8, 10, dtype=dtype), torch.randn(steps, 3, 7, dtype=dtype)
        (spikes, gradients), (expected_spikes, expected_gradients) = (
            gradients_of(model, runner, x, cotangent) for runner in (compiled, model)
        )
        assert torch.equal(spikes, expected_spikes)
        assert 0 < spikes.mean() < 1
        for got, expected in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.slow
def test_compiled_gradients_in_float32_are_as_close_to_float64_as_eager_ones():
    # the compiler sums over batch and places in another order, so both differ by rounding, by some 1e-6
    def distance(gradients: list[Tensor], exact: list[Tensor]) -> float:
        pairs = zip(gradients, exact, strict=True)
        return max(float((got.double() - want).abs().max() / want.abs().max()) for got, want in pairs)

    model = network().to(memory_format=torch.channels_last)
    wide = copy.deepcopy(model).double()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    x, cotangent = torch.randn(5, 3, 2, 8, 10), torch.randn(5, 3, 7)
    exact_spikes, exact = gradients_of(wide, wide, x.double(), cotangent.double())
    found = {}
    for name, runner in (("eager", model), ("compiled", compiled)):
        spikes, gradients = gradients_of(model, runner, x, cotangent)
        assert torch.equal(spikes.double(), exact_spikes)
        found[name] = distance(gradients, exact)
    assert found["compiled"] < 5e-6
    assert found["compiled"] < 3 * found["eager"]


def test_exported_programs_contain_no_operator_of_this_library():
    class Scan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return lif(x, 0.9)[0]

    exported = torch.export.export(Scan(), (torch.randn(4, 2, 3),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("lightning_snn" in target for target in targets)


def test_transforms_of_torch_func_work_within_a_compiled_function():
    x = torch.randn(5, 4, 2, 3)

    def gradients(x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda each: lif(each, 0.9)[0].square().sum()))(x)

    torch._dynamo.reset()
    found = torch.compile(gradients, backend="aot_eager")(x)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, gradients(x))


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved_tensor_hooks", "reentrant"])
def test_a_checkpointed_scan_has_the_gradients_of_the_scan(reentrant):
    x, beta = torch.randn(6, 2, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    weights = torch.randn(6, 2, 3)

    def gradients(function: Callable) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weights * function()).sum(), (x, beta))

    def loss(*inputs: Tensor) -> Tensor:
        return (weights * checkpoint(lambda x, beta: lif(x, beta)[0], *inputs, use_reentrant=reentrant)).sum()

    leaves = [each.detach().clone().requires_grad_() for each in (x, beta)]
    loss(*leaves).backward()
    for leaf, expected in zip(leaves, gradients(lambda: lif(x, beta)[0]), strict=True):
        assert torch.equal(leaf.grad, expected)


def test_the_operator_and_the_plain_loop_agree_on_nan():
    x = torch.randn(6, 2, 3)
    x[2, 0, 1], x[3, 1, 2] = torch.nan, torch.inf
    for reset, order in product(RESETS, ORDERS):
        dynamics = Dynamics(reset, order)
        for got, expected in zip(
            tree_leaves(lif(x, 0.9, 1.0, dynamics)), tree_leaves(unrolled_lif(x, 0.9, 1.0, dynamics)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
