"""Activity, membrane potentials, and Jacobians of spiking layers of any library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.initialization.findings import Finding, judge_by_band, with_advice
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import joint_gain
from lightning_snn.nn.liveness import SATURATED
from lightning_snn.nn.observation import LayerCall, takes_all_steps

_PROBES = 4


@dataclass
class MembraneMoments:
    """Means and mean squares of membrane potentials, accumulated call by call.

    Attributes:
        sums: number of values, their sum, and the sum of their squares per channel, shape `[3, C]`; None before the
            first call.
    """

    sums: Tensor | None = None

    def add(self, membrane: Tensor) -> None:
        """Add membrane potentials of shape `[steps, B, C, ...]`."""
        values = membrane.detach().double().flatten(0, 1)
        values = values.reshape(len(values), values.shape[1] if values.dim() > 1 else 1, -1)
        found = torch.stack(
            [torch.full_like(values[0, :, 0], values[:, 0].numel()), values.sum((0, 2)), values.square().sum((0, 2))]
        )
        self.sums = found if self.sums is None else self.sums + found

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, float]:
        """Return the means per channel, shape `[C]`, and the mean of all squares; `reduce` sums over processes."""
        assert self.sums is not None
        counts, totals, squares = self.sums if reduce is None else reduce(self.sums)
        return totals / counts, (squares.sum() / counts.sum()).item()


@dataclass
class LayerRecord:
    """Record of a spiking layer in a run.

    Attributes:
        name: name of the layer.
        layer: the layer.
        shape: shape of a sample's neurons.
        outputs: spikes as the layer returned them, call by call, with their graph.
        spikes: spikes per neuron over all time steps and samples, of that shape.
        steps: number of time steps of all samples.
        threshold: as `LayerCall.threshold`.
        membrane: moments of the membrane potential in units of the threshold.
        blocks_gradient: whether the input has a gradient and the spikes have none.
    """

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    outputs: list[Tensor] = field(default_factory=list)
    spikes: Tensor | None = None
    steps: int = 0
    threshold: float | Tensor | None = None
    membrane: MembraneMoments = field(default_factory=MembraneMoments)
    blocks_gradient: bool = False

    def add(self, call: LayerCall) -> None:
        """Add a call."""
        self.outputs.append(call.output)
        # any value except 0 is a spike
        spikes = (call.spikes.detach() != 0).double().sum((0, 1))
        self.spikes = spikes if self.spikes is None else self.spikes + spikes
        needs_gradient = call.current is not None and call.current.requires_grad
        self.blocks_gradient |= needs_gradient and not call.output.requires_grad
        self.steps += call.spikes.shape[0] * call.spikes.shape[1]
        self.threshold = call.threshold
        relative = call.relative_membrane()
        if relative is not None:
            self.membrane.add(relative)


class Recorder:
    """Recorder of every spiking layer of a run, for the calls that `observe` reports.

    A layer that is called step by step has one record for all its calls. A second call with all time steps, or one with
    another shape of neurons, has another record, `NAME_2`.

    Attributes:
        layers: records in the order of the first calls.
    """

    def __init__(self) -> None:
        self.layers: list[LayerRecord] = []

    def __call__(self, call: LayerCall) -> None:
        shape = tuple(call.spikes.shape[2:])
        known = [each for each in self.layers if each.layer is call.layer]
        same = next((each for each in known if each.shape == shape), None)
        if same is None or takes_all_steps(call.layer):
            same = LayerRecord(call.name + (f"_{len(known) + 1}" if known else ""), call.layer, shape)
            self.layers.append(same)
        same.add(call)


def contributing_layers(loss: Tensor, layers: list[LayerRecord]) -> set[str]:
    """Return the names of layers whose spikes a loss depends on, by gradients, and of those without gradients."""
    spikes = [(each.name, output) for each in layers for output in each.outputs if output.requires_grad]
    names = {each.name for each in layers} - {name for name, _ in spikes}
    if spikes:
        gradients = torch.autograd.grad(loss, [output for _, output in spikes], retain_graph=True, allow_unused=True)
        names |= {name for (name, _), gradient in zip(spikes, gradients, strict=True) if gradient is not None}
    return names


def spiking_findings(
    layers: list[LayerRecord], contributing: set[str], hidden: set[str], all_weights_learn: bool, thresholds: Thresholds
) -> list[Finding]:
    """Return the findings about spiking layers.

    Args:
        layers: records of the layers, with their graph.
        contributing: names of layers whose spikes the loss depends on. Others, for example with a readout of the
            membrane potential, have no verdicts.
        hidden: names of layers followed by weights, which learn nothing from silence. Silent output layers still learn.
        all_weights_learn: whether the loss depends on all trained weights; if not, a layer that blocks gradients fails.
        thresholds: limits of the verdicts.
    """
    found: list[Finding] = []
    for each in layers:
        for value in _activity(each, thresholds):
            found.append(value if each.name in hidden else _relax_for_output(value, thresholds))
    found += _gains(layers, contributing, thresholds)
    with_verdict = {each.name for each in layers if each.name in contributing} | {"all"}
    found = [each if each.layer in with_verdict else Finding(*each[:3], None) for each in found]
    if not all_weights_learn:
        found += [
            with_advice("spike_derivative", each.name, 0.0, "fail", False) for each in layers if each.blocks_gradient
        ]
    return found


def _activity(each: LayerRecord, thresholds: Thresholds) -> list[Finding]:
    assert each.spikes is not None
    rates = each.spikes / each.steps
    found = [
        judge_by_band("firing_rate", each.name, rates.mean().item(), thresholds.firing_rate),
        judge_by_band("dead_share", each.name, (rates == 0).double().mean().item(), thresholds.dead_share),
        judge_by_band(
            "saturated_share", each.name, (rates > SATURATED).double().mean().item(), thresholds.saturated_share
        ),
    ]
    if each.membrane.sums is not None:
        means, square = each.membrane.compute()
        mean = means.mean().item()
        deviation = math.sqrt(max(square - mean**2, 0.0)) if math.isfinite(square) else math.nan
        found.append(Finding("membrane_mean", each.name, mean, None))
        found.append(judge_by_band("membrane_sd", each.name, deviation, thresholds.membrane_sd))
    return found


def _relax_for_output(found: Finding, thresholds: Thresholds) -> Finding:
    silent = found.quantity == "dead_share" or (
        found.quantity == "firing_rate" and found.value < thresholds.firing_rate.passes[0]
    )
    return found._replace(verdict="warn") if silent and found.verdict == "fail" else found


def _gains(layers: list[LayerRecord], contributing: set[str], thresholds: Thresholds) -> list[Finding]:
    """Return gains of each layer to the one before, and of the last contributing layer to the first."""
    found = []
    for index, each in enumerate(layers[1:], 1):
        # the nearest layer that it depends on: layers may be parallel
        for before in reversed(layers[:index]):
            gain = _gain(each, before)
            if gain is not None:
                found.append(judge_by_band("spike_gain", each.name, gain, thresholds.spike_gain))
                break
    ends = [
        each for each in layers if each.name in contributing and any(output.requires_grad for output in each.outputs)
    ]
    if len(ends) > 1:
        depth = _gain(ends[-1], ends[0])
        if depth is not None:
            found.append(judge_by_band("depth_gain", "all", depth, thresholds.depth_gain))
    return found


def _gain(after: LayerRecord, before: LayerRecord) -> float | None:
    generator = torch.Generator(after.outputs[0].device).manual_seed(0)
    gain = joint_gain(after.outputs, before.outputs, _PROBES, generator)
    return None if gain is None else gain.item()
