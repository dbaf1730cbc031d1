"""The benchmark for machines with a GPU, in tiny sizes on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import lif
from lightning_snn.functional.scans.choice import VARIABLE

CPU = torch.device("cpu")
MODULES = ("gpu", "parity", "_device", "_gpu_scans", "_gpu_networks", "_peers")
INSTALLED = [name for name in ("snntorch", "spikingjelly") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("gpu")
        for name in MODULES:
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def scans(gpu: ModuleType) -> ModuleType:
    return sys.modules["_gpu_scans"]


class Clock:
    """Clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "no CUDA device" in printed
    assert not (tmp_path / "results").exists()


def test_every_section_returns_complete_rows_and_correct_gradients(gpu, tmp_path, capsys):
    before = os.environ.get(VARIABLE), torch.backends.cudnn.benchmark
    assert gpu.main(["--device", "cpu", "--small", "--output", str(tmp_path)]) == 0
    assert (os.environ.get(VARIABLE), torch.backends.cudnn.benchmark) == before
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["left out"] == []
    assert list(results["tables"]) == [section.name for section in gpu.SECTIONS]
    for section in gpu.SECTIONS:
        rows = results["tables"][section.name]
        assert rows, section.name
        for row in rows:
            assert tuple(row) == section.heading
            # a CPU has nothing to wait for
            assert [name for name, value in row.items() if value is None] in ([], ["waits"])
            if "ms" in row:
                low, high = row["spread"]
                assert 0 < low <= row["ms"] <= high
                assert row["peak MB"] > 0
    assert [row["failing"] for row in results["tables"]["parity"]] == [0]

    peers = {"spikingjelly": "SpikingJelly", "snntorch": "snntorch"}
    expected = {"ours", *(peers[name] for name in INSTALLED)}
    scanned = results["tables"]["LIF"] + results["tables"]["Linear and LIF"]
    assert {row["contender"] for row in scanned} == expected | {"ours, loop"}
    assert {row["contender"] for row in results["tables"]["training step"]} == expected | {"ReLU, the limit"}
    assert len(results["without a result"]) == 7 * (2 - len(INSTALLED))
    for row in scanned:
        assert 0.05 < row["firing"] < 0.5
        assert row["spikes that differ"] == 0
        # that of a loop of SpikingJelly's in the narrow dtype
        assert row["gradient difference"] < {"float32": 1e-6, "float16": 5e-3, "bfloat16": 2e-2}[row["dtype"]]
        if row["contender"].startswith("ours"):
            assert row["gradient difference"] < {"float32": 1e-6, "float16": 2**-10, "bfloat16": 2**-7}[row["dtype"]]
    for name in ("MLP", "convolutions"):
        methods = [row["method"] for row in results["tables"]["methods"] if row["network"] == name]
        assert len(methods) == 8
        assert methods[0] == "SurrogateGradient"

    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("\n|---") == len(gpu.SECTIONS)


class SlightlyOff(torch.autograd.Function):
    """Identity with a gradient that is wrong by a part in 1,000."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (1 + 1e-3)


def test_a_wrong_gradient_shows(scans, monkeypatch):
    monkeypatch.setattr(scans, "lif", lambda x, *arguments: lif(SlightlyOff.apply(x), *arguments))
    alone = scans.lif_alone((3, 2, 8), False, torch.float32, CPU, 0.0)
    whole = scans.linear_and_lif(6, 2, 32, torch.float32, CPU, 0.0)
    for found in (alone, whole):
        for row in found.rows:
            ours = row["contender"].startswith("ours")
            assert row["spikes that differ"] == 0
            assert row["gradient difference"] == pytest.approx(1e-3 if ours else 0, abs=1e-5)


@pytest.mark.parametrize("wrong", ["spikes", "not a number"])
def test_wrong_spikes_and_gradients_of_nan_show(wrong, scans, monkeypatch):
    def broken(x: Tensor, *arguments: object) -> tuple[Tensor, object]:
        if wrong == "spikes":
            return lif(x + 0.3, *arguments)
        x.register_hook(lambda grad: grad * torch.nan)
        return lif(x, *arguments)

    monkeypatch.setattr(scans, "lif", broken)
    found = scans.linear_and_lif(6, 2, 32, torch.float32, CPU, 0.0)
    ours = next(row for row in found.rows if row["contender"] == "ours")
    if wrong == "spikes":
        assert ours["spikes that differ"] > 10
        assert ours["gradient difference"] > 1e-2
    else:
        assert ours["gradient difference"] == float("inf")


def test_without_memory_for_the_reference_times_are_reported(scans, monkeypatch):
    def without_memory(*arguments: object):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scans, "unrolled_lif", without_memory)
    found = scans.lif_alone((3, 2, 8), False, torch.float32, CPU, 0.0)
    assert all(row["ms"] > 0 and row["gradient difference"] is None for row in found.rows)
    assert found.reasons["ours"] == "OutOfMemoryError: out of memory"


def sections(gpu: ModuleType, clock: Clock, seconds: float = 20.0) -> tuple:
    """Return two sections of three cases that take some seconds each."""

    def takes(name: str):
        def run(_: float):
            clock.now += seconds
            return gpu.Found([{"name": name}], {})

        return gpu.Case(name, run, 8.0)

    def section(name: str, until: float):
        return gpu.Section(name, lambda device, small: iter([takes(f"{name}{k}") for k in range(3)]), until, ("name",))

    return section("a", 0.5), section("b", 1.0)


def measured(gpu: ModuleType, minutes: float, clock: Clock):
    report = gpu.Report({}, None)
    gpu.measure_sections(report, CPU, True, gpu.Deadline(minutes, clock))
    return [row["name"] for rows in report.tables.values() for row in rows], report


def test_the_deadline_is_kept_and_what_does_not_fit_is_named(gpu, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gpu, "SECTIONS", sections(gpu, clock))
    # section a has 42 of 84 seconds, of which 2 are left for a third case; then 4 are left for the third case of b
    names, report = measured(gpu, 1.4, clock)
    assert names == ["a0", "a1", "b0", "b1"]
    assert report.left_out == ["a: a2", "b: b2"]
    assert clock.now == 180
    assert all(f"- {entry}" in report.markdown() for entry in report.left_out)
    assert not report.failed


def test_without_any_time_every_case_is_left_out(gpu, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gpu, "SECTIONS", sections(gpu, clock))
    names, report = measured(gpu, 0.0, clock)
    assert names == []
    assert report.left_out == ["a: a0", "a: a1", "a: a2", "b: b0", "b: b1", "b: b2"]


def test_a_contender_that_fails_is_named_and_the_others_are_measured(gpu):
    device = sys.modules["_device"]

    def fails() -> None:
        raise RuntimeError("out of memory\nmore")

    found, reasons = device.measure({"ours": lambda: None, "peer": fails}, CPU, 0.0)
    assert list(found) == ["ours"]
    assert reasons == {"peer": "RuntimeError: out of memory"}


@pytest.mark.parametrize(("contender", "fails"), [("snntorch", False), ("ours", True)])
def test_the_command_fails_with_ours_and_not_with_a_peer(contender, fails, gpu, monkeypatch, capsys):
    case = gpu.Case("one", lambda seconds: gpu.Found([], {contender: "it broke"}), 0.0)
    monkeypatch.setattr(gpu, "SECTIONS", (gpu.Section("a", lambda device, small: iter([case]), 1.0, ()),))
    assert gpu.main(["--device", "cpu", "--small"]) == fails
    assert f"a, one, {contender}: it broke" in capsys.readouterr().out


def test_a_case_that_fails_does_not_stop_the_others(gpu, monkeypatch):
    clock = Clock()
    first, second = sections(gpu, clock, 1.0)

    def broken(_: float):
        raise ValueError("broken")

    case = gpu.Case("broken", broken, 0.0)
    monkeypatch.setattr(gpu, "SECTIONS", (first._replace(cases=lambda device, small: iter([case])), second))
    names, report = measured(gpu, 1.0, clock)
    assert names == ["b0", "b1", "b2"]
    assert report.failed
    assert report.reasons == ["a, broken, ours: ValueError: broken"]
