"""Spikes and synaptic operations of a running network.

The quantities are defined as in NeuroBench (Yik et al. 2025):

- Spikes per neuron per step: spikes of all spiking layers, divided by neurons times time steps times samples.
- Effective synaptic operations: the sum over all nonzero inputs of a connection layer of the number of nonzero weights
  of the input. Only these operations cost work on event-driven hardware. They are accumulates (ACs) in time steps whose
  inputs are all -1, 0 or 1, and multiply-accumulates (MACs) in all other time steps. The inputs of the first layer are
  the data, which may have any values. A call whose time steps are unknown counts as one time step. A recurrent spiking
  layer receives its own spikes one step later, so its spikes of the last step cause no operations. Products that a
  module computes itself, such as those of attention, count the pairs of nonzero factors, see `metrics.products`;
  NeuroBench leaves them out. Biases, normalization, pooling and the neurons themselves are not counted.
- Dense synaptic operations: the same if no input and no weight were zero.

The MACs of an equivalent artificial network are the dense operations of one pass, that is, of one time step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_snn.metrics.functional import accumulation_dtype
from lightning_snn.metrics.operations import (
    Connection,
    Effective,
    connection_of,
    effective_operations,
    is_uncounted,
    recurrence_of,
)
from lightning_snn.metrics.operations import synaptic_operations as synaptic_operations
from lightning_snn.metrics.products import record_products, unobserved
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lengths import valid_steps, without_padding
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.observation import LayerCall, Traces, first_argument, observe, takes_all_steps
from lightning_snn.nn.phase import on_spikes


@dataclass
class Activity:
    """Total spikes and synaptic operations within `record_activity`; the tensors stay on the network's device.

    Attributes:
        spikes: number of spikes of each spiking layer, int64 scalars.
        neuron_steps: neurons times steps times samples of each spiking layer.
        operations: effective synaptic operations of each connection layer, recurrent spiking layer, and module that
            computes products, int64 scalars.
        accumulates: the accumulates among these operations; the others are multiply-accumulates.
        dense: dense synaptic operations of the same layers.
        rows: inputs of the same layers: time steps times samples, for each use of a layer in a pass. The input of a
            linear layer in one time step of one sample is one row, for any number of tokens or pixels. A call outside
            `run` has several time steps if its first two axes, in either order, equal those of a spiking layer's calls.
        samples: number of samples. These are the rows of the network's input if it is called by `lightning_snn.run`,
            otherwise the rows of the calls of its first spiking layer. If this layer takes one step per call, a context
            is one batch. This number may be set to a known value.
        steps: time steps of the latest call of a spiking layer; 0 if the spiking layers take one step per call.
        raster: spikes of the first sample in each spiking layer, a list of pieces of shape `(steps, N)`.
        uncounted: layers with a weight matrix whose operations are not counted, and modules that compute products in a
            way that is not counted, with the name of PyTorch's function.
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
        """Return the spikes per neuron and time step over all spiking layers; nan if none was called.

        The value is in [0, 1] for binary spikes.
        """
        neuron_steps = sum(self.neuron_steps.values())
        return float(sum(self.spikes.values())) / neuron_steps if neuron_steps else float("nan")

    def spike_rates(self) -> dict[str, float]:
        """Return the spikes per neuron and time step of each spiking layer."""
        return {name: float(count) / self.neuron_steps[name] for name, count in self.spikes.items()}

    def synaptic_operations_per_sample(self) -> float:
        """Return the effective synaptic operations per sample, over all its time steps; nan if there was no sample."""
        return float(sum(self.operations.values())) / self.samples if self.samples else float("nan")

    def dense_pass(self) -> dict[str, float]:
        """Return the multiply-accumulates of each layer in one dense pass of one sample.

        These are the operations of an artificial network with the same connections. A layer whose weights are shared by
        several places of the network counts once. A layer that is applied to many tokens or pixels in one call counts
        all of them.
        """
        return {name: self.dense[name] / rows for name, rows in self.rows.items()}

    def first_sample(self) -> dict[str, Tensor]:
        """Return the spikes of the first sample in each spiking layer that was called, shape `(T, N)`."""
        return {name: torch.cat(pieces) for name, pieces in self.raster.items()}

    def add_operations(self, name: str, effective: Effective, dense: int, rows: int) -> None:
        """Add a call of a layer.

        Args:
            name: name of the layer.
            effective: its effective synaptic operations.
            dense: its dense synaptic operations.
            rows: number of rows of its input.
        """
        self.operations[name] = self.operations.get(name, 0) + effective.total
        self.accumulates[name] = self.accumulates.get(name, 0) + effective.accumulates
        self.dense[name] = self.dense.get(name, 0) + dense
        self.rows[name] = self.rows.get(name, 0) + rows


@contextmanager
def record_activity(
    network: nn.Module, activity: Activity | None = None, first_sample: bool = False
) -> Iterator[Activity]:
    """Count spikes and synaptic operations of every call of a network within this context.

    K noisy samples of a prediction are K runs: their operations add up, and layers that are called once for all samples
    count once. The zero weights of a layer are determined once per context.

    Args:
        network: any module; its spiking layers, including those of other libraries, are found by `nn.registry`. Lazy
            layers may be initialized within the context.
        activity: totals to add to; None starts at 0.
        first_sample: whether to keep the spikes of the first sample. Layers of other libraries that are called step by
            step give one step per call, so the context should then enclose the steps of one batch.

    Returns:
        A context manager that yields the `Activity`, whose `rows` and `uncounted` are complete on exit. The hooks are
        removed on exit, also after an exception.

    Example:
        >>> from lightning_snn import LIF, run
        >>> network = nn.Sequential(nn.Linear(3, 2), LIF())
        >>> _ = nn.init.ones_(network[0].weight), nn.init.zeros_(network[0].bias)
        >>> with record_activity(network) as activity:
        ...     _ = run(network, torch.ones(4, 1, 3))
        >>> activity.spikes_per_neuron_per_step(), activity.synaptic_operations_per_sample()
        (1.0, 24.0)
    """
    recorder = _Recorder(Activity() if activity is None else activity, first_sample)
    with ExitStack() as hooks:
        hooks.callback(recorder.complete, network)
        hooks.callback(network.register_forward_pre_hook(recorder.count_samples, with_kwargs=True).remove)
        spiking = hooks.enter_context(observe(network, recorder.count_spikes))
        recorder.spiking = spiking
        for name, layer in network.named_modules():
            name = name or type(layer).__name__
            connection = connection_of(layer)
            if connection is not None:
                hooks.callback(layer.register_forward_pre_hook(recorder.operation_counter(name, connection)).remove)
        hooks.enter_context(record_products(network, recorder.activity))
        yield recorder.activity
        recorder.keep_first_sample()


class SynapticOperations(Metric):
    """Synaptic operations per sample: effective accumulates, effective multiply-accumulates, and dense operations.

    The sum over batches and processes is divided by the number of samples; nan if there was no sample.

    Args:
        layer: name of a layer within the network; None means the sum of all layers.
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> from lightning_snn import LIF, run
        >>> network = nn.Sequential(nn.Linear(3, 2), LIF(), nn.Linear(2, 5))
        >>> metric = SynapticOperations(layer="0")
        >>> for x in (torch.ones(4, 1, 3), torch.zeros(4, 1, 3)):
        ...     with record_activity(network) as activity:
        ...         _ = run(network, x)
        ...     metric.update(activity)
        >>> metric.compute()["effective_acs"]
        tensor(12., dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    counts: Tensor
    samples: Tensor

    def __init__(self, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        # Integers do not change when a module that holds this metric is cast to another dtype.
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, activity: Activity) -> None:
        """Add the recorded activity of a batch.

        Raises:
            ValueError: if there is no such layer.
        """
        self.counts = self.counts + _operations(activity, self.layer, self.counts.device)
        self.samples = self.samples + activity.samples

    def compute(self) -> dict[str, Tensor]:
        """Return `effective_acs`, `effective_macs` and `dense`, scalars in float64 (float32 on Apple's MPS)."""
        return _per_sample(self.counts, self.samples)


def operations_per_sample(activity: Activity, layer: str | None = None) -> dict[str, Tensor]:
    """Compute the synaptic operations per sample: the functional form of `SynapticOperations`.

    Args:
        activity: totals from `record_activity`.
        layer: name of a layer within the network; None means the sum of all layers.

    Returns:
        `effective_acs`, `effective_macs` and `dense`, scalars in float64 (float32 on Apple's MPS); nan if there was no
        sample.

    Raises:
        ValueError: if there is no such layer.

    Example:
        >>> from lightning_snn import LIF, run
        >>> network = nn.Sequential(nn.Linear(3, 2), LIF())
        >>> with record_activity(network) as activity:
        ...     _ = run(network, torch.ones(4, 1, 3))
        >>> operations_per_sample(activity)["dense"]
        tensor(24., dtype=torch.float64)
    """
    device = next((count.device for count in activity.operations.values()), torch.device("cpu"))
    return _per_sample(_operations(activity, layer, device), torch.tensor(activity.samples, device=device))


class _Recorder:
    """Hooks that count spikes and operations into an `Activity`."""

    def __init__(self, activity: Activity, first_sample: bool) -> None:
        self.activity = activity
        self.traces = Traces(samples=1) if first_sample else None
        self.spiking: dict[str, nn.Module] = {}
        self._in_runs = False
        self._first: str | None = None
        self._known: dict[tuple[str, torch.Size], tuple[Tensor, int]] = {}
        # Of calls outside of `run`: the calls of linear layers by their first two axes; steps and samples of the
        # spiking layers that take all steps in one call; and the steps of each spiking layer by its samples.
        self._leading: Counter[tuple[str, int, int]] = Counter()
        self._sequences: set[tuple[float, int]] = set()
        self._spiking_steps: Counter[tuple[str, int]] = Counter()

    def count_samples(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps = time_steps()
        given = first_argument(args, kwargs)
        if isinstance(given, Tensor) and (steps is not None or not self.spiking):
            self._in_runs = True
            self.activity.samples += given.shape[0] // (steps or 1)

    def count_spikes(self, call: LayerCall) -> None:
        spikes, activity = call.valid_spikes, self.activity
        activity.spikes[call.name] = activity.spikes.get(call.name, 0) + torch.count_nonzero(spikes)
        neuron_steps = call.sample_steps * spikes.shape[2:].numel()
        activity.neuron_steps[call.name] = activity.neuron_steps.get(call.name, 0) + neuron_steps
        if takes_all_steps(call.layer):
            activity.steps = spikes.shape[0]
        if time_steps() is None:
            self._spiking_steps[call.name, spikes.shape[1]] += spikes.shape[0]
            if takes_all_steps(call.layer):
                self._sequences.add((spikes.shape[0], spikes.shape[1]))
        recurrence = recurrence_of(call.layer)
        if recurrence is not None:
            # The layer receives its own spikes one step later.
            received = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
            self._add(call.name, recurrence, received, received.shape[0] * received.shape[1], call.valid)
        if self.traces is not None:
            self.traces.add(call)
        if not self._in_runs and (self._first is None or (self._first == call.name and takes_all_steps(call.layer))):
            self._first = call.name
            activity.samples += spikes.shape[1]

    def operation_counter(self, name: str, connection: Connection) -> Any:
        def count(layer: nn.Module, args: tuple[Any, ...]) -> None:
            # Copies of a network copy its hooks. The second pass of rate-based backpropagation does not belong to the
            # activity of the spiking network, and neither do calls for the membrane potentials of an observer.
            if layer is not connection.layer or not on_spikes():
                return
            # A layer receives a Gaussian activation as an analog value, its mean.
            x = args[0].expectation if isinstance(args[0], Moments) else args[0]
            if time_steps() is None and connection.row_dimensions == 1 and x.dim() > 2 and not _is_multi_step(layer):
                self._leading[name, x.shape[0], x.shape[1]] += 1
                # Time is the first axis if spiking layers take all time steps in one call.
                over_time = x if any(map(takes_all_steps, self.spiking.values())) else x[None]
                self._add(name, connection, over_time, x.shape[0])
            else:
                over_time, rows = _over_time(connection, x)
                known = time_steps() is not None and over_time.shape[0] == time_steps()
                self._add(name, connection, over_time, rows, valid_steps(*over_time.shape[:2]) if known else None)

        return count

    def complete(self, network: nn.Module) -> None:
        for (name, first, second), calls in self._leading.items():
            # If a layer is called less often than a spiking layer, each call has several time steps.
            known = self._sequences | {(steps / calls, samples) for (_, samples), steps in self._spiking_steps.items()}
            if (first, second) in known or (second, first) in known:
                self.activity.rows[name] += calls * first * (second - 1)
        for name, layer in network.named_modules():
            name = name or type(layer).__name__
            if name not in self.activity.uncounted and is_uncounted(layer):
                self.activity.uncounted.append(name)

    def keep_first_sample(self) -> None:
        for name, trace in self.traces.found().items() if self.traces is not None else ():
            self.activity.raster.setdefault(name, []).append(trace.spikes[:, 0])

    def _add(self, name: str, connection: Connection, steps: Tensor, rows: int, valid: Tensor | None = None) -> None:
        """Add the operations of a call.

        Args:
            name: name of the layer.
            connection: its connections.
            steps: its input as time steps `[steps, ...]`.
            rows: its number of rows.
            valid: which steps of each sample are no padding, `[steps, B]`; None if all are valid.
        """
        with unobserved():
            fan, dense = self._counts_of_row(name, connection, steps.shape)
        inputs = steps.shape[: steps.dim() - fan.dim()].numel()
        if valid is not None:
            steps = without_padding(steps.detach(), valid)
            inputs, rows = (count // valid.numel() * int(valid.sum()) for count in (inputs, rows))
        self.activity.add_operations(name, effective_operations(steps, fan), dense * inputs, rows)

    def _counts_of_row(self, name: str, connection: Connection, shape: torch.Size) -> tuple[Tensor, int]:
        """Return fan-out and dense operations of a row for inputs `[steps, B, ...]`, cached by layer and size."""
        key = name, shape[2:]
        if key not in self._known:
            self._known[key] = connection.fan_out(shape), connection.dense_operations(shape)
        return self._known[key]


def _over_time(connection: Connection, x: Tensor) -> tuple[Tensor, int]:
    """Return the input of a call as time steps `[steps, ...]`, and its rows: time steps times samples."""
    steps = time_steps()
    if steps is not None and x.shape[0] % steps == 0:
        return x.unflatten(0, (steps, -1)), x.shape[0]
    if _is_multi_step(connection.layer):
        return x, x.shape[0] * x.shape[1]
    return x[None], x.shape[0] if x.dim() > connection.row_dimensions else 1


def _is_multi_step(layer: nn.Module) -> bool:
    """Return whether a layer is one of SpikingJelly's that take `[T, B, ...]`."""
    return getattr(layer, "step_mode", "s") == "m"


def _operations(activity: Activity, layer: str | None, device: torch.device) -> Tensor:
    """Return the accumulates, multiply-accumulates and dense operations, int64 `[3]`."""
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
