"""The second process of tests: one failure stays one failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import processes
from tests.support.processes import on_two_processes, stop_other_process, wait_until

distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


def sum_of_ranks(rank: int) -> torch.Tensor:
    found = torch.tensor(rank + 1)
    torch.distributed.all_reduce(found)
    return found


def fails_on_the_second(rank: int) -> torch.Tensor:
    if rank == 1:
        raise ArithmeticError("no such number")
    return sum_of_ranks(rank)


def fails_on_the_first(rank: int) -> torch.Tensor:
    if rank == 0:
        raise ArithmeticError("no such number")
    return sum_of_ranks(rank)


def ends_on_the_second(rank: int) -> torch.Tensor:
    if rank == 1:
        os._exit(7)
    return sum_of_ranks(rank)


@distributed
@pytest.mark.parametrize(
    ("work", "error", "message", "cause"),
    [
        (fails_on_the_second, RuntimeError, ".", "no such number"),
        (fails_on_the_first, ArithmeticError, "no such number", ""),
        (ends_on_the_second, RuntimeError, ".", "exit code 7"),
    ],
)
def test_after_a_failure_the_next_test_has_a_new_process(work, error, message: str, cause: str, tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with pytest.raises(error, match=message) as found:
        on_two_processes(work, tmp_path / "one")
    assert cause in f"{found.value.__cause__}"
    assert on_two_processes(sum_of_ranks, tmp_path / "two") == [3, 3]


@distributed
def test_after_a_group_that_never_formed_the_next_test_forms_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stop_other_process()
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    (tmp_path / "one").mkdir()
    with pytest.raises(RuntimeError, match="timeout"):
        processes._take_part(0, sum_of_ranks, str(tmp_path / "one"))  # nobody else takes part
    monkeypatch.undo()
    (tmp_path / "two").mkdir()
    assert on_two_processes(sum_of_ranks, tmp_path / "two") == [3, 3]


@distributed
def test_a_process_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one").mkdir()
    on_two_processes(sum_of_ranks, tmp_path / "one")
    process = processes._OtherProcess.kept.process
    monkeypatch.setattr("tests.support.processes.connection.wait", lambda objects, timeout: [])
    (tmp_path / "two").mkdir()
    with pytest.raises(RuntimeError, match="does not answer"):
        on_two_processes(sum_of_ranks, tmp_path / "two")
    assert not process.is_alive()


@distributed
def test_tests_share_a_process_that_can_be_stopped(tmp_path: Path):
    kept = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        on_two_processes(sum_of_ranks, tmp_path / name)
        kept.append(processes._OtherProcess.kept.process)
    assert kept[0] is kept[1]
    assert kept[0].is_alive()
    stop_other_process()
    assert not kept[0].is_alive()


def test_waiting_ends_with_the_process():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process, pytest.raises(AssertionError):
        wait_until(lambda: False, process)
