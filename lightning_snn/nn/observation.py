"""Watching the spiking layers of a network while it runs, whatever library they are from and however it calls them.

Ours take all time steps at once, folded into the batch; so do SpikingJelly's in multi-step mode, with a time axis;
snntorch's and SpikingJelly's in single-step mode are called once a step. Each call is given as steps `[steps, B, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.functional.membrane import membranes
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lif import LIF, RecurrentLIF, over_channels
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.phase import rate_phase
from lightning_snn.nn.registry import Conventions, conventions_of, spiking_layers


@dataclass(frozen=True)
class LayerCall:
    """One call of a spiking layer.

    Attributes:
        name: of the layer within the network; its type's name where the network is the layer itself.
        layer: the layer.
        spikes: what it returned, shape `[steps, B, ...]`; any value but 0 is a spike.
        current: what it was given, of the same shape; of a Gaussian current the mean. None if it was no tensor.
        output: the spikes as it returned them, to differentiate by: the tensor that the network goes on with.
    """

    name: str
    layer: nn.Module
    spikes: Tensor
    current: Tensor | None
    output: Tensor

    @property
    def threshold(self) -> float | Tensor | None:
        """The firing threshold, which broadcasts to `[B, ...]`; None if it is not known."""
        found: Any = None
        known = conventions_of(self.layer)
        if isinstance(self.layer, LIF):
            found = over_channels(self.layer.threshold, self.spikes[0])
        elif known and known.threshold:
            found = getattr(self.layer, known.threshold)
        return found.detach() if isinstance(found, Tensor) else found

    def membrane(self) -> Tensor | None:
        """The membrane of the steps of this call, without a graph, shape `[steps, B, ...]`; None if it is not known.

        It is what is compared with the threshold, before any reset. SpikingJelly, and snntorch with
        ``reset_delay=False``, keep it after the reset: where that subtracts the threshold it is added again, where it
        sets to a value the membrane of a spike is not known and has that value. Of neurons that fire by noise it is
        the mean of the membrane, given the spikes.

        To be read before the layer is called again. Of SpikingJelly's multi-step mode it is known within
        `observe(..., membranes=True)` only.
        """
        return self._membrane

    @cached_property
    def _membrane(self) -> Tensor | None:
        layer, spikes = self.layer, self.spikes.detach()
        if isinstance(layer, LIF):
            return None if self.current is None else _own_membrane(layer, self.current.detach(), spikes)
        known = conventions_of(layer)
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
            handle = layer.register_forward_hook(_hook(name, layer, on_call), with_kwargs=True)
            hooks.callback(handle.remove)
        yield layers


def named_spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """A network's spiking layers by their names, in order of registration; of a network that is a layer itself, by the
    name of its type."""
    return {name or type(layer).__name__: layer for name, layer in spiking_layers(network)}


@dataclass
class Trace:
    """What a spiking layer did with a few samples.

    Attributes:
        spikes: shape `(T, S, N)`, of S samples and N neurons.
        membrane: of the same shape, see `LayerCall.membrane`; None if it is not known or was not asked for.
        threshold: of the neurons in the first sample, a number or of shape `(N,)`; None if it is not known.
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
    threshold: float | Tensor | None = None
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
            pieces.threshold = _per_neuron(call.threshold, call.spikes[0])

    def found(self) -> dict[str, Trace]:
        """What each layer that ran did, in the order in which layers ran first."""
        return {
            name: Trace(torch.cat(each.spikes), _joined(each.membranes), each.threshold, tuple(each.shape[1:]))
            for name, each in self._pieces.items()
        }

    def _first(self, values: Tensor) -> Tensor:
        return values.detach()[:, : self.samples].flatten(2).clone()


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
        given = given.mean if isinstance(given, Moments) else given
        spikes = output[0] if isinstance(output, tuple) else output
        current = as_steps(layer, given) if isinstance(given, Tensor) else None
        on_call(LayerCall(name, layer, as_steps(layer, spikes), current, spikes))

    return hook


def _per_neuron(threshold: float | Tensor | None, step: Tensor) -> float | Tensor | None:
    if not isinstance(threshold, Tensor) or threshold.dim() == 0:
        return threshold
    return threshold.detach().expand_as(step)[0].flatten()


def _own_membrane(layer: LIF, current: Tensor, spikes: Tensor) -> Tensor:
    if isinstance(layer, RecurrentLIF):
        heard = torch.zeros_like(current)
        heard[1:] = spikes[:-1] @ layer.weight.detach().t().to(spikes.dtype)
        current = current + heard
    beta, threshold = layer.parameters_for(current[0])
    with torch.no_grad():
        return membranes(current, spikes, beta, threshold, layer.dynamics)


def _joined(pieces: list[Tensor | None]) -> Tensor | None:
    known = [piece for piece in pieces if piece is not None]
    return torch.cat(known) if known and len(known) == len(pieces) else None
