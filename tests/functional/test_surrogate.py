"""Surrogate derivatives: their shapes, their constants, and what they share with other libraries."""

from __future__ import annotations

import math

import pytest
import snntorch.surrogate
import torch

from lightning_snn.functional import ArcTangent, FastSigmoid, Sigmoid, Smooth, Surrogate, Triangular
from lightning_snn.functional.surrogate import SURROGATES, surrogate_named

every_surrogate = pytest.mark.parametrize("kind", SURROGATES.values(), ids=SURROGATES.keys())
every_width = pytest.mark.parametrize("width", [0.1, 0.5, 3.0])
WIDE = torch.linspace(-7.9, 7.7, 401, dtype=torch.float64)


@pytest.mark.parametrize(
    ("surrogate", "distance", "value"),
    [
        (FastSigmoid(0.5), 1.0, 1 / 9),
        (FastSigmoid(2.0), -2.0, 1 / 4),
        (ArcTangent(1.0), 2.0, 1 / 5),
        (ArcTangent(0.5), -0.5, 1 / 2),
        (Sigmoid(1.0), math.log(3), 3 / 4),
        (Sigmoid(0.5), -math.log(3) / 2, 3 / 4),
        (Triangular(2.0), 1.0, 1 / 2),
        (Triangular(2.0), -1.5, 1 / 4),
        (Triangular(2.0), 2.5, 0.0),
    ],
)
def test_the_bump_has_the_values_written_out(surrogate, distance, value):
    assert surrogate.derivative(torch.tensor(distance, dtype=torch.float64)).item() == pytest.approx(value, abs=1e-15)


@every_surrogate
@every_width
def test_the_bump_is_the_derivative_of_the_primitive(kind, width):
    surrogate = kind(width)
    distance = WIDE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate.primitive(distance).sum(), distance)
    torch.testing.assert_close(surrogate.derivative(WIDE), slope, rtol=1e-12, atol=1e-13)


@every_surrogate
@every_width
def test_the_bump_is_even_and_of_height_one(kind, width):
    surrogate = kind(width)
    assert surrogate.derivative(torch.zeros(())).item() == 1
    torch.testing.assert_close(surrogate.derivative(WIDE), surrogate.derivative(-WIDE), rtol=0, atol=0)
    assert surrogate.primitive(torch.zeros(())).item() == 0.5


@every_surrogate
def test_the_default_width_makes_the_primitive_a_step_from_zero_to_one(kind):
    far = torch.tensor([-1e9, 1e9], dtype=torch.float64)
    torch.testing.assert_close(kind().primitive(far), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-8)
    assert not torch.allclose(kind(0.7).primitive(far), torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-2)


@every_surrogate
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bump_is_finite_far_from_the_threshold(kind, dtype):
    value = kind().derivative(torch.tensor([-1e4, -90.0, 90.0, 1e4], dtype=dtype))
    assert value.isfinite().all()
    assert (value >= 0).all()


@every_surrogate
def test_derivative_in_place_writes_over_its_argument_and_derivative_does_not(kind):
    distance = WIDE.clone()
    value = kind().derivative(distance)
    assert torch.equal(distance, WIDE)
    assert kind().derivative_(distance) is distance
    assert torch.equal(distance, value)


@pytest.mark.parametrize(
    ("theirs", "ours", "factor"),
    [
        (snntorch.surrogate.atan(alpha=2), ArcTangent(), 1.0),
        (snntorch.surrogate.atan(alpha=3), ArcTangent(2 / (3 * math.pi)), 3 / 2),
        (snntorch.surrogate.fast_sigmoid(slope=25), FastSigmoid(1 / 25), 1.0),
        (snntorch.surrogate.sigmoid(slope=4), Sigmoid(), 1.0),
        (snntorch.surrogate.sigmoid(slope=10), Sigmoid(1 / 10), 10 / 4),
    ],
)
def test_the_bump_is_that_of_snntorch_up_to_a_factor(theirs, ours, factor):
    distance = torch.linspace(-2, 2, 101).requires_grad_()
    (slope,) = torch.autograd.grad(theirs(distance).sum(), distance)
    torch.testing.assert_close(factor * ours.derivative(distance.detach()), slope, rtol=1e-5, atol=1e-6)


def test_a_neuron_spikes_above_the_threshold_and_not_at_it():
    membrane = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    out = torch.full((3,), 7.0, dtype=torch.float64)
    for spikes in (ArcTangent().spike(membrane, 0.5), ArcTangent().spike(membrane, torch.tensor(0.5), out=out)):
        assert spikes.tolist() == [0, 0, 1]
        assert spikes.dtype == torch.float64
    assert out.tolist() == [0, 0, 1]


@every_surrogate
def test_a_smooth_neuron_emits_the_primitive_and_keeps_the_bump(kind):
    smooth = Smooth(kind())
    torch.testing.assert_close(smooth.spike(WIDE, 0.25), kind().primitive(WIDE - 0.25))
    out = torch.empty_like(WIDE)
    assert smooth.spike(WIDE, 0.25, out=out) is out
    torch.testing.assert_close(out, kind().primitive(WIDE - 0.25))
    torch.testing.assert_close(smooth.derivative(WIDE), kind().derivative(WIDE))


def test_surrogates_are_found_by_name_and_pass_through():
    assert [surrogate_named(name) for name in SURROGATES] == [kind() for kind in SURROGATES.values()]
    mine = Triangular(0.3)
    assert surrogate_named(mine) is mine
    with pytest.raises(ValueError, match=r"argument `surrogate` .*'arctangent'.*but got 'arctan'"):
        surrogate_named("arctan")


@every_surrogate
@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf, "1", None])
def test_a_width_that_is_not_a_positive_number_is_refused_by_name(kind, width):
    with pytest.raises(ValueError, match="Expected argument `width` to be a finite number larger than 0"):
        kind(width)


def test_a_surrogate_that_defines_nothing_says_what_is_missing():
    class Unfinished(Surrogate):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished defines no derivative_"):
        Unfinished().derivative(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="Unfinished defines no primitive"):
        Unfinished().primitive(torch.zeros(1))


def test_surrogates_are_values():
    assert FastSigmoid(0.5) == FastSigmoid()
    assert FastSigmoid(0.5) != FastSigmoid(0.6)
    assert len({Sigmoid(), Sigmoid(0.25), Triangular()}) == 2
    assert repr(FastSigmoid()) == "FastSigmoid(width=0.5)"
