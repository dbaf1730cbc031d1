"""The number of processes and the number of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_snn.processes import is_distributed, rank, world_size
from tests.support.processes import on_two_processes


def test_without_a_process_group_this_process_is_the_only_one() -> None:
    assert (is_distributed(), world_size(), rank()) == (False, 1, 0)


def seen(own: int) -> tuple[bool, int, int, int]:
    alone = [dist.new_group([each]) for each in range(2)][own]
    return is_distributed(), world_size(), world_size(alone), rank()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_each_of_two_processes_knows_both_and_its_group(tmp_path: Path) -> None:
    assert on_two_processes(seen, tmp_path) == [(True, 2, 1, 0), (True, 2, 1, 1)]
