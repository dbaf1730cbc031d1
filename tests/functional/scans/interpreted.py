"""The Triton kernels of the LIF scan, run on the CPU by Triton's interpreter and compared with the loop.

`test_triton.py` runs this file in a process of its own, because the interpreter has to be chosen before Triton is
imported: TRITON_INTERPRET=1 pytest tests/functional/scans/interpreted.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_snn.functional import Dynamics, PendingState, lif
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.scans import triton_lif
from lightning_snn.functional.scans.choice import VARIABLE, kernels
from tests.functional.scans.test_operators import LAYOUTS, OPERATORS, every_layout, step_like
from tests.functional.scans.test_rate_operator import every_dynamics
from tests.support.triton import count_launches

assert os.environ.get("TRITON_INTERPRET") == "1"
every_reset_and_order = pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that are launched from now on."""
    return count_launches(monkeypatch, triton_lif, "lif_forward", "lif_backward")


def by_both(
    function: Callable[..., object], inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch, cotangents: str = "random"
) -> list[tuple[Tensor, Tensor]]:
    """Compare values of kernel and loop, exactly, and return each gradient of the kernel with that in float64.

    The loop in float32 is no closer to the gradient in float64 than the kernel, so their distance may be twice as far.
    """
    outputs = []
    for implementation, given in (
        ("triton", inputs),
        ("loop", inputs),
        ("loop", [each.detach().double().requires_grad_() for each in inputs]),
    ):
        monkeypatch.setenv(VARIABLE, implementation)
        outputs.append((given, [each for each in tree_leaves(function(*given)) if each is not None]))
    (_, found), (_, expected), (exact_inputs, exact) = outputs
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan=True)
        assert got.stride() == right.stride()
        assert got.requires_grad == right.requires_grad
    for got, right in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
    chosen = [index for index, each in enumerate(found) if each.requires_grad]
    # positive, so that the gradient of a parameter is no small sum of large terms
    weights = [torch.rand_like(found[index]) for index in chosen]
    if cotangents == "expanded":
        weights = [torch.ones((), dtype=each.dtype).expand_as(each) for each in weights]
    monkeypatch.setenv(VARIABLE, "triton")
    gradients = torch.autograd.grad([found[index] for index in chosen], inputs, weights, allow_unused=True)
    exact_weights = [each.double() for each in weights]
    references = torch.autograd.grad([exact[index] for index in chosen], exact_inputs, exact_weights, allow_unused=True)
    assert [each is None for each in gradients] == [each is None for each in references]
    for got, given in zip(gradients, inputs, strict=True):
        assert got is None or got.dtype == given.dtype
    return [pair for pair in zip(gradients, references, strict=True) if pair[0] is not None]


def assert_close_to_the_largest(got: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert expected.abs().max() > 0
    scale = float(expected.abs().max())
    torch.testing.assert_close(got.to(expected.dtype), expected, rtol=0, atol=tolerance * scale)


def test_the_kernels_are_what_runs(launches):
    assert kernels("cpu")["lif"].implementation == "triton"
    lif(torch.randn(4, 2, 3, requires_grad=True), 0.9)[0].sum().backward()
    assert launches == ["lif_forward", "lif_backward"]


@every_dynamics
def test_values_and_gradients_are_those_of_the_loop(dynamics, monkeypatch):
    x = torch.randn(7, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)  # channels last
    inputs = [x, torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5, torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5).round()]

    def scan(x: Tensor, beta: Tensor, threshold: Tensor, membrane: Tensor, before: Tensor) -> object:
        return lif(x, beta, threshold, dynamics, PendingState(membrane, before) if dynamics.pending_reset else membrane)

    inputs = [each.requires_grad_() for each in inputs]
    pairs = by_both(scan, inputs, monkeypatch)
    assert len(pairs) == (5 if dynamics.pending_reset else 4)
    for got, expected in pairs:
        assert_close_to_the_largest(got, expected)


@every_dynamics
def test_from_rest_with_numbers_they_are_those_of_the_loop(dynamics, monkeypatch):
    inputs = [torch.randn(7, 5, 60).requires_grad_()]  # more neurons than a program has
    ((got, expected),) = by_both(lambda x: lif(x, 0.9, 0.8, dynamics), inputs, monkeypatch)
    assert_close_to_the_largest(got, expected)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layouts_and_dtypes_are_those_of_the_loop(layout, dtype, monkeypatch):
    x = LAYOUTS[layout]().to(dtype).requires_grad_()
    beta = torch.rand(3, 1, 1, requires_grad=True)
    of_input, of_beta = by_both(lambda x, beta: lif(x, beta), [x, beta], monkeypatch)
    if x.numel():
        assert_close_to_the_largest(*of_input, max(1e-6, torch.finfo(dtype).eps))
    if x.numel() and len(x) > 1:  # at rest nothing decays
        assert_close_to_the_largest(*of_beta)


@every_dynamics
def test_in_16_bits_the_potentials_are_computed_again_and_gradients_are_those_of_the_loop(dynamics, monkeypatch):
    monkeypatch.setattr(triton_lif, "PROGRAMS", 2)  # of 3 blocks of neurons
    x = torch.randn(5, 2, 4, 15, 5).permute(0, 1, 4, 2, 3).bfloat16()
    parameters = [torch.rand(5, 1, 1), torch.rand(5, 1, 1) + 0.5]
    inputs = [x, *parameters, torch.rand(2, 5, 4, 15), torch.rand(2, 5, 4, 15).round()]

    def scan(x: Tensor, beta: Tensor, threshold: Tensor, membrane: Tensor, before: Tensor) -> object:
        return lif(x, beta, threshold, dynamics, PendingState(membrane, before) if dynamics.pending_reset else membrane)

    (of_input, *others) = by_both(scan, [each.requires_grad_() for each in inputs], monkeypatch)
    eps = torch.finfo(torch.bfloat16).eps
    assert_close_to_the_largest(*of_input, eps)
    # the gradient of the spikes that a pending reset returns is added to that of all spikes, in their dtype
    tolerance = eps if dynamics.pending_reset and not dynamics.detach_reset else 1e-6
    for got, expected in others:
        assert_close_to_the_largest(got, expected, tolerance)


@pytest.mark.parametrize("implementation", ["triton", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_as_many_bytes_are_saved_in_16_bits(dtype, implementation, monkeypatch):
    monkeypatch.setenv(VARIABLE, implementation)
    x = torch.randn(6, 2, 3, dtype=dtype, requires_grad=True)
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        lif(x, 0.9)
    narrow = implementation == "triton" and dtype != torch.float32
    assert saved == [x.numel() * (2 if narrow else 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_scan_by_the_kernels_equals_the_eager_one(dtype, launches):
    x, beta = torch.randn(5, 2, 3, 6, dtype=dtype, requires_grad=True), torch.rand(3, 1, requires_grad=True)
    compiled = torch.compile(lif, backend="aot_eager", fullgraph=True)
    found = []
    for scan in (compiled, lif):
        spikes, state = scan(x, beta)
        found.append((spikes, state, *torch.autograd.grad(spikes.float().sum() + state.sum(), (x, beta))))
    assert all(map(torch.equal, *found))
    assert launches == 2 * ["lif_forward", "lif_backward"]


def test_float64_takes_the_loop(launches):
    spikes, state = lif(torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True), 0.9)
    spikes.sum().backward()
    assert state.dtype == torch.float64
    assert launches == []


@pytest.mark.parametrize(
    "shape", [(), (1,), (3, 1, 1), (5,), (4, 5), (2, 1, 1, 1), (2, 3, 4, 5), (1, 3, 1, 1)], ids=str
)
def test_decay_and_threshold_broadcast_as_in_the_loop(shape, monkeypatch):
    x = torch.randn(6, 2, 4, 5, 3).permute(0, 1, 4, 2, 3).requires_grad_()
    parameters = [torch.rand(shape).requires_grad_(), (torch.rand(shape) + 0.5).requires_grad_()]
    for got, expected in by_both(lambda x, *given: lif(x, *given), [x, *parameters], monkeypatch):
        assert_close_to_the_largest(got, expected)


def test_parameters_with_strides_are_read_in_order(monkeypatch):
    x = torch.randn(6, 2, 3).requires_grad_()
    beta, threshold = torch.rand(3, 2)[:, 0].requires_grad_(), torch.rand(3).double().add(0.5).requires_grad_()
    for got, expected in by_both(lambda x, *given: lif(x, *given), [x, beta, threshold], monkeypatch):
        assert_close_to_the_largest(got, expected)


def test_parameters_that_do_not_broadcast_are_refused_as_by_the_loop(monkeypatch):
    for implementation in ("triton", "loop"):
        monkeypatch.setenv(VARIABLE, implementation)
        with pytest.raises(RuntimeError, match="must match"):
            lif(torch.randn(6, 2, 3), torch.rand(2))


@every_reset_and_order
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinities_are_those_of_the_loop(dtype, reset, order, monkeypatch):
    x = (torch.randn(9, 3, 4) + 0.5).to(dtype)
    x[4, 1, 2], x[0, 2, 0], x[-1, 2, 1] = torch.nan, torch.nan, torch.nan
    x[2, 0, 0], x[3, 0, 1], x[2, 0, 2], x[5, 0, 2] = torch.inf, -torch.inf, torch.inf, -torch.inf
    beta, threshold = torch.tensor([0.9, 0.8, 0.7, torch.nan]), torch.tensor([0.8, torch.nan, 1.0, 0.9])
    for parameters in ((0.9, 0.8), (torch.full((4,), 0.9), torch.full((4,), 0.8)), (beta, threshold)):
        pairs = by_both(
            lambda x, parameters=parameters: lif(x, *parameters, Dynamics(reset, order)),
            [x.clone().requires_grad_()],
            monkeypatch,
        )
        for got, expected in pairs:
            assert 0 < expected.isnan().float().mean() < 1
            close = (1e-5, 1e-6) if dtype == torch.float32 else (2**-7, 2**-7)
            torch.testing.assert_close(got.float(), expected.float(), rtol=close[0], atol=close[1], equal_nan=True)


def test_a_potential_at_the_threshold_is_no_spike():
    spikes, _ = lif(torch.tensor([[1.0, 1.0 + 2**-23, 1.0 - 2**-24]]), 0.9, 1.0)
    assert spikes.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("order", ORDERS)
def test_a_gradient_of_the_state_or_of_the_spikes_alone_is_that_of_the_loop(order, monkeypatch):
    x, beta = torch.randn(6, 2, 3).requires_grad_(), torch.rand(3).requires_grad_()
    for chosen in (0, 1):
        pairs = by_both(
            lambda x, beta, chosen=chosen: tree_leaves(lif(x, beta, 1.0, Dynamics(order=order)))[chosen],
            [x, beta],
            monkeypatch,
            cotangents="expanded",
        )
        for got, expected in pairs:
            assert_close_to_the_largest(got, expected)


@every_reset_and_order
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_through_the_kernels_are_those_of_the_loop(dtype, reset, order, monkeypatch):
    x, beta = torch.randn(5, 2, 3).to(dtype).requires_grad_(), torch.rand(3).requires_grad_()
    found = []
    for implementation in ("triton", "loop"):
        monkeypatch.setenv(VARIABLE, implementation)
        spikes = lif(x, beta, 1.0, Dynamics(reset, order))[0].float()
        (first,) = torch.autograd.grad(spikes.sum().square(), x, create_graph=True)
        found.append(torch.autograd.grad(first.float().square().sum(), (x, beta)))
    for got, expected in zip(*found, strict=True):
        assert_close_to_the_largest(got, expected.float(), 1e-6 if dtype == torch.float32 else 2**-7)


@every_layout
@pytest.mark.parametrize("wanted", [False, True], ids=["input_only", "all_gradients"])
def test_the_kernels_keep_the_contract_of_the_operators(layout, wanted):
    x, channels = LAYOUTS[layout](), torch.rand(3, 1, 1)
    state, before = step_like(x), step_like(x).round()
    given = (channels, 0.0, channels + 0.5, 0.0, state, before) if wanted else (None, 0.9, None, 1.0, None, None)
    names = ("subtract", "leak_then_reset")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPERATORS.lif_forward, (x, *given, *names, True), test_utils=checks)
    spikes, final, membranes = OPERATORS.lif_forward(x, *given, *names, True)
    gradients = (torch.randn_like(spikes), torch.randn_like(final), None)
    rest = (False, "arctangent", 0.3, x.dtype, wanted, wanted, wanted)
    for saved in (membranes, x) if x.dtype == torch.bfloat16 else (membranes,):
        torch.library.opcheck(OPERATORS.lif_backward, (saved, *given, *gradients, *names, *rest), test_utils=checks)
