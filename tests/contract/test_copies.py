"""Copies, threads and memory: a module is a value that can be pickled, saved, shared and used for long."""

from __future__ import annotations

import inspect
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lightning_snn import SpikingModule
from tests.contract.by_hand import ByHand, X, batches, build, differing, fit, loader, predictions, running, state
from tests.contract.table import RUNS

TABLE = RUNS


def assert_copies(row: Any, copy: Callable[[SpikingModule], SpikingModule]) -> None:
    """A copy made after an epoch predicts and trains on as the original, which it leaves as it is."""
    module = build(row)
    fit(module)
    copied = copy(module)
    before = state(module)
    for one, other in zip(predictions(copied, batches()), predictions(module, batches()), strict=True):
        assert torch.equal(one.mean, other.mean)
    trained = ByHand(copied).train(batches()).state
    assert differing(state(module), before) == []
    assert differing(ByHand(module).train(batches()).state, trained) == []


def test_a_pickled_module_trains_on_like_the_original(row):
    """A module that was pickled after a fit gives the same predictions and the same further weights."""
    assert_copies(row, lambda module: pickle.loads(pickle.dumps(module)))


def test_a_saved_module_trains_on_like_the_original(row):
    """So does one that went through `torch.save` and `torch.load`."""

    def through_a_file(module: SpikingModule) -> SpikingModule:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    assert_copies(row, through_a_file)


THREADS, REPEATS = 8, 5


def predicted(module: SpikingModule, x: Tensor, seed: int) -> Tensor:
    """Return a prediction whose noise, if there is any, is from a generator of its own."""
    noisy = "generator" in inspect.signature(module.method.predict).parameters
    options = {"generator": torch.Generator().manual_seed(seed)} if noisy else {}
    with torch.no_grad():
        return module.method.predict(module.network, x, **options).mean


def test_eight_threads_predict_as_one(row):
    """Eight threads that predict with one module at a time get the values of one thread."""
    module = build(row).eval()
    inputs = [X + 0.02 * index for index in range(THREADS)]

    def predict(index: int) -> Tensor:
        return predicted(module, inputs[index], index)

    expected = [predict(index) for index in range(THREADS)]
    together = threading.Barrier(THREADS)

    def repeat(index: int) -> list[Tensor]:
        together.wait()
        return [predict(index) for _ in range(REPEATS)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(repeat, range(THREADS)))
    for results, reference in zip(found, expected, strict=True):
        assert all(torch.equal(result, reference) for result in results)
    assert not torch.equal(expected[0], expected[-1])


def test_a_thread_that_predicts_does_not_change_training_in_another(row):
    """Training by hand gives the same bits while another thread predicts with another module."""
    alone = ByHand(build(row)).train(batches(), epochs=3).state
    other, stop, failed = build(row, seed=1).eval(), threading.Event(), []

    def predict() -> None:
        try:
            while not stop.is_set():
                predicted(other, X, 0)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        together = ByHand(build(row)).train(batches(), epochs=3).state
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert differing(together, alone) == []


class Allocated(pl.Callback):
    """Bytes allocated on the CPU and not freed, from the end of one step to that of another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.bytes = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.first:
            self.profiler.__enter__()
        elif trainer.global_step == self.last:
            self.profiler.__exit__(None, None, None)
            events = self.profiler.profiler.kineto_results.events()
            self.bytes = sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.slow
def test_memory_is_flat_over_300_steps(row):
    """Of all that 300 steps allocate nothing is left: less than 1 KiB, where a kept batch would be 300 times 320 B."""
    module, allocated = build(row), Allocated(30, 330)
    running(allocated, max_epochs=-1, max_steps=336).fit(module, loader())
    assert 0 <= abs(allocated.bytes) < 1024
