"""Layers and operations without a TTFS equivalent, by name and with the reason."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from lightning_snn.methods.ttfs.mapping.rules import OPERATIONS, TTFS_RULES
from lightning_snn.methods.ttfs.mapping.signals import WEIGHTED
from lightning_snn.nn.layer_rules import COMPILED, OWN_FORWARD, Refusal, is_compiled, replacement_refusal
from lightning_snn.nn.neurons import Neuron, runs_by_its_equations

_SHAPES = ("size", "dim", "ndimension", "numel", "__len__")
_UNKNOWN = TTFS_RULES.unknown
_NO_SPIKE_TIME = "no first spike time in closed form"
_UNTRACEABLE = "torch.fx cannot trace its forward"
# by the names of layers and functions
_REASONS = {
    "a remaining time is max(0, u), so only ReLU has a TTFS equivalent": """
        tanh sigmoid logsigmoid gelu silu mish elu celu selu leakyrelu rrelu prelu softplus softsign hardtanh relu6
        hardswish hardsigmoid hardshrink softshrink tanhshrink threshold glu""",
    "it divides by statistics of the sample, which synapses cannot do": """
        layernorm groupnorm rmsnorm instancenorm1d instancenorm2d localresponsenorm normalize""",
    "the readout returns potentials; use it in the loss": "softmax logsoftmax softmin softmax2d",
    "it has a state from one time step to the next": """
        rnn lstm gru rnncell lstmcell grucell leakyintegrator synapticdelays""",
    "it multiplies activations with each other, which synapses cannot do": """
        multiheadattention scaleddotproductattention matmul bmm einsum""",
}


def refuse_node(network: nn.Module, node: fx.Node, reason: str) -> Refusal:
    """Return the refusal of a node of the graph of a network."""
    if node.op == "call_module":
        return Refusal(str(node.target), type(network.get_submodule(str(node.target))).__name__, reason)
    if node.op == "get_attr":
        return Refusal(str(node.target), "tensor", reason)
    kinds = {"placeholder": "input", "output": "return value"}
    return Refusal(node.name, kinds.get(node.op, getattr(node.target, "__name__", str(node.target))), reason)


def refused_nodes(network: nn.Module, graph: fx.Graph) -> list[Refusal]:
    """Return the refusals of all layers and operations whose kind or parameters have no TTFS equivalent."""
    refused = []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners: dict[int, str] = {}
    for node in graph.nodes:
        reason = None
        if node.op == "call_module":
            name = str(node.target)
            module = network.get_submodule(name)
            reason = module_reason(module)
            if reason is None and isinstance(module, WEIGHTED) and calls[name] > 1:
                reason = f"it is called {calls[name]} times, but its weights serve one position only"
            for parameter in module.parameters() if isinstance(module, WEIGHTED) else ():
                owner = owners.setdefault(id(parameter), name)
                if owner != name:
                    reason = f"it shares parameters with {owner}"
        elif node.op == "get_attr":
            reason = "it belongs to no layer that is called"
        elif node.op in ("call_function", "call_method") and not (returns_shape(node) or node.target in OPERATIONS):
            reason = _reason(getattr(node.target, "__name__", str(node.target)))
        if reason is not None:
            refused.append(refuse_node(network, node, reason))
    return refused


def refused_parts(name: str, module: nn.Module, leaves: set[str]) -> list[Refusal]:
    """Return the refusals of the parts of a module that cannot be traced, or of the module if no part is refused.

    Args:
        name: of the module in the network.
        module: whose `forward` cannot be traced.
        leaves: names in the network of the layers that are not traced.
    """
    if is_compiled(module):
        return [Refusal(name, type(module).__name__, COMPILED)]
    refused = []
    for part_name, part in module.named_modules(prefix=name):
        kind = type(part).__name__
        if type(part).forward is nn.Module.forward:  # ModuleList and ModuleDict are not called
            continue
        if part is not module and part_name in leaves and (reason := module_reason(part)) is not None:
            refused.append(Refusal(part_name, kind, reason))
        elif _reason(kind) != _UNKNOWN:
            refused.append(Refusal(part_name, kind, _reason(kind)))
    return refused or [Refusal(name, type(module).__name__, _UNTRACEABLE)]


def module_reason(module: nn.Module) -> str | None:
    """Return the reason why a module is refused, or None."""
    if TTFS_RULES.find(module) is None:
        if isinstance(module, Neuron):
            return _NO_SPIKE_TIME if runs_by_its_equations(module) else OWN_FORWARD
        reason = TTFS_RULES.reason(module)
        return _reason(type(module).__name__) if reason == TTFS_RULES.unknown else reason
    return replacement_refusal(module) if isinstance(module, (*WEIGHTED, Neuron)) else None


def returns_shape(node: fx.Node) -> bool:
    """Return whether a node returns the shape of a tensor."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return node.op == "call_method" and node.target in _SHAPES


def _reason(kind: str) -> str:
    plain = kind.lower().replace("_", "")
    return next((reason for reason, names in _REASONS.items() if plain in names.split()), _UNKNOWN)
