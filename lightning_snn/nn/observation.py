"""Watching the spiking layers of a network while it runs, whatever library they are from and however it calls them.

Ours take all time steps at once, folded into the batch; so do SpikingJelly's in multi-step mode, with a time axis;
snntorch's and SpikingJelly's in single-step mode are called once a step. Each call is given as steps `[steps, B, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import Neuron, membrane, runs_by_its_equations
from lightning_snn.nn.noise import spike_noise
from lightning_snn.nn.phase import rate_phase
from lightning_snn.nn.registry import Conventions, conventions_of, spiking_layers


@dataclass(frozen=True)
class LayerCall:
    """One call of a spiking layer.

    Attributes:
        name: of the layer within the network; its type's name where the network is the layer itself.
        layer: the layer.
        spikes: its output, shape `[steps, B, ...]`; any value but 0 is a spike.
        current: its input, of the same shape. A Gaussian current is given as it was drawn, or as its mean where the
            neurons draw no current. None if the input was not a tensor.
        output: the spikes as the layer returned them: the tensor that the network continues with, to differentiate by.
    """

    name: str
    layer: nn.Module
    spikes: Tensor
    current: Tensor | None
    output: Tensor

    @property
    def threshold(self) -> float | Tensor | None:
        """Firing threshold that the membrane potentials are compared with; None if it is not known.

        A number, or a tensor that broadcasts to `[steps, B, ...]` and varies over steps where the neurons adapt.
        """
        if isinstance(self.layer, Neuron):
            return None if self._potentials is None else self._potentials[1]
        known = conventions_of(self.layer)
        found = getattr(self.layer, known.threshold) if known and known.threshold else None
        return found.detach() if isinstance(found, Tensor) else found

    def membrane(self) -> Tensor | None:
        """Return the membrane potentials of this call, shape `[steps, B, ...]`, without a graph; None if not known.

        They are those compared with the threshold, before any reset. SpikingJelly, and snntorch with
        ``reset_delay=False``, keep them after the reset: where that subtracts the threshold it is added again, where it
        sets to a value the potential of a spike is not known and has that value. For neurons that fire by noise without
        drawing their current it is the mean potential, given the spikes.

        Read it before the layer is called again. In SpikingJelly's multi-step mode it is known within
        `observe(..., membranes=True)` only. It is not known for a `Neuron` with a `forward` of its own.
        """
        if isinstance(self.layer, Neuron):
            return None if self._potentials is None else self._potentials[0]
        return self._kept_membrane

    def relative_membrane(self) -> Tensor | None:
        """Return the membrane potentials on a scale where rest is 0 and the firing threshold 1; None if not known."""
        potentials, threshold = self.membrane(), self.threshold
        if potentials is None or threshold is None:
            return None
        if not isinstance(self.layer, Neuron):
            return potentials / threshold
        rest = membrane(self.layer.initial_state(torch.zeros_like(potentials[0])))
        return (potentials - rest) / (threshold - rest)

    def free_membrane(self) -> Tensor | None:
        """Return the relative membrane potentials that the same current gives neurons that never spike.

        None if they do not follow from the current, as for layers of other libraries.
        """
        if not isinstance(self.layer, Neuron) or self.current is None or not runs_by_its_equations(self.layer):
            return None
        silent = torch.zeros_like(self.spikes)
        return replace(self, spikes=silent, output=silent).relative_membrane()

    @cached_property
    def _potentials(self) -> tuple[Tensor, float | Tensor] | None:
        layer = self.layer
        assert isinstance(layer, Neuron)
        if self.current is None or not runs_by_its_equations(layer):
            return None
        return layer.potentials(self.current.detach(), self.spikes.detach())

    @cached_property
    def _kept_membrane(self) -> Tensor | None:
        layer, spikes, known = self.layer, self.spikes.detach(), conventions_of(self.layer)
        if known is None or known.membrane is None:
            return None
        if _takes_all_steps(layer, known):
            kept = getattr(layer, f"{known.membrane}_seq", None)
        else:
            kept = getattr(layer, known.membrane, None)
            kept = kept[None] if isinstance(kept, Tensor) else None
        if not isinstance(kept, Tensor) or kept.shape != spikes.shape:
            return None
        threshold = self.threshold
        kept = kept.detach()
        if threshold is None or not _has_subtracted(layer):
            return kept
        # a graded spike subtracts the threshold once, too
        return kept + threshold * (spikes != 0).to(kept.dtype)


@contextmanager
def observe(
    network: nn.Module, on_call: Callable[[LayerCall], None], membranes: bool = False
) -> Iterator[dict[str, nn.Module]]:
    """Within this context hear of every call of a network's spiking layers in which they spike: not of those of copies,
    and not of the pass of rate-based backpropagation in which they give rates.

    Args:
        network: any module; its spiking layers are found by `nn.registry`.
        on_call: told of every call when it is over. What it raises ends the run.
        membranes: have SpikingJelly's multi-step neurons keep their membranes, which costs memory.

    Returns:
        A context that gives the layers by their names, in order of registration. The hooks are gone when it ends,
        also by an exception.

    Example:
        >>> with observe(network, lambda call: print(call.name, call.spikes.mean())):
        ...     run(network, x)
    """
    layers = named_spiking_layers(network)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            if membranes and getattr(layer, "store_v_seq", None) is False and getattr(layer, "step_mode", "s") == "m":
                layer.store_v_seq = True  # type: ignore[assignment]
                hooks.callback(setattr, layer, "store_v_seq", False)
            if membranes and isinstance(layer, Neuron):
                hooks.callback(layer.register_forward_pre_hook(_ask_for_current).remove)
            handle = layer.register_forward_hook(_hook(name, layer, on_call), with_kwargs=True)
            hooks.callback(handle.remove)
        yield layers


def named_spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """A network's spiking layers by their names, in order of registration; of a network that is a layer itself, by the
    name of its type.
    """
    return {name or type(layer).__name__: layer for name, layer in spiking_layers(network)}


@dataclass
class Trace:
    """What a spiking layer did with a few samples.

    Attributes:
        spikes: shape `(T, S, N)`, of S samples and N neurons.
        membrane: of the same shape, see `LayerCall.membrane`; None if it is not known or was not asked for.
        threshold: a number, `(N,)` for the neurons of the first sample, or `(T, S, N)` where it varies over time; None
            if it is not known.
        shape: of a sample's neurons before they were flattened.
    """

    spikes: Tensor
    membrane: Tensor | None
    threshold: float | Tensor | None
    shape: tuple[int, ...]


@dataclass
class _Pieces:
    shape: torch.Size  # of a step
    spikes: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor | None] = field(default_factory=list)
    thresholds: list[float | Tensor | None] = field(default_factory=list)
    complete: bool = False


class Traces:
    """Spikes, and membranes if asked for, of the first samples of a batch in every spiking layer of a network.

    A layer that takes all time steps in a call is recorded in its first call; later ones are other runs of the same
    batch. Of a layer that is called step by step every call is a time step, so that `recording` should enclose one
    batch. Where such a layer stands in several places of a network, only its calls that have the shape of the first are
    kept; places of the same shape cannot be told apart, and their calls follow each other as time steps.

    Args:
        samples: how many samples, from the first, at least 1.
        membranes: whether to keep membranes too.

    Example:
        >>> traces = Traces(samples=2)
        >>> with traces.recording(network):
        ...     run(network, x)
        >>> traces.found()["1"].spikes.shape
        torch.Size([10, 2, 8])
    """

    def __init__(self, samples: int = 1, membranes: bool = False) -> None:
        self.samples, self.membranes = samples, membranes
        self._pieces: dict[str, _Pieces] = {}

    @contextmanager
    def recording(self, network: nn.Module) -> Iterator[Traces]:
        """A context within which a network's run is recorded."""
        with observe(network, self.add, self.membranes):
            yield self

    def add(self, call: LayerCall) -> None:
        """Keep a call, as `observe` tells of it."""
        shape = call.spikes.shape[1:]
        pieces = self._pieces.setdefault(call.name, _Pieces(shape=shape))
        if pieces.complete or shape != pieces.shape:
            return
        pieces.complete = takes_all_steps(call.layer)
        pieces.spikes.append(self._first(call.spikes))
        if self.membranes:
            membrane = call.membrane()
            # a copy: snntorch's and SpikingJelly's may change in place
            pieces.membranes.append(None if membrane is None else self._first(membrane))
            pieces.thresholds.append(self._of_neurons(call.threshold, call.spikes))

    def found(self) -> dict[str, Trace]:
        """What each layer that ran did, in the order in which layers ran first."""
        return {
            name: Trace(
                torch.cat(each.spikes), _joined(each.membranes), _joined_thresholds(each), tuple(each.shape[1:])
            )
            for name, each in self._pieces.items()
        }

    def _first(self, values: Tensor) -> Tensor:
        return values.detach()[:, : self.samples].flatten(2).clone()

    def _of_neurons(self, threshold: float | Tensor | None, spikes: Tensor) -> float | Tensor | None:
        if not isinstance(threshold, Tensor) or threshold.dim() == 0:
            return threshold
        if threshold.dim() == spikes.dim() and len(threshold) == len(spikes) > 1:
            return self._first(threshold.expand_as(spikes))
        return threshold.detach().expand_as(spikes[0])[0].flatten()


def takes_all_steps(layer: nn.Module) -> bool:
    """Whether a call of a spiking layer, here and now, takes all time steps of a sequence."""
    return time_steps() is not None or _takes_all_steps(layer, conventions_of(layer) or Conventions())


def as_steps(layer: nn.Module, values: Tensor) -> Tensor:
    """What a call of a spiking layer, here and now, takes or returns, as steps `[steps, B, ...]`."""
    steps = time_steps()
    if steps is not None:
        return values.unflatten(0, (steps, -1))
    return values if takes_all_steps(layer) else values[None]


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call of a module is given first, by position or else by keyword; None if it is given nothing."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _takes_all_steps(layer: nn.Module, known: Conventions) -> bool:
    return known.all_steps or getattr(layer, "step_mode", "s") == "m"


def _has_subtracted(layer: nn.Module) -> bool:
    """Whether a layer of another library keeps its membrane after a reset that subtracted the threshold."""
    if getattr(layer, "reset_delay", True) is False:
        return getattr(layer, "reset_mechanism", None) == "subtract"
    # SpikingJelly's value that a spike resets to; None where it subtracts
    return getattr(layer, "v_reset", 0.0) is None


def _hook(name: str, own: nn.Module, on_call: Callable[[LayerCall], None]) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # copies of a network take its hooks with them; the second pass of rate-based backpropagation has rates
        if layer is not own or rate_phase() == "replay":
            return
        given = first_argument(args, kwargs)
        noise = spike_noise()
        drawn = None if noise is None else noise.drawn.pop(layer, None)
        given = given.mean if isinstance(given, Moments) else given
        spikes = output[0] if isinstance(output, tuple) else output
        current = drawn
        if current is None and isinstance(given, Tensor):
            current = as_steps(layer, given)
        on_call(LayerCall(name, layer, as_steps(layer, spikes), current, spikes))

    return hook


def _ask_for_current(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Have neurons that fire by noise hand out the current that they draw."""
    noise = spike_noise()
    if noise is not None:
        noise.drawn[layer] = None


def _joined(pieces: list[Tensor | None]) -> Tensor | None:
    known = [piece for piece in pieces if piece is not None]
    return torch.cat(known) if known and len(known) == len(pieces) else None


def _joined_thresholds(pieces: _Pieces) -> float | Tensor | None:
    found = pieces.thresholds
    varying = [each for each in found if isinstance(each, Tensor) and each.dim() == 3]
    if varying and len(varying) == len(found):
        return torch.cat(varying)
    return found[0] if found else None
