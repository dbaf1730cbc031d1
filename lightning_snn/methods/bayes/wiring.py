"""Connections between Bayesian layers and neurons, found in networks of known structure."""

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
    """Known properties of a tensor within a network.

    Attributes:
        values: the values that it holds.
        sources: the Bayesian layers that it is a sum of.
        hidden: True if further Bayesian layers may contribute to it through modules of unknown structure.
    """

    values: Values = "real"
    sources: frozenset[BayesianMap] = frozenset()
    hidden: bool = False


@dataclass
class Wiring:
    """Connections of the Bayesian layers of a network.

    Attributes:
        values: the values of the inputs of each Bayesian layer, one entry per call.
        targets: the neurons that receive the output of each Bayesian layer.
        elsewhere: Bayesian layers whose output reaches something other than neurons, such as the readout.
        stacked: Bayesian layers in a row without neurons between them.
        known: neurons for which all Bayesian layers that they receive input from are known.
    """

    values: dict[BayesianMap, list[Values]] = field(default_factory=dict)
    targets: dict[BayesianMap, list[Neuron]] = field(default_factory=dict)
    elsewhere: set[BayesianMap] = field(default_factory=set)
    stacked: set[BayesianMap] = field(default_factory=set)
    known: set[Neuron] = field(default_factory=set)


def trace_wiring(network: nn.Module) -> Wiring:
    """Find the connections of the Bayesian layers of a network of `nn.Sequential` and `MembraneResidual`.

    Nothing is known of layers inside any other module.

    Example:
        >>> layer = lightning_snn.methods.bayes.BayesLinear(4, 8)
        >>> wiring = trace_wiring(nn.Sequential(layer, LIF(beta=0.9)))
        >>> wiring.targets[layer]
        [LIF(beta=0.9, threshold=1, reset=subtract, surrogate=...)]
    """
    wiring = Wiring()
    wiring.elsewhere |= _follow(network, Flow(), wiring).sources
    return wiring


def mark_inputs(network: nn.Module) -> None:
    """Set `BayesianMap.input_values` of every Bayesian layer whose input values are known."""
    known = trace_wiring(network).values
    for layer in network.modules():
        if isinstance(layer, BayesianMap):
            values = set(known.get(layer, ["real"]))
            layer.input_values = values.pop() if len(values) == 1 else "real"


def _follow(module: nn.Module, flow: Flow, wiring: Wiring) -> Flow:
    """Return the properties of the output of a module, given those of its input."""
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
    if isinstance(module, SynapticDelays) and flow.values == "spikes":  # inputs before the first step are 0
        return Flow("spikes")
    return Flow(hidden=flow.hidden or bool(flow.sources))
