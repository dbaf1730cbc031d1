"""A pretended accelerator, to find on a CPU what would fail or wait on a GPU.

Its tensors report another device and hold their values on the CPU, so results are those of the CPU, to the last bit. As
on a GPU, an operation on tensors of two devices raises an error, and so does a generator of the CPU. Where the CPU
would wait is recorded. The device is called "meta", because that exists in every build of PyTorch and has no other use
where networks are trained.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import lightning_snn

ACCELERATOR = torch.device("meta")
PACKAGE = Path(lightning_snn.__file__).parent
aten = torch.ops.aten

# results whose value or shape the CPU needs
READS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# no operation on each entry: here a CPU tensor without dimensions is not taken either
WHOLE = {aten.addmm.default, aten.bmm.default, aten.cat.default, aten.mm.default, aten.stack.default}


class OnAccelerator(Tensor):
    """Tensor of the accelerator; its values are on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> OnAccelerator:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=ACCELERATOR,
        )
        made.values_here = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Accelerator.active is not None, "used outside of `with Accelerator()`"
        return Accelerator.active.computed(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnAccelerator({self.values_here})"


class _Mode(TorchDispatchMode):
    """Lets functions that create a tensor create it on the accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert Accelerator.active is not None
        return Accelerator.active.computed(func, args, kwargs or {})


class Accelerator:
    """Context in which the accelerator exists.

    Attributes:
        waits: line of the package, `path:number`, for each time that the CPU waits: for a value, a shape or a copy.
    """

    active: Accelerator | None = None

    def __init__(self) -> None:
        self.waits: list[str] = []

    def __enter__(self) -> Accelerator:
        self.contexts = contextlib.ExitStack()
        # a tensor of given values would be empty
        for name in ("tensor", "as_tensor"):
            self.contexts.enter_context(mock.patch.object(torch, name, partial(_tensor, getattr(torch, name))))
        for name in ("autocast", "is_autocast_enabled"):
            self.contexts.enter_context(mock.patch.object(torch, name, partial(_autocast, getattr(torch, name))))
        self.contexts.enter_context(mock.patch.object(Accelerator, "active", self))
        self.contexts.enter_context(_Mode())
        return self

    def __exit__(self, *exception: Any) -> None:
        self.contexts.close()

    def computed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the values of its tensors."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnAccelerator)]
        device = kwargs.get("device")
        kind = None if device is None else torch.device(device).type
        if not there and kind != ACCELERATOR.type:
            return func(*args, **kwargs)
        if func.namespace == "lightning_snn":
            with _Mode():
                return _implementation(func)(*args, **kwargs)
        self._check(func, args, tensors, kwargs.get("generator"))
        if self._waits(func, args, kwargs, tensors):
            self.waits.append(_line())
        if kind == ACCELERATOR.type:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is aten._efficientzerotensor.default:  # a forward derivative without values
            if not args[0]:  # of a number
                return func(*args, **kwargs)
            func = aten.zeros.default
        found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if kind == "cpu":
            return found
        known = {id(_values(tensor)): tensor for tensor in tensors}
        return tree_map(lambda each: known.get(id(each), _moved(each)) if isinstance(each, Tensor) else each, found)

    def _waits(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
        if func in COPIES:
            places = {isinstance(each, OnAccelerator) for each in tensors if not each._is_zerotensor()}
            if kwargs.get("device") is not None:
                places.add(torch.device(kwargs["device"]).type == ACCELERATOR.type)
            across = len(places) == 2
            return across and not (kwargs.get("non_blocking") or args[2:] == (True,))
        return func in READS or (func in INDEXED and _finds_places(func, args))

    def _check(self, func: Any, args: Any, tensors: list[Tensor], generator: torch.Generator | None) -> None:
        here = [tensor for tensor in tensors if not isinstance(tensor, OnAccelerator)]
        if func in INDEXED:
            indices = {id(each) for each in args[1]}
            here = [tensor for tensor in here if id(tensor) not in indices]
        if func not in WHOLE:
            here = [tensor for tensor in here if tensor.dim() > 0]
        if here and func not in COPIES:
            raise RuntimeError(f"Expected all tensors on one device, but {func} got some of the CPU: {here}")
        if generator is not None:
            raise RuntimeError(f"Expected a generator of the accelerator, but {func} got {generator}")


def on_accelerator(value: Tensor) -> Tensor:
    """Return a copy of a tensor on the accelerator."""
    return OnAccelerator(value.detach().clone()).requires_grad_(value.requires_grad)


def move(module: nn.Module) -> nn.Module:
    """Move parameters and buffers of a module, as `module.to(device)` does, and return it."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module._apply(lambda tensor: OnAccelerator(tensor.detach().clone()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def values(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, which the test compares."""
    return _values(tensor.detach())


def _values(leaf: Any) -> Any:
    if isinstance(leaf, OnAccelerator):
        return leaf.values_here
    zero = isinstance(leaf, Tensor) and leaf._is_zerotensor()
    return torch.zeros(leaf.shape, dtype=leaf.dtype) if zero else leaf


def _moved(leaf: Any) -> Any:
    return OnAccelerator(leaf) if isinstance(leaf, Tensor) else leaf


def _index(index: Any) -> Any:
    """Return an index whose lists are tensors of the accelerator, where PyTorch would make empty ones."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return torch.tensor(index, device=ACCELERATOR) if isinstance(index, list) else index


def _tensor(original: Callable[..., Tensor], *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    if device is None or torch.device(device) != ACCELERATOR or isinstance(args[0], OnAccelerator):
        return original(*args, device=device, **kwargs)
    requires_grad = kwargs.pop("requires_grad", False)
    return original(*args, **kwargs).to(ACCELERATOR).requires_grad_(requires_grad)


def _autocast(original: Callable[..., Any], device_type: str, *args: Any, **kwargs: Any) -> Any:
    return original("cpu" if device_type == ACCELERATOR.type else device_type, *args, **kwargs)


def _finds_places(func: Any, args: Any) -> bool:
    """Return whether an operation counts the entries of a mask; a number is written by the mask itself."""
    masks = any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    return masks and (func is aten.index.Tensor or args[2].numel() > 1)


def _implementation(func: Any) -> Callable[..., Any]:
    """Return the loop behind an operator of this library, so that its operations are seen."""
    return partial(func._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd)


def _line() -> str:
    """Return the innermost line of the package that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if PACKAGE in path.parents:
            return f"{path.relative_to(PACKAGE)}:{frame.lineno}"
    return "outside of the package"
