"""The benchmark of neurons at a small size: its contenders, its tasks, and its networks."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightning_snn import run
from tests.support.event_order import order_of_events


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        patch.delitem(sys.modules, "neurons", raising=False)
        yield importlib.import_module("neurons")
        patch.delitem(sys.modules, "neurons")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_neuron_is_timed_and_saves_at_least_one_input(benchmark):
    rows = benchmark.measure((3, 2, 4), rounds=1)
    by_name = {row["neuron"]: row for row in rows}
    assert by_name["LIF fused"]["ratio"] == 1
    for row in rows:
        assert 0 < row["fastest ms"] <= row["median ms"]
        assert ("no graph" in row["neuron"]) == (row["saved inputs"] is None)
        # what rates save does not depend on T
        assert row["saved inputs"] is None or row["saved inputs"] >= 1 or row["neuron"].startswith("rates")


def test_a_pair_by_contract_has_the_spikes_of_the_fused_scan(benchmark):
    found = benchmark.contenders(torch.randn(20, 4, 5, requires_grad=True))
    for name in ("", ", learned per channel"):
        spikes = found[f"LIF fused{name}"].forward()
        assert 0 < spikes.mean() < 1
        assert torch.equal(spikes, found[f"LIF by contract{name}"].forward())


@pytest.mark.parametrize("neuron", ["SynapticLIF", "rates of AdaptiveLIF"])
def test_a_pair_of_loop_and_compiled_step_has_the_same_spikes(benchmark, neuron: str, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = benchmark.contenders(torch.randn(20, 4, 5, requires_grad=True), compiled=True)
    spikes = []
    for name in (neuron, f"{neuron}, compiled step"):
        torch.manual_seed(0)
        spikes.append(found[name].forward())
    assert 0 < spikes[0].mean() < 1
    assert torch.equal(*spikes)


def test_without_a_gap_the_order_of_events_is_the_task_of_the_contract(benchmark):
    for found, expected in zip(benchmark.order_of_events(7, generator()), order_of_events(7), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("task", ["order", "match"])
@pytest.mark.parametrize("gap", [0, 5])
def test_two_events_are_on_both_sides_of_the_gap(benchmark, task: str, gap: int):
    x, y = benchmark.TASKS[task](50, generator(), gap)
    first, silent, second = x.split([4, gap, 4])
    assert x.shape == (8 + gap, 100, 2)
    assert y.sum() == 50
    assert (silent < 1).all()
    for window in (first, second):
        assert ((window >= 1).sum((0, 2)) == 1).all()


def test_one_event_alone_says_nothing_about_a_match(benchmark):
    x, y = benchmark.matching_events(2000, generator(), 3)
    first, second = ((x[part] >= 1).any(0)[:, 1] for part in (slice(4), slice(-4, None)))
    assert torch.equal(y == 1, first ^ second)
    for channel in (first, second):
        assert abs(channel[y == 1].float().mean() - channel[y == 0].float().mean()) < 0.05


@pytest.mark.parametrize("neuron", ["LIF", "AdaptiveLIF"])
def test_networks_side_by_side_do_not_affect_each_other(benchmark, neuron: str):
    settings = [benchmark.Settings(0.1, 0.5, 1.0), benchmark.Settings(0.1, 0.9, 0.2)]
    x = torch.rand(6, 3, 4)
    both = run(benchmark.Networks(neuron, settings, [0, 1]), x)
    for k in range(2):
        alone = run(benchmark.Networks(neuron, [settings[k]], [k]), x[..., 2 * k : 2 * k + 2])
        torch.testing.assert_close(both[..., k], alone[..., 0])


def test_one_command_trains_and_writes_accuracies(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "HELD_OUT_PAIRS", 20)
    path, threads = tmp_path / "memory.json", torch.get_num_threads()
    options = ["--gaps", "1", "--seeds", "0", "1", "--steps", "2", "--threads", str(threads), "--json", str(path)]
    benchmark.main(["memory", *options])
    rows = json.loads(path.read_text())
    assert [(row["task"], row["gap"], row["neuron"]) for row in rows] == [
        *(("order", 0, name) for name in ("LIF", "AdaptiveLIF")),
        *(("order", 1, name) for name in ("LIF", "AdaptiveLIF")),
        *(("match", 1, name) for name in ("LIF", "AdaptiveLIF")),
    ]
    for row in rows:
        assert row["accuracy"] == pytest.approx(sum(row["accuracies"]) / 2)
        best = max(row["validation"], key=lambda each: each["accuracy"])
        assert row["learning_rate"] == best["learning_rate"]
    assert "AdaptiveLIF" in capsys.readouterr().out
