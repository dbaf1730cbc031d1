"""First event times as the input of neurons that spike at most once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs import calibrate, first_spike_layers, from_relu, simulate
from lightning_snn.nn import FirstEventEncoder


def first_times(counts: Tensor, window: int) -> Tensor:
    """The time from the first event to the end of its window, in numpy, for each window, cell by cell."""
    steps, samples, channels = counts.shape
    parts = counts.numpy().reshape(steps // window, window, samples, channels)
    found = np.zeros((samples, steps // window, channels))
    for part, sample, channel in np.ndindex(steps // window, samples, channels):
        (events,) = np.nonzero(parts[part, :, sample, channel])
        if len(events):
            found[sample, part, channel] = 1 - events[0] / window
    return torch.from_numpy(found.reshape(1, samples, -1))


@pytest.mark.parametrize("window", [1, 3, 12])
def test_first_events_are_coded_by_the_time_that_is_left_of_their_window(window):
    counts = torch.poisson(torch.full((12, 5, 7), 0.15, dtype=torch.float64))
    encoded = FirstEventEncoder(window)(counts)
    assert encoded.shape == (1, 5, 12 // window * 7)
    torch.testing.assert_close(encoded, first_times(counts, window), rtol=0, atol=1e-15)


def test_later_events_of_a_window_and_their_numbers_do_not_count():
    counts = torch.zeros(6, 1, 2)
    counts[2, 0, 0] = 1
    more = counts.clone()
    more[2, 0, 0], more[3:, 0, 0] = 9, 4
    encoder = FirstEventEncoder(6)
    assert torch.equal(encoder(counts), encoder(more))
    assert torch.equal(encoder(counts), torch.tensor([[[1 - 2 / 6, 0.0]]]))
    # an earlier one does
    more[1, 0, 0] = 1
    assert not torch.equal(encoder(counts), encoder(more))


def test_windows_of_frames_become_their_channels_in_order():
    frames = torch.zeros(4, 2, 2, 3, 3, dtype=torch.uint8)
    frames[0, 0, 1, 2, 0], frames[3, 1, 0, 0, 1] = 2, 1
    encoded = FirstEventEncoder(2)(frames)
    assert (encoded.shape, encoded.dtype) == ((1, 2, 4, 3, 3), torch.float32)
    assert encoded.nonzero().tolist() == [[0, 0, 1, 2, 0], [0, 1, 2, 0, 1]]
    assert (encoded[0, 0, 1, 2, 0], encoded[0, 1, 2, 0, 1]) == (1, 0.5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_first_events_of_any_number_type_are_floats(dtype):
    encoded = FirstEventEncoder(3)(torch.tensor([0, 1, 1]).to(dtype).view(3, 1, 1))
    assert encoded.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert encoded.item() == pytest.approx(2 / 3, rel=1e-2)


def test_a_window_with_nan_is_nan():
    counts = torch.zeros(4, 1, 2)
    counts[1, 0, 0] = torch.nan
    counts[0, 0, 0] = 1
    encoded = FirstEventEncoder(2)(counts)
    assert encoded.isnan().tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize("shape", [(5, 2, 3), (0, 2, 3), (4, 3)])
def test_windows_that_do_not_divide_the_steps_are_refused(shape):
    with pytest.raises(ValueError, match=r"number of time steps T that window=2 divides, but got"):
        FirstEventEncoder(2)(torch.zeros(shape))
    with pytest.raises(ValueError, match="`window` to be an integer"):
        FirstEventEncoder(0)


def test_spikes_of_a_network_come_at_the_times_of_first_events():
    # event by event in continuous time, which knows nothing of remaining times
    counts = torch.poisson(torch.full((10, 4, 6), 0.1, dtype=torch.float64))
    x = FirstEventEncoder(10)(counts)[0]
    relu = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    network = from_relu(relu, 0.0, 1.0, x)
    calibrate(network, x)
    record = simulate(network, x)
    emitted = counts.any(0)
    times = record.times["encoder"]
    assert torch.equal(times.isfinite(), emitted)
    torch.testing.assert_close(
        times[emitted], counts.bool().double().argmax(0)[emitted].double() / 10, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(record.outputs, relu(x), rtol=0, atol=1e-9)
    for layer in first_spike_layers(network).values():
        layer.time_domain = True
    torch.testing.assert_close(network(x), relu(x), rtol=0, atol=1e-9)


def test_the_method_reads_first_events_as_one_presentation():
    counts, y = torch.poisson(torch.full((6, 5, 4), 0.2)), torch.arange(5) % 3
    method = TimeToFirstSpike()
    network = method.prepare(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = FirstEventEncoder(3)(counts)
    step = method.training_step(network, x, y)
    step.objective.backward()
    assert (step.output.shape, method.predict(network, x).mean.shape) == ((5, 3), (5, 3))
    # 12 inputs would be those of three windows
    with pytest.raises((RuntimeError, ValueError), match="12"):
        method.training_step(network, FirstEventEncoder(2)(counts), y)
