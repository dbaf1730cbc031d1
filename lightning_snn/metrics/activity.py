"""What a spiking network does while it runs: its spikes, and the synaptic operations that they cause.

By NeuroBench's (Yik et al. 2025) definitions:

- Spikes per neuron per step: spikes of all spiking layers, over neurons times time steps times samples.
- Effective synaptic operations: for every input of a connection layer that is not zero, the number of nonzero weights
  that it meets; nothing else does work on event-driven hardware. They are accumulates (ACs) in time steps whose inputs
  are all -1, 0 or 1, and multiply-accumulates (MACs) in all others; the first layer's inputs are the data, which may be
  anything. Of a call whose time steps are not known all of it is one. A recurrent spiking layer hears its own spikes
  one step late, those of the last step never. Biases, normalization, pooling and the neurons themselves count nothing.
- Dense synaptic operations: the same, if no input and no weight were zero.

The MACs of the dense artificial network, to compare with, are the dense operations of one pass: of one time step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_snn.metrics.functional import accumulation_dtype
from lightning_snn.metrics.operations import (
    CONNECTIONS,
    Effective,
    dense_operations,
    effective_operations,
    fan_out,
    pads_with_zeros,
    row_dimensions,
)
from lightning_snn.metrics.operations import synaptic_operations as synaptic_operations
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import RecurrentLIF
from lightning_snn.nn.observation import LayerCall, Traces, first_argument, observe, takes_all_steps
from lightning_snn.nn.phase import rate_phase


@dataclass
class Activity:
    """Totals of what a network did within `record_activity`; the tensors stay on the network's device.

    Attributes:
        spikes: number of spikes of each spiking layer, int64 scalars.
        neuron_steps: neurons times steps times samples of each spiking layer.
        operations: effective synaptic operations of each connection layer and recurrent spiking layer, int64 scalars.
        accumulates: those of them that are accumulates; the others are multiply-accumulates.
        dense: dense synaptic operations of the same layers.
        rows: their inputs: time steps times samples, once for each time that a layer is used in a pass. What a linear
            layer hears in one time step of one sample is one of them, however many tokens or pixels it has. That a
            call outside `run` gave it several time steps is known by its first two axes, in either order: those of the
            calls of a spiking layer.
        samples: samples seen. Counted are the rows that a network is called with by `lightning_snn.run`, otherwise
            those of the calls of its first spiking layer; where that takes one step a call, a context is one batch.
            Whoever knows better sets this number.
        steps: time steps of the sequence that a spiking layer took last in one call; 0 if they take one step a call.
        raster: spikes of the first sample in each spiking layer, a list of pieces of shape `(steps, N)`.
        uncounted: layers with a weight matrix whose operations are not counted.
    """

    spikes: dict[str, Tensor] = field(default_factory=dict)
    neuron_steps: dict[str, int] = field(default_factory=dict)
    operations: dict[str, Tensor] = field(default_factory=dict)
    accumulates: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    steps: int = 0
    raster: dict[str, list[Tensor]] = field(default_factory=dict)
    uncounted: list[str] = field(default_factory=list)

    def spikes_per_neuron_per_step(self) -> float:
        """Spikes per neuron and time step over all spiking layers, in [0, 1] for binary spikes; nan if none ran."""
        neuron_steps = sum(self.neuron_steps.values())
        return float(sum(self.spikes.values())) / neuron_steps if neuron_steps else float("nan")

    def spike_rates(self) -> dict[str, float]:
        """Spikes per neuron and time step of each spiking layer."""
        return {name: float(count) / self.neuron_steps[name] for name, count in self.spikes.items()}

    def synaptic_operations_per_sample(self) -> float:
        """Effective synaptic operations that one sample costs, over all its time steps; nan if no sample was seen."""
        return float(sum(self.operations.values())) / self.samples if self.samples else float("nan")

    def dense_pass(self) -> dict[str, float]:
        """Multiply-accumulates of each layer in one dense pass of one sample: those of an artificial network with the
        same connections. A layer that is used several times in a pass, its weights being shared by several places,
        counts once; one that is used on many tokens or pixels at once counts them all."""
        return {name: self.dense[name] / rows for name, rows in self.rows.items()}

    def first_sample(self) -> dict[str, Tensor]:
        """Spikes of the first sample in each spiking layer that ran, shape `(T, N)`."""
        return {name: torch.cat(pieces) for name, pieces in self.raster.items()}

    def add_operations(self, name: str, effective: Effective, dense: int, rows: int) -> None:
        """Add a call of a layer: its effective and dense operations and the rows of its input."""
        self.operations[name] = self.operations.get(name, 0) + effective.total
        self.accumulates[name] = self.accumulates.get(name, 0) + effective.accumulates
        self.dense[name] = self.dense.get(name, 0) + dense
        self.rows[name] = self.rows.get(name, 0) + rows


@contextmanager
def record_activity(
    network: nn.Module, activity: Activity | None = None, first_sample: bool = False
) -> Iterator[Activity]:
    """Count spikes and synaptic operations of every call of a network within this context.

    K noisy samples of a prediction are K runs: their operations add up, what they share counts once. Which weights are
    zero is looked up once in a context.

    Args:
        network: any module; its spiking layers, also those of other libraries, are found by `nn.registry`. Its lazy
            layers may get their parameters in this context.
        activity: totals to add to; None starts new ones.
        first_sample: keep the spikes of the first sample too. Layers of other libraries that are called step by step
            give one step a call, so that the context should then enclose the steps of one batch.

    Returns:
        A context that gives the `Activity`, whose `rows` and `uncounted` are complete when it ends. The hooks are gone
        then, also by an exception.

    Example:
        >>> with record_activity(network) as activity:
        ...     run(network, x)
        >>> activity.spikes_per_neuron_per_step()
    """
    recorder = _Recorder(Activity() if activity is None else activity, first_sample)
    with ExitStack() as hooks:
        hooks.callback(recorder.complete, network)
        hooks.callback(network.register_forward_pre_hook(recorder.count_samples, with_kwargs=True).remove)
        spiking = hooks.enter_context(observe(network, recorder.count_spikes))
        recorder.spiking = spiking
        for name, layer in network.named_modules():
            name = name or type(layer).__name__
            if isinstance(layer, CONNECTIONS) and pads_with_zeros(layer):
                hooks.callback(layer.register_forward_pre_hook(recorder.operation_counter(name, layer)).remove)
        yield recorder.activity
        recorder.keep_first_sample()


class SynapticOperations(Metric):
    """Synaptic operations that one sample costs: effective accumulates, effective multiply-accumulates, and dense.

    The sum over batches and processes, divided by the number of their samples; nan if there was no sample.

    Args:
        layer: which layer, by its name within the network; None takes all of them together.
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = SynapticOperations()
        >>> for x, y in loader:
        ...     with record_activity(network) as activity:
        ...         run(network, x)
        ...     metric.update(activity)
        >>> metric.compute()["effective_acs"]
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    counts: Tensor
    samples: Tensor

    def __init__(self, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        # integers, which a module that is cast to another dtype leaves alone
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, activity: Activity) -> None:
        """Add what was recorded of a batch.

        Raises:
            ValueError: if there is no such layer.
        """
        self.counts = self.counts + _operations(activity, self.layer, self.counts.device)
        self.samples = self.samples + activity.samples

    def compute(self) -> dict[str, Tensor]:
        """`effective_acs`, `effective_macs` and `dense`, scalars in float64 (float32 on Apple's MPS)."""
        return _per_sample(self.counts, self.samples)


def operations_per_sample(activity: Activity, layer: str | None = None) -> dict[str, Tensor]:
    """Synaptic operations that one sample costs: the twin of `SynapticOperations`.

    Args:
        activity: from `record_activity`.
        layer: which layer, by its name within the network; None takes all of them together.

    Returns:
        `effective_acs`, `effective_macs` and `dense`, scalars in float64 (float32 on Apple's MPS); nan if no sample
        was seen.

    Raises:
        ValueError: if there is no such layer.
    """
    device = next((count.device for count in activity.operations.values()), torch.device("cpu"))
    return _per_sample(_operations(activity, layer, device), torch.tensor(activity.samples, device=device))


class _Recorder:
    """What hooks of a context write into an `Activity`."""

    def __init__(self, activity: Activity, first_sample: bool) -> None:
        self.activity = activity
        self.traces = Traces(samples=1) if first_sample else None
        self.spiking: dict[str, nn.Module] = {}
        self._in_runs = False
        self._first: str | None = None
        self._known: dict[tuple[str, torch.Size], tuple[Tensor, int]] = {}
        # outside of `run`: calls of linear layers by their first two axes; of spiking layers the steps and samples of
        # those that take all steps in a call, and all steps by layer and samples
        self._leading: Counter[tuple[str, int, int]] = Counter()
        self._sequences: set[tuple[float, int]] = set()
        self._heard: Counter[tuple[str, int]] = Counter()

    def count_samples(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps = time_steps()
        given = first_argument(args, kwargs)
        if isinstance(given, Tensor) and (steps is not None or not self.spiking):
            self._in_runs = True
            self.activity.samples += given.shape[0] // (steps or 1)

    def count_spikes(self, call: LayerCall) -> None:
        spikes, activity = call.spikes.detach(), self.activity
        activity.spikes[call.name] = activity.spikes.get(call.name, 0) + torch.count_nonzero(spikes)
        activity.neuron_steps[call.name] = activity.neuron_steps.get(call.name, 0) + spikes.numel()
        if takes_all_steps(call.layer):
            activity.steps = spikes.shape[0]
        if time_steps() is None:
            self._heard[call.name, spikes.shape[1]] += spikes.shape[0]
            if takes_all_steps(call.layer):
                self._sequences.add((spikes.shape[0], spikes.shape[1]))
        if isinstance(call.layer, RecurrentLIF):
            # those of the last step would be heard in the next
            heard = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
            self._add(call.name, call.layer, heard, heard.shape[0] * heard.shape[1])
        if self.traces is not None:
            self.traces.add(call)
        if not self._in_runs and (self._first is None or (self._first == call.name and takes_all_steps(call.layer))):
            self._first = call.name
            activity.samples += spikes.shape[1]

    def operation_counter(self, name: str, own: nn.Module) -> Any:
        def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
            # copies of a network take its hooks with them; the second pass of rate-based backpropagation is no cost
            # of what the network does
            if layer is not own or rate_phase() == "replay":
                return
            # a Gaussian activation is an analog value that the layer hears through its mean
            x = args[0].mean if isinstance(args[0], Moments) else args[0]
            if time_steps() is None and row_dimensions(layer) == 1 and x.dim() > 2 and not _is_multi_step(layer):
                self._leading[name, x.shape[0], x.shape[1]] += 1
                # time comes first where spiking layers take all of it
                over_time = x if any(map(takes_all_steps, self.spiking.values())) else x[None]
                self._add(name, layer, over_time, x.shape[0])
            else:
                self._add(name, layer, *_over_time(layer, x))

        return count

    def complete(self, network: nn.Module) -> None:
        for (name, first, second), calls in self._leading.items():
            # a call of a layer that is called less often than a spiking layer has several of its steps
            known = self._sequences | {(steps / calls, samples) for (_, samples), steps in self._heard.items()}
            if (first, second) in known or (second, first) in known:
                self.activity.rows[name] += calls * first * (second - 1)
        for name, layer in network.named_modules():
            name = name or type(layer).__name__
            if name not in self.activity.uncounted and _is_uncounted(layer):
                self.activity.uncounted.append(name)

    def keep_first_sample(self) -> None:
        for name, trace in self.traces.found().items() if self.traces is not None else ():
            self.activity.raster.setdefault(name, []).append(trace.spikes[:, 0])

    def _add(self, name: str, layer: nn.Module, steps: Tensor, rows: int) -> None:
        """Add the input of a call as time steps, shape `[steps, ...]`, and its rows."""
        fan, dense = self._connections(name, layer, steps.shape)
        inputs = steps.shape[: steps.dim() - fan.dim()].numel()
        self.activity.add_operations(name, effective_operations(steps, fan), dense * inputs, rows)

    def _connections(self, name: str, layer: Any, shape: torch.Size) -> tuple[Tensor, int]:
        """Fan-out and dense operations of a row; a network may be given inputs `[steps, B, ...]` of several sizes."""
        key = name, shape[2:]
        if key not in self._known:
            self._known[key] = fan_out(layer, shape), dense_operations(layer, shape)
        return self._known[key]


def _over_time(layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The input of a call as time steps `[steps, ...]`, and its rows: each one time step of one sample."""
    steps = time_steps()
    if steps is not None and x.shape[0] % steps == 0:
        return x.unflatten(0, (steps, -1)), x.shape[0]
    if _is_multi_step(layer):
        return x, x.shape[0] * x.shape[1]
    return x[None], x.shape[0] if x.dim() > row_dimensions(layer) else 1


def _is_multi_step(layer: nn.Module) -> bool:
    """Whether a connection is one of SpikingJelly's that take `[T, B, ...]`."""
    return getattr(layer, "step_mode", "s") == "m"


def _is_uncounted(layer: nn.Module) -> bool:
    if isinstance(layer, RecurrentLIF) or (isinstance(layer, CONNECTIONS) and pads_with_zeros(layer)):
        return False
    return any(not is_lazy(parameter) and parameter.dim() > 1 for parameter in layer.parameters(recurse=False))


def _operations(activity: Activity, layer: str | None, device: torch.device) -> Tensor:
    """Accumulates, multiply-accumulates and dense operations, int64 `[3]`."""
    if layer is not None and layer not in activity.operations:
        raise ValueError(
            f"Expected argument `layer` to be one of {', '.join(map(repr, activity.operations))}, but got {layer!r}"
        )
    counted = torch.zeros(3, dtype=torch.long, device=device)
    for name in activity.operations if layer is None else (layer,):
        accumulates = activity.accumulates[name]
        counted[0] += accumulates
        counted[1] += activity.operations[name] - accumulates
        counted[2] += activity.dense[name]
    return counted


def _per_sample(counts: Tensor, samples: Tensor) -> dict[str, Tensor]:
    accumulates, macs, dense = counts.to(accumulation_dtype(counts.device)) / samples
    return {"effective_acs": accumulates, "effective_macs": macs, "dense": dense}
