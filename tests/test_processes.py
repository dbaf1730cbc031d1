"""The number of processes, the number of this one, and what they collect from each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_snn.processes import gather, gather_parts, is_distributed, rank, seed_noise_by_rank, world_size
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


ROWS = {
    "unequal": (torch.arange(6.0).view(3, 2), torch.arange(2.0).view(1, 2)),
    "none known of the first": (torch.empty(0), torch.tensor([[True, False]])),
    "none known of the second": (torch.arange(3, dtype=torch.float64), torch.empty(0)),
    "none of known shape": (torch.empty(0, 2), torch.arange(4.0).view(2, 2)),
}


def gathered(own: int) -> dict[str, list[torch.Tensor]]:
    found = {name: gather_parts(parts[own]) for name, parts in ROWS.items()}
    assert [len(part) for part in gather_parts(torch.empty(0, 3))] == [0, 0]
    for others in (torch.zeros(2, own + 1), torch.zeros(2, dtype=(torch.float32, torch.float64)[own])):
        with pytest.raises(ValueError, match="rows of one shape and dtype in all processes, but got torch.float"):
            gather_parts(others)
    assert gather({"rank": own}) == [{"rank": 0}, {"rank": 1}]
    return found


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_rows_of_processes_may_differ_in_number_and_only_in_that(tmp_path: Path) -> None:
    for found in on_two_processes(gathered, tmp_path):
        for name, parts in ROWS.items():
            for part, expected in zip(found[name], parts, strict=True):
                assert len(part) == len(expected), name
                assert not len(expected) or torch.equal(part, expected), name
