"""Measured memory is that of the call alone and the same at each repetition."""

from __future__ import annotations

import gc
from types import ModuleType

import torch


class Ring:
    """A tensor that only the garbage collector frees."""

    def __init__(self, entries: int) -> None:
        self.values, self.ring = torch.zeros(entries), self


def test_peak_is_that_of_the_tensors_alive_at_once(memory: ModuleType):
    def call() -> torch.Tensor:
        first = torch.zeros(1000)
        del first
        return torch.zeros(2000) + torch.zeros(2000)

    assert memory.peak_and_kept_bytes(call) == (3 * 8000, 8000)


def test_garbage_of_an_earlier_measurement_is_not_subtracted(memory: ModuleType):
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(10_000)
    try:
        memory.peak_bytes(lambda: Ring(500))
        gc.set_threshold(1)  # any new container collects the ring of the earlier measurement
        assert memory.peak_bytes(lambda: ([[] for _ in range(100)], torch.zeros(1000))) == 4000
    finally:
        gc.set_threshold(*before)


def test_reference_cycles_of_the_call_count_in_full_and_collection_goes_on_after_it(memory: ModuleType):
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        assert memory.peak_bytes(lambda: [Ring(100) and [] for _ in range(20)]) == 20 * 400
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()
