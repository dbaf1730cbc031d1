"""Products by lists of spikes are those of the dense layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.linear_maps import DenseMap, KnownInputs
from lightning_snn.functional.spike_inputs import SpikeInputs, known_inputs, spike_lists


def spikes(share: float = 0.13, dtype: torch.dtype = torch.float64) -> Tensor:
    x = (torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < share).to(dtype)
    x[:, 7], x[:, -1], x[3], x[-1] = 0, 0, 0, 0  # inputs and samples that are silent, the last ones too
    x[:, 9] = 1
    return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.13, 1.0])
def test_products_are_those_of_the_matrix(bias, share):
    x = spikes(share)
    lists = spike_lists(x)
    assert lists is not None
    linear, dense = SpikeInputs(DenseMap(bias), x, lists), DenseMap(bias)
    weight, g = torch.randn(5, 30 + bias).double(), torch.randn(40, 5).double()
    torch.testing.assert_close(linear.apply(x, weight), dense.apply(x, weight), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(linear.correlate(x, g), dense.correlate(x, g), rtol=1e-13, atol=1e-13)
    assert torch.equal(linear.effective_inputs(x, 5), dense.effective_inputs(x, 5))
    assert torch.equal(linear.square(x), dense.square(x))
    for constant in (0.0, 2.0):
        assert torch.equal(linear.apply(x, weight, constant), dense.apply(x, weight, constant))
        assert torch.equal(linear.correlate(x, g, constant), dense.correlate(x, g, constant))
    assert torch.equal(linear.transpose(g, weight, x.shape), dense.transpose(g, weight, x.shape))


def test_other_inputs_are_those_of_the_dense_layer():
    x, other = spikes(), torch.rand(40, 30).double()
    lists = spike_lists(x)
    assert lists is not None
    linear, dense, weight = SpikeInputs(DenseMap(), x, lists), DenseMap(), torch.randn(5, 31).double()
    assert torch.equal(linear.apply(other, weight), dense.apply(other, weight))
    assert torch.equal(linear.correlate(other, other[:, :5]), dense.correlate(other, other[:, :5]))
    assert torch.equal(linear.square(other), other * other)
    assert torch.equal(linear.effective_inputs(other, 5), dense.effective_inputs(other, 5))


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, torch.nan, torch.inf])
def test_a_value_that_is_no_spike_has_no_lists(value):
    x = spikes()
    assert spike_lists(x) is not None
    x[5, 5] = value
    assert spike_lists(x) is None


def test_lists_are_for_large_sparse_batches_of_spikes():
    x = (torch.rand(64, 300, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    assert isinstance(known_inputs(DenseMap(), x, 64), SpikeInputs)
    dense = (torch.rand(64, 300, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    for inputs, outputs in ((x, 10), (x[:8], 64), (x.double(), 64), (0.5 * x, 64), (dense, 64), (x[:, None], 64)):
        assert not isinstance(known_inputs(DenseMap(), inputs, outputs), SpikeInputs)


def test_known_inputs_compute_what_depends_on_them_once():
    x = torch.rand(6, 4)
    linear = KnownInputs(DenseMap(), x)
    assert linear.square(x) is linear.square(x)
    assert linear.effective_inputs(x, 3) is linear.effective_inputs(x, 3)
    assert torch.equal(linear.square(2 * x), 4 * x * x)
