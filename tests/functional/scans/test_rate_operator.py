"""The rate scan as an operator: its contract with PyTorch, and compiled functions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import Dynamics, Smooth
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.eligibility import RateState, lif_rate
from lightning_snn.functional.scans.variants import built_in
from lightning_snn.functional.surrogate import SURROGATES
from tests.functional.scans.test_operators import LAYOUTS, STEPS, Recompilations, every_layout, step_like

DYNAMICS = [
    Dynamics(reset, order, detached, kind())
    for reset, order, detached, kind in product(RESETS, ORDERS, (False, True), SURROGATES.values())
]
every_dynamics = pytest.mark.parametrize(
    "dynamics",
    [
        pytest.param(each, marks=[] if index % 4 == index // 4 % 4 else pytest.mark.slow)
        for index, each in enumerate(DYNAMICS)
    ],
    ids=lambda each: f"{each.reset}-{each.order}-{each.detach_reset}-{built_in(each.surrogate)[0]}",
)
STATES = {"at rest": (0, True), "new window": (0, False), "within a window": (3, False)}
QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def check_contract(
    layout: str, dynamics: Dynamics, learned: bool, checks: tuple[str, ...], states: Iterable[str] = STATES
) -> None:
    """Check the operator on buffers in the layout of steps."""
    x, channels = LAYOUTS[layout](), torch.rand(3, 1, 1)

    def buffer() -> Tensor:
        return step_like(x).sub_(0.5)

    shared = dynamics.reset == "subtract" and dynamics.detach_reset
    tangent: Tensor | None = buffer()
    if shared:
        tangent = torch.rand(3, 1, 1, dtype=buffer().dtype) if learned else None
    parameters = (channels, 0.0, channels + 0.5, 0.0) if learned else (None, 0.9, None, 1.0)
    for steps, rested in map(STATES.__getitem__, states):
        traces = [buffer() for _ in range(6)] if learned else [*4 * [None], None if shared else buffer(), buffer()]
        arguments = (x, *parameters, buffer(), buffer(), tangent, buffer(), *traces, steps, rested, *dynamics[:3])
        torch.library.opcheck(
            torch.ops.lightning_snn.rate_scan, (*arguments, *built_in(dynamics.surrogate)), test_utils=checks
        )


@every_layout
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
def test_the_operator_keeps_its_contract(layout, learned):
    check_contract(layout, Dynamics(detach_reset=True), learned, QUICK_CHECKS)


@pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))
def test_the_operator_of_every_reset_keeps_its_contract(reset, order):
    check_contract("channels last", Dynamics(reset, order), True, QUICK_CHECKS)


@pytest.mark.parametrize(
    ("layout", "state"),
    [
        pytest.param(
            layout, state, marks=[] if (layout, state) == ("channels last", "within a window") else pytest.mark.slow
        )
        for layout, state in product(LAYOUTS, STATES)
    ],
)
def test_the_operator_keeps_its_contract_in_a_compiled_function(layout, state):
    check_contract(layout, Dynamics(), True, ("test_aot_dispatch_dynamic",), [state])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("detached", "learned"),
    [(True, False), *(pytest.param(detached, True, marks=pytest.mark.slow) for detached in (False, True))],
)
def test_one_graph_serves_every_number_of_steps_and_equals_the_eager_scan(detached, learned, backend):
    parameters = (torch.rand(3, 1), torch.rand(3, 1) + 0.5) if learned else (0.9, 0.8)
    dynamics = Dynamics(detach_reset=detached)

    def scan(x: Tensor) -> Any:
        spikes, state = lif_rate(x, *parameters, dynamics, wanted=(learned, learned))
        again, state = lif_rate(x, *parameters, dynamics, state, wanted=(learned, learned))
        return spikes, again, [each for each in state.record() if each is not None]

    torch._dynamo.reset()
    counter = Recompilations(backend)
    compiled = torch.compile(scan, backend=counter, fullgraph=True, dynamic=True)
    for steps in STEPS:
        x = torch.randn(steps, 2, 3, 6)
        (spikes, again, record), (expected, later, eager) = compiled(x), scan(x)
        assert torch.equal(spikes, expected)
        assert torch.equal(again, later)
        # inductor multiplies by 1 / n
        tolerance = 0.0 if backend == "aot_eager" else 1e-6
        for got, reference in zip(record, eager, strict=True):
            assert reference.abs().max() > 0
            torch.testing.assert_close(got, reference, rtol=tolerance, atol=tolerance)
        assert counter.since_the_first_call == 0


def test_a_surrogate_of_a_users_own_takes_the_loop():
    x = torch.randn(4, 2, 3)
    smooth = lif_rate(x, 0.9, 1.0, Dynamics(surrogate=Smooth()))[0]
    assert not torch.equal(smooth, smooth.round())


def test_no_graph_is_built():
    x = torch.randn(4, 2, 3, requires_grad=True)
    spikes, state = lif_rate(x, 0.9)
    assert isinstance(state, RateState)
    assert not spikes.requires_grad
