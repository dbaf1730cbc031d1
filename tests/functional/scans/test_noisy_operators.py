"""The noisy scan as operators: their contract with PyTorch, and compiled functions."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import Dynamics, noisy_lif
from lightning_snn.functional.estimators import estimator_named
from lightning_snn.functional.noisy_lif import NOISE_MODES, NoiseMode
from tests.functional.scans.test_operators import LAYOUTS, OPERATORS, STEPS, Recompilations, compared, every_layout

MODES = [("subtract", mode) for mode in NOISE_MODES] + [("zero", "moment"), ("zero", "step")]
every_mode = pytest.mark.parametrize(("reset", "mode"), MODES)
QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
COMPILED = ("test_aot_dispatch_dynamic",)


def check_contract(layout: str, reset: str, mode: NoiseMode, learned: bool, checks: tuple[str, ...]) -> None:
    mean, channels = LAYOUTS[layout](), torch.rand(3, 1, 1)
    variance = torch.rand_like(mean)
    parameters = (channels, 0.0, channels + 0.5, 0.0) if learned else (None, 0.9, None, 1.0)
    noise = torch.randn(len(mean), mean[0].numel(), dtype=torch.promote_types(mean.dtype, torch.float32))
    arguments = (mean, variance, *parameters, noise, None, reset, mode)
    torch.library.opcheck(OPERATORS.noisy_forward, arguments, test_utils=checks)
    spikes, standardized, root, _ = OPERATORS.noisy_forward(*arguments)
    weight = torch.rand_like(standardized) if learned else None
    gradients = (torch.randn_like(spikes), torch.randn_like(standardized)) if learned else (None, None)
    scan = (standardized, root, spikes, weight, noise if mode == "step" else None, *parameters)
    names = (0.5, reset, False, mode, mean.dtype, variance.dtype, learned, learned)
    torch.library.opcheck(OPERATORS.noisy_backward, (*scan, *gradients, *names), test_utils=checks)


@every_layout
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
def test_the_operators_keep_their_contract(layout, learned):
    check_contract(layout, "subtract", "moment", learned, QUICK_CHECKS)


@every_mode
def test_the_operators_of_every_mode_keep_their_contract(reset, mode):
    check_contract("channels last", reset, mode, True, QUICK_CHECKS)


@pytest.mark.parametrize(
    ("layout", "mode"),
    [
        pytest.param(layout, mode, marks=[] if (layout, mode) == ("channels last", "moment") else pytest.mark.slow)
        for layout, mode in product(LAYOUTS, NOISE_MODES)
    ],
)
def test_the_operators_keep_their_contract_in_a_compiled_function(layout, mode):
    check_contract(layout, "subtract", mode, True, COMPILED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", NOISE_MODES)
def test_the_fake_implementation_declares_the_noise_that_is_drawn(layout, mode):
    mean = LAYOUTS[layout]()
    arguments = (torch.rand_like(mean), None, 0.9, None, 1.0, None, None, "subtract", mode)
    torch.library.opcheck(OPERATORS.noisy_forward, (mean, *arguments), test_utils=QUICK_CHECKS)
    draws = OPERATORS.noisy_forward(mean, *arguments)[3]
    assert draws.numel() == (mean.numel() if mode == "step" else 0)


@pytest.mark.parametrize("mode", NOISE_MODES)
def test_a_given_noise_is_the_noise_that_would_be_drawn(mode):
    mean, variance = torch.randn(5, 2, 3, 11), torch.rand(5, 2, 3, 11)
    rest = (None, 0.9, None, 1.0)
    torch.manual_seed(3)
    drawn = OPERATORS.noisy_forward(mean, variance, *rest, None, None, "subtract", mode)
    torch.manual_seed(3)
    noise = torch.stack([torch.empty(66).normal_() for _ in range(5)])
    given = OPERATORS.noisy_forward(mean, variance, *rest, noise, None, "subtract", mode)
    assert all(map(torch.equal, drawn[:3], given[:3]))
    generator = torch.Generator().manual_seed(3)
    own = OPERATORS.noisy_forward(mean, variance, *rest, None, generator, "subtract", mode)
    assert all(map(torch.equal, drawn, own))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("reset", "mode", "estimator"),
    [
        ("subtract", "moment", 0.5),
        pytest.param("zero", "step", 0.5, marks=pytest.mark.slow),
        pytest.param("subtract", "trace", 1.0, marks=pytest.mark.slow),
        pytest.param("zero", "moment", "agr", marks=pytest.mark.slow),
    ],
)
def test_one_graph_serves_every_number_of_steps_and_has_the_noise_of_the_eager_scan(reset, mode, estimator, backend):
    parameters = (torch.rand(3, 1).requires_grad_(), (torch.rand(3, 1) + 0.5).requires_grad_())

    chosen = estimator_named(estimator)

    def scan(mean: Tensor, variance: Tensor, *parameters: Tensor) -> Any:
        return noisy_lif(mean, variance, *parameters, Dynamics(reset), chosen, mode)

    torch._dynamo.reset()
    counter = Recompilations(backend)
    compiled = torch.compile(scan, backend=counter, fullgraph=True, dynamic=True)

    def seeded(function: Any) -> Any:
        def call(*inputs: Tensor) -> Any:
            torch.manual_seed(2)
            return function(*inputs)

        return call

    for steps in STEPS:
        inputs = (torch.randn(steps, 2, 3, 6, requires_grad=True), torch.rand(steps, 2, 3, 6, requires_grad=True))
        for got, expected in compared(seeded(compiled), seeded(scan), (*inputs, *parameters)):
            tolerance = 0.0 if backend == "aot_eager" else 1e-6 * float(expected.detach().abs().max())
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
        assert counter.since_the_first_call == 0


def test_exported_programs_contain_no_operator_of_this_library():
    class Scan(torch.nn.Module):
        def forward(self, mean: Tensor) -> Tensor:
            return noisy_lif(mean, mean.square(), 0.9)[0]

    exported = torch.export.export(Scan(), (torch.randn(4, 2, 3),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("lightning_snn" in target for target in targets)
