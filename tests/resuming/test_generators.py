"""States of generators: every kind, as plain data, in another generator of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_snn.resuming import Generators

CPU = torch.device("cpu")
KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any], float]]] = {
    "torch": (lambda seed: torch.Generator().manual_seed(seed), lambda own: float(torch.rand(1, generator=own))),
    "random": (random.Random, lambda own: own.gauss(0, 1)),
    "RandomState": (np.random.RandomState, lambda own: own.standard_normal()),
    **{
        kind.__name__: (lambda seed, kind=kind: np.random.Generator(kind(seed)), lambda own: own.random())
        for kind in (np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64)
    },
}


def through_a_file(states: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(states, folder / "states.pt")
    return torch.load(folder / "states.pt", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_of_an_object_continues_in_another_one(kind: str, tmp_path: Path) -> None:
    make, draw = KINDS[kind]
    owner, other = SimpleNamespace(own=make(0), width=3), SimpleNamespace(width=3, own=make(1))
    [draw(owner.own) for _ in range(3)]  # an odd number, so that half of a pair of normal numbers is kept
    states = through_a_file(Generators(CPU, [owner]).states(), tmp_path)
    expected = [draw(owner.own) for _ in range(5)]
    assert [draw(other.own) for _ in range(5)] != expected
    Generators(CPU, [other]).restore(states)
    assert [draw(other.own) for _ in range(5)] == expected


def test_the_global_generators_continue(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [float(torch.randn(1)), random.gauss(0, 1), np.random.standard_normal(), np.random.rand()]

    draws()
    generators = Generators(CPU)
    states = through_a_file(generators.states(), tmp_path)
    expected = draws()
    assert draws() != expected
    generators.restore(states)
    assert draws() == expected


def test_a_generator_of_several_objects_is_saved_once() -> None:
    shared = torch.Generator()
    owners = [SimpleNamespace(a=shared), SimpleNamespace(b=shared, c=np.random.default_rng(0)), object()]
    assert len(Generators(CPU, owners).own) == 2


def test_another_number_of_generators_is_reported() -> None:
    states = Generators(CPU, [SimpleNamespace(own=torch.Generator())]).states()
    with pytest.warns(UserWarning, match="states of 1 generators of layers, loaders and samplers, but there are 0"):
        Generators(CPU).restore(states)


def test_another_kind_of_device_is_reported() -> None:
    states = Generators(CPU).states()
    states["device"] = torch.zeros(16, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="draws its random numbers on cpu, and the run before on another kind"):
        Generators(CPU).restore(states)
