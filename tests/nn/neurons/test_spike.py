"""The spike of one step has the same derivatives in every mode of differentiation, compiled or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightning_snn.functional import Smooth
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import SURROGATES, Surrogate
from lightning_snn.nn import AdaptiveLIF, Neuron
from tests.nn.neurons.cases import FEATURES, current
from tests.nn.neurons.loops import SURROGATES as DERIVATIVES
from tests.nn.neurons.loops import assert_equal, fire

THRESHOLDS = [(), (FEATURES,), (1, FEATURES), (6, 1), (6, FEATURES)]
surrogates = pytest.mark.parametrize("name", SURROGATES)


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Membrane potentials `[6, 4]`, thresholds, and a tangent of each."""
    potential = 1 + torch.randn(6, FEATURES, dtype=torch.float64)
    threshold = 1 + 0.2 * torch.rand(shape, dtype=torch.float64)
    return potential, threshold, torch.randn_like(potential), torch.randn_like(threshold)


@surrogates
@pytest.mark.parametrize("shape", THRESHOLDS, ids=str)
def test_reverse_mode_is_that_of_an_independent_form(name, shape):
    potential, threshold, cotangent, _ = inputs(shape)
    leaves = [potential.requires_grad_(), threshold.requires_grad_()]
    spikes, expected = spike(*leaves, SURROGATES[name]()), fire(*leaves, DERIVATIVES[name])
    assert torch.equal(spikes, expected)
    got, reference = (torch.autograd.grad(each, leaves, cotangent) for each in (spikes, expected))
    assert_equal(got, reference)


@surrogates
@pytest.mark.parametrize("shape", THRESHOLDS, ids=str)
def test_forward_mode_and_functional_transforms_agree_with_reverse_mode(name, shape):
    surrogate = SURROGATES[name]()
    potential, threshold, along, along_threshold = inputs(shape)

    def fired(potential: Tensor, threshold: float | Tensor) -> Tensor:
        return spike(potential, threshold, surrogate)

    def total(potential: Tensor, threshold: Tensor) -> Tensor:
        return (spike(potential, threshold, surrogate) * along.view(potential.shape)).sum()

    slope = DERIVATIVES[name](potential - threshold)
    expected = slope * (along - along_threshold)
    with forward_ad.dual_level():
        duals = forward_ad.make_dual(potential, along), forward_ad.make_dual(threshold, along_threshold)
        assert_equal([forward_ad.unpack_dual(fired(*duals)).tangent], [expected])
    values, tangent = torch.func.jvp(fired, (potential, threshold), (along, along_threshold))
    assert torch.equal(values, fired(potential, threshold))
    assert_equal([tangent], [expected])
    assert_equal(
        [torch.func.jvp(lambda v: fired(v, 1.0), (potential,), (along,))[1]], [DERIVATIVES[name](potential - 1) * along]
    )
    assert_equal(
        [torch.func.jvp(lambda t: fired(potential, t), (threshold,), (along_threshold,))[1]], [-slope * along_threshold]
    )
    to_potential, to_threshold = torch.func.grad(total, (0, 1))(potential, threshold)
    assert_equal([to_potential, to_threshold], [slope * along, -(slope * along).sum_to_size(threshold.shape)])


@surrogates
@pytest.mark.parametrize("shape", THRESHOLDS, ids=str)
def test_vmap_row_by_row_and_its_gradients_are_those_of_all_rows(name, shape):
    surrogate = SURROGATES[name]()
    potential, threshold, along, _ = inputs(shape)
    slope, rows = DERIVATIVES[name](potential - threshold), threshold.expand(6, FEATURES)

    def fired(potential: Tensor, threshold: float | Tensor) -> Tensor:
        return spike(potential, threshold, surrogate)

    assert torch.equal(torch.func.vmap(fired)(potential, rows), fired(potential, rows))

    def of_row(potential: Tensor, threshold: Tensor, weights: Tensor) -> Tensor:
        return (spike(potential, threshold, surrogate) * weights).sum()

    per_row = torch.func.vmap(torch.func.grad(of_row, (0, 1)))(potential, rows, along)
    assert_equal(per_row, [slope * along, -slope * along])
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda v: fired(v, 1.0)))(potential)
    assert_equal([jacobian.diagonal(dim1=1, dim2=2)], [DERIVATIVES[name](potential - 1)])


@surrogates
def test_a_number_for_a_threshold_gets_no_gradient(name):
    potential = inputs(())[0].requires_grad_()
    (gradient,) = torch.autograd.grad(spike(potential, 1.0, SURROGATES[name]()).sum(), potential)
    assert_equal([gradient], [DERIVATIVES[name](potential.detach() - 1)])


def test_the_comparison_is_strict():
    potential = torch.tensor([1.0, 1.0 + 2.0**-52], dtype=torch.float64)
    assert spike(potential, 1.0, SURROGATES["arctangent"]()).tolist() == [0, 1]


@surrogates
def test_gradients_are_exact_for_the_smooth_spike(name):
    potential, threshold, _, _ = (each.requires_grad_() for each in inputs((FEATURES,)))
    surrogate = Smooth(SURROGATES[name]())
    assert torch.autograd.gradcheck(
        lambda v, t: spike(v, t, surrogate), (potential, threshold), check_forward_ad=True, check_batched_grad=True
    )


def compiled(function: object) -> object:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("surrogate", [SURROGATES["arctangent"](), SURROGATES["triangular"](), Smooth()], ids=str)
@pytest.mark.parametrize("number", [False, True], ids=["tensor", "number"])
def test_the_compiled_spike_is_the_eager_one(surrogate: Surrogate, number):
    potential, threshold, along, _ = inputs((FEATURES,))
    leaves = [potential.requires_grad_()] + ([] if number else [threshold.requires_grad_()])

    def fired(potential: Tensor, threshold: float | Tensor = 1.0) -> Tensor:
        return spike(potential, threshold, surrogate)

    eager, other = fired(*leaves), compiled(fired)(*leaves)
    assert torch.equal(other, eager)
    assert_equal(*(torch.autograd.grad(each, leaves, along) for each in (other, eager)))


@pytest.mark.parametrize("detach", [False, True])
def test_the_compiled_step_of_a_neuron_is_the_eager_one(detach):
    learned = {"learn_beta": True, "learn_threshold": True, "learn_rho": True, "learn_strength": True}
    layer = AdaptiveLIF(0.8, rho=0.9, detach_reset=detach, **learned, channels=FEATURES).double()
    x = current(6).requires_grad_()
    # the step of the contract: it finds the state of rest itself, so the first state is given
    step, state, other = compiled(lambda x, state: Neuron.step(layer, x, state)), *2 * (layer.initial_state(x[0]),)
    outputs, found = [], []
    for given in x.unbind(0):
        spikes, state = layer.step(given, state)
        fired, other = step(given, other)
        outputs.append(spikes)
        found.append(fired)
    assert torch.stack(outputs).sum() > 5
    assert torch.equal(torch.stack(found), torch.stack(outputs))
    leaves, cotangent = [x, *layer.parameters()], torch.randn(6, 3, FEATURES, dtype=torch.float64)
    assert_equal(*(torch.autograd.grad(torch.stack(each), leaves, cotangent) for each in (found, outputs)))
