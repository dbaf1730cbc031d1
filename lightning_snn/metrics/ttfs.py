"""What a time-to-first-spike network costs, and whether it says what its reference says.

Spikes are counted where neurons emit them, before any pooling; inputs are counted apart, and the readout has no spikes.
Remaining times are what flows between layers; a neuron spiked where its remaining time is positive.

The functions and the classes of this module measure the same: a class sums over batches and processes. Spikes per
neuron are those of spike trains `[T, B, ...]` too; what else such trains tell is in `lightning_snn.metrics.spikes`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.methods.ttfs import FirstSpike, SpikeEncoder, TimeWindow
from lightning_snn.methods.ttfs.windows import latency as latency
from lightning_snn.metrics.functional import Reduction, accumulation_dtype
from lightning_snn.metrics.probability import SampleMean
from lightning_snn.metrics.spikes import CountRatio, check_spikes


class Emission(NamedTuple):
    """What a layer emitted in a call.

    Attributes:
        remaining: remaining times `[B, ...]`, 0 where there was no spike.
        early: whether a neuron should have spiked before its window began, bool `[B, ...]`; None for the inputs.
    """

    remaining: Tensor
    early: Tensor | None


def emitting_layers(network: nn.Module) -> dict[str, nn.Module]:
    """What emits spikes in a network, by name: encoders first, then neurons, as the network orders and names them."""
    encoders = {name: layer for name, layer in network.named_modules() if isinstance(layer, SpikeEncoder)}
    neurons: dict[str, nn.Module] = dict(getattr(network, "spiking", ()))
    known = {*encoders.values(), *neurons.values()}
    others = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, TimeWindow) and layer not in known
    }
    return {**encoders, **neurons, **others}


@contextmanager
def record_emissions(network: nn.Module) -> Iterator[dict[str, Emission]]:
    """Within this context keep what each layer of a network emitted in its last call.

    Args:
        network: any module with `FirstSpike` neurons, `AlphaLinear` or `AlphaConv2d`, and `SpikeEncoder`.

    Returns:
        a context that gives emissions by the names of layers. The hooks are gone when it ends, also by an exception.

    Example:
        >>> with record_emissions(network) as emissions:
        ...     logits = network(x)
        >>> spikes_per_neuron(emissions), spikes_per_neuron(emissions, "encoder")
    """
    emissions: dict[str, Emission] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
            remaining = output.detach()
            early = None
            if not isinstance(layer, SpikeEncoder):
                # neurons that are clipped show in their drive only
                drive = args[0].detach() if isinstance(layer, FirstSpike) else remaining
                early = drive > layer.window
            emissions[name] = Emission(remaining, early)

        return hook

    try:
        for name, layer in emitting_layers(network).items():
            handles.append(layer.register_forward_hook(keep(name)))
        yield emissions
    finally:
        for handle in handles:
            handle.remove()


def spikes_per_neuron(spikes: Tensor | Mapping[str, Emission], layer: str | None = None) -> Tensor:
    """Spikes per neuron and sample.

    Of spike trains 1 / (B N) sum_{t, b, i} 1[s_i^b(t) != 0]; of neurons that spike at most once the mean of
    1[remaining time > 0].

    Args:
        spikes: spike trains `(T, B, ...)` in which any value but 0 is a spike, or emissions by layer, from
            `record_emissions`.
        layer: which layer of the emissions; None takes all neurons, and no inputs.

    Returns:
        a scalar in float64 (float32 on Apple's MPS), within [0, T], of emissions within [0, 1]; nan if there are no
        neurons.

    Raises:
        ValueError: if there is no such layer, or spike trains have fewer than two axes.
    """
    return _fraction(*_spike_counts(spikes, layer))


def overflow_fraction(emissions: Mapping[str, Emission], layer: str | None = None) -> Tensor:
    """Fraction of neurons and samples that should have spiked before their window began.

    Args:
        emissions: by layer, from `record_emissions`.
        layer: which layer of neurons; None takes them all.

    Returns:
        a scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there are no neurons.

    Raises:
        ValueError: if there is no such layer, or it is one of inputs.
    """
    return _fraction(*_overflow_counts(_chosen(emissions, layer)))


def agreement(outputs: Tensor, reference: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Fraction of samples for which two networks name the same class.

    A = 1/N sum_n 1[argmax_c z_n[c] = argmax_c r_n[c]]

    Args:
        outputs: logits, potentials or probabilities z, shape `(N, C)`. Among equals the first class counts.
        reference: those of the reference network r, shape `(N, C)`.
        reduction: `"mean"` over samples, or `"none"` for one value (0 or 1) a sample.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), or shape `(N,)`, within [0, 1]. The mean of no sample is nan.

    Raises:
        ValueError: if an argument is not what is stated above.
    """
    check_choice("reduction", reduction, ("mean", "none"))
    if outputs.dim() != 2 or outputs.shape != reference.shape:
        raise ValueError(
            "Expected arguments `outputs` and `reference` to be of one shape (N, C), but got "
            f"{tuple(outputs.shape)} and {tuple(reference.shape)}"
        )
    equal = (outputs.argmax(1) == reference.argmax(1)).to(accumulation_dtype(outputs.device))
    return equal.mean() if reduction == "mean" else equal


def time_steps(network: nn.Module, time_bits: int) -> int:
    """Time steps that a clocked device takes until the readout: windows in a row times 2^time_bits.

    Args:
        network: as in `methods.ttfs.cascade`.
        time_bits: bits of a spike time within its window, at least 1.

    Raises:
        ValueError: if `time_bits` is outside its range.
    """
    check_integer("time_bits", time_bits)
    sources: Mapping[str, list[str]] | None = getattr(network, "sources", None)
    windows: dict[str, int] = {}
    last: list[str] = []
    for name, layer in emitting_layers(network).items():
        if not isinstance(layer, SpikeEncoder):
            heard = last if sources is None else sources[name]
            # that of the inputs is the first
            windows[name] = 1 + max((windows.get(source, 1) for source in heard), default=1)
            last = [name]
    return max(windows.values(), default=1) * 2**time_bits


class LayerCountRatio(CountRatio, ABC):
    """A ratio of two counts in one layer or in all; see `CountRatio`.

    Args:
        layer: which layer; None takes all neurons, and no inputs.
        kwargs: see `torchmetrics.Metric`.
    """

    def __init__(self, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer


class SpikesPerNeuron(LayerCountRatio):
    """Spikes per neuron and sample, of spike trains or of the neurons of a network of first spikes.

    See `spikes_per_neuron`.

    Args:
        layer: which layer of a network of first spikes, the encoder's name for the inputs; None takes all neurons, and
            no inputs.
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = SpikesPerNeuron()
        >>> metric.update({"1": Emission(torch.tensor([[0.5, 0.0]]), torch.tensor([[False, False]]))})
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
        >>> trains = SpikesPerNeuron()
        >>> trains.update(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        >>> trains.compute()
        tensor(1.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def update(self, spikes: Tensor | Mapping[str, Emission]) -> None:
        """Add a batch: spike trains `[T, B, ...]`, or emissions from `record_emissions`.

        Raises:
            ValueError: if there is no such layer, or spike trains have fewer than two axes.
        """
        self.add(*_spike_counts(spikes, self.layer))

    @classmethod
    def by_layer(cls, network: nn.Module) -> MetricCollection:
        """One metric for the inputs and for each layer of neurons, and under "all" that of all neurons.

        Keys are the names of `emitting_layers` with / for each dot.
        """
        layers = {name.replace(".", "/"): cls(name) for name in emitting_layers(network)}
        return MetricCollection({"all": cls(), **layers}, compute_groups=False)


class OverflowFraction(LayerCountRatio):
    """Fraction of neurons and samples that should have spiked before their window began.

    Args:
        layer: which layer of neurons; None takes them all.
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = OverflowFraction()
        >>> metric.update({"1": Emission(torch.tensor([[0.5, 2.0]]), torch.tensor([[False, True]]))})
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    plot_upper_bound = 1.0

    def update(self, emissions: Mapping[str, Emission]) -> None:
        """Add a batch, from `record_emissions`.

        Raises:
            ValueError: if there is no such layer, or it is one of inputs.
        """
        self.add(*_overflow_counts(_chosen(emissions, self.layer)))


class Agreement(SampleMean):
    """Fraction of samples for which two networks name the same class.

    A = 1/N sum_n 1[argmax_c z_n[c] = argmax_c r_n[c]]

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = Agreement()
        >>> metric.update(torch.tensor([[0.2, 0.1], [0.0, 3.0]]), torch.tensor([[5.0, 1.0], [0.3, 0.2]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("agreement", **kwargs)

    def sample_values(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """1 where both name the same class, else 0, shape `(N,)`."""
        return agreement(outputs, reference, reduction="none")


class Latency(Metric):
    """When the readout is read, in units of the input window: the longest of the networks that were shown.

    t_read = 1 + sum_n Delta_n for windows in a row

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = Latency()
        >>> metric.update(nn.Sequential(SpikeEncoder(), nn.Linear(4, 3), FirstSpike(window=2.5), nn.Linear(3, 2)))
        >>> metric.compute()
        tensor(3.5000, dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0

    latest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("latest", torch.tensor(-torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, network: nn.Module) -> None:
        """Take the windows of a network as they are."""
        self.latest = torch.maximum(self.latest, latency(network).to(self.latest))

    def compute(self) -> Tensor:
        """The latency, a scalar."""
        return self.latest


def _chosen(emissions: Mapping[str, Emission], layer: str | None) -> list[Emission]:
    if layer is None:
        return [emission for emission in emissions.values() if emission.early is not None]
    check_choice("layer", layer, tuple(emissions))
    return [emissions[layer]]


def _spike_counts(spikes: Tensor | Mapping[str, Emission], layer: str | None) -> tuple[Tensor, int]:
    """Spikes, and neurons times samples."""
    if isinstance(spikes, Tensor):
        if layer is not None:
            raise ValueError(f"Expected emissions by layer for argument `layer`, {layer!r}, but got one tensor")
        check_spikes(spikes)
        return torch.count_nonzero(spikes), spikes.shape[1:].numel()
    emissions = _chosen(spikes, layer)
    found = [torch.count_nonzero(emission.remaining > 0) for emission in emissions]
    return _sum(found), sum(emission.remaining.numel() for emission in emissions)


def _overflow_counts(emissions: list[Emission]) -> tuple[Tensor, int]:
    """Early spikes, and neurons times samples."""
    early = [emission.early for emission in emissions if emission.early is not None]
    if len(early) < len(emissions):
        raise ValueError("Expected argument `layer` to name neurons, but got an encoder of inputs")
    return _sum([torch.count_nonzero(mask) for mask in early]), sum(mask.numel() for mask in early)


def _sum(counts: list[Tensor]) -> Tensor:
    return torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long)


def _fraction(count: Tensor, total: Tensor | int) -> Tensor:
    return count.to(accumulation_dtype(count.device)) / total
