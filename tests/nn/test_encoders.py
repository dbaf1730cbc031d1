"""Encoders of static input."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_snn.nn import DirectEncoder, LatencyEncoder, PoissonEncoder, PopulationEncoder, ThresholdEncoder

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


@pytest.mark.parametrize("kind", [PoissonEncoder, LatencyEncoder, ThresholdEncoder])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_input_outside_the_unit_range_is_refused(kind, value):
    with pytest.raises(
        ValueError, match=rf"input of {kind.__name__} to be in \[0, 1\], but got values from .*{value:g}"
    ):
        (kind() if kind is ThresholdEncoder else kind(3))(torch.tensor([0.5, value]))


@pytest.mark.parametrize("kind", ENCODERS)
def test_time_steps_are_checked_and_shown(kind):
    for wrong in (0, 2.0, True):
        with pytest.raises(ValueError, match="Expected argument `time_steps` to be an integer of at least 1"):
            kind(wrong)
    assert repr(kind(3)) == f"{kind.__name__}(time_steps=3)"


def test_a_threshold_parts_pixels_of_8_bits_between_127_and_128():
    gray = torch.arange(256, dtype=torch.uint8)
    spikes = ThresholdEncoder()(gray.float() / 255)
    assert spikes.shape == (1, 256)
    assert torch.equal(spikes[0], (gray > 127).float())
    assert ThresholdEncoder(0.2)(torch.tensor([[0.2, 0.3]], dtype=torch.float64)).tolist() == [[[0.0, 1.0]]]


def test_a_population_spikes_around_the_place_on_the_line():
    encoder = PopulationEncoder(0.0, 1.0, fields=11, width=0.1, threshold=0.5)
    # centers 0, 0.1, ..., 1; within 0.1177 of the place
    spikes = encoder(torch.tensor([0.5, 0.0, 0.55, 3.0], dtype=torch.float64))
    assert spikes.shape == (1, 4, 11)
    assert spikes.dtype == torch.float64
    assert [row.nonzero().flatten().tolist() for row in spikes[0]] == [[4, 5, 6], [0, 1], [5, 6], []]


def test_a_population_reaches_as_far_as_its_width_and_threshold_define():
    places = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for width, threshold in ((0.12, 0.5), (0.3, 0.8)):
        spikes = PopulationEncoder(0.0, 9.0, fields=2, width=width, threshold=threshold)(places)[0, :, 0]
        reach = places[spikes > 0].max().item()
        assert reach == pytest.approx(width * (-2 * math.log(threshold)) ** 0.5, abs=2e-3)


def test_several_numbers_have_a_population_each():
    encoder = PopulationEncoder(-1.0, 5.0)
    x = torch.rand(6, 2)
    spikes = encoder(x)
    assert spikes.shape == (1, 6, 200)
    assert torch.equal(spikes[..., :100], encoder(x[:, :1]))
    assert torch.equal(spikes[..., 100:], encoder(x[:, 1]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ThresholdEncoder(1.0), "`threshold` to be a number between 0 and 1, both excluded, but got 1.0"),
        (lambda: PopulationEncoder(1.0, 1.0), "`high` to be larger than `low`, 1.0, but got 1.0"),
        (lambda: PopulationEncoder(0.0, 1.0, fields=1), "`fields` to be an integer of at least 2, but got 1"),
        (lambda: PopulationEncoder(0.0, 1.0, width=0), "`width` to be a finite number larger than 0, but got 0"),
        (lambda: PopulationEncoder(0.0, 1.0, threshold=0.0), "`threshold` to be a number between 0 and 1"),
    ],
)
def test_arguments_of_encoders_of_one_step_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_encoders_of_one_step_show_their_arguments():
    assert repr(ThresholdEncoder()) == "ThresholdEncoder(threshold=0.5)"
    shown = "PopulationEncoder(low=-1, high=5, fields=100, width=0.12, threshold=0.5)"
    assert repr(PopulationEncoder(-1, 5)) == shown


@pytest.mark.parametrize("kind", [PoissonEncoder, LatencyEncoder, ThresholdEncoder])
def test_an_input_of_nan_is_refused(kind):
    with pytest.raises(ValueError, match=rf"input of {kind.__name__} to be in \[0, 1\], but got values from nan"):
        (kind() if kind is ThresholdEncoder else kind(3))(torch.tensor([0.5, math.nan]))


def test_the_population_of_nan_is_nan():
    encoder = PopulationEncoder(0.0, 1.0, fields=5)
    spikes = encoder(torch.tensor([[0.3, math.nan], [0.3, 0.8]]))
    assert torch.equal(spikes.isnan(), torch.tensor([[[0] * 5 + [1] * 5, [0] * 10]]).bool())
    assert torch.equal(spikes[0, 0, :5], spikes[0, 1, :5])
