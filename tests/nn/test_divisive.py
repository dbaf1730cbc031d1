"""Divisive normalization of inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_snn import run
from lightning_snn.methods.rate import rate_run
from lightning_snn.nn import DivisiveNormalization


def test_the_divisor_is_the_root_mean_square_of_the_past_and_present_of_each_sample():
    x = np.random.default_rng(0).poisson(0.4, (5, 3, 2, 4, 4)).astype(np.float64)
    expected = np.empty_like(x)
    for t in range(5):
        for b in range(3):
            expected[t, b] = 0.2 * x[t, b] / np.sqrt((x[: t + 1, b] ** 2).mean() + 1e-4)
    assert np.allclose(run(DivisiveNormalization(0.2), torch.from_numpy(x)).numpy(), expected, rtol=1e-6, atol=0)


def test_a_sample_depends_on_neither_its_batch_nor_its_future():
    x = torch.rand(6, 4, 3, 5)
    whole = run(DivisiveNormalization(), x)
    assert torch.equal(run(DivisiveNormalization(), x[:, 2:3]), whole[:, 2:3])
    assert torch.equal(run(DivisiveNormalization(), x[:4]), whole[:4])
    assert not torch.allclose(run(DivisiveNormalization(), x.flip(0)).flip(0), whole)


def test_an_input_without_events_stays_zero_until_events_come():
    x = torch.zeros(3, 1, 4)
    x[2] = 1
    y = run(DivisiveNormalization(0.5), x)
    assert (y[:2] == 0).all()
    assert y[2, 0].tolist() == pytest.approx([0.5 * (1 / 3 + 1e-4) ** -0.5] * 4)


def test_the_gradient_takes_the_divisor_for_a_constant_in_both_passes_of_rates():
    x = torch.rand(4, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = DivisiveNormalization()
    output = run(layer, x)
    (slope,) = torch.autograd.grad(output.sum(), x)
    assert torch.allclose(slope, (output / x).detach())
    for streaming in (False, True):
        rates = rate_run(layer, x, 2, streaming)
        assert torch.allclose(rates, output)
        (of_rates,) = torch.autograd.grad(rates.sum(), x)
        # a window's slope is the mean of its steps
        assert torch.allclose(of_rates, slope.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0))


def test_there_is_no_parameter_and_no_state_to_store():
    assert not DivisiveNormalization().state_dict()


def test_a_root_mean_square_out_of_range_is_named():
    with pytest.raises(ValueError, match="`rms` to be a finite number larger than 0, but got 0"):
        DivisiveNormalization(0)
