"""The benchmark of parity on a few cases: it passes, and it fails where it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import lif
from lightning_snn.functional.scans.choice import VARIABLE
from tests.support.scripts import load_script
from tests.support.triton import needs_triton

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "parity.py"
FEW = ["--dtypes", "float32", "--layouts", "contiguous", "--scans", "lif"]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv(VARIABLE, "loop")  # what the benchmark sets is undone
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return load_script(SCRIPT)


def test_every_case_of_the_loop_passes(parity, tmp_path, capsys):
    assert parity.main(["--backends", "loop", *FEW, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 2 * 2 * 4
    assert all(row["passes"] and row["spikes"] == 0 for row in rows)
    assert any(row["gradient"] > 0 for row in rows)  # float32 is compared with float64
    printed = capsys.readouterr().out
    assert "16 cases, 0 fail" in printed
    assert "FAILS" not in printed


@pytest.mark.parametrize(("scan", "cases"), [("rate", 16), ("noisy", 5)])
def test_every_case_of_the_other_scans_passes(scan, cases, parity, capsys):
    few = ["--dtypes", "float32", "--layouts", "channels last", "--scans", scan]
    assert parity.main(["--backends", "loop", *few]) == 0
    assert f"{cases} cases, 0 fail" in capsys.readouterr().out


def test_other_noise_fails(parity, monkeypatch):
    monkeypatch.setattr(parity, "noise_like", torch.randn_like)
    assert not parity.compared("loop", torch.float32, "zero", "moment", "moment", "contiguous", scan="noisy").passes


def test_rates_of_another_decay_fail(parity, monkeypatch):
    scan = parity.rate_result
    monkeypatch.setattr(parity, "rate_result", lambda x, beta, *rest: scan(x, beta * (1 - 1e-5), *rest))
    row = parity.compared("loop", torch.float32, "subtract", "leak_then_reset", "sigmoid", "contiguous", scan="rate")
    assert not row.passes


def test_a_compiled_case_passes(parity):
    row = parity.compared("aot_eager", torch.float32, "subtract", "leak_then_reset", "sigmoid", "channels last")
    assert row.passes


class SlightlyOff(torch.autograd.Function):
    """Identity with a gradient that is wrong by a part in 100,000."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (1 + 1e-5)


@pytest.mark.parametrize("wrong", ["spikes", "state", "gradient"])
def test_what_differs_fails(wrong, parity, monkeypatch, capsys):
    def broken(x: Tensor, beta: Tensor, threshold: Tensor, *arguments: object) -> tuple[Tensor, object]:
        if wrong == "gradient":
            return lif(SlightlyOff.apply(x), beta, threshold, *arguments)
        spikes, state = lif(x, beta, threshold, *arguments)
        if wrong == "spikes":
            return spikes + (torch.arange(spikes.numel()) == 0).view_as(spikes), state
        return spikes, torch.utils._pytree.tree_map(lambda each: each * (1 + 2**-23), state)

    monkeypatch.setattr(parity, "lif", broken)
    assert parity.main(["--backends", "loop", *FEW]) == 1
    assert "16 cases, 16 fail" in capsys.readouterr().out


@needs_triton
@pytest.mark.slow  # run in CI by name
def test_interpreted_kernels_pass_in_a_process_of_their_own():
    command = [sys.executable, str(SCRIPT), "--backends", "triton", "--dtypes", "bfloat16", "--layouts", "batch first"]
    command += ["--scans", "lif", "noisy"]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton: interpreted on the CPU" in done.stdout
    assert "21 cases, 0 fail" in done.stdout
