from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.ttfs import (
    TimeConstraints,
    jitter_times,
    relu_from_two_phase,
    remaining_time,
    round_times,
    spike_times,
    through_time,
    two_phase_from_relu,
)

WINDOW, PREVIOUS, T_MIN = 2.5, 1.5, 4.0


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def layer() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Remaining times of inputs, a third of them silent, and W, A, B, theta of neurons about half of which spike."""
    remaining = torch.relu(torch.rand(16, 12, dtype=torch.float64) - 1 / 3)
    weight, before = double(9, 12), 0.3 * double(9)
    slope = 0.5 + torch.rand(9, dtype=torch.float64)
    threshold = slope * WINDOW + before * PREVIOUS + 0.3 * double(9)
    return remaining, weight, before, slope, threshold


def potential(remaining: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    return before * PREVIOUS + remaining @ weight.T


def crossing(times: list[float], weight: list[float], slope: float, threshold: float) -> float:
    """First crossing at or after T_MIN of V, with the slope `slope` plus that of every ramp begun, walked event by
    event; infinite if there is none before T_MIN + WINDOW."""
    now, value = T_MIN - PREVIOUS, 0.0
    events = sorted([*zip(times, weight, strict=True), (T_MIN, 0.0), (T_MIN + WINDOW, 0.0)])
    for time, ramp in events:
        if now >= T_MIN:
            if value >= threshold:
                return now
            if slope > 0 and now + (threshold - value) / slope < time:
                return now + (threshold - value) / slope
        value, now, slope = value + slope * (time - now), time, slope + ramp
    return float("inf")


def test_spike_times_are_those_of_a_written_out_membrane():
    # inputs 0.5 and 1 before t_min with ramps 2 and -1 on top of A = 0.4 over 1.5: V(t_min) = 0.6 + 1 - 1 = 0.6;
    # with B = 0.8 the threshold 1.8 is met 1.5 later, 1 before t_max
    value = torch.tensor(0.4 * PREVIOUS + 2 * 0.5 - 1 * 1.0, dtype=torch.float64)
    assert spike_times(value, 1.8, 0.8, WINDOW, T_MIN).item() == pytest.approx(5.5, abs=1e-14)
    assert remaining_time(value, 1.8, 0.8, WINDOW).item() == pytest.approx(1.0, abs=1e-14)


def test_remaining_times_are_what_spike_times_leave_of_the_window():
    remaining, weight, before, slope, threshold = layer()
    value = potential(remaining, weight, before)
    times = spike_times(value, threshold, slope, WINDOW, T_MIN)
    found = remaining_time(value, threshold, slope, WINDOW)
    torch.testing.assert_close(T_MIN + WINDOW - times, found, rtol=0, atol=1e-14)
    assert torch.equal(times < T_MIN + WINDOW, found > 0)
    assert 0.2 < (found > 0).double().mean() < 0.8


def test_silent_neurons_have_exactly_the_end_of_the_window_and_no_gradient():
    value = torch.tensor([-10.0, 0.0, 1.0, 3.0], requires_grad=True)
    slope = torch.tensor([1.0, 1.0, -1.0, 0.0])
    # the second is a tie at t_max; the last two never rise, though the fourth is above its threshold
    times = spike_times(value, 2.7, slope, 2.7, 0.3)
    assert torch.equal(times, torch.full((4,), 2.7) + 0.3)
    (gradient,) = torch.autograd.grad(times.sum(), value)
    assert torch.equal(gradient, torch.zeros(4))
    assert torch.equal(remaining_time(value, 2.7, slope, 2.7), torch.zeros(4))


def test_neurons_with_a_slope_of_zero_leave_finite_gradients():
    slope = torch.tensor([0.0, -0.5, 0.5], requires_grad=True)
    value = torch.ones(3, requires_grad=True)
    for function in (spike_times, remaining_time):
        gradients = torch.autograd.grad(function(value, 1.1, slope, 2.0).sum(), (value, slope))
        for gradient in gradients:
            assert torch.isfinite(gradient).all()
            assert torch.equal(gradient != 0, torch.tensor([False, False, True]))


def test_the_jacobian_is_mask_over_slope_times_efficacies():
    remaining, weight, before, slope, threshold = layer()
    times = T_MIN - remaining[0]

    def fire(times: Tensor) -> Tensor:
        return spike_times(potential(T_MIN - times, weight, before), threshold, slope, WINDOW, T_MIN)

    mask = (fire(times) < T_MIN + WINDOW).double()
    assert 0 < mask.mean() < 1
    jacobian = torch.autograd.functional.jacobian(fire, times)
    torch.testing.assert_close(jacobian, mask[:, None] / slope[:, None] * weight, rtol=0, atol=1e-12)


def test_gradients_of_a_general_layer_pass_gradcheck():
    inputs = tuple(tensor.requires_grad_() for tensor in layer())

    def fire(remaining: Tensor, weight: Tensor, before: Tensor, slope: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        value = potential(remaining, weight, before)
        return (
            spike_times(value, threshold, slope, WINDOW, T_MIN),
            remaining_time(value, threshold, slope, WINDOW),
        )

    assert torch.autograd.gradcheck(fire, inputs)


def test_gradients_of_efficacies_that_also_set_the_slope_are_those_of_the_paper():
    remaining, weight, _, _, _ = layer()
    weight = (0.1 * weight).requires_grad_()
    value, slope = PREVIOUS + remaining[:1] @ weight.T, 1 + weight.sum(1)
    times = spike_times(value, PREVIOUS + WINDOW - 0.05, slope, WINDOW, T_MIN)
    mask = (times < T_MIN + WINDOW).double()
    assert 0 < mask.mean() < 1
    (gradient,) = torch.autograd.grad(times.sum(), weight)
    inputs = T_MIN - remaining[:1]
    expected = -(mask / slope).T * (times.T - inputs)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_two_phase_neurons_are_a_relu_layer_and_back():
    remaining, weight, before, slope, threshold = layer()
    relu_weight, bias = relu_from_two_phase(weight, threshold, before, slope, WINDOW, PREVIOUS)
    found = remaining_time(potential(remaining, weight, before), threshold, slope, WINDOW)
    torch.testing.assert_close(found, torch.relu(remaining @ relu_weight.T + bias), rtol=0, atol=1e-13)
    again = two_phase_from_relu(relu_weight, bias, before, slope, WINDOW, PREVIOUS)
    torch.testing.assert_close(again, (weight, threshold), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("forced", [False, True])
def test_the_single_slope_form_is_exact_only_where_silent_inputs_are_forced_to_spike(forced: bool):
    remaining, weight, _, _, _ = layer()
    weight = 0.3 * weight
    slope = 1 + weight.sum(1)
    threshold = WINDOW * slope + PREVIOUS
    times = T_MIN - remaining
    value = PREVIOUS + remaining @ weight.T
    closed = spike_times(value, threshold, slope, WINDOW, T_MIN)
    walked = torch.empty_like(closed)
    for sample in range(len(times)):
        received = torch.ones(12, dtype=torch.bool) if forced else times[sample] < T_MIN
        for neuron in range(9):
            ramps = weight[neuron][received].tolist()
            walked[sample, neuron] = crossing(times[sample][received].tolist(), ramps, 1.0, threshold[neuron].item())
    early = value >= threshold
    expected = torch.where(early, T_MIN, closed)
    # what never rises is silent by definition of the closed form
    rising = (slope > 0).expand_as(closed)
    walked = walked.clamp(max=T_MIN + WINDOW)
    wrong = ((walked - expected).abs() > 1e-9)[rising]
    assert (closed[rising] < T_MIN + WINDOW).double().mean() > 0.1
    assert wrong.any() != forced


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_rounded_times_are_on_a_grid_that_holds_both_ends_of_the_window(bits: int):
    window = torch.tensor(8.87, dtype=torch.float64)
    times = torch.cat([torch.rand(500, dtype=torch.float64) * window, torch.stack([0 * window, window])])
    found = round_times(times, window, 2**bits - 1)
    assert torch.equal(round_times(found, window, 2**bits - 1), found)
    assert torch.equal(found[-2:], times[-2:])
    step = window / (2**bits - 1)
    assert (found - times).abs().max() <= step / 2 * (1 + 1e-12)
    torch.testing.assert_close((found / step).round() * step, found, rtol=1e-14, atol=1e-14)


def test_rounding_passes_gradients_within_the_window_only():
    times = torch.tensor([-0.1, 0.2, 1.3, 2.1], requires_grad=True)
    (gradient,) = torch.autograd.grad(round_times(times, 2.0, 7).sum(), times)
    assert gradient.tolist() == [0, 1, 1, 0]


def test_jitter_of_width_zero_draws_nothing():
    times = torch.rand(5)
    state = torch.get_rng_state()
    assert jitter_times(times, torch.tensor(1.0), 0.0) is times
    assert torch.equal(torch.get_rng_state(), state)


def test_jitter_has_its_width_and_nothing_is_later_than_the_window():
    t_max = torch.tensor(10.0, dtype=torch.float64)
    times = torch.full((100_000,), 5.0, dtype=torch.float64)
    noise = jitter_times(times, t_max, 0.3) - times
    assert noise.mean().abs() < 0.005
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    late = jitter_times(t_max - 0.1 + 0 * times, t_max, 0.3)
    assert late.max() == t_max
    assert (late == t_max).double().mean() == pytest.approx(
        1 - torch.special.ndtr(torch.tensor(1 / 3)).item(), abs=0.01
    )


def currents() -> Tensor:
    return double(64, 50)


@pytest.mark.parametrize("constraints", [None, TimeConstraints()])
def test_through_time_is_relu(constraints: TimeConstraints | None):
    u = currents().requires_grad_()
    window, t_min = torch.tensor(5.0, dtype=torch.float64), torch.tensor(31.7, dtype=torch.float64)
    found = through_time(u, window, t_min, constraints=constraints)
    torch.testing.assert_close(found, torch.relu(u), rtol=0, atol=1e-13)
    # the detour is not free: it rounds
    assert not torch.equal(found, torch.relu(u))
    assert torch.equal(found == 0, u <= 0)
    (gradient,) = torch.autograd.grad(found.square().sum() / 2, u)
    assert torch.equal(gradient, found.detach())


def test_through_time_agrees_with_spike_times_of_explicit_thresholds():
    value, offset = currents(), double(50)
    window, t_min = torch.tensor(5.0, dtype=torch.float64), torch.tensor(31.7, dtype=torch.float64)
    times = spike_times(value, window - offset, 1.0, window, t_min)
    found = through_time(value + offset, window, t_min)
    torch.testing.assert_close(found, t_min + window - times, rtol=0, atol=1e-13)


def test_the_mask_is_that_of_the_potential_where_rounded_times_are_those_of_silence():
    u = torch.tensor([1e-7, -1e-7, 2.0], requires_grad=True)
    window = torch.tensor(50.0, dtype=torch.float64)
    found = through_time(u, window, 100.0)
    assert found[0] == 0
    (gradient,) = torch.autograd.grad(found.sum(), u)
    assert gradient.tolist() == [1, 0, 1]
    # as times have it
    times = torch.minimum(150.0 - u, torch.tensor(150.0))
    assert (times < 150).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_through_time_never_gives_less_than_silence_whatever_is_rounded(dtype: torch.dtype):
    u = (torch.randn(10_000) * 10 ** torch.empty(10_000).uniform_(-8, 1)).to(dtype)
    window, t_min = torch.tensor(17.3, dtype=torch.float64), torch.tensor(1234.567, dtype=torch.float64)
    found = through_time(u, window, t_min)
    assert found.dtype == dtype
    assert found.min() == 0
    assert torch.equal(found[u <= 0], torch.zeros_like(found[u <= 0]))


def test_clipped_spikes_come_at_the_begin_of_the_window_and_have_no_gradient():
    u = torch.tensor([-1.0, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    window = torch.tensor(2.0, dtype=torch.float64)
    found = through_time(u, window, 7.0, "clip")
    assert found.tolist() == [0, 1, 2, 2]
    (gradient,) = torch.autograd.grad(found.sum(), u)
    assert gradient.tolist() == [0, 1, 0, 0]


def test_only_jitter_of_silent_neurons_makes_ghost_spikes():
    u = currents()
    window = torch.tensor(5.0, dtype=torch.float64)
    silent = u <= 0
    emitted = through_time(u, window, 1.0, constraints=TimeConstraints(jitter=0.1))
    assert torch.equal(emitted[silent], torch.zeros_like(emitted[silent]))
    assert (emitted - torch.relu(u))[~silent].abs().max() > 0.1
    everywhere = through_time(u, window, 1.0, constraints=TimeConstraints(jitter=0.1, jitter_silent=True))
    assert (everywhere[silent] > 0).double().mean() == pytest.approx(0.5, abs=0.05)
    assert everywhere.min() == 0


def test_jittered_spikes_keep_their_gradient_unless_they_fall_out_of_the_window():
    u = torch.full((1000,), 0.05, dtype=torch.float64, requires_grad=True)
    found = through_time(u, torch.tensor(2.0, dtype=torch.float64), 0.0, constraints=TimeConstraints(jitter=0.1))
    (gradient,) = torch.autograd.grad(found.sum(), u)
    assert torch.equal(gradient, (found > 0).double())
    assert 0.5 < gradient.mean() < 0.9


def test_what_arrives_before_clipping_receivers_integrate_counts_from_when_they_begin():
    u = torch.full((1000,), 1.99, dtype=torch.float64)
    window, constraints = torch.tensor(2.0, dtype=torch.float64), TimeConstraints(jitter=0.1)
    assert through_time(u, window, 3.0, "clip", constraints).max() == 2
    assert through_time(u, window, 3.0, "pass", constraints).max() > 2.1


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_through_rounded_times_silence_stays_silence_and_values_are_on_the_grid(bits: int):
    u = currents()
    window, t_min = torch.tensor(2.0, dtype=torch.float64), torch.tensor(9.1, dtype=torch.float64)
    constraints = TimeConstraints(time_bits=bits)
    found = through_time(u, window, t_min, constraints=constraints)
    step = 2.0 / (2**bits - 1)
    assert torch.equal(found[u <= 0], torch.zeros_like(found[u <= 0]))
    torch.testing.assert_close(found, (found / step).round() * step, rtol=0, atol=1e-13)
    assert (found - torch.relu(u).clamp(max=2)).abs().max() <= step / 2 + 1e-12
    assert len(found.div(step).round().unique()) == 2**bits
    torch.testing.assert_close(through_time(found, window, t_min, constraints=constraints), found, rtol=0, atol=1e-13)


def test_mismatched_slopes_are_shared_by_the_samples_of_a_batch():
    u = 0.9 + 0.9 * torch.rand(8, 1000, dtype=torch.float64)
    window = torch.tensor(2.0, dtype=torch.float64)
    found = through_time(u, window, 1.0, constraints=TimeConstraints(slope_mismatch=0.1))
    # t - t_min = (theta - V) / B
    slope = (window - u) / (window - found)
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=1e-10, atol=1e-10)
    assert slope[0].std() == pytest.approx(0.1, rel=0.15)
    assert slope[0].mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("constraints", [None, TimeConstraints(0.1, True, 4, 0.1)])
def test_an_empty_batch_has_no_spikes(constraints: TimeConstraints | None):
    found = through_time(torch.zeros(0, 5), torch.tensor(2.0, dtype=torch.float64), 1.0, "clip", constraints)
    assert found.shape == (0, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jitter", -0.1),
        ("jitter", float("nan")),
        ("time_bits", 0),
        ("time_bits", 2.5),
        ("time_bits", 17),
        ("slope_mismatch", -0.1),
        ("slope_mismatch", 1.1),
        ("time_steps", 0),
        ("time_steps", 1.5),
        ("time_steps", 2**16),
    ],
)
def test_constraints_outside_their_range_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be"):
        TimeConstraints(**{name: value})


def test_steps_of_time_are_those_of_bits_or_any_other_number():
    u = currents()
    window = torch.tensor(2.0, dtype=torch.float64)
    by_bits, by_steps, others = (
        through_time(u, window, constraints=TimeConstraints(**kind))
        for kind in ({"time_bits": 3}, {"time_steps": 7}, {"time_steps": 5})
    )
    assert torch.equal(by_bits, by_steps)
    torch.testing.assert_close(others, (u.clamp(0, 2) / 0.4).round() * 0.4, rtol=0, atol=1e-14)
    assert TimeConstraints(time_bits=3).steps == TimeConstraints(time_steps=7).steps == 7
    assert TimeConstraints().steps is None
    with pytest.raises(ValueError, match="at most one of the arguments `time_bits` and `time_steps`"):
        TimeConstraints(time_bits=3, time_steps=7)


def test_constraints_are_frozen_and_inactive_by_default():
    assert not TimeConstraints(jitter_silent=True).active
    assert all(TimeConstraints(**kind).active for kind in ({"jitter": 0.1}, {"time_bits": 4}, {"slope_mismatch": 0.1}))
    assert TimeConstraints(time_steps=4).active
    with pytest.raises(dataclasses.FrozenInstanceError):
        TimeConstraints().jitter = 1.0


NAN = torch.tensor([torch.nan], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda u: spike_times(u, 1.0),
        lambda u: spike_times(ONE, u),
        lambda u: spike_times(ONE, 1.0, slope=u),
        lambda u: remaining_time(u, 1.0),
        lambda u: remaining_time(ONE, 1.0, slope=u),
        lambda u: jitter_times(u, ONE, 0.1),
        lambda u: jitter_times(u, ONE, 0.1, torch.ones_like(u, dtype=torch.bool)),
        lambda u: round_times(u, 1.0, 7),
        lambda u: through_time(u, ONE[0]),
        lambda u: through_time(u, ONE[0], overflow="clip"),
        lambda u: through_time(u, ONE[0], 2.0, "clip", TimeConstraints(0.1, False, 4, 0.1)),
        lambda u: through_time(u, ONE[0], 2.0, "pass", TimeConstraints(0.1, True, 4)),
    ],
)
def test_a_time_of_nan_is_nan_and_not_silence(function):
    assert function(NAN.clone()).isnan().all()
    assert function(ONE.clone()).isfinite().all()


def test_infinite_potentials_are_silent_or_fire_at_once_as_before():
    potential = torch.tensor([-torch.inf, torch.inf, 0.5], dtype=torch.float64)
    assert spike_times(potential, 1.0).tolist() == [1.0, -torch.inf, 0.5]
    assert remaining_time(potential, 1.0).tolist() == [0.0, torch.inf, 0.5]
    assert through_time(potential, ONE[0], overflow="clip").tolist() == [0.0, 1.0, 0.5]
    assert spike_times(ONE, 1.0, slope=torch.tensor([-1.0, 0.0], dtype=torch.float64)).tolist() == [1.0, 1.0]
