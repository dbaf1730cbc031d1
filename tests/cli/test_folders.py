"""The folder of a run: one run has it, whatever else starts in the same second or resumes it."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lightning_snn.cli.folders import CONFIG, FolderTaken, claim, lock, new_folder
from tests.cli.tiny import call, interrupt_at
from tests.support.processes import wait_until, with_checkout

HOLD = """
import sys, time
from pathlib import Path
from lightning_snn.cli.folders import lock
held = lock(Path(sys.argv[1]))
Path("held").touch()
time.sleep(3600)
"""


def in_forked_processes(work: Callable[[int], Any], number: int) -> list[Any]:
    """Return what ``work(index)`` returns in processes that are forked from this one, or its error."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(number), context.Queue()

    def run(index: int) -> None:
        barrier.wait()
        try:
            answers.put((index, work(index)))
        except Exception as error:
            answers.put((index, error))

    processes = [context.Process(target=run, args=(index,)) for index in range(number)]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[index] for index in range(number)]


def test_folders_of_one_second_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "2026-01-31_12-00-00")
    folders = {new_folder("tiny", 0) for _ in range(1000)}
    assert len(folders) == 1000
    assert all(folder.name.startswith("2026-01-31_12-00-00_seed0_") for folder in folders)


def test_folders_do_not_depend_on_seeds() -> None:
    import lightning.pytorch as pl

    names = []
    for _ in range(2):
        pl.seed_everything(0, verbose=False)
        names.append(new_folder("tiny", 0).name.rpartition("_")[2])
    assert names[0] != names[1]


def test_of_several_claims_one_succeeds() -> None:
    for attempt in range(20):
        folder = Path(f"runs/{attempt}")
        errors = in_forked_processes(lambda index, folder=folder: claim(folder), 4)
        assert sum(error is None for error in errors) == 1
        assert all(error is None or isinstance(error, FolderTaken) for error in errors)


@pytest.mark.parametrize("existing", ["folder", "file", "broken link", "run"])
def test_an_existing_output_is_refused_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], existing: str
) -> None:
    out = Path("out")
    if existing == "file":
        out.write_text("mine")
    elif existing == "broken link":
        out.symlink_to("absent")
    else:
        out.mkdir()
    if existing == "run":
        (out / CONFIG).write_text("trainer: {}\n")
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--output", "out")
    assert stop.value.code == 2
    assert "Expected option --output to be a new folder, but out " in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_an_output_that_another_run_takes_meanwhile_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both runs saw that there was no such folder; the second one finds it when its data are there."""
    from tests.cli.tiny import TinyEvents

    load_sets = TinyEvents.load_sets

    def meanwhile(self: TinyEvents) -> Any:
        Path("out").mkdir()
        Path("out/theirs").touch()
        return load_sets(self)

    monkeypatch.setattr(TinyEvents, "load_sets", meanwhile)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--output", "out")
    assert stop.value.code == 2
    assert "but out exists. Choose another folder, or remove this one" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["theirs"]


@pytest.mark.slow  # two runs
def test_a_run_that_still_goes_on_elsewhere_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(SystemExit):
            call(patch, "--output", "out")
    process = subprocess.Popen([sys.executable, "-c", HOLD, "out"], env=with_checkout({}))
    resume = ("--ckpt_path", "out/checkpoints/last.ckpt")
    try:
        wait_until(Path("held").is_file, process)
        with pytest.raises(SystemExit) as stop:
            call(monkeypatch, *resume)
        assert stop.value.code == 2
        assert "Expected the run in out to have ended, but another process still writes" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # a killed process holds nothing
    assert call(monkeypatch, *resume).output == Path("out")


LOCK_TWICE = """
import sys
from pathlib import Path
from lightning_snn.cli.folders import FolderTaken, lock
try:
    lock(Path(sys.argv[1]))
except FolderTaken:
    print("taken", flush=True)
input()
assert lock(Path(sys.argv[1])) is not None
print("free")
"""


def test_a_lock_ends_with_its_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG).touch()
    held = lock(tmp_path)
    assert held is not None
    command = [sys.executable, "-c", LOCK_TWICE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=with_checkout({}), **pipes) as other:
        assert other.stdout.readline() == "taken\n"
        held.close()
        assert other.communicate("closed\n")[0] == "free\n"
    assert other.returncode == 0


PAIR = ("--method", "SurrogateGradient", "--trainer.max_epochs", "1")
RATES = ("0.01", "0.05")


def _run_of_pair(index: int) -> dict[str, Any]:
    """Run a recipe, one of two that differ in the learning rate, and return what its folder holds."""
    import json

    import torch

    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(strftime=lambda form: "2026-01-31_12-00-00")
        patch.setattr("lightning_snn.cli.folders.time", clock)
        cli = call(patch, *PAIR, "--model.learning_rate", RATES[index])
    saved = torch.load(cli.output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {
        "folder": str(cli.output),
        "rate": yaml.safe_load((cli.output / CONFIG).read_text())["model"]["learning_rate"],
        "nll": json.loads((cli.output / "metrics.json").read_text())["nll"],
        "weights": float(sum(value.double().sum() for value in saved.values() if value.is_floating_point())),
    }


def check_pairs(number: int) -> None:
    """Start pairs of runs in the same second, and compare each with the same run alone."""
    alone = [in_forked_processes(lambda _, index=index: _run_of_pair(index), 1)[0] for index in range(2)]
    assert alone[0]["nll"] != alone[1]["nll"], "otherwise a mistaken result would not be noticed"
    found = []
    for _ in range(number):
        pair = in_forked_processes(_run_of_pair, 2)
        for index, run in enumerate(pair):
            assert not isinstance(run, Exception), run
            assert {**run, "folder": ""} == {**alone[index], "folder": ""}
        found += [run["folder"] for run in pair]
    assert len(set(found)) == 2 * number
    assert all(Path(folder).is_dir() for folder in found)


def test_two_runs_of_one_second_have_two_folders_and_their_own_results() -> None:
    check_pairs(1)


@pytest.mark.slow
def test_twenty_pairs_of_runs_of_one_second_have_forty_folders_and_their_own_results() -> None:
    check_pairs(20)
