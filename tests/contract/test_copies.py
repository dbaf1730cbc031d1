"""Copies, threads and memory: a module is a value that can be pickled, saved, shared and used for long."""

from __future__ import annotations

import ctypes
import gc
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

from lightning_snn import SpikingModule
from tests.contract.by_hand import SIZE, ByHand, X, batches, build, differing, fit, loader, predictions, running, state
from tests.contract.table import RUNS, MethodRow

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


@pytest.mark.slow
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


def allocated_bytes() -> int:
    """Return the bytes that the C library has handed out and not got back, of which tensors on the CPU are most."""
    gc.collect()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("the C library does not count allocated bytes")
    library.mallinfo2.restype = _MallocInfo
    counts = library.mallinfo2()
    return int(counts.uordblks + counts.hblkhd)


class _MallocInfo(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    )


class Allocated(pl.Callback):
    """Allocated bytes after some steps, all at the same place in an epoch."""

    def __init__(self, *steps: int, leak: int = 0) -> None:
        self.steps, self.leak = steps, leak
        self.leaked: list[Tensor] = []
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.leak:
            self.leaked.append(torch.zeros(self.leak))
        if trainer.global_step in self.steps:
            self.bytes.append(allocated_bytes())


def grown(row: MethodRow, leak: int = 0) -> int:
    """Return the bytes that 300 steps of a fit keep."""
    allocated = Allocated(60, 360, leak=leak)
    running(allocated, max_epochs=-1, max_steps=366).fit(build(row), loader())
    first, last = allocated.bytes
    return last - first


@pytest.mark.slow
def test_memory_is_flat_over_300_steps(row):
    """300 steps keep less than 64 KiB, where the inputs of a batch per step would be 150 KiB."""
    assert grown(row) < 2**16


@pytest.mark.slow
def test_kept_inputs_would_be_found():
    assert grown(RUNS[0], leak=SIZE * X[:, 0].numel()) > 2**17
