"""Synaptic delays."""

from __future__ import annotations

import pytest
import torch

from lightning_snn import run
from lightning_snn.nn import SynapticDelays


def test_every_copy_comes_so_many_steps_later():
    x = torch.arange(1.0, 5.0).view(4, 1, 1)
    assert run(SynapticDelays((0, 2)), x).squeeze(1).tolist() == [[1, 0], [2, 0], [3, 1], [4, 2]]


def test_delays_longer_than_the_sequence_stay_silent():
    x = torch.rand(3, 2, 4)
    delayed = run(SynapticDelays((0, 3, 7)), x)
    assert torch.equal(delayed[..., :4], x)
    assert not delayed[..., 4:].any()


def test_channels_of_images_are_delayed_as_whole_maps():
    x = torch.rand(3, 2, 5, 6, 6)
    delayed = run(SynapticDelays((1,)), x)
    assert torch.equal(delayed[1:], x[:-1])


@pytest.mark.parametrize("delays", [(), (-1,), (0, 1.5)])
def test_delays_that_are_no_integers_from_0_are_refused_by_name(delays):
    with pytest.raises(ValueError, match="Expected argument `delays`"):
        SynapticDelays(delays)
