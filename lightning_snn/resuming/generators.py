"""States of random number generators, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class Generators:
    """The random number generators that training may draw from.

    These are the global ones of torch, of the device, of Python's `random` and of NumPy, and all generators that are
    attributes of the given objects.

    Args:
        device: device of the module.
        owners: objects whose attributes may be generators, such as layers, loaders and samplers.

    Example:
        >>> generators = Generators(torch.device("cpu"))
        >>> states = generators.states()
        >>> drawn = torch.rand(2), np.random.rand(), random.random()
        >>> generators.restore(states)
        >>> torch.equal(torch.rand(2), drawn[0]), np.random.rand() == drawn[1], random.random() == drawn[2]
        (True, True, True)
    """

    def __init__(self, device: torch.device, owners: Iterable[object] = ()) -> None:
        self.device = device
        values = (value for owner in owners for value in getattr(owner, "__dict__", {}).values())
        self.own = list({id(value): value for value in values if isinstance(value, _KINDS)}.values())
        """generators of the owners, each once, in the order in which they were found"""

    def states(self) -> dict[str, Any]:
        """Return the states: tensors, numbers and strings in dicts and lists."""
        return {
            "torch": torch.get_rng_state(),
            "device": _device_state(self.device),
            "python": _plain(random.getstate()),
            "numpy": _plain(np.random.get_state(legacy=False)),
            "own": [_plain(_state(generator)) for generator in self.own],
        }

    def restore(self, states: dict[str, Any]) -> None:
        """Continue from states that `states` returned, of this process or of another one.

        A different number of own generators, or another kind of device, is reported in a warning.
        """
        # `map_location` may have moved the states, but generators require them on the CPU
        torch.set_rng_state(states["torch"].cpu())
        random.setstate(_as(random.getstate(), states["python"]))
        np.random.set_state(_as(np.random.get_state(legacy=False), states["numpy"]))
        if len(states["own"]) == len(self.own):
            for generator, state in zip(self.own, states["own"], strict=True):
                _set_state(generator, _as(_state(generator), state))
        else:
            rank_zero_warn(
                f"The resumed run is not exact: the checkpoint holds the states of {len(states['own'])} generators of "
                f"layers, loaders and samplers, but there are {len(self.own)}. Build them as in the run before"
            )
        if (states["device"] is None) != (_device_state(self.device) is None):
            rank_zero_warn(
                f"The resumed run is not exact, because it draws its random numbers on {self.device}, and the run "
                "before on another kind of device"
            )
        elif states["device"] is not None:
            _set_device_state(self.device, states["device"].cpu())


def _device_state(device: torch.device) -> torch.Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def _set_device_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.mps.set_rng_state(state)


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _plain(value: Any) -> Any:
    """Return a state with tensors in place of arrays and of long tuples of integers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.view(np.uint8).copy())
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        if value and all(type(part) is int for part in value):
            return torch.tensor(value)
        return [_plain(part) for part in value]
    return value


def _as(template: Any, value: Any) -> Any:
    """Return the state of which `_plain` made a value, in the form of a state of the same generator."""
    if isinstance(template, torch.Tensor):
        return value.cpu()
    if isinstance(template, np.ndarray):
        return value.cpu().numpy().view(template.dtype)
    if isinstance(template, dict):
        return {name: _as(part, value[name]) for name, part in template.items()}
    if isinstance(template, tuple):
        if isinstance(value, torch.Tensor):
            return tuple(value.tolist())
        return tuple(_as(part, each) for part, each in zip(template, value, strict=True))
    return value
