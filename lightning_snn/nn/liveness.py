"""Layers of a network that are silent or saturated in a training step, found without another run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.layer_rules import is_compiled
from lightning_snn.nn.observation import LayerCall, observe
from lightning_snn.nn.registry import parts_of_neurons

SATURATED = 0.95  # fraction of time steps; a neuron that spikes in more of them carries no information
_SILENT_RATE = 1e-4
_SATURATED_SHARE = 0.5


@dataclass
class Activity:
    """Spikes of the layers of a network in one step of training; counts stay on the device until they are read.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(threshold=100.0), nn.Linear(8, 3))
        >>> with watch_activity(network) as activity:
        ...     outputs = run(network, torch.rand(10, 2, 4))
        >>> activity.silent()
        ['1']
    """

    # by name and number of neurons, because a layer may be called with several shapes
    _counts: dict[tuple[str, int], tuple[Tensor, int]] = field(default_factory=dict, repr=False)
    _feeding_weights: set[str] = field(default_factory=set, repr=False)

    def silent(self) -> list[str]:
        """Return the names of layers before weights with fewer than one spike per 10,000 neurons and time steps.

        The weights after a silent layer learn nothing. A layer without weights after it is not listed, because it
        learns from silence.
        """
        rates = self._rates()
        return [name for name in rates if name in self._feeding_weights and rates[name].mean().item() < _SILENT_RATE]

    def saturated(self) -> list[str]:
        """Return the names of layers in which most neurons spike in more than 95 % of the time steps."""
        shares = {name: (rates > SATURATED).double().mean().item() for name, rates in self._rates().items()}
        return [name for name, share in shares.items() if share > _SATURATED_SHARE]

    def warning(self) -> str | None:
        """Return a warning about silent and saturated layers, with the remedy; None if there are none."""
        problems = {"no neuron spikes in": self.silent(), "most neurons always spike in": self.saturated()}
        found = [f"{problem} {', '.join(names)}" for problem, names in problems.items() if names]
        if not found:
            return None
        return (
            f"The network may not learn: in the first training batch {'; '.join(found)}. Rescale the initial weights "
            'with the callback InitializationCheck(on_fail="rescale"), or change the thresholds of these layers'
        )

    def add(self, call: LayerCall) -> None:
        """Count the spikes of a call that `observe` reports."""
        spikes = (call.valid_spikes != 0).flatten(0, 1).sum(0).flatten()
        before, rows = self._counts.get((call.name, len(spikes)), (0, 0))
        self._counts[call.name, len(spikes)] = (spikes + before, rows + call.sample_steps)

    def add_weights(self) -> None:
        """Note that weights are used after all layers that were called so far."""
        self._feeding_weights.update(name for name, _ in self._counts)

    def _rates(self) -> dict[str, Tensor]:
        """Return the rate of each neuron by layer."""
        rates: dict[str, list[Tensor]] = {}
        for (name, _), (spikes, rows) in self._counts.items():
            rates.setdefault(name, []).append(spikes / max(rows, 1))
        return {name: torch.cat(each) for name, each in rates.items()}


@contextmanager
def watch_activity(network: nn.Module) -> Iterator[Activity]:
    """Enter a context in which the spikes of a network's layers are counted, for a look at the first training step.

    The network runs as without the context, to the last bit: forward hooks read the outputs of the layers that
    `nn.registry` finds, and are removed at the end. Runs on rates are not counted. Compiled networks are not observed,
    because compiled code would keep the hooks.

    Args:
        network: network as the method prepared it.

    Yields:
        The activity, to read after the context.

    Example:
        >>> with watch_activity(module.network) as activity:
        ...     step = module.method.training_step(module.network, x, y)
        >>> activity.warning() is None
        True
    """
    activity = Activity()
    if torch.compiler.is_compiling() or any(map(is_compiled, network.modules())):
        yield activity
        return

    called: set[nn.Module] = set()

    def note_weights(module: nn.Module, *_: Any) -> None:
        # not at later time steps, where they come after all layers
        if module not in called:
            called.add(module)
            activity.add_weights()

    within = parts_of_neurons(network)
    with ExitStack() as hooks:
        for module in network.modules():
            weights = any(each.dim() > 1 and each.requires_grad for each in module.parameters(recurse=False))
            if weights and module not in within:
                hooks.callback(module.register_forward_pre_hook(note_weights).remove)
        hooks.enter_context(observe(network, activity.add))
        yield activity
