"""Operations between layers, on rows that are independent of each other."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from lightning_snn.convert.refusals import Unconvertible

_ARITHMETIC = ("add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "truediv", "neg", "abs")
_ELEMENTWISE = frozenset((*_ARITHMETIC, "relu", "sigmoid", "tanh", "clone", "contiguous", "float", "double"))
_DIMENSIONS = {"cat": 1}
# arguments of functions in their order, which are those of the modules, too
_MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "dropout": (nn.Dropout, ("p",)),
    "max_pool1d": (nn.MaxPool1d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "max_pool2d": (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool1d": (nn.AvgPool1d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    "avg_pool2d": (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d, ("output_size",)),
}
_ELEMENTWISE_MODULES = ("relu", "sigmoid", "tanh", "dropout")


class Operations:
    """Operations of a traced step, rewritten for rows `[T*B, ...]`.

    Args:
        sequences: whether the network takes `[T, B, ...]`, so that dimensions are one larger than those of rows.

    Example:
        >>> class Step(nn.Module):
        ...     def forward(self, x):
        ...         return x.view(x.size(0), -1)
        >>> *_, view, output = fx.symbolic_trace(Step()).graph.nodes
        >>> Operations(sequences=False).module_of(view)
        Flatten(start_dim=1, end_dim=-1)
    """

    def __init__(self, sequences: bool) -> None:
        self.leading = 2 if sequences else 1  # dimensions that become the rows

    def counts_rows(self, node: fx.Node) -> bool:
        """Return whether a node is `x.size(0)` or `x.shape[0]`, the number of rows, or the shape for it."""
        name = _name(node) if node.op in ("call_function", "call_method") else ""
        if name == "size":
            return node.args[1:] == (0,)
        if name == "getattr":
            return node.args[1:] == ("shape",) and all(self.counts_rows(user) for user in node.users)
        source = node.args[0] if node.args else None
        return (
            name == "getitem" and node.args[1:] == (0,) and isinstance(source, fx.Node) and _name(source) == "getattr"
        )

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that computes the same as a function; None if there is none."""
        name = _name(node)
        if node.op not in ("call_function", "call_method"):
            return None
        if name == "flatten":
            start, end = self._flattened(node)
            return nn.Flatten(start, end)
        if name in ("view", "reshape"):
            shape = self._shape(node)
            return nn.Flatten() if shape == [-1] else None
        if name not in _MODULES or (self.leading > 1 and name not in _ELEMENTWISE_MODULES):
            return None
        kind, names = _MODULES[name]
        if name == "dropout" and node.kwargs.get("training", True):
            raise Unconvertible("it is on in evaluation, too: pass training=self.training, or use nn.Dropout")
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        return kind(**{key: value for key, value in given.items() if key in names and value is not None})

    def on_rows(self, node: fx.Node) -> tuple[Any, Any, Any]:
        """Return target, arguments and keyword arguments of an operation on rows.

        Raises:
            Unconvertible: if it mixes rows, or is not known to keep them apart.
        """
        name = _name(node)
        if node.op in ("call_module", "get_attr") or name in _ELEMENTWISE:
            return node.target, node.args, node.kwargs
        if name in ("view", "reshape") and self.leading == 1:
            return node.target, (node.args[0], -1, *self._shape(node)), {}
        if name in _DIMENSIONS:
            position = _DIMENSIONS[name]
            dimension = node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0)
            return node.target, node.args[:position], {"dim": self._dimension(dimension)}
        raise Unconvertible(
            "it is not known to keep time steps and samples apart: leave it to `run`, the readout or a layer, and "
            "convert the rest"
        )

    def _flattened(self, node: fx.Node) -> tuple[int, int]:
        named = ("start_dim", "end_dim")
        given = {**dict(zip(named, node.args[1:], strict=False)), **node.kwargs}
        return self._dimension(given.get("start_dim", 0)), self._dimension(given.get("end_dim", -1))

    def _dimension(self, dimension: Any) -> int:
        if not isinstance(dimension, int) or 0 <= dimension < self.leading:
            raise Unconvertible(
                f"it mixes the rows, dimension {dimension}: keep dimension 0 to {self.leading - 1} as it is"
            )
        return dimension if dimension < 0 else dimension - self.leading + 1

    def _shape(self, node: fx.Node) -> list[int]:
        given: Any = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) > 1 else None
        if self.leading > 1 or not isinstance(given, (tuple, list)) or len(given) < 2:
            raise Unconvertible("its first dimension is not the rows: use `x.flatten(1)` on one step")
        rows, *shape = given
        if any(not isinstance(size, int) for size in shape) or (shape != [-1] and -1 in shape):
            raise Unconvertible("its sizes are not numbers: use `x.flatten(1)` or `nn.Unflatten` on one step")
        if isinstance(rows, fx.Node) and not self.counts_rows(rows):
            raise Unconvertible("its first dimension is not the rows: use `x.flatten(1)` on one step")
        return list(shape)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
