"""The benchmark of the initialization check at a small size: its networks, and the count of wrong verdicts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    pytest.importorskip("spikingjelly")
    names = ("initialization", "_zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("initialization")
        for name in names:
            patch.delitem(sys.modules, name)


def test_twenty_networks_of_three_libraries_return_outputs_and_a_loss(benchmark: ModuleType):
    inputs = {"digits": torch.rand(3, 1, 28, 28), "events": torch.rand(3, 6, 2, 34, 34).round()}
    assert len(benchmark.ZOO) == 20
    for name, entry in benchmark.ZOO.items():
        module, x = entry.make(), inputs[entry.data]
        assert module(x).shape[1:] == (3, 10), name
        assert module.scores(x).shape == (3, 10)
        assert module.loss(module(x), torch.arange(3)).requires_grad


@pytest.mark.parametrize(
    ("verdict", "plain", "rescaled", "wrong"),
    [
        ("fail", 0.7, 0.72, True),
        ("fail", 0.6, 0.72, False),
        ("fail", 0.1, 0.1, False),
        ("ok", 0.12, 0.12, True),
        ("ok", 0.3, 0.3, False),
        ("warn", 0.1, 0.9, False),
    ],
)
def test_a_verdict_is_wrong_that_contradicts_the_accuracies(
    benchmark: ModuleType, verdict: str, plain: float, rescaled: float, wrong: bool
):
    result = {"plain": {"verdict": verdict, "val": plain}, "rescaled": {"val": rescaled}}
    assert benchmark.is_wrong(result, "val") == wrong
