"""A comparison of rules: equal budgets, learning rates of validation data, runs neither lost nor repeated."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor

from lightning_snn.cli.comparison import compare, record
from lightning_snn.cli.folders import lock
from tests.cli.tiny import DEFAULTS, HERE, TinyEvents, interrupt_at
from tests.support.wandb_runs import WandbRun

RULES: dict[str, dict[str, Any]] = {
    "BPTT": {"method": "SurrogateGradient"},
    "seven": {"method": "RateBackprop", "method.window": 7},
    "EP": {"method": "ExpectationPropagation", "method.memory": "average"},
}
TINY = {**DEFAULTS, "method": "SurrogateGradient", "steps": 6, "evaluations": 2}
PRESETS: dict[str, dict[str, Any]] = {"MLP": {"network.hidden": [4]}}


@pytest.fixture(autouse=True)
def _without_figures_of_a_comparison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lightning_snn.cli.comparison.results.figures_of", lambda results: {})


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return compare("recipes/tiny.py", TINY, RULES, PRESETS)


def refused_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def contents(folder: str) -> dict[str, tuple[bytes, int]]:
    """Return the files of the runs of a comparison, and when they were written."""
    files = (path for path in Path(folder).glob("*/*/**/*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def without_seconds(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a machine's speed does not change."""
    rows = [{name: row[name] for name in row if name not in ("seconds", "ms_per_step")} for row in results["rows"]]
    curves = {
        rule: [{name: row[name] for name in row if name != "seconds"} for row in curve]
        for rule, curve in results["curves"]["steps"].items()
    }
    return {"rows": rows, "curves": curves, "reliability": results["reliability"], "refused": results["refused"]}


def in_killed_child(work: Callable[[], object]) -> None:
    """Call a function in a child process, which has to kill itself."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_equals_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--learning_rates", "[0.01,1]", "--rules", "[BPTT]"]
    whole = call(monkeypatch, *options, "--output", "whole")

    batches = 0

    def kill(self: TinyEvents, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal batches
        batches += 1
        if batches == 11:  # of 6 at the first rate and 6 at the second, in the second of its two epochs
            os.kill(os.getpid(), signal.SIGKILL)
        return x, y

    def killed() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TinyEvents, "augment", kill)
            call(patch, *options, "--output", "killed")

    in_killed_child(killed)
    assert not Path("killed/comparison.json").exists()
    before = contents("killed")
    capsys.readouterr()
    gone_on = call(monkeypatch, "--output", "killed")
    printed = capsys.readouterr().out
    assert "The run in killed/BPTT/steps_lr1_seed0 goes on" in printed
    assert without_seconds(gone_on) == without_seconds(whole)
    nll = {
        rate: json.loads(Path(f"killed/BPTT/steps_lr{rate}_seed0/record.json").read_text())["rows"][-1]["nll"]
        for rate in (0.01, 1)
    }
    assert nll[1] < nll[0.01]
    assert gone_on["rows"][0]["learning_rate"] == 1
    # the other rate was finished before, and is not tested
    finished = {name: kept for name, kept in before.items() if "lr0.01_" in name}
    assert "BPTT/steps_lr0.01_seed0/record.json" in finished
    assert {name: kept for name, kept in contents("killed").items() if "lr0.01_" in name} == finished

    # what is finished is not run again
    before = contents("killed")
    monkeypatch.setattr(pl.Trainer, "fit", None)
    assert call(monkeypatch, "--output", "killed") == gone_on
    assert contents("killed") == before


def test_each_rule_has_the_steps_of_the_budget_or_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads = 0

    def clock(device: object) -> float:
        nonlocal reads
        reads += 1
        return 0.25 * reads  # twice a step

    monkeypatch.setattr(record, "seconds_of_work", clock)
    found = call(monkeypatch, "--output", "out", "--seconds", "2.2", "--learning_rates", "[0.01]")
    assert json.loads(Path("out/comparison.json").read_text()) == found
    rows = {(row["rule"], row["budget"]): row for row in found["rows"]}
    assert set(rows) == {(rule, budget) for rule in ("BPTT", "EP") for budget in ("steps", "seconds")}
    for rule in ("BPTT", "EP"):
        row = rows[rule, "steps"]
        assert (row["steps"], row["passes"], row["seconds"], row["ms_per_step"]) == (6, 2, 1.5, 250)  # 3 batches a pass
        assert [point["step"] for point in found["curves"]["steps"][rule]] == [3, 6]
        # 8.8 steps are nearest to 8, a multiple of the evaluations
        assert (rows[rule, "seconds"]["steps"], rows[rule, "seconds"]["seconds"]) == (8, 2)
        assert sum(found["reliability"]["steps"][rule]["count"]) == 12
        assert row["peak_mb"] > 0
    assert (rows["BPTT", "steps"]["learning_rate"], rows["EP", "steps"]["learning_rate"]) == (0.01, None)
    tested = json.loads(Path("out/BPTT/steps_lr0.01_seed0/metrics.json").read_text())
    assert [rows["BPTT", "steps"][name] for name in ("accuracy", "nll", "ece")] == [
        tested[name] for name in ("accuracy", "nll", "ece")
    ]
    assert "`window` to divide the number of time steps 4, but got 7" in found["refused"]["seven"]
    assert not Path("out/seven").exists()

    text = Path("out/comparison.md").read_text()
    assert "| seven | refused |" in text
    assert f"- seven was refused: {found['refused']['seven']}" in text
    table = list(csv.DictReader(Path("out/comparison.csv").read_text().splitlines()))
    assert [(row["rule"], row["budget"]) for row in table[:-1]] == list(rows)
    assert table[-1]["refused"] == found["refused"]["seven"]
    assert text.strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "7"], "--steps to be a multiple of the 2 evaluations, but got 7"),
        (["--rules", "[BPTTT]"], "but got 'BPTTT' (no such name; did you mean BPTT?)"),
        (["--rules", "{mine: {method.window: 2}}"], "options with a `method`"),
        (["--learning_rates", "[0.1, 0]"], "--learning_rates to be larger than 0"),
        (["--method", "EProp"], "Choose them with --rules"),
        (["--method.samples=2"], "Choose them with --rules"),
        (["--output", "used"], "to be a new folder or that of a comparison"),
        (["--output", "earlier", "--steps", "8"], "--steps 8 instead of 6"),
        (["--network.hiden", "[3]"], "did you mean"),
        (["--data", "NMNIST", "--data.root", "nowhere", "--output", "out"], "nowhere is not a folder"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("used").mkdir()
    if "earlier" in arguments:
        monkeypatch.setattr("lightning_snn.cli.comparison.command.Comparison._try", lambda *_: "")
        call(monkeypatch, "--output", "earlier", "--rules", "[BPTT]")
    before = sorted(Path().rglob("*"))
    assert message in refused_options(monkeypatch, capsys, *arguments)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--output", "out", "--rules", "[BPTT]", "--learning_rates", "[0.01]"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(SystemExit) as stop:
            call(patch, *options)
    assert stop.value.code == 130
    command = capsys.readouterr().err.strip().splitlines()[-1]
    assert shlex.split(command) == ["python", "tiny.py", "--output", "out"]

    (locked, locking), (end, ending) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        held = lock(Path("out/BPTT/steps_lr0.01_seed0"))
        os.write(locking, b"1" if held is not None else b"0")
        os.close(ending)
        os.read(end, 1)
        os._exit(0)
    try:
        if os.read(locked, 1) == b"0":
            pytest.skip("this file system has no locks")
        assert call(monkeypatch, "--output", "out")["rows"] == []
        assert "1 runs are written by other processes, such as out/BPTT" in capsys.readouterr().out
    finally:
        os.close(ending)
        os.close(end)
        os.waitpid(child, 0)
    assert len(call(monkeypatch, "--output", "out")["rows"]) == 1


@pytest.mark.slow
def test_seeds_and_a_budget_can_be_added_to_a_finished_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(monkeypatch, "--output", "out", "--rules", "[BPTT]", "--learning_rates", "[0.01, 0.02]")
    before = contents("out")
    more = call(monkeypatch, "--output", "out", "--seeds", "[0, 5]", "--rules", "[BPTT, EProp]")
    kept = contents("out")
    assert before.items() <= kept.items()
    assert [(row["rule"], row["runs"]) for row in more["rows"]] == [("BPTT", 2), ("EProp", 2)]
    assert more["rows"][0]["accuracies"][0] == first["rows"][0]["accuracy"]
    assert f"({min(more['rows'][0]['accuracies']):.3f}-" in Path("out/comparison.md").read_text()


@pytest.mark.slow
def test_rules_of_ones_own_and_a_network_that_some_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "{own: {method: SpikingBayes, method.samples: 2}, EProp: {method: EProp}}"
    arguments = ["--output", "out", "--rules", rules, "--learning_rates", "[0.01]"]
    found = call(monkeypatch, *arguments, "--network", f"{HERE}.SilentNetwork")
    assert "readout" in found["refused"]["EProp"]
    assert [(row["rule"], row["spikes"]) for row in found["rows"]] == [("own", None)]
    assert found == json.loads(Path("out/comparison.json").read_text())


@pytest.mark.slow
def test_all_runs_and_the_summary_are_one_group_of_wandb(monkeypatch: pytest.MonkeyPatch, drawn: None) -> None:
    call(monkeypatch, "--output", "out", "--rules", "[BPTT, EP]", "--learning_rates", "[0.01]", "--wandb", "true")
    runs = [WandbRun(Path("out", name)) for name in ("BPTT/steps_lr0.01_seed0", "EP/steps_seed0", ".")]
    (group,) = {kept.begun.run_group for kept in runs}
    assert group == "tiny MLP TinyEvents out"
    assert "comparison" in runs[-1].begun.tags
    assert runs[-1].values["report/comparison/_type"] == "table-file"
    assert {f"report/{name}/_type" for name in ("accuracy", "reliability")} <= set(runs[-1].values)
    assert {path.name for path in Path("out").glob("*.png")} == {"accuracy.png", "reliability.png"}
