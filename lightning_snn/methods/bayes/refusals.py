"""Layers that cannot have a posterior, and those that noise mode "trace" cannot connect."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.methods.bayes.conversion import POSTERIOR_RULES, is_convertible
from lightning_snn.methods.bayes.layers import BayesianLayer, BayesianMap
from lightning_snn.methods.bayes.wiring import trace_wiring
from lightning_snn.methods.noisy import noise_refusals
from lightning_snn.nn.layer_rules import Refusal, refuse, replacement_refusal
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.registry import parts_of_neurons
from lightning_snn.nn.row_checks import sequence_reason
from lightning_snn.nn.stateful import StatefulLayer

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def layer_refusals(network: nn.Module, mode: NoiseMode) -> list[Refusal]:
    """Return the layers that cannot fire by noise, and those with parameters that have no Bayesian counterpart."""
    refused = noise_refusals(network, mode)
    known = {refusal.layer for refusal in refused} | parts_of_neurons(network)
    known |= {
        part for layer in network.modules() if is_convertible(layer) for part in layer.modules() if part is not layer
    }
    for name, layer in network.named_modules():
        owns = any(True for _ in layer.parameters(recurse=False)) or isinstance(layer, _NormBase)
        if layer in known:
            continue
        if is_convertible(layer):
            if (reason := replacement_refusal(layer)) is not None:
                refused.append(Refusal(name, layer, reason))
            continue
        if not owns or isinstance(layer, (BayesianLayer, StatefulLayer)):
            continue
        padding = getattr(layer, "padding_mode", "zeros")
        if padding != "zeros":
            reason = f"padding_mode={padding!r}"
        elif isinstance(layer, _NormBase):
            reason = "normalization has no Bayesian counterpart"
        else:
            # parts of an `OverTime` need no wrapper
            mixing = sequence_reason(layer) is not None
            reason = POSTERIOR_RULES.unknown if mixing else POSTERIOR_RULES.reason(layer)
        refused.append(Refusal(name, layer, reason))
    return refused


def connect_traces(network: nn.Module) -> None:
    """Set the targets of every Bayesian layer, which noise mode "trace" needs.

    Raises:
        ValueError: if the variance under a static weight sample is not known for a layer; the message names all of
            them.
    """
    wiring = trace_wiring(network)
    refused = []
    for name, layer in network.named_modules():
        reason = None
        if isinstance(layer, Neuron):
            beta = layer.value("beta")
            if isinstance(beta, Tensor) and beta.dim() > 0:
                reason = "a decay per channel"
            elif layer not in wiring.known:
                reason = "receives input through modules of unknown structure"
        elif isinstance(layer, BayesianMap):
            targets = wiring.targets.get(layer, [])
            if layer not in wiring.values:
                reason = "inside a module of unknown structure"
            elif layer in wiring.stacked:
                reason = "no neurons between it and another weight layer"
            elif targets and layer in wiring.elsewhere:
                reason = "its output goes to neurons and elsewhere"
            elif any(neuron is not targets[0] and _decays_differ(neuron, targets[0]) for neuron in targets):
                reason = "its output goes to neurons with different decays"
            layer.targets = tuple(targets[:1])
        if reason:
            refused.append(Refusal(name, layer, reason))
    refuse('SpikingBayes(noise_mode="trace")', refused)


def _decays_differ(one: Neuron, other: Neuron) -> bool:
    learned = one.parameter_of("beta") is not None or other.parameter_of("beta") is not None
    return learned or bool(one.value("beta") != other.value("beta"))
