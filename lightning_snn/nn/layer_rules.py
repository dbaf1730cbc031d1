"""Rules of the methods by layer type: one registry, one lookup and one wording of refusals for all methods."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lightning_snn.nn.conventions import conversion_of, mixes_steps
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import EQUATIONS, Neuron
from lightning_snn.nn.phase import has_instance_forward
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.row_checks import SEQUENCE_LAYERS, sequence_reason
from lightning_snn.nn.time_wrappers import TimeWrapper

Rule = TypeVar("Rule")

OWN_FORWARD = "a forward of its own, so it needs a rule of its own"
COMPILED = "it is compiled already: call `torch.compile` after `prepare`"


class Refusal(NamedTuple):
    """A layer, or an operation between layers, that a method cannot train.

    Attributes:
        name: of the layer within the network, empty for the network itself.
        layer: the layer, or the name of an operation.
        reason: why, in a few words, with the remedy if there is one.
    """

    name: str
    layer: nn.Module | str
    reason: str

    def __str__(self) -> str:
        kind = self.layer if isinstance(self.layer, str) else type(self.layer).__name__
        return f"{self.name or 'the network'}: {kind} ({self.reason})"


def row_refusals(network: nn.Module) -> list[Refusal]:
    """Return the layers of a network that take the rows of their input, into which time is folded, for time steps.

    Those in an `nn.Sequential` that receive the folded input for certain are found here. `run` checks the others, for
    which the shape of their input decides.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # a sequence within each row
        >>> row_refusals(nn.Sequential(nn.Flatten(2), layer))
        []
        >>> [refusal.name for refusal in row_refusals(nn.Sequential(nn.Linear(4, 8), LIF(), nn.GRU(8, 8)))]
        ['2']
    """
    conversion = conversion_of(network)
    if conversion is not None and _takes_states(network):
        return [Refusal("", network, f"its forward takes more than the input of a step: {conversion}")]
    names = {module: name for name, module in network.named_modules()}
    return [
        Refusal(names[layer], layer, reason)
        for layer in unnested(network)
        if (reason := sequence_reason(layer)) is not None
    ]


def _takes_states(network: nn.Module) -> bool:
    parameters = inspect.signature(network.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is inspect.Parameter.empty for each in parameters) > 1


class LayerRules(Generic[Rule]):
    """Rules of one method by layer type.

    A rule of a type covers its subclasses, except those that compute something else: a subclass with a `forward` of its
    own, or a subclass of a neuron with an equation of its own, needs a rule of its own. A rule of `Neuron` covers every
    neuron that runs by its equations. No rule covers a layer whose `forward` was set on the instance.

    Args:
        unknown: reason given for layers without a rule.

    Example:
        >>> rules = LayerRules(unknown="no rule")
        >>> rules.register(nn.Linear, "commutes")
        >>> rules.find(nn.Linear(2, 2)), rules.find(nn.ReLU())
        ('commutes', None)
    """

    def __init__(self, unknown: str) -> None:
        self.unknown = unknown
        self._rules: dict[type[nn.Module] | str, Rule] = {}
        self._by_method: dict[str, Rule] = {}

    def register(self, kind: type[nn.Module], rule: Rule) -> None:
        """Set the rule of a layer type.

        Raises:
            TypeError: if `kind` is not a subclass of `nn.Module`.
        """
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"Expected argument `kind` to be a subclass of nn.Module, but got {kind!r}")
        self._rules[kind] = rule

    def register_name(self, name: str, rule: Rule) -> None:
        """Set the rule of a type of another library by its qualified name, so that nothing has to be imported."""
        self._rules[name] = rule

    def register_method(self, name: str, rule: Rule) -> None:
        """Set the rule of all layers without a rule and without layers inside that define a method of this name."""
        self._by_method[name] = rule

    def find(self, layer: nn.Module) -> Rule | None:
        """Return the rule of a layer's type or its nearest base class that computes the same, None without one."""
        bases = list(self._bases(layer))
        for kind, rule in bases:
            if _computes_as(layer, kind):
                return rule
        if not bases and next(layer.children(), None) is None:
            for name, rule in self._by_method.items():
                if callable(getattr(layer, name, None)):
                    return rule
        return None

    def reason(self, layer: nn.Module) -> str:
        """Return why a layer has no rule."""
        if is_compiled(layer):
            return COMPILED
        if isinstance(layer, TimeWrapper):
            return f"what it does with time steps is not known: {_convert_or(layer)}train it by SurrogateGradient"
        if (reason := sequence_reason(layer)) is not None:
            return f"{reason}; then train it by SurrogateGradient"
        own = any(
            has_instance_forward(layer) or _overrides(layer, kind, ("forward",)) for kind, _ in self._bases(layer)
        )
        if not own and (conversion := conversion_of(layer)) is not None:
            return f"{self.unknown}: {conversion}"
        return OWN_FORWARD if own else self.unknown

    def found_in(self, network: nn.Module) -> dict[nn.Module, Rule]:
        """Return the layers of a network that have a rule, with it; layers within one of them are part of it."""
        found: dict[nn.Module, Rule] = {}

        def walk(layer: nn.Module) -> None:
            rule = self.find(layer)
            if rule is not None:
                found[layer] = rule
            elif _is_container(layer):
                for child in layer.children():
                    walk(child)

        walk(network)
        return found

    def refusals(
        self, network: nn.Module, refusal: Callable[[Rule, nn.Module], str | None] = lambda rule, layer: None
    ) -> Iterator[Refusal]:
        """Yield the layers of a network that are refused by their rule, or have none, in order of registration.

        A module with children is a container, whose children are looked at one by one, unless it has a rule, is
        compiled or is a spiking layer. Spiking layers of other libraries have children, too, such as their surrogate.

        Args:
            network: any module.
            refusal: returns why a rule refuses a layer, None if it does not.
        """
        found = self.found_in(network)
        covered = {part for layer in found for part in layer.modules()}
        for name, layer in network.named_modules():
            if layer in found:
                if (reason := refusal(found[layer], layer)) is not None:
                    yield Refusal(name, layer, reason)
            elif layer not in covered and not _is_container(layer):
                covered.update(layer.modules())
                yield Refusal(name, layer, self.reason(layer))

    def _bases(self, layer: nn.Module) -> Iterator[tuple[type[nn.Module], Rule]]:
        for kind in type(layer).__mro__:
            for key in (kind, f"{kind.__module__}.{kind.__qualname__}"):
                if key in self._rules:
                    yield kind, self._rules[key]


def refusal_error(method: str, refusals: Iterable[Refusal], remedy: str = "") -> ValueError:
    """Return the error that names all refused layers, each once.

    Args:
        method: name of the method.
        refusals: the layers and the reasons.
        remedy: a sentence on what to do.
    """
    refused = "; ".join(dict.fromkeys(map(str, refusals)))
    return ValueError(f"Expected a network that {method} can train, but got {refused}{'. ' * bool(remedy)}{remedy}")


def refuse(method: str, refusals: Iterable[Refusal], remedy: str = "") -> None:
    """Raise a ValueError that names all refused layers, if there are any; see `refusal_error`."""
    refused = list(refusals)
    if refused:
        raise refusal_error(method, refused, remedy)


def _convert_or(wrapper: nn.Module) -> str:
    conversion = conversion_of(wrapper)
    return "" if conversion is None else f"{conversion} without the wrapper, or "


def is_compiled(layer: nn.Module) -> bool:
    """Return whether a module is the result of `torch.compile`, or was compiled in place by its method `compile`."""
    wraps = type(layer).__qualname__ == "OptimizedModule" and type(layer).__module__.startswith("torch._dynamo")
    return wraps or layer._compiled_call_impl is not None


def replacement_refusal(layer: nn.Module) -> str | None:
    """Return why a layer cannot be replaced by one of another type that takes its weight and bias, None if it can."""
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return "its parameters are not initialized: call `lightning_snn.run(network, x)` once"
    if parametrize.is_parametrized(layer):
        name = next(iter(layer.parametrizations))  # type: ignore[arg-type]
        return (
            f"its {name} is computed from other parameters: call `torch.nn.utils.parametrize.remove_parametrizations("
            f'layer, "{name}")`'
        )
    for name in ("weight", "bias"):
        if isinstance(getattr(layer, name, None), Tensor) and name not in layer._parameters:
            return f"its {name} is computed from other parameters: {_plain_remedy(layer, name)}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which would be lost: register them after `prepare`"
    return None


def copy_network(method: str, network: nn.Module) -> nn.Module:
    """Return a copy of a network, for a method that changes it.

    Raises:
        ValueError: if a layer holds the result of a computation, such as the weight of a pruned layer, which cannot be
            copied; names all such layers and what to do.
    """
    refused = []
    for name, layer in network.named_modules():
        if computed := list(_computed_tensors(layer)):
            remedy = _plain_remedy(layer, computed[0])
            refused.append(Refusal(name, layer, f"its {computed[0]} is computed from other tensors: {remedy}"))
    refuse(method, refused)
    return copy.deepcopy(network)


def owned_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which results of computations, such as the weight of a pruned layer, are constants.

    Hooks compute such a weight again at every call.

    Raises:
        ValueError: if `copy.deepcopy` cannot copy the network.

    Warns:
        UserWarning: if modules were compiled in place, which their copies are not.
    """
    in_place = [name or "the network" for name, part in network.named_modules() if part._compiled_call_impl is not None]
    if in_place:
        warnings.warn(
            f"The copy of the network that the module owns is not compiled, but {', '.join(in_place)} was, by "
            "`compile()`. Call `module.compile()`",
            stacklevel=3,
        )
    computed = [value for layer in network.modules() for value in _computed_tensors(layer).values()]
    try:
        return copy.deepcopy(network, {id(value): value.detach().clone() for value in computed})
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected argument `network` to be a {type(network).__name__} that `copy.deepcopy` can copy, because the "
            f"module owns a copy, but got: {error}. Reset layers that keep a state, and make plain tensors buffers"
        ) from error


def _computed_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return the attributes and buffers of a layer that are results of a computation, which cannot be copied."""
    held = {**vars(layer), **layer._buffers}
    return {name: value for name, value in held.items() if isinstance(value, Tensor) and not value.is_leaf}


def _plain_remedy(layer: nn.Module, name: str) -> str:
    if hasattr(layer, f"{name}_mask"):
        return f'call `torch.nn.utils.prune.remove(layer, "{name}")`, which makes the pruning permanent'
    if hasattr(layer, f"{name}_g"):
        return "call `torch.nn.utils.remove_weight_norm(layer)`"
    if hasattr(layer, f"{name}_orig"):
        return "call `torch.nn.utils.remove_spectral_norm(layer)`"
    if mixes_steps(layer):
        return "reset its state"
    return "remove it, or detach it"


# containers that may have no children
_EMPTY_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_container(layer: nn.Module) -> bool:
    if is_compiled(layer) or isinstance(layer, (TimeWrapper, *SEQUENCE_LAYERS)):
        return False
    if is_spiking_layer(layer):
        # a registered module may be built of neurons of this library
        return not isinstance(layer, Neuron) and any(isinstance(part, Neuron) for part in layer.modules())
    return next(layer.children(), None) is not None or type(layer) in _EMPTY_CONTAINERS


def _computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    if has_instance_forward(layer):
        return False
    own = ("forward",) if kind is Neuron or not issubclass(kind, Neuron) else ("forward", *EQUATIONS)
    return not _overrides(layer, kind, own)


def _overrides(layer: nn.Module, kind: type[nn.Module], names: Iterable[str]) -> bool:
    """Return whether a class between the layer's type and `kind` defines one of the names."""
    own = list(type(layer).__mro__)
    return any(name in vars(each) for each in own[: own.index(kind)] for name in names)
