"""Synchronized batch normalization among rates. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods.rate import rate_run
from lightning_snn.nn import LIF
from tests.support.processes import on_two_processes

STEPS, BATCH = 4, 12
# samples of the first process; the second has the others
PARTS = {"equal": 6, "unequal": 4}
RUNS: dict[str, dict[str, Any]] = {"all_steps": {}, "windows": {"window": 2}, "streaming": {"streaming": True}}


def images() -> Tensor:
    return torch.randn(STEPS, BATCH, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5


def network(synchronized: bool) -> nn.Module:
    """With an ordinary norm, and one without parameters whose running statistics are cumulative."""
    torch.manual_seed(0)
    made: nn.Module = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        LIF(0.5, 0.4),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, momentum=None, affine=False),
        LIF(0.5, 0.4),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return (nn.SyncBatchNorm.convert_sync_batchnorm(made) if synchronized else made).double()


def learned(x: Tensor, synchronized: bool, options: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients and buffers of two steps on the sum of losses over the samples."""
    made = network(synchronized)
    for _ in range(2):
        outputs = rate_run(made, x, **options)
        outputs.mean(0).square().sum().backward()
    found = {f"gradient of {name}": parameter.grad for name, parameter in made.named_parameters()}
    return {**found, **dict(made.named_buffers())}


def of_both(rank: int) -> dict[str, dict[str, Tensor]]:
    """Gradients and buffers of this process for its part of the batch, gradients summed over both."""
    found = {}
    for part, first in PARTS.items():
        x = images()[:, :first] if rank == 0 else images()[:, first:]
        for name, options in RUNS.items():
            for synchronized in (True, False):
                results = learned(x, synchronized, options)
                for key, value in results.items():
                    if key.startswith("gradient"):
                        torch.distributed.all_reduce(value)
                found[f"{part} {name} {synchronized}"] = results
    return found


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Gradients and buffers of each of two processes."""
    return on_two_processes(of_both, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("part", PARTS)
def test_two_processes_learn_what_one_learns_of_the_whole_batch(
    of_ranks: list[dict[str, dict[str, Tensor]]], part: str, name: str
):
    expected = learned(images(), False, RUNS[name])
    assert expected["4.num_batches_tracked"] == 2
    for found in of_ranks:
        synchronized = found[f"{part} {name} True"]
        assert synchronized.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(synchronized[key], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("part", PARTS)
def test_without_synchronization_two_processes_learn_something_else(
    of_ranks: list[dict[str, dict[str, Tensor]]], part: str, name: str
):
    expected = learned(images(), False, RUNS[name])
    for found in of_ranks:
        alone = found[f"{part} {name} False"]
        for key in ("gradient of 0.weight", "gradient of 7.weight", "1.running_mean", "4.running_var"):
            error = (alone[key] - expected[key]).norm() / expected[key].norm()
            assert error > 1e-2, key
