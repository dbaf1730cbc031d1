"""Products of tensors that a module computes itself, without a layer: attention of spikes by spikes, shared weights.

In a bilinear product, such as the matrix product q @ k, an operation is a pair of factors that are multiplied. It is
effective if both are not zero, as an input and a weight of a connection layer:

    N = product(1[a != 0], 1[b != 0]), summed over all outputs

Effective operations are accumulates (ACs) in time steps in which all values of a factor are -1, 0 or 1, unless this
factor is a parameter, and multiply-accumulates (MACs) in all other time steps.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_snn.metrics.operations import Effective, connection_of, is_uncounted, recurrence_of
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lengths import valid_steps
from lightning_snn.nn.observation import first_argument
from lightning_snn.nn.phase import on_spikes
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.run_context import run_values

if TYPE_CHECKING:
    from lightning_snn.metrics.activity import Activity


class Product(NamedTuple):
    """A bilinear product of two tensors.

    Attributes:
        first: first factor.
        second: second factor.
        compute: the product as a function of its factors.
    """

    first: Tensor
    second: Tensor
    compute: Callable[[Tensor, Tensor], Tensor]


_UNOBSERVED = ContextVar("unobserved", default=False)

# functions that are bilinear in two arguments: the position of the first, and the name of both
_FACTORS = {
    "matmul": (0, "input", "other"),
    "__matmul__": (0, "input", "other"),
    "__rmatmul__": (0, "input", "other"),
    "mm": (0, "input", "mat2"),
    "bmm": (0, "input", "mat2"),
    "mv": (0, "input", "vec"),
    "dot": (0, "input", "tensor"),
    "inner": (0, "input", "other"),
    "tensordot": (0, "a", "b"),
    "linear": (0, "input", "weight"),
    "conv1d": (0, "input", "weight"),
    "conv2d": (0, "input", "weight"),
    "conv3d": (0, "input", "weight"),
    "addmm": (1, "mat1", "mat2"),
    "addmv": (1, "mat", "vec"),
    "baddbmm": (1, "batch1", "batch2"),
}
_PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "__rmatmul__": lambda first, second: torch.matmul(second, first),
    "mm": torch.mm,
    "bmm": torch.bmm,
    "mv": torch.mv,
    "dot": torch.dot,
    "inner": torch.inner,
    "linear": F.linear,
    "addmm": torch.mm,
    "addmv": torch.mv,
    "baddbmm": torch.bmm,
}
_CONVOLUTIONS: dict[str, Callable[..., Tensor]] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}
# products that are not counted
_OTHERS = {
    "addbmm",
    "bilinear",
    "chain_matmul",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "multi_dot",
    "multi_head_attention_forward",
    "outer",
    "scaled_dot_product_attention",
}


def product_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Product | str | None:
    """Return the product that a call of a function of PyTorch computes.

    Args:
        name: name of the function.
        args: its arguments by position.
        kwargs: its arguments by name.

    Returns:
        The product; the name of a function that computes products in a way that cannot be counted; or None for other
        functions.
    """
    if name == "einsum":
        return _einsum(*args)
    if name in _OTHERS:
        return name
    if name not in _FACTORS:
        return None
    start, *names = _FACTORS[name]
    first, second = (args[at] if len(args) > at else kwargs.get(key) for at, key in enumerate(names, start))
    if not (_is_counted(first) and _is_counted(second)):
        return name
    if name == "tensordot":
        dims = args[2] if len(args) > 2 else kwargs.get("dims", 2)
        return Product(first, second, lambda a, b: torch.tensordot(a, b, dims=dims))
    if name in _CONVOLUTIONS:
        convolve = _CONVOLUTIONS[name]
        options = dict(zip(("stride", "padding", "dilation", "groups"), args[3:], strict=False))
        options |= {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
        return Product(first, second, lambda a, b: convolve(a, b, **options))
    return Product(first, second, _PLAIN.get(name, torch.matmul))


def _einsum(equation: str, *operands: Any) -> Product | str | None:
    factors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if len(factors) == 1:
        return None
    if len(factors) > 2 or not isinstance(equation, str):
        return "einsum"
    first, second = factors
    if not (_is_counted(first) and _is_counted(second)):
        return "einsum"
    return Product(first, second, lambda a, b: torch.einsum(equation, a, b))


def _is_counted(factor: Any) -> TypeGuard[Tensor]:
    return isinstance(factor, Tensor) and factor.layout == torch.strided and not factor.is_complex()


@contextmanager
def record_products(network: nn.Module, activity: Activity) -> Iterator[None]:
    """Enter a context in which the products that modules compute in their `forward` are added to an `Activity`.

    Products within layers that are counted by their type, neurons, losses, and metrics are left out.

    Args:
        network: any module.
        activity: totals to add to. Modules whose products cannot be counted are named in `uncounted`, with the name of
            PyTorch's function.
    """
    names = {module: name or type(module).__name__ for name, module in network.named_modules()}
    # by module and place in the code: a module's row is one of each of its products
    rows: dict[str, Counter[Hashable]] = defaultdict(Counter)

    def add(module: nn.Module, given: Any, product: Product | str, result: Tensor) -> None:
        # layers with a weight matrix that is not counted are named by their type
        if not on_spikes() or is_uncounted(module):
            return
        if isinstance(product, str):
            if (named := f"{names[module]} ({product})") not in activity.uncounted:
                activity.uncounted.append(named)
            return
        steps, rows_of_call = _steps_of_result(given, result, activity.steps)
        valid = valid_results(result, steps)
        of_module = rows[names[module]]
        before = max(of_module.values(), default=0)
        of_module[_place()] += rows_of_call if valid is None else rows_of_call // valid.numel() * int(valid.sum())
        with unobserved():
            effective, dense = effective_products(product, steps, valid), dense_products(product, valid)
        activity.add_operations(names[module], effective, dense, max(of_module.values()) - before)

    with observe_products(network, _is_leaf, add):
        yield


def valid_results(result: Tensor, steps: int) -> Tensor | None:
    """Return which samples of a result are no padding at each step, `[steps, B]`; None if all are or it is not known.

    Args:
        result: a tensor whose first axes are time and batch, or both folded.
        steps: number of time steps; 1 if they are not known.
    """
    lengths = run_values().lengths
    if lengths is None or steps != time_steps() or result.numel() % (steps * len(lengths)):
        return None
    return valid_steps(steps, len(lengths))


def effective_products(product: Product, steps: int, valid: Tensor | None = None) -> Effective:
    """Count the effective operations of a product.

    Args:
        product: the product.
        steps: number of time steps if they are the first axis of the result, alone or folded with samples; 1 if they
            are not known.
        valid: which samples are no padding, `[steps, B]`; None if all are valid.
    """
    counts = _of_valid(_computed(product, product.first != 0, product.second != 0), valid).reshape(steps, -1).sum(1)
    of_spikes = torch.zeros(steps, dtype=torch.bool, device=counts.device)
    for factor in (product.first, product.second):
        if not isinstance(factor, nn.Parameter):
            over_time = factor.dim() > 2 and len(factor) % steps == 0
            values = factor.detach().reshape(steps if over_time else 1, -1)
            of_spikes = of_spikes | (values == values.sign()).all(1)
    return Effective((counts * of_spikes).sum(), counts.sum())


def dense_products(product: Product, valid: Tensor | None = None) -> int:
    """Count the operations of a product if no factor were zero; `valid` as in `effective_products`."""
    counts = _computed(product, torch.ones_like(product.first), torch.ones_like(product.second))
    return int(_of_valid(counts, valid).sum())


def _of_valid(counts: Tensor, valid: Tensor | None) -> Tensor:
    """Return counts with 0 for padded steps."""
    return counts if valid is None else counts.reshape(*valid.shape, -1) * valid.unsqueeze(-1)


def _computed(product: Product, first: Tensor, second: Tensor) -> Tensor:
    """Compute a product of other factors, integers; exact as long as each is below 2^24."""
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
        return product.compute(first.detach().float(), second.detach().float()).round().long()


@contextmanager
def observe_products(
    network: nn.Module,
    leaves: Callable[[nn.Module], bool],
    on_product: Callable[[nn.Module, Any, Product | str, Tensor], None],
) -> Iterator[None]:
    """Enter a context in which a function receives the products that modules compute in their `forward`.

    Products of parameters and buffers alone are parts of weights and not reported. Nothing is reported of a network
    that is compiled, because its modules do not call PyTorch's functions.

    Args:
        network: any module.
        leaves: function that returns whether the products in a module, and in those within it, are not reported.
        on_product: function of a module, the first argument of its `forward`, a product or the name of a function that
            computes one, and the result.
    """
    with ExitStack() as hooks:
        if not any(map(_is_compiled, network.modules())):
            mode = _Products(network, leaves, on_product)
            for module in network.modules():
                hooks.callback(module.register_forward_pre_hook(mode.entering(module), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(mode.leaving(module), always_call=True).remove)
        yield


@contextmanager
def unobserved() -> Iterator[None]:
    """Enter a context whose products are not reported, because they are those of a measurement."""
    token = _UNOBSERVED.set(True)
    try:
        yield
    finally:
        _UNOBSERVED.reset(token)


class _Products(TorchFunctionMode):
    """Mode that sees all calls of PyTorch's functions while a module of the network runs."""

    def __init__(
        self,
        network: nn.Module,
        leaves: Callable[[nn.Module], bool],
        on_product: Callable[[nn.Module, Any, Product | str, Tensor], None],
    ) -> None:
        super().__init__()
        self.leaves, self.on_product = leaves, on_product
        self._running: list[tuple[nn.Module, Any, bool]] = []
        self._constants = {id(each) for each in (*network.parameters(), *network.buffers())}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.compiler.is_compiling() or _UNOBSERVED.get() or not self._running or not isinstance(result, Tensor):
            return result
        module, given, is_leaf = self._running[-1]
        product = None if is_leaf else product_of(func.__name__, args, kwargs)
        if product is not None and not self._is_constant(product):
            self.on_product(module, given, product, result)
        return result

    def entering(self, own: nn.Module) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # copies of a network have its hooks too; with several processes a LightningModule is called for its step
            if module is not own or "forward" in vars(module):
                return
            if not self._running:
                self.__enter__()
            is_leaf = bool(self._running) and self._running[-1][2]
            self._running.append((module, first_argument(args, kwargs), is_leaf or self.leaves(module)))

        return enter

    def leaving(self, own: nn.Module) -> Any:
        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is not own or "forward" in vars(module):
                return
            self._running.pop()
            if not self._running:
                self.__exit__(None, None, None)

        return leave

    def _is_constant(self, product: Product | str) -> bool:
        return isinstance(product, Product) and {id(product.first), id(product.second)} <= self._constants


def _is_compiled(module: nn.Module) -> bool:
    compiled = getattr(module, "_compiled_call_impl", None), vars(module).get("_compiler_ctx")
    return compiled != (None, None) or type(module).__name__ == "OptimizedModule"


def _is_leaf(module: nn.Module) -> bool:
    """Return whether the products in a module are counted by its type, or are no synaptic operations."""
    counted = connection_of(module) is not None or recurrence_of(module) is not None
    return counted or is_spiking_layer(module) or isinstance(module, (Metric, _Loss))


def _place() -> Hashable:
    """Return the place in the user's code of a call that is being observed."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and f"{frame.f_globals.get('__name__')}.".startswith((f"{__name__}.", "torch.")):
        frame = frame.f_back
    return frame and (frame.f_code, frame.f_lasti)


def _steps_of_result(given: Any, result: Tensor, known: int) -> tuple[int, int]:
    """Return the time steps on the first axis of a product, and its rows: time steps times samples.

    Args:
        given: input of the module that computed it.
        result: the product.
        known: time steps of the spiking layers that take all of them in one call; 0 if there are none.
    """
    size = len(result) if result.dim() > 1 else 1
    steps = time_steps()
    if steps is not None:
        rows = len(given) if isinstance(given, Tensor) and given.dim() else size
        return (steps if result.numel() and size % steps == 0 else 1), rows
    if known and size == known and result.dim() > 2:
        return known, size * result.shape[1]
    return 1, size
