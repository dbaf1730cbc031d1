"""What drives what: found along a network whose structure says so, for the layers that can use it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from lightning_snn.functional.surrogate import Smooth
from lightning_snn.functional.variational import Values
from lightning_snn.methods.bayes.layers import BayesianMap
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.residual import MembraneResidual
from lightning_snn.nn.sign import Sign

_REARRANGING = (nn.Flatten, nn.Unflatten, nn.Identity)
_POOLING = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Flow:
    """What is known of a tensor on its way: the values it holds, the Bayesian layers it is a sum of, and whether more
    of them may be hidden behind modules of unknown structure."""

    values: Values = "real"
    sources: frozenset[BayesianMap] = frozenset()
    hidden: bool = False


@dataclass
class Wiring:
    """What `trace_wiring` found of each Bayesian layer.

    Attributes:
        values: the values of its inputs, one entry for every place where it is called.
        targets: the LIF layers whose membranes it drives.
        elsewhere: layers that something other than LIF layers hears, such as the readout.
        stacked: layers that another Bayesian layer follows without neurons between, and those layers.
        known: LIF layers of which it is known which Bayesian layers drive them.
    """

    values: dict[BayesianMap, list[Values]] = field(default_factory=dict)
    targets: dict[BayesianMap, list[Neuron]] = field(default_factory=dict)
    elsewhere: set[BayesianMap] = field(default_factory=set)
    stacked: set[BayesianMap] = field(default_factory=set)
    known: set[Neuron] = field(default_factory=set)


def trace_wiring(network: nn.Module) -> Wiring:
    """Follow a network of `nn.Sequential` and `MembraneResidual`; inside any other module nothing is known."""
    wiring = Wiring()
    wiring.elsewhere |= _follow(network, Flow(), wiring).sources
    return wiring


def mark_inputs(network: nn.Module) -> None:
    """Tell every Bayesian layer what its input holds, where that is known: `BayesianMap.input_values`."""
    known = trace_wiring(network).values
    for layer in network.modules():
        if isinstance(layer, BayesianMap):
            values = set(known.get(layer, ["real"]))
            layer.input_values = values.pop() if len(values) == 1 else "real"


def _follow(module: nn.Module, flow: Flow, wiring: Wiring) -> Flow:
    """What leaves the module, given what enters it."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for layer in module:
            flow = _follow(layer, flow, wiring)
        return flow
    if isinstance(module, MembraneResidual):
        carried, added = (_follow(path, flow, wiring) for path in (module.shortcut, module.branch))
        return Flow("real", carried.sources | added.sources, carried.hidden or added.hidden)
    if isinstance(module, BayesianMap):
        wiring.values.setdefault(module, []).append(flow.values)
        if flow.sources or flow.hidden:
            wiring.stacked |= {module, *flow.sources}
        return Flow("real", frozenset({module}))
    if isinstance(module, Neuron):
        if not flow.hidden:
            wiring.known.add(module)
        for source in flow.sources:
            wiring.targets.setdefault(source, []).append(module)
        return Flow("real" if isinstance(module.surrogate, Smooth) else "spikes")
    if isinstance(module, _REARRANGING):
        return flow
    if isinstance(module, _POOLING):
        return Flow("real", flow.sources, flow.hidden)
    wiring.elsewhere |= flow.sources
    if isinstance(module, Sign):
        return Flow("real" if isinstance(module.surrogate, Smooth) else "signs")
    if isinstance(module, nn.MaxPool2d) and (flow.values == "spikes" or not module.padding):
        return Flow(flow.values)
    if isinstance(module, SynapticDelays) and flow.values == "spikes":  # the past before the first step is 0
        return Flow("spikes")
    return Flow(hidden=flow.hidden or bool(flow.sources))
