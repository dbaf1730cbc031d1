"""Rates of neurons by forward mode: equal to the closed form of LIF, and to backpropagation through time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods.rate import rate_run
from lightning_snn.methods.rate.neurons import LIFRule, StepRule
from lightning_snn.methods.rate.rules import RATE_RULES
from lightning_snn.nn import LIF, AdaptiveLIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF, run
from tests.nn.neurons.cases import FEATURES
from tests.nn.neurons.loops import assert_equal

STEPS = 12


class ByContract(LIF):
    """A LIF whose equations are its own, so that no closed form is known of it."""

    charge = LIF.charge


def network(layer: nn.Module, deep: bool = False) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Linear(3, FEATURES), layer, nn.Linear(FEATURES, FEATURES)]
    made = nn.Sequential(*parts, *([LIF(0.7, 0.3), nn.Linear(FEATURES, 2)] if deep else [])).double()
    nn.init.normal_(made[0].weight, std=1.0)
    nn.init.constant_(made[0].bias, 0.4)
    return made


def outcome(runner: object, made: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of all parameters and of the input."""
    x = x.clone().requires_grad_()
    outputs = runner(made, x)
    weights = torch.randn(outputs.shape[1:], generator=torch.Generator().manual_seed(2), dtype=outputs.dtype)
    # equal at all steps, as the mean readout makes it
    return [outputs, *torch.autograd.grad((outputs * weights).sum(), [x, *made.parameters()])]


LEARNED = {"learn_beta": True, "learn_threshold": True}
SETTINGS = list(itertools.product(["subtract", "zero"], [False, True], [None, FEATURES], [1, 4]))


@pytest.mark.parametrize(("reset", "detach", "channels", "windows"), SETTINGS)
@pytest.mark.parametrize("order", ["reset_then_leak", "leak_then_reset"])
def test_forward_mode_on_a_lif_by_contract_is_the_closed_form(reset, detach, channels, windows, order):
    x = torch.randn(STEPS, 3, 3, dtype=torch.float64)
    options = {**LEARNED, "channels": channels, "order": order}
    networks = [network(kind(0.8, 0.9, reset, detach, **options), deep=True) for kind in (LIF, ByContract)]
    assert [RATE_RULES.find(made[1]) for made in networks] == [LIFRule, StepRule]
    closed, found = (outcome(lambda made, x: rate_run(made, x, windows), made, x) for made in networks)
    assert torch.equal(found[0], closed[0])
    assert_equal(found[1:], closed[1:])


ONE_LAYER = {
    "adaptive": lambda **options: AdaptiveLIF(0.8, rho=0.9, learn_rho=True, learn_strength=True, **options),
    "synaptic": lambda **options: SynapticLIF(0.5, 0.8, learn_alpha=True, **options),
    "synaptic_leak_then_reset": lambda **options: SynapticLIF(
        0.5, 0.8, learn_alpha=True, order="leak_then_reset", **options
    ),
}


@pytest.mark.parametrize("name", ONE_LAYER)
@pytest.mark.parametrize("channels", [None, FEATURES])
@pytest.mark.parametrize(("reset", "detach"), [("subtract", False), ("zero", False), ("subtract", True)])
def test_rate_gradient_is_that_of_bptt_with_one_hidden_layer_and_constant_input(name, channels, reset, detach):
    made = network(ONE_LAYER[name](reset=reset, detach_reset=detach, **LEARNED, channels=channels))
    x = torch.randn(1, 3, 3, dtype=torch.float64).expand(STEPS, -1, -1)
    found, expected = outcome(rate_run, made, x), outcome(run, made, x)
    assert torch.equal(found[0], expected[0])
    # of the input only the sum over time is known to a rate
    assert_equal([found[1].sum(0), *found[2:]], [expected[1].sum(0), *expected[2:]])
    # not on an input that changes
    changing = torch.randn(STEPS, 3, 3, dtype=torch.float64)
    one, other = outcome(rate_run, made, changing), outcome(run, made, changing)
    assert (one[2] - other[2]).norm() > 1e-3 * other[2].norm()


def test_recurrent_in_windows_of_one_step_is_its_fused_form():
    fused = network(RecurrentLIF(FEATURES, 0.8, 0.9, **LEARNED))
    wrapped = network(Recurrent(LIF(0.8, 0.9, **LEARNED), FEATURES))
    wrapped[1].weight.data.copy_(fused[1].weight)
    x = torch.randn(STEPS, 3, 3, dtype=torch.float64)
    found = []
    for made, names in (
        (fused, ("beta_logit", "threshold_log")),
        (wrapped, ("neuron.beta_logit", "neuron.threshold_log")),
    ):
        outputs = rate_run(made, x, STEPS)
        inputs = [made[0].weight, made[1].weight, *(made[1].get_parameter(name) for name in names)]
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2), dtype=outputs.dtype)
        found.append((outputs, torch.autograd.grad(outputs, inputs, weights)))
    assert torch.equal(found[0][0], found[1][0])
    assert_equal(found[1][1], found[0][1])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", [AdaptiveLIF, SynapticLIF, ByContract])
def test_the_spiking_pass_is_a_plain_run(make: type[Neuron], streaming):
    made = network(make(), deep=True)
    x = torch.randn(STEPS, 3, 3, dtype=torch.float64)
    assert torch.equal(rate_run(made, x, 1, streaming), run(made, x))
