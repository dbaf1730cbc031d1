"""What has no exact image in first spike times, by name and with the reason."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils import parametrize

from lightning_snn.methods.ttfs.mapping.rules import MODULES, OPERATIONS, Rule
from lightning_snn.methods.ttfs.mapping.signals import WEIGHTED

_SHAPES = ("size", "dim", "ndimension", "numel", "__len__")
_UNKNOWN = "no exact image in first spike times is known"
# by the names of layers and functions
_REASONS = {
    "a remaining time is max(0, potential), which no other activation function is": """
        tanh sigmoid logsigmoid gelu silu mish elu celu selu leakyrelu rrelu prelu softplus softsign hardtanh relu6
        hardswish hardsigmoid hardshrink softshrink tanhshrink threshold glu""",
    "it divides by statistics of the sample, which no synapse does": """
        layernorm groupnorm rmsnorm instancenorm1d instancenorm2d localresponsenorm normalize""",
    "leave it to the loss: the readout gives potentials": "softmax logsoftmax softmin softmax2d",
    "it carries a state from one time step to the next": """
        rnn lstm gru rnncell lstmcell grucell recurrentlif leakyintegrator synapticdelays""",
    "it multiplies activations with one another, which no synapse does": """
        multiheadattention scaleddotproductattention matmul bmm einsum""",
}


def refusals(network: nn.Module, graph: fx.Graph) -> list[str]:
    """Name and reason for every layer and operation without an image, as far as its kind tells."""
    refused = []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners: dict[int, str] = {}
    for node in graph.nodes:
        reason = None
        name = str(node.target) if node.op == "call_module" else node.name
        if node.op == "call_module":
            module = network.get_submodule(name)
            reason = _refusal(module)
            if reason is None and isinstance(module, WEIGHTED) and calls[name] > 1:
                reason = f"{type(module).__name__} (it is called {calls[name]} times; its weights serve one place only)"
            for parameter in module.parameters() if isinstance(module, WEIGHTED) else ():
                owner = owners.setdefault(id(parameter), name)
                if owner != name:
                    reason = f"{type(module).__name__} (it shares parameters with {owner})"
        elif node.op == "get_attr":
            reason = f"{node.target} (a tensor that no layer holds)"
        elif node.op in ("call_function", "call_method") and not (tells_shape(node) or node.target in OPERATIONS):
            called = getattr(node.target, "__name__", str(node.target))
            reason = f"{called} ({_reason(called)})"
        if reason is not None and f"{name}: {reason}" not in refused:
            refused.append(f"{name}: {reason}")
    return refused


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module; of a subclass only if it inherits `forward`."""
    for base in type(module).__mro__:
        if base in MODULES and type(module).forward is base.forward:
            return MODULES[base]
    return None


def _refusal(module: nn.Module) -> str | None:
    name = type(module).__name__
    if rule_of(module) is None:
        return f"{name} ({_reason(name)})"
    if isinstance(module, WEIGHTED) and (
        parametrize.is_parametrized(module) or not isinstance(module.weight, nn.Parameter)
    ):
        return f"{name} (its weight is computed from other parameters; remove the parametrization first)"
    return None


def hopeless(module: nn.Module) -> str | None:
    """Why a module that stands in the way of tracing has no image, if its kind tells."""
    name = type(module).__name__
    return f"{name} ({_reason(name)})" if _reason(name) != _UNKNOWN else None


def _reason(name: str) -> str:
    plain = name.lower().replace("_", "")
    return next((reason for reason, names in _REASONS.items() if plain in names.split()), _UNKNOWN)


def tells_shape(node: fx.Node) -> bool:
    """Whether a node asks for the shape of a tensor."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return node.op == "call_method" and node.target in _SHAPES
