"""Random networks are converted to and from each library, with equal spikes, or refused by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.convert import from_snntorch, from_spikingjelly, to_snntorch, to_spikingjelly
from tests.convert.peers import (
    keep_dtype,
    random_plain,
    random_snntorch,
    random_spikingjelly,
    run_snntorch,
    run_spikingjelly,
    spikingjelly,
)

NETWORKS, IN_TEST_COMMAND = 200, 16
REFUSAL = re.compile(r"can convert exactly, but got (\S+: \w+ \(.{20,}\)(; )?)+", re.DOTALL)

seeds = pytest.mark.parametrize(
    "seeds",
    [range(IN_TEST_COMMAND), pytest.param(range(IN_TEST_COMMAND, NETWORKS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)


@pytest.fixture(autouse=True)
def without_warnings_of_gradients() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="to_snntorch: spikes are equal, but gradients are not|from_sp|from_snn"
        )
        yield


def settings(seed: int) -> tuple[bool, torch.dtype]:
    """Return whether values are on a grid, on which potentials meet thresholds exactly, and the dtype."""
    return seed % 2 == 0, (torch.float32, torch.float64)[seed // 2 % 2]


class Outcomes:
    """Counts of what became of networks."""

    def __init__(self) -> None:
        self.equal, self.refused, self.spiking = 0, 0, 0

    def refuse(self, error: ValueError) -> None:
        assert REFUSAL.search(str(error)), error
        self.refused += 1

    def compare(self, expected: Tensor, found: Tensor, seed: int) -> None:
        assert torch.equal(expected, found), f"seed {seed}: {(expected != found).sum()} mismatches"
        self.equal += 1
        self.spiking += bool(expected.any())

    def check(self, networks: int, share: float) -> None:
        """Check that a share of the networks was converted and spikes, and that some were refused."""
        assert self.equal + self.refused == networks
        assert self.spiking >= share * networks
        assert self.refused > 0


@seeds
@torch.no_grad()
def test_random_networks_of_snntorch(seeds: range):
    outcomes = Outcomes()
    for seed in seeds:
        grid, dtype = settings(seed)
        network, x = random_snntorch(seed, grid)
        try:
            converted = from_snntorch(network.to(dtype))
        except ValueError as error:
            outcomes.refuse(error)
            continue
        keep_dtype(network)
        outcomes.compare(run_snntorch(network, x.to(dtype)), run(converted, x.to(dtype)), seed)
    outcomes.check(len(seeds), 0.5)


@seeds
@torch.no_grad()
def test_random_networks_of_spikingjelly(seeds: range):
    spikingjelly()
    outcomes = Outcomes()
    for seed in seeds:
        grid, dtype = settings(seed)
        network, x, step_mode = random_spikingjelly(seed, grid)
        try:
            converted = from_spikingjelly(network.to(dtype))
        except ValueError as error:
            outcomes.refuse(error)
            continue
        outcomes.compare(run_spikingjelly(network, x.to(dtype), step_mode), run(converted, x.to(dtype)), seed)
    outcomes.check(len(seeds), 0.4)


@seeds
@torch.no_grad()
def test_random_networks_to_snntorch_and_back(seeds: range):
    outcomes = Outcomes()
    for seed in seeds:
        grid, dtype = settings(seed)
        network, x = random_plain(seed, grid)
        expected = run(network.to(dtype), x.to(dtype))
        try:
            converted = to_snntorch(network)
        except ValueError as error:
            outcomes.refuse(error)
            continue
        back = from_snntorch(converted)
        keep_dtype(converted)
        assert_same_layers(network, converted)
        outcomes.compare(expected, run_snntorch(converted, x.to(dtype)), seed)
        assert torch.equal(expected, run(back, x.to(dtype))), f"seed {seed}, and back"
    outcomes.check(len(seeds), 0.4)


@seeds
@torch.no_grad()
def test_random_networks_to_spikingjelly_and_back(seeds: range):
    spikingjelly()
    outcomes = Outcomes()
    for seed in seeds:
        grid, dtype = settings(seed)
        network, x = random_plain(seed, grid)
        expected = run(network.to(dtype), x.to(dtype))
        step_mode = "sm"[seed % 3 == 0]
        try:
            converted = to_spikingjelly(network, step_mode)
        except ValueError as error:
            outcomes.refuse(error)
            continue
        assert_same_layers(network, converted)
        outcomes.compare(expected, run_spikingjelly(converted, x.to(dtype), step_mode), seed)
        back = from_spikingjelly(converted)
        assert torch.equal(expected, run(back, x.to(dtype))), f"seed {seed}, and back"
    outcomes.check(len(seeds), 0.2)


def assert_same_layers(network: nn.Module, converted: nn.Module) -> None:
    """Check that parameters of layers have the same names and values, so checkpoints carry over."""
    values = converted.state_dict()
    for name, part in network.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            assert torch.equal(part.weight, values[f"{name}.weight"])
