"""Observation of the spiking layers of a network while it runs, for layers of this and of other libraries.

The layers of this library take all time steps at once, folded into the batch. Those of SpikingJelly in multi-step mode
take them with a time dimension. Those of snntorch, and of SpikingJelly in single-step mode, are called once per step.
Every call is reported as steps `[steps, B, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.conventions import conventions_of, takes_sequences
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lengths import valid_steps, without_padding
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import Neuron, membrane, runs_by_its_equations
from lightning_snn.nn.noise import spike_noise
from lightning_snn.nn.phase import on_spikes, recomputing
from lightning_snn.nn.registry import spiking_layers
from lightning_snn.nn.run_context import run_values


@dataclass(frozen=True)
class LayerCall:
    """One call of a spiking layer.

    Attributes:
        name: name of the layer within the network, or of its type if the network is the layer itself.
        layer: the layer.
        spikes: its output, shape `[steps, B, ...]`; any value but 0 is a spike.
        current: its input, of the same shape. For a Gaussian current, the drawn current, or the mean if the neurons
            draw no current. None if the input was not a tensor.
        output: the spikes as the layer returned them: the tensor that the network continues with, so derivatives can be
            taken with respect to it.
        before: state of the layer before the call, within `advance`; None is the state of rest.
        continues: whether the call is one of several for a sequence.
        valid: which steps of each sample are no padding, `[steps, B]`, in sequences of different lengths; None if all
            are valid.
    """

    name: str
    layer: nn.Module
    spikes: Tensor
    current: Tensor | None
    output: Tensor
    before: Any = None
    continues: bool = False
    valid: Tensor | None = None

    @property
    def sample_steps(self) -> int:
        """Number of valid steps of all samples."""
        # waits for the device if there are lengths
        return self.spikes.shape[0] * self.spikes.shape[1] if self.valid is None else int(self.valid.sum())

    @property
    def valid_spikes(self) -> Tensor:
        """Spikes `[steps, B, ...]` without a graph, with zeros at padded steps."""
        spikes = self.spikes.detach()
        return spikes if self.valid is None else without_padding(spikes, self.valid)

    @property
    def threshold(self) -> float | Tensor | None:
        """Firing threshold that the membrane potentials are compared with, None if it is not known.

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
        ``reset_delay=False``, keep them after the reset. If the reset subtracts the threshold, the threshold is added
        again. If the reset sets a value, the potential of a spike is not known and is that value. For neurons that fire
        by noise without drawing their current, it is the mean potential, given the spikes.

        Read it before the layer is called again. In SpikingJelly's multi-step mode it is known within
        `observe(..., membranes=True)` only. It is not known for a `Neuron` with a `forward` of its own.
        """
        if isinstance(self.layer, Neuron):
            return None if self._potentials is None else self._potentials[0]
        return self._kept_membrane

    def relative_membrane(self) -> Tensor | None:
        """Return the membrane potentials on a scale with rest at 0 and the firing threshold at 1; None if not known."""
        potentials, threshold = self.membrane(), self.threshold
        if potentials is None or threshold is None:
            return None
        if not isinstance(self.layer, Neuron):
            return potentials / threshold
        rest = membrane(self.layer.initial_state(torch.zeros_like(potentials[0])))
        return (potentials - rest) / (threshold - rest)

    def free_membrane(self) -> Tensor | None:
        """Return the relative membrane potentials of neurons that receive the same current but never spike.

        None if they cannot be computed from the current, as for layers of other libraries.
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
        with recomputing():  # the equations may call modules
            return layer.potentials(self.current.detach(), self.spikes.detach(), self.before)

    @cached_property
    def _kept_membrane(self) -> Tensor | None:
        layer, spikes, known = self.layer, self.spikes.detach(), conventions_of(self.layer)
        if known is None or known.membrane is None:
            return None
        if takes_sequences(layer):
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
        # a graded spike subtracts the threshold once as well
        return kept + threshold * (spikes != 0).to(kept.dtype)


@contextmanager
def observe(
    network: nn.Module, on_call: Callable[[LayerCall], None], membranes: bool = False
) -> Iterator[dict[str, nn.Module]]:
    """Enter a context in which a function receives every call of the spiking layers of a network.

    Calls of copies of the network are not reported, nor those of rate-based backpropagation on rates.

    Args:
        network: any module; its spiking layers are found by `nn.registry`.
        on_call: called with each call after it. An exception that it raises ends the run.
        membranes: make SpikingJelly's multi-step neurons keep their membrane potentials, which costs memory.

    Yields:
        The layers by name, in order of registration. The hooks are removed at the end of the context, also after an
        exception.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF())
        >>> with observe(network, lambda call: print(call.name, tuple(call.spikes.shape))):
        ...     spikes = run(network, torch.rand(10, 2, 4))
        1 (10, 2, 8)
    """
    layers = named_spiking_layers(network)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            if membranes and getattr(layer, "store_v_seq", None) is False and getattr(layer, "step_mode", "s") == "m":
                layer.store_v_seq = True  # type: ignore[assignment]
                hooks.callback(setattr, layer, "store_v_seq", False)
            if membranes and isinstance(layer, Neuron):
                hooks.callback(layer.register_forward_pre_hook(_request_current).remove)
            handle = layer.register_forward_hook(_hook(name, layer, on_call), with_kwargs=True)
            hooks.callback(handle.remove)
        yield layers


def named_spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the spiking layers of a network by name, in order of registration.

    If the network is a spiking layer itself, its name is that of its type.
    """
    return {name or type(layer).__name__: layer for name, layer in spiking_layers(network)}


@dataclass
class Trace:
    """Recorded activity of a spiking layer for a few samples.

    Attributes:
        spikes: spikes, shape `(T, S, N)`, of S samples and N neurons.
        membrane: membrane potentials of the same shape, see `LayerCall.membrane`; None if they are not known or were
            not requested.
        threshold: firing threshold: a number, `(N,)` for the neurons of every sample, or `(T, S, N)` if it varies over
            time or samples; None if it is not known.
        shape: shape of the neurons of a sample before they were flattened.
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
    """Recording of spikes, and optionally membrane potentials, of the first samples in every spiking layer.

    A layer that takes all time steps in a call is recorded in its first call, because later ones are further runs of
    the same batch. For a layer that is called step by step, or within `advance`, every call is a piece of the sequence,
    so `recording` should enclose one batch. If such a layer is used in several places of a network, only its calls with
    the shape of the first one are kept; places of the same shape cannot be distinguished, and their calls are recorded
    as consecutive time steps.

    Args:
        samples: number of samples, from the first, at least 1.
        membranes: record membrane potentials too.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF())
        >>> traces = Traces(samples=2)
        >>> with traces.recording(network):
        ...     spikes = run(network, torch.rand(10, 3, 4))
        >>> traces.found()["1"].spikes.shape
        torch.Size([10, 2, 8])
    """

    def __init__(self, samples: int = 1, membranes: bool = False) -> None:
        self.samples, self.membranes = samples, membranes
        self._pieces: dict[str, _Pieces] = {}

    @contextmanager
    def recording(self, network: nn.Module) -> Iterator[Traces]:
        """Enter a context in which a run of the network is recorded."""
        with observe(network, self.add, self.membranes):
            yield self

    def add(self, call: LayerCall) -> None:
        """Record a call that `observe` reports."""
        shape = call.spikes.shape[1:]
        pieces = self._pieces.setdefault(call.name, _Pieces(shape=shape))
        if pieces.complete or shape != pieces.shape:
            return
        pieces.complete = not call.continues
        pieces.spikes.append(self._first(call.spikes))
        if self.membranes:
            membrane = call.membrane()
            # a copy, because snntorch and SpikingJelly may change it in place
            pieces.membranes.append(None if membrane is None else self._first(membrane))
            pieces.thresholds.append(self._of_neurons(call.threshold, call.spikes))

    def found(self) -> dict[str, Trace]:
        """Return the trace of each layer that ran, in the order of their first calls."""
        return {
            name: Trace(
                torch.cat(each.spikes),
                _concatenated(each.membranes),
                _concatenated_thresholds(each),
                tuple(each.shape[1:]),
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
        if threshold.dim() == spikes.dim() - 1 and len(threshold) > 1:  # it differs between samples
            return self._first(threshold.expand_as(spikes))
        return threshold.detach().expand_as(spikes[0])[0].flatten()


def takes_all_steps(layer: nn.Module) -> bool:
    """Return whether a call of a spiking layer, in the current context, takes all time steps of a sequence."""
    return time_steps() is not None or takes_sequences(layer)


def as_steps(layer: nn.Module, values: Tensor) -> Tensor:
    """Return the input or output of a call of a spiking layer, in the current context, as steps `[steps, B, ...]`."""
    steps = time_steps()
    if steps is not None:
        return torch.unflatten(values, 0, (steps, -1))
    return values if takes_all_steps(layer) else values[None]


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call of a module, by position or else by keyword; None without arguments."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _has_subtracted(layer: nn.Module) -> bool:
    """Return whether a third-party layer keeps its membrane potential after a reset that subtracted the threshold."""
    if getattr(layer, "reset_delay", True) is False:
        return getattr(layer, "reset_mechanism", None) == "subtract"
    # SpikingJelly's value after a reset, None if the reset subtracts the threshold
    return getattr(layer, "v_reset", 0.0) is None


def _hook(name: str, own: nn.Module, on_call: Callable[[LayerCall], None]) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # copies of a network have its hooks too; the second pass of rate-based backpropagation runs on rates
        if layer is not own or not on_spikes():
            return
        given = first_argument(args, kwargs)
        noise = spike_noise()
        drawn = None if noise is None else noise.drawn.pop(layer, None)
        given = given.expectation if isinstance(given, Moments) else given
        spikes = output[0] if isinstance(output, tuple) else output
        current = drawn
        if current is None and isinstance(given, Tensor):
            current = as_steps(layer, given)
        states = run_values().states
        latest = None if states is None else states.latest(layer)
        steps = as_steps(layer, spikes)
        on_call(
            LayerCall(
                name,
                layer,
                steps,
                current,
                spikes,
                None if latest is None else latest.given,
                latest is not None or not takes_all_steps(layer),
                valid_steps(*steps.shape[:2]),
            )
        )

    return hook


def _request_current(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Request the drawn current of neurons that fire by noise."""
    noise = spike_noise()
    if noise is not None:
        noise.drawn[layer] = None


def _concatenated(pieces: list[Tensor | None]) -> Tensor | None:
    known = [piece for piece in pieces if piece is not None]
    return torch.cat(known) if known and len(known) == len(pieces) else None


def _concatenated_thresholds(pieces: _Pieces) -> float | Tensor | None:
    found = pieces.thresholds
    varying = [each for each in found if isinstance(each, Tensor) and each.dim() == 3]
    if varying and len(varying) == len(found):
        return torch.cat(varying)
    return found[0] if found else None
