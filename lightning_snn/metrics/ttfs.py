"""Spikes per neuron, overflow, agreement and latency of time-to-first-spike networks.

Spikes are counted where neurons emit them, before any pooling. The spikes of inputs are counted separately, and the
readout has no spikes. Layers exchange remaining times; a neuron has spiked if its remaining time is positive.

Each class computes the same value as its function, over all batches and processes. Spikes per neuron can also be
computed from spike trains `[T, B, ...]`; other metrics of spike trains are in `lightning_snn.metrics.spikes`.
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
from lightning_snn.metrics.functional import Reduction, accumulation_dtype, check_numbers
from lightning_snn.metrics.probability import SampleMean
from lightning_snn.metrics.spikes import CountRatio, check_spikes


class Emission(NamedTuple):
    """Spikes of a layer in one call.

    Attributes:
        remaining: remaining times `[B, ...]`, 0 where there was no spike.
        early: whether a neuron should have spiked before the start of its window, bool `[B, ...]`; None for the inputs.
    """

    remaining: Tensor
    early: Tensor | None


def emitting_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that emit spikes by name: first the encoders, then the neurons in the order of the network."""
    encoders = {name: layer for name, layer in network.named_modules() if isinstance(layer, SpikeEncoder)}
    neurons: dict[str, nn.Module] = dict(getattr(network, "spiking", ()))
    known = {*encoders.values(), *neurons.values()}
    others = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, TimeWindow) and layer not in known
    }
    return {**encoders, **neurons, **others}


@contextmanager
def record_emissions(network: nn.Module) -> Iterator[dict[str, Emission]]:
    """Record the spikes of each layer of a network in its last call within this context.

    Args:
        network: any module with `FirstSpike` neurons, `AlphaLinear` or `AlphaConv2d`, and `SpikeEncoder`.

    Returns:
        A context manager that yields the emissions by layer name. The hooks are removed on exit, also after an
        exception.

    Example:
        >>> network = nn.Sequential(SpikeEncoder(), nn.Linear(2, 1), FirstSpike())
        >>> _ = nn.init.ones_(network[1].weight), nn.init.zeros_(network[1].bias)
        >>> with record_emissions(network) as emissions:
        ...     _ = network(torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
        >>> spikes_per_neuron(emissions), spikes_per_neuron(emissions, "0")
        (tensor(0.5000, dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """
    emissions: dict[str, Emission] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
            remaining = output.detach()
            early = None
            if not isinstance(layer, SpikeEncoder):
                # Clipped neurons can only be identified by their input.
                unclipped = args[0].detach() if isinstance(layer, FirstSpike) else remaining
                early = unclipped > layer.window
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
    """Compute the spikes per neuron and sample.

    For spike trains 1 / (B N) sum_{t, b, i} 1[s_i^b(t) != 0]; for neurons that spike at most once the mean of
    1[remaining time > 0].

    Args:
        spikes: spike trains `(T, B, ...)` in which any nonzero value is a spike, or emissions by layer from
            `record_emissions`.
        layer: name of a layer of the emissions; None means all neurons, without the inputs.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, T] for spike trains and [0, 1] for emissions; nan if
        there are no neurons.

    Raises:
        ValueError: if there is no such layer, spike trains have fewer than two axes, or a spike is nan.

    Example:
        >>> spikes_per_neuron(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor(1.5000, dtype=torch.float64)
    """
    return _fraction(*_spike_counts(spikes, layer))


def overflow_fraction(emissions: Mapping[str, Emission], layer: str | None = None) -> Tensor:
    """Compute the fraction of neurons and samples that should have spiked before the start of their window.

    Args:
        emissions: emissions by layer from `record_emissions`.
        layer: name of a layer of neurons; None means all of them.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there are no neurons.

    Raises:
        ValueError: if there is no such layer, it encodes inputs, or a remaining time is nan.

    Example:
        >>> overflow_fraction({"1": Emission(torch.tensor([[0.5, 2.0]]), torch.tensor([[False, True]]))})
        tensor(0.5000, dtype=torch.float64)
    """
    return _fraction(*_overflow_counts(_chosen(emissions, layer)))


def agreement(outputs: Tensor, reference: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the fraction of samples for which two networks predict the same class.

    A = 1/N sum_n 1[argmax_c z_n[c] = argmax_c r_n[c]]

    Args:
        outputs: logits, potentials or probabilities z, shape `(N, C)`. Ties go to the first class.
        reference: outputs r of the reference network, shape `(N, C)`.
        reduction: `"mean"` over samples, or `"none"` for one value (0 or 1) per sample.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), or shape `(N,)`, within [0, 1]. The mean is nan if there is no
        sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> agreement(torch.tensor([[0.2, 0.1], [0.0, 3.0]]), torch.tensor([[5.0, 1.0], [0.3, 0.2]]))
        tensor(0.5000, dtype=torch.float64)
    """
    check_choice("reduction", reduction, ("mean", "none"))
    if outputs.dim() != 2 or outputs.shape != reference.shape:
        raise ValueError(
            "Expected arguments `outputs` and `reference` to have the same shape (N, C), but got "
            f"{tuple(outputs.shape)} and {tuple(reference.shape)}"
        )
    check_numbers("outputs", outputs)
    check_numbers("reference", reference)
    equal = (outputs.argmax(1) == reference.argmax(1)).to(accumulation_dtype(outputs.device))
    return equal.mean() if reduction == "mean" else equal


def time_steps(network: nn.Module, time_bits: int) -> int:
    """Compute the time steps of a clocked device until the readout: successive windows times 2^time_bits.

    Args:
        network: as in `methods.ttfs.cascade`.
        time_bits: bits of a spike time within its window, at least 1.

    Raises:
        ValueError: if `time_bits` is outside its range.

    Example:
        >>> time_steps(nn.Sequential(SpikeEncoder(), nn.Linear(4, 3), FirstSpike(), nn.Linear(3, 2)), time_bits=3)
        16
    """
    check_integer("time_bits", time_bits)
    sources: Mapping[str, list[str]] | None = getattr(network, "sources", None)
    windows: dict[str, int] = {}
    last: list[str] = []
    for name, layer in emitting_layers(network).items():
        if not isinstance(layer, SpikeEncoder):
            presynaptic = last if sources is None else sources[name]
            # The first window is that of the inputs.
            windows[name] = 1 + max((windows.get(source, 1) for source in presynaptic), default=1)
            last = [name]
    return max(windows.values(), default=1) << time_bits


class LayerCountRatio(CountRatio, ABC):
    """Ratio of two counts in one layer or in all layers; see `CountRatio`.

    Args:
        layer: name of the layer; None means all neurons, without the inputs.
        kwargs: see `torchmetrics.Metric`.
    """

    def __init__(self, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer


class SpikesPerNeuron(LayerCountRatio):
    """Spikes per neuron and sample of spike trains or of a time-to-first-spike network; see `spikes_per_neuron`.

    Args:
        layer: name of a layer of a time-to-first-spike network, that of the encoder for the inputs; None means all
            neurons, without the inputs.
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
            ValueError: if there is no such layer, spike trains have fewer than two axes, or a spike is nan.
        """
        self.add(*_spike_counts(spikes, self.layer))

    @classmethod
    def by_layer(cls, network: nn.Module) -> MetricCollection:
        """Create one metric for the inputs, one for each layer of neurons, and one for all neurons with the key "all".

        The other keys are the names of `emitting_layers`, with / in place of each dot.
        """
        layers = {name.replace(".", "/"): cls(name) for name in emitting_layers(network)}
        return MetricCollection({"all": cls(), **layers}, compute_groups=False)


class OverflowFraction(LayerCountRatio):
    """Fraction of neurons and samples that should have spiked before the start of their window.

    Args:
        layer: name of a layer of neurons; None means all of them.
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
        """Add the emissions of a batch, from `record_emissions`.

        Raises:
            ValueError: if there is no such layer, it encodes inputs, or a remaining time is nan.
        """
        self.add(*_overflow_counts(_chosen(emissions, self.layer)))


class Agreement(SampleMean):
    """Fraction of samples for which two networks predict the same class.

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
        """Return 1 where both predict the same class, else 0, shape `(N,)`."""
        return agreement(outputs, reference, reduction="none")


class Latency(Metric):
    """Time of the readout in units of the input window: the maximum over all updates.

    t_read = 1 + sum_n Delta_n for successive windows

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
        """Add the latency of a network with its present windows."""
        self.latest = torch.maximum(self.latest, latency(network).to(self.latest))

    def compute(self) -> Tensor:
        """Return the latency, a scalar."""
        return self.latest


def _chosen(emissions: Mapping[str, Emission], layer: str | None) -> list[Emission]:
    if layer is None:
        return [emission for emission in emissions.values() if emission.early is not None]
    check_choice("layer", layer, tuple(emissions))
    return [emissions[layer]]


def _spike_counts(spikes: Tensor | Mapping[str, Emission], layer: str | None) -> tuple[Tensor, int]:
    """Return the number of spikes, and neurons times samples."""
    if isinstance(spikes, Tensor):
        if layer is not None:
            raise ValueError(f"Expected argument `spikes` to hold emissions by layer for {layer=}, but got one tensor")
        check_spikes(spikes)
        return torch.count_nonzero(spikes), spikes.shape[1:].numel()
    emissions = _chosen(spikes, layer)
    _check_remaining(emissions)
    found = [torch.count_nonzero(emission.remaining > 0) for emission in emissions]
    return _sum(found), sum(emission.remaining.numel() for emission in emissions)


def _overflow_counts(emissions: list[Emission]) -> tuple[Tensor, int]:
    """Return the number of early spikes, and neurons times samples."""
    early = [emission.early for emission in emissions if emission.early is not None]
    if len(early) < len(emissions):
        raise ValueError("Expected argument `layer` to name a layer of neurons, but got an encoder of inputs")
    _check_remaining(emissions)
    return _sum([torch.count_nonzero(mask) for mask in early]), sum(mask.numel() for mask in early)


def _check_remaining(emissions: list[Emission]) -> None:
    for emission in emissions:
        check_numbers("remaining", emission.remaining)


def _sum(counts: list[Tensor]) -> Tensor:
    return torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.long)


def _fraction(count: Tensor, total: Tensor | int) -> Tensor:
    return count.to(accumulation_dtype(count.device)) / total
