"""The number of processes and the number of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_snn.processes import gather, is_distributed, rank, seed_noise_by_rank, world_size
from tests.support.processes import on_two_processes


def test_without_a_process_group_this_process_is_the_only_one() -> None:
    assert (is_distributed(), world_size(), rank()) == (False, 1, 0)


def test_a_process_alone_keeps_its_random_numbers() -> None:
    before = torch.get_rng_state()
    seed_noise_by_rank()
    assert torch.equal(torch.get_rng_state(), before)


def drawn(own: int) -> list[list[float]]:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = [torch.rand(()).item()]
    torch.set_rng_state(state)
    for _ in range(2):
        seed_noise_by_rank()
        first.append(torch.rand(()).item())
    return gather(first)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_the_noise_of_two_processes_differs_although_their_seed_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    one, other = on_two_processes(drawn, tmp_path)
    assert one == other, "both processes gather the same"
    assert one[0][0] == one[1][0], "without it they draw the same"
    assert one[0][:2] == one[0][:1] * 2, "the first process draws on"
    assert len({*one[0][1:], *one[1][1:]}) == 4
    assert on_two_processes(drawn, tmp_path / "again") == [one, other], "the same in every run"


def seen(own: int) -> tuple[bool, int, int, int]:
    alone = [dist.new_group([each]) for each in range(2)][own]
    return is_distributed(), world_size(), world_size(alone), rank()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_each_of_two_processes_knows_both_and_its_group(tmp_path: Path) -> None:
    assert on_two_processes(seen, tmp_path) == [(True, 2, 1, 0), (True, 2, 1, 1)]
