"""One time step of a network of another library as a graph, and the folded network that computes the same.

The graph shows where the spikes and states of every neuron go. A state may only be returned, because this library holds
states inside the scan of a neuron. What is left is a plain network on rows, which may be steps of a batch or time
steps folded into it: an `nn.Sequential` if the layers form a chain, else the graph itself.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg

from lightning_snn.convert.library import Library, Use, axis_before
from lightning_snn.convert.loops import check_no_time_loop
from lightning_snn.convert.operations import Operations
from lightning_snn.convert.refusals import Unconvertible, refuse_conversion
from lightning_snn.convert.values import device_of
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.tracer import ThreadTracer


class _Tracer(ThreadTracer):
    def __init__(self, library: Library) -> None:
        super().__init__()
        self.library = library

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.library.is_neuron(m) or self.library.is_whole(m):
            return True
        return super().is_leaf_module(m, module_qualified_name) or type(m).__module__.startswith("lightning_snn.")


class _Calls(NamedTuple):
    """Calls of neurons in the graph: by node, and the nodes that take single elements of what they return."""

    neurons: dict[fx.Node, nn.Module]
    spikes: dict[fx.Node, fx.Node]
    states: dict[fx.Node, fx.Node]


def folded_network(network: nn.Module, library: Library) -> nn.Module:
    """Return a plain network of this library that computes the same from `[T*B, ...]`.

    Raises:
        ValueError: if a layer or operation has no exact counterpart, or the network loops over time by itself; lists
            all of them.
    """
    if library.is_neuron(network) or library.is_whole(network):
        return next(folded_network(nn.Sequential(network), library).children())
    if not any(library.is_neuron(part) or library.is_whole(part) for part in network.modules()):
        raise ValueError(
            f"Expected a network with layers of {library.function.removeprefix('from_')}, but got a "
            f"{type(network).__name__} without any"
        )
    check_no_time_loop(library.function, network, library.is_neuron)
    before = set(vars(network))
    try:
        graph = _traced(network, library)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected argument `network` of {library.function} to handle one time step with operations that torch.fx "
            f"can trace, but {type(network).__name__}.forward does not: {error}. Convert the part that holds layers "
            "and neurons by itself"
        ) from error
    conversion = _Conversion(network, graph, library)
    converted = conversion.network()
    for name in set(vars(network)) - before:  # constants that the trace put on the network
        delattr(network, name)
    refuse_conversion(library.function, conversion.refusals)
    converted.train(network.training)
    return converted


def _traced(network: nn.Module, library: Library) -> fx.Graph:
    """Return the graph of one step in evaluation mode, in which functions show whether they depend on the mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        return _Tracer(library).trace(network)
    finally:
        for module, training in modes.items():
            module.training = training


class _Conversion:
    def __init__(self, network: nn.Module, graph: fx.Graph, library: Library) -> None:
        self.original, self.library, self.device = network, library, device_of(network)
        self.nodes = list(graph.nodes)
        self.refusals: list[Refusal] = []
        self.calls = _Calls({}, {}, {})
        self.modules: dict[str, Any] = {}
        self.operations = Operations(library.sequences)

    def network(self) -> nn.Module:
        self._find_calls()
        outputs, membranes = self._outputs()
        self._convert_modules(membranes)
        graph = self._graph(outputs)
        if self.refusals:
            return self.original
        return (
            self._nested(graph)
            or self._chain(graph)
            or fx.GraphModule(self.modules, graph, type(self.original).__name__)
        )

    def _refuse(self, name: str, layer: nn.Module | str, reason: str) -> None:
        self.refusals.append(Refusal(name, layer, reason))

    def _find_calls(self) -> None:
        called: dict[nn.Module, int] = {}
        given = [node for node in self.nodes if node.op == "placeholder"][1:]
        for node in self.nodes:
            module = self._module_of(node)
            if module is None or not self.library.is_neuron(module):
                continue
            called[module] = called.get(module, 0) + 1
            if called[module] == 2:
                self._refuse(
                    str(node.target),
                    module,
                    "it is called more than once: if this is a loop over time, make the body of the loop the forward; "
                    "else give every place a neuron of its own",
                )
            for state in _arguments(node)[1:]:
                if isinstance(state, fx.Node) and (state not in given or len(state.users) > 1):
                    self._refuse(
                        str(node.target),
                        module,
                        "it receives a state that the step computes, or that others use: give it the state that it "
                        "returned in the step before",
                    )
            self.calls.neurons[node] = module
            if self.library.returns_states(module):
                for user in node.users:
                    if _is_element(user):
                        found = self.calls.spikes if user.args[1] == 0 else self.calls.states
                        found[user] = node
        for node in given:
            unexpected = [user for user in node.users if user.op != "output" and user not in self.calls.neurons]
            if unexpected:
                self._refuse("", self.original, f"its second input `{node.target}` is not a state of a neuron")

    def _outputs(self) -> tuple[list[fx.Node], set[fx.Node]]:
        """Return what the network outputs but states, and the neurons whose membrane potentials are used."""
        returned: list[fx.Node] = []
        for node in self.nodes:
            if node.op == "output":
                map_arg(node.args[0], returned.append)
        of_states = self.calls.states
        given = [node for node in self.nodes if node.op == "placeholder"][1:]
        outputs = [node for node in dict.fromkeys(returned) if node not in of_states and node not in given]
        # the last spikes of a neuron that is given them are a state, unless they are the output
        outputs = [node for node in outputs if not self._is_given_again(node)] or outputs[:1]
        used = {
            state: neuron
            for state, neuron in of_states.items()
            if any(user.op != "output" and user not in self.calls.neurons for user in state.users)
        }
        if not outputs:
            last = [node for node in dict.fromkeys(returned) if node in of_states][-1:]
            used.update({node: of_states[node] for node in last})
            outputs = last
        for state, neuron in used.items():
            if state.args[1] not in (-1, self._states_of(neuron)):
                name, module = str(neuron.target), self.calls.neurons[neuron]
                self._refuse(name, module, "a state other than its membrane potential is used")
        return outputs, set(used.values())

    def _is_given_again(self, node: fx.Node) -> bool:
        neuron = self.calls.spikes.get(node)
        given = neuron is not None and any(isinstance(state, fx.Node) for state in _arguments(neuron)[1:])
        return given and neuron is not None and self.library.takes_spikes(self.calls.neurons[neuron])

    def _states_of(self, neuron: fx.Node) -> int:
        return max([int(str(node.args[1])) for node, of in self.calls.states.items() if of is neuron], default=0)

    def _convert_modules(self, membranes: set[fx.Node]) -> None:
        plain: dict[str, nn.Module] = {}
        for node in self.nodes:
            module = self._module_of(node)
            name = str(node.target)
            if module is None or name in self.modules or name in plain:
                continue
            try:
                if self.library.is_neuron(module):
                    spikes_used = any(
                        user not in self.calls.states and (user not in self.calls.spikes or user.users)
                        for user in node.users
                    )
                    if node in membranes and spikes_used:
                        raise Unconvertible(
                            "both its spikes and its membrane potential are used: read the potential of another neuron "
                            'with reset_mechanism="none"'
                        )
                    use: Use = "membrane" if node in membranes else "spikes"
                    made = self.library.neuron(module, use, axis_before(node, self.original))
                    self.modules[name] = made.to(self.device)
                else:
                    plain[name] = self.library.layer(module)
            except Unconvertible as error:
                self._refuse(name, module, str(error))
        if not self.refusals:
            # one copy of all, so that shared parameters stay shared
            self.modules.update(copy.deepcopy(plain))

    def _graph(self, outputs: list[fx.Node]) -> fx.Graph:
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        for node in self.nodes:
            if node in placeholders[:1]:
                made[node] = graph.placeholder(str(node.target))
            elif node.op in ("placeholder", "output") or self.operations.counts_rows(node):
                continue
            elif node in self.calls.neurons:
                current = _arguments(node)[0]
                if current in made:
                    made[node] = graph.call_module(str(node.target), (made[current],))
            elif any(each not in made for each in node.all_input_nodes if not self.operations.counts_rows(each)):
                continue  # an input was refused
            elif node in self.calls.spikes:
                made[node] = made[self.calls.spikes[node]]
            elif node in self.calls.states:
                made[node] = made[self.calls.states[node]]
            else:
                self._copy(node, graph, made)
        if self.refusals:
            return graph
        found = [made[node] for node in outputs]
        graph.output(found[0] if len(found) == 1 else tuple(found))
        for node in reversed(graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        return graph

    def _copy(self, node: fx.Node, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> None:
        def mapped(argument: Argument) -> Any:
            return map_arg(argument, made.__getitem__)

        if node.op == "get_attr":
            value: Any = self.original
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, Tensor):
                return
            self.modules[str(node.target)] = copy.deepcopy(value)
        operation = node.target if isinstance(node.target, str) else node.target.__name__
        try:
            module = self.operations.module_of(node)
            if module is not None:
                name = _free_name(node.name, self.original, self.modules)
                self.modules[name] = module
                made[node] = graph.call_module(name, (made[node.all_input_nodes[0]],))
                return
            target, args, kwargs = self.operations.on_rows(node)
            made[node] = graph.create_node(node.op, target, mapped(args), mapped(kwargs), name=node.name)
        except Unconvertible as error:
            self._refuse("", f"operation `{operation}`", f"{error}{self._part()}")

    def _part(self) -> str:
        holding = [
            name for name, child in _children(self.original) if any(map(self.library.is_neuron, child.modules()))
        ]
        return f", such as `network.{holding[0]}`" if len(holding) == 1 else ""

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return self.original.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _nested(self, graph: fx.Graph) -> nn.Module | None:
        """Return the same nesting of `nn.Sequential`s, with all names, if the original is one."""
        if self._chain(graph) is None:
            return None
        names = {module: name for name, module in self.original.named_modules()}
        parts = unnested(self.original)
        if parts == [self.original] or any(names[part] not in self.modules for part in parts):
            return None

        def rebuilt(module: nn.Module) -> nn.Module:
            if names[module] in self.modules:
                found: nn.Module = self.modules[names[module]]
                return found
            return nn.Sequential(OrderedDict((name, rebuilt(child)) for name, child in _children(module)))

        return rebuilt(self.original)

    def _chain(self, graph: fx.Graph) -> nn.Sequential | None:
        """Return the layers as an `nn.Sequential`, if each one takes the output of the one before and nothing else."""
        before, *nodes = graph.nodes
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for node in nodes:
            if node.args != (before,) or node.kwargs or len(before.users) != 1:
                return None
            if node.op == "call_module":
                name = str(node.target).replace(".", "_")
                layers[name if name not in layers else f"{name}_again{len(layers)}"] = self.modules[str(node.target)]
            elif node.op != "output":
                return None
            before = node
        return nn.Sequential(layers)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # not named_children, which yields a layer once even if it is there under two names
    return ((name, child) for name, child in module._modules.items() if child is not None)


def _arguments(node: fx.Node) -> list[Any]:
    """Return the arguments of a call of a neuron, its current first."""
    named = dict(node.kwargs)
    first = [named.pop(name) for name in ("input_", "x", "x_seq") if name in named]
    return [*node.args, *first, *named.values()]


def _is_element(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _free_name(name: str, network: nn.Module, modules: dict[str, Any]) -> str:
    while hasattr(network, name) or name in modules:
        name = f"{name}_"
    return name
