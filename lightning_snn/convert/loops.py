"""Modules that loop over time by themselves: found in their source, and answered with the body for one step."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

_RESETS = ("reset_mem", "reset", "reset_net", "reset_hidden", "detach_hidden")


class Forward(NamedTuple):
    """Source of the forward of a module that holds neurons.

    Attributes:
        name: of the module within the network, empty for the network itself.
        module: the module.
        function: its syntax tree.
        own: name of the first argument, which is the module.
    """

    name: str
    module: nn.Module
    function: ast.FunctionDef
    own: str


def check_no_time_loop(function: str, network: nn.Module, is_neuron: Callable[[nn.Module], bool]) -> None:
    """Raise an error if a forward loops over time, or resets its neurons, and show the body for one step.

    Args:
        function: name of the converter.
        network: the network.
        is_neuron: returns True for neurons.

    Raises:
        ValueError: names the neurons that the loop calls, and shows the forward for one step in the user's own names.
    """
    for forward in _forwards(network, is_neuron):
        for loop in ast.walk(forward.function):
            if isinstance(loop, (ast.For, ast.While, ast.ListComp, ast.GeneratorExp)):
                called = _neurons_called(loop, forward, is_neuron)
                if called:
                    raise ValueError(_message(function, forward, loop, called))
        for call in ast.walk(forward.function):
            if isinstance(call, ast.Call) and _resets(call):
                kind = type(forward.module).__name__
                raise ValueError(
                    f"Expected argument `network` of {function} to handle one time step, but {kind}.forward resets "
                    f"states by `{ast.unparse(call)}`, so every call starts from rest. Remove that line and take the "
                    "states as arguments, or use init_hidden=True: a converted network starts each sequence from rest"
                )


def _forwards(network: nn.Module, is_neuron: Callable[[nn.Module], bool]) -> Iterator[Forward]:
    for name, module in network.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch.nn.") or is_neuron(module) or not any(map(is_neuron, module.modules())):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
        except (OSError, TypeError, SyntaxError):  # no source: the trace finds neurons that are called repeatedly
            continue
        if isinstance(tree.body[0], ast.FunctionDef) and tree.body[0].args.args:
            yield Forward(name, module, tree.body[0], tree.body[0].args.args[0].arg)


def _neurons_called(
    loop: ast.AST, forward: Forward, is_neuron: Callable[[nn.Module], bool]
) -> list[tuple[str, nn.Module]]:
    found = {}
    for call in ast.walk(loop):
        if not isinstance(call, ast.Call):
            continue
        path = _attribute_path(call.func, forward.own)
        try:
            called = forward.module.get_submodule(path) if path else None
        except AttributeError:
            continue
        for name, part in [] if called is None else called.named_modules():
            if is_neuron(part):
                found[".".join(filter(None, [forward.name, path, name]))] = part
    return list(found.items())


def _attribute_path(node: ast.expr, own: str) -> str:
    """Return `a.b` of `self.a.b` or `self.a[0]`, empty for anything else."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parts.append(str(node.slice.value))
            node = node.value
        else:
            return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == own else ""


def _resets(call: ast.Call) -> bool:
    called = call.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in _RESETS or name.startswith("init_")


def _message(function: str, forward: Forward, loop: ast.AST, called: list[tuple[str, nn.Module]]) -> str:
    neurons = ", ".join(f"{name}: {type(neuron).__name__}" for name, neuron in called)
    head = ast.unparse(loop).splitlines()[0].rstrip(":")
    kind = type(forward.module).__name__
    step = textwrap.indent(_one_step(forward, loop), " " * 4)
    return (
        f"Expected argument `network` of {function} to handle one time step, but {kind}.forward loops over time by "
        f"itself: `{head}` calls {neurons}. Time is folded into the batch here, so neurons run over all steps in one "
        f"call. Give {kind} the body of the loop as its forward, and convert that:\n\n{step}\n\n"
        f"`lightning_snn.run({function}(network), x)` with x of shape [T, B, ...] then runs all steps from rest; "
        "returned states are left out of its output"
    )


def _one_step(forward: Forward, loop: ast.AST) -> str:
    arguments = [each.arg for each in forward.function.args.args[1:]]
    x = arguments[0] if arguments else "x"
    over: Any = loop.generators[0] if isinstance(loop, (ast.ListComp, ast.GeneratorExp)) else loop
    index = over.target.id if not isinstance(over, ast.While) and isinstance(over.target, ast.Name) else ""
    if isinstance(loop, (ast.ListComp, ast.GeneratorExp)):
        output = _OneStep(x, index).visit(loop.elt)
        while isinstance(output, ast.Subscript):
            output = output.value
        step = index if ast.unparse(over.iter) == x else x
        return f"def forward({forward.own}, {step}):\n    return {ast.unparse(output)}"
    assert isinstance(loop, (ast.For, ast.While))
    body = ast.Module([_OneStep(x, index).visit(each) for each in loop.body if _recorded(each) is None], [])
    if isinstance(loop, ast.For) and ast.unparse(loop.iter) == x:
        x = index
    states = _carried(body)
    recorded = dict.fromkeys(ast.unparse(value) for each in loop.body if (value := _recorded(each)) is not None)
    outputs = [each for each in recorded if each not in states] or list(recorded)[:1]
    signature = ", ".join([forward.own, x, *(f"{state}=None" for state in states)])
    lines = [*ast.unparse(ast.fix_missing_locations(body)).splitlines()]
    returned = ", ".join(dict.fromkeys([*outputs, *states]))
    return "\n".join([f"def forward({signature}):", *(f"    {line}" for line in lines), f"    return {returned}"])


class _OneStep(ast.NodeTransformer):
    """Replace `x[step]` by `x`."""

    def __init__(self, x: str, index: str) -> None:
        self.x, self.index = x, index

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if isinstance(node.value, ast.Name) and node.value.id == self.x and ast.unparse(indices[0]) == self.index:
            return node.value
        self.generic_visit(node)
        return node


def _recorded(statement: ast.stmt) -> ast.expr | None:
    """Return the value that a statement `list.append(value)` records."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        if isinstance(call.func, ast.Attribute) and call.func.attr == "append" and call.args:
            return call.args[0]
    return None


def _carried(body: ast.Module) -> list[str]:
    """Return the names that a step reads before it assigns them, and assigns: the states."""
    assigned: set[str] = set()
    early: dict[str, None] = {}
    for statement in body.body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        early.update({node.id: None for node in names if isinstance(node.ctx, ast.Load) and node.id not in assigned})
        assigned |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return [name for name in early if name in assigned]
