"""Division of the samples to evaluate over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DistributedSampler

from lightning_snn.data.unpadded import UnpaddedSampler
from tests.support.processes import on_two_processes


def test_one_process_has_all_samples_in_order() -> None:
    assert list(UnpaddedSampler(range(5))) == [0, 1, 2, 3, 4]


def shares(rank: int) -> dict[str, list[int]]:
    with pytest.raises(ValueError, match="at least as many samples to evaluate as processes, but got 1 for 2"):
        UnpaddedSampler(range(1))
    return {
        **{str(number): list(UnpaddedSampler(range(number))) for number in (2, 5, 6)},
        "lengths": [len(UnpaddedSampler(range(number))) for number in (2, 5, 6)],
        "of torch": list(DistributedSampler(range(5), shuffle=False)),
    }


def test_two_processes_have_each_sample_once(tmp_path: Path) -> None:
    first, second = on_two_processes(shares, tmp_path)
    assert (first["5"], second["5"]) == ([0, 2, 4], [1, 3])
    for number in (2, 5, 6):
        assert sorted(first[str(number)] + second[str(number)]) == list(range(number))
    assert (first["lengths"], second["lengths"]) == ([1, 3, 3], [1, 2, 3])
    assert first["of torch"] + second["of torch"] == [0, 2, 4, 1, 3, 0], "otherwise torch's would do"
