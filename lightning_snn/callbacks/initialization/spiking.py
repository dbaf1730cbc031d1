"""Activity, membranes and Jacobians of spiking layers, whatever library they are from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.initialization.findings import Finding, advised, judged
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import joint_gain
from lightning_snn.metrics.spikes import SATURATED
from lightning_snn.nn.observation import LayerCall, takes_all_steps

_PROBES = 4


@dataclass
class MembraneMoments:
    """Means and mean squares of membranes that come call by call.

    Attributes:
        sums: number of values, their sum, and the sum of their squares, in each channel, shape `[3, C]`; None before
            the first call.
    """

    sums: Tensor | None = None

    def add(self, membrane: Tensor) -> None:
        """Take membranes of shape `[steps, B, C, ...]`."""
        values = membrane.detach().double().flatten(0, 1)
        values = values.reshape(len(values), values.shape[1] if values.dim() > 1 else 1, -1)
        found = torch.stack(
            [torch.full_like(values[0, :, 0], values[:, 0].numel()), values.sum((0, 2)), values.square().sum((0, 2))]
        )
        self.sums = found if self.sums is None else self.sums + found

    def found(self, reduce: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, float]:
        """Means of the channels, shape `[C]`, and the mean of all squares. `reduce`: sums over all processes."""
        assert self.sums is not None
        counts, totals, squares = self.sums if reduce is None else reduce(self.sums)
        return totals / counts, (squares.sum() / counts.sum()).item()


@dataclass
class Recorded:
    """What a spiking layer did in a run.

    Attributes:
        name: of the layer.
        layer: the layer.
        shape: of a sample's neurons.
        outputs: its spikes as it returned them, call by call, with their graph.
        spikes: of each neuron over all steps and samples, of that shape.
        times: number of steps and samples, of each neuron.
        threshold: as `LayerCall.threshold`.
        membrane: in units of the threshold.
        without_derivative: whether gradients could reach its input, and its spikes pass none on.
    """

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    outputs: list[Tensor] = field(default_factory=list)
    spikes: Tensor | None = None
    times: int = 0
    threshold: float | Tensor | None = None
    membrane: MembraneMoments = field(default_factory=MembraneMoments)
    without_derivative: bool = False

    def add(self, call: LayerCall) -> None:
        """Take a call."""
        self.outputs.append(call.output)
        # any value but 0 is a spike
        spikes = (call.spikes.detach() != 0).double().sum((0, 1))
        self.spikes = spikes if self.spikes is None else self.spikes + spikes
        asked = call.current is not None and call.current.requires_grad
        self.without_derivative |= asked and not call.output.requires_grad
        self.times += call.spikes.shape[0] * call.spikes.shape[1]
        self.threshold = call.threshold
        membrane = call.membrane()
        if membrane is not None and self.threshold is not None:
            self.membrane.add(membrane / self.threshold)


class Recorder:
    """Records every spiking layer of a run, as `observe` tells of its calls.

    A layer that is called step by step is one layer over all its calls; a second call with all time steps, or one for
    another shape of neurons, is another layer, `NAME_2`.

    Attributes:
        layers: what was recorded, in the order in which layers ran first.
    """

    def __init__(self) -> None:
        self.layers: list[Recorded] = []

    def __call__(self, call: LayerCall) -> None:
        shape = tuple(call.spikes.shape[2:])
        known = [each for each in self.layers if each.layer is call.layer]
        same = next((each for each in known if each.shape == shape), None)
        if same is None or takes_all_steps(call.layer):
            same = Recorded(call.name + (f"_{len(known) + 1}" if known else ""), call.layer, shape)
            self.layers.append(same)
        same.add(call)


def names_heard(loss: Tensor, layers: list[Recorded]) -> set[str]:
    """Names of the layers of whose spikes a loss hears, so far as gradients tell: it may hear of those without any."""
    spikes = [(each.name, output) for each in layers for output in each.outputs if output.requires_grad]
    heard = {each.name for each in layers} - {name for name, _ in spikes}
    if spikes:
        gradients = torch.autograd.grad(loss, [output for _, output in spikes], retain_graph=True, allow_unused=True)
        heard |= {name for (name, _), gradient in zip(spikes, gradients, strict=True) if gradient is not None}
    return heard


def spiking_findings(
    layers: list[Recorded], heard: set[str], hidden: set[str], all_weights_learn: bool, thresholds: Thresholds
) -> list[Finding]:
    """What is found of spiking layers.

    Args:
        layers: as they were recorded, with their graph.
        heard: names of those whose spikes the loss hears of. Others, whose membrane is read out, are not judged.
        hidden: names of those that feed weights, which learn nothing from silence. Others still learn themselves.
        all_weights_learn: whether the loss depends on all trained weights; if not, a layer without a derivative fails.
        thresholds: when they pass.
    """
    found: list[Finding] = []
    for each in layers:
        for value in _activity(each, thresholds):
            found.append(value if each.name in hidden else _of_output(value, thresholds))
    found += _gains(layers, heard, thresholds)
    judges = {each.name for each in layers if each.name in heard} | {"all"}
    found = [each if each.layer in judges else Finding(*each[:3], None) for each in found]
    if not all_weights_learn:
        found += [
            advised("spike_derivative", each.name, 0.0, "fail", False) for each in layers if each.without_derivative
        ]
    return found


def _activity(each: Recorded, thresholds: Thresholds) -> list[Finding]:
    assert each.spikes is not None
    rates = each.spikes / each.times
    found = [
        judged("firing_rate", each.name, rates.mean().item(), thresholds.firing_rate),
        judged("dead_share", each.name, (rates == 0).double().mean().item(), thresholds.dead_share),
        judged("saturated_share", each.name, (rates > SATURATED).double().mean().item(), thresholds.saturated_share),
    ]
    if each.membrane.sums is not None:
        means, square = each.membrane.found()
        mean = means.mean().item()
        deviation = math.sqrt(max(square - mean**2, 0.0)) if math.isfinite(square) else math.nan
        found.append(Finding("membrane_mean", each.name, mean, None))
        found.append(judged("membrane_sd", each.name, deviation, thresholds.membrane_sd))
    return found


def _of_output(found: Finding, thresholds: Thresholds) -> Finding:
    silent = found.quantity == "dead_share" or (
        found.quantity == "firing_rate" and found.value < thresholds.firing_rate.passes[0]
    )
    return found._replace(verdict="warn") if silent and found.verdict == "fail" else found


def _gains(layers: list[Recorded], heard: set[str], thresholds: Thresholds) -> list[Finding]:
    """Gains of each layer with respect to the one before, and of the last that the loss hears of with respect to the
    first."""
    found = []
    for index, each in enumerate(layers[1:], 1):
        # the nearest that it hears of: layers may lie side by side
        for before in reversed(layers[:index]):
            gain = _gain(each, before)
            if gain is not None:
                found.append(judged("spike_gain", each.name, gain, thresholds.spike_gain))
                break
    ends = [each for each in layers if each.name in heard and any(output.requires_grad for output in each.outputs)]
    if len(ends) > 1:
        depth = _gain(ends[-1], ends[0])
        if depth is not None:
            found.append(judged("depth_gain", "all", depth, thresholds.depth_gain))
    return found


def _gain(after: Recorded, before: Recorded) -> float | None:
    generator = torch.Generator(after.outputs[0].device).manual_seed(0)
    gain = joint_gain(after.outputs, before.outputs, _PROBES, generator)
    return None if gain is None else gain.item()
