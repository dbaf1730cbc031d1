"""Encoders of static input."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.nn import DirectEncoder, LatencyEncoder, PoissonEncoder

ENCODERS = (DirectEncoder, PoissonEncoder, LatencyEncoder)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_time_comes_first_and_the_dtype_stays(kind, dtype):
    encoded = kind(5)(torch.rand(3, 2, 4, dtype=dtype))
    assert (encoded.shape, encoded.dtype) == ((5, 3, 2, 4), dtype)


def test_direct_input_is_the_same_at_every_step_and_is_not_copied():
    x = torch.randn(3, 4)
    encoded = DirectEncoder(6)(x)
    assert all(torch.equal(step, x) for step in encoded)
    assert encoded.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_poisson_spikes_come_at_the_rate_of_the_input():
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    steps = 20_000
    spikes = PoissonEncoder(steps)(x)
    assert set(spikes.unique().tolist()) == {0, 1}
    assert ((spikes.mean(0) - x).abs() <= 5 * (x * (1 - x) / steps).sqrt()).all()


def test_poisson_spikes_are_independent_over_time():
    spikes = PoissonEncoder(20_000)(torch.full((4,), 0.5)) - 0.5
    assert (4 * (spikes[1:] * spikes[:-1]).mean(0)).abs().max() < 5 / 20_000**0.5


def test_poisson_spikes_follow_the_seed():
    x, encoder = torch.rand(3, 4), PoissonEncoder(10)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(encoder(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_latency_spikes_once_the_earlier_the_larger_and_never_for_zero():
    spikes = LatencyEncoder(5)(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert spikes.T.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
    ]


def test_a_latency_of_one_step_spikes_for_all_that_is_not_zero():
    assert LatencyEncoder(1)(torch.tensor([0.0, 0.01, 1.0])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("kind", [PoissonEncoder, LatencyEncoder])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_input_outside_the_unit_range_is_refused(kind, value):
    with pytest.raises(ValueError, match=rf"input of {kind.__name__} in \[0, 1\], but got values from .*{value:g}"):
        kind(3)(torch.tensor([0.5, value]))


@pytest.mark.parametrize("kind", ENCODERS)
def test_time_steps_are_checked_and_shown(kind):
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match="Expected argument `time_steps` to be an integer of at least 1"):
            kind(wrong)
    assert repr(kind(3)) == f"{kind.__name__}(time_steps=3)"
