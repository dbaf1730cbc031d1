"""Time folded into the batch, so a plain network runs over a sequence.

Inside a network tensors are `[T*B, ...]`, so any stateless layer works unchanged and runs as one large call. Only
layers that mix time steps unfold T. `run` folds the input, makes T known to these layers, and unfolds the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.inputs import (
    call_with_inputs,
    check_several,
    first_input,
    is_several,
    map_inputs,
    named_inputs,
)
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.row_checks import checked_rows
from lightning_snn.nn.run_context import recomputes, remember_for_backward, run_values, steps_set
from lightning_snn.nn.shape_errors import explained_shapes


@contextmanager
def folded(time_steps: int) -> Iterator[None]:
    """Enter a context in which spiking layers read their input `[T*B, ...]` as `time_steps` steps.

    Contexts can be nested.

    Args:
        time_steps: number of time steps T.

    Example:
        >>> with folded(10):
        ...     LIF()(torch.rand(10 * 2, 4)).shape
        torch.Size([20, 4])
    """
    with steps_set(time_steps, states=None):
        yield


@contextmanager
def unfolded() -> Iterator[None]:
    """Enter a context, within `run`, in which modules are called on unfolded tensors and T is unknown."""
    with steps_set(None):
        yield


def time_steps() -> int | None:
    """Return T of the enclosing `run` or `folded`, or None outside."""
    return run_values().time_steps


def run(network: nn.Module, x: Tensor) -> Any:
    """Run a network over a sequence.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        x: input, shape `[T, B, ...]`, time first; or several of the same T and B in a tuple or list, which become the
            network's arguments by position, or in a dict, by name.

    Returns:
        The output of the network with every tensor unfolded to `[T, B, ...]`, also within tuples, lists and dicts.

    Raises:
        ValueError: if `x` is not a dense tensor with a time and a batch dimension, is of a dtype that the network does
            not take (see `as_input`) or of a shape that a layer does not take, a layer takes rows for time steps or
            keeps a state of its own (see `nn.OverTime` and `nn.PerStep`), or an output does not have `T * B` rows.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> run(network, torch.rand(10, 2, 4)).shape
        torch.Size([10, 2, 3])
    """
    x = as_input(network, x)
    steps, samples = first_input(x).shape[:2]
    rows = map_inputs(lambda part: part.flatten(0, 1), x)
    with steps_set(steps, first_input(rows), states=None), checked_rows(network, steps, samples):
        with explained_shapes(network, x):
            output = call_with_inputs(network, rows)
        return unfold_output(output, steps, samples)


def as_input(network: nn.Module, x: Any) -> Any:
    """Return a sequence in the dtype that a network takes.

    Every method and entry follows this rule: `run`, a call of a module, its steps, and the predictions of a method.
    Floating point that the dtype of the parameters holds exactly is converted to it, such as float16 to float32, and
    any other is refused, because digits would be lost. So are bool and integers of 8 and 16 bits, whose scale is a
    choice. Integers of 32 and 64 bits are indices: they are passed on if the network has an `nn.Embedding` or a module
    of one's own, which may take them.

    The dtype of the parameters is that of the first one in floating point. Networks without any take each.

    Args:
        network: the network.
        x: input `[T, B, ...]`, or several in a tuple, list or dict.

    Raises:
        ValueError: if `x` is not a dense tensor with a time and a batch dimension and at least one time step, or is of
            a dtype that is refused; if the network does not take several inputs, or they differ in T or B.

    Example:
        >>> as_input(nn.Linear(4, 3), torch.zeros(10, 2, 4, dtype=torch.float16)).dtype
        torch.float32
    """
    check_several(network, x)
    check_sequence(x)
    return map_inputs(lambda part: _in_dtype_of(network, part), x)


def _in_dtype_of(network: nn.Module, sequence: Tensor) -> Tensor:
    if not sequence.dtype.is_floating_point:
        if sequence.dtype.is_complex or not _may_take_indices(network):
            raise ValueError(_not_floating(sequence.dtype))
        return sequence
    dtype = _dtype_of(network)
    if dtype is None or sequence.dtype == dtype:
        return sequence
    if torch.promote_types(sequence.dtype, dtype) != dtype:
        trained = ", or train with Trainer(precision='64-true')" if sequence.dtype == torch.float64 else ""
        arrays = "; NumPy arrays are float64 by default" if trained else ""
        raise ValueError(
            f"Expected argument `x` in the dtype of the parameters, {dtype}, but got {sequence.dtype}. Convert it with "
            f"`x.to({dtype})`{trained}{arrays}"
        )
    return sequence.to(dtype)


_COUNTS = (torch.bool, torch.uint8, torch.int8, torch.int16)


def check_sequence(x: Any, batch_first: bool = False) -> None:
    """Raise a ValueError unless `x` is a dense sequence of a dtype that some network takes; see `as_input`.

    Args:
        x: input `[T, B, ...]`, or `[B, T, ...]` with `batch_first`; or several in a tuple, list or dict.
        batch_first: whether the first axis of `x` is the batch.

    >>> check_sequence(torch.zeros(10, 2, 4, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: Expected argument `x` in floating point, but got torch.uint8. Convert it with `x.float()`; a batch that
    a loader of a lightning_snn data module yields needs the data module's `on_after_batch_transfer(batch, 0)`, which a
    Trainer calls if it is given the data module
    """
    expected = "[B, T, ...]" if batch_first else "[T, B, ...]"
    if is_several(x):
        _check_parts(named_inputs(x), batch_first)
        return
    if not hasattr(x, "dim"):
        array = hasattr(x, "__array__")
        default = "Convert it with `torch.as_tensor`" if array else "Pass the inputs of a batch alone, as one tensor"
        raise ValueError(
            f"Expected argument `x` to be a tensor of shape {expected}, but got a {type(x).__name__}. "
            f"{getattr(x, 'remedy', default)}"
        )
    if x.dim() < 2 or x.shape[int(batch_first)] == 0:
        raise ValueError(
            f"Expected argument `x` to be of shape {expected} with T of at least 1, but got {tuple(x.shape)}"
        )
    if x.dtype in _COUNTS:
        raise ValueError(
            f"{_not_floating(x.dtype)}; a batch that a loader of a lightning_snn data module yields needs the data "
            "module's `on_after_batch_transfer(batch, 0)`, which a Trainer calls if it is given the data module"
        )
    if isinstance(x, Tensor) and x.layout is not torch.strided:
        raise ValueError(f"Expected argument `x` to be dense, but got the layout {x.layout}. Use `x.to_dense()`")


def _check_parts(parts: dict[str, Any], batch_first: bool) -> None:
    for name, part in parts.items():
        try:
            check_sequence(part, batch_first)
        except ValueError as error:
            raise ValueError(str(error).replace("`x`", f"`{name}`", 1)) from error
    shapes = {name: tuple(part.shape[:2]) for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        order = "[B, T]" if batch_first else "[T, B]"
        listed = ", ".join(f"{name} of {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"Expected argument `x` to hold inputs of the same {order}, but got {listed}. Resample them to the same "
            "time steps"
        )


def check_samples(x: Any) -> None:
    """Raise a ValueError unless `x` is a sequence `[T, B, ...]` with samples, for a batch with targets.

    Outputs and predictions for a batch without samples are empty, but a mean over them is not defined.
    """
    check_sequence(x)
    first = first_input(x)
    if first.shape[1] == 0:
        raise ValueError(
            f"Expected at least one sample in a batch with targets, but got inputs [T, B, ...] of shape "
            f"{tuple(first.shape)}. Leave empty batches out of the data"
        )


def _not_floating(dtype: torch.dtype) -> str:
    return f"Expected argument `x` in floating point, but got {dtype}. Convert it with `x.float()`"


def _dtype_of(network: nn.Module) -> torch.dtype | None:
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return None


# layers of these packages take floating point, except for embeddings
_FLOATING = ("torch.nn.", "torch.fx.", "lightning_snn.")


def _may_take_indices(network: nn.Module) -> bool:
    return any(
        isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or not type(layer).__module__.startswith(_FLOATING)
        for layer in network.modules()
    )


def unfold_output(output: Any, time_steps: int, batch_size: int) -> Any:
    """Return the output of a network with every tensor `[T*B, ...]` unfolded to `[T, B, ...]`.

    Raises:
        ValueError: if a tensor does not have `T * B` rows.
    """
    if isinstance(output, (tuple, list)):
        parts = [unfold_output(part, time_steps, batch_size) for part in output]
        # a named tuple takes its fields one by one
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, dict):
        return {key: unfold_output(part, time_steps, batch_size) for key, part in output.items()}
    if output.shape[0] != time_steps * batch_size:
        raise ValueError(
            f"Expected the network to return {time_steps} * {batch_size} = {time_steps * batch_size} rows, one for "
            f"each time step and sample, but got the shape {tuple(output.shape)}"
        )
    steps = output.unflatten(0, (time_steps, batch_size))
    for tensor in (steps.expectation, steps.variance) if isinstance(steps, Moments) else (steps,):
        remember_for_backward(tensor)
    return steps


def unfold(x: Tensor, layer: nn.Module) -> Tensor:
    """Unfold the input of a layer that mixes time steps, `[T*B, ...]` to `[T, B, ...]`.

    Args:
        x: folded input.
        layer: the layer, which error messages name.

    Raises:
        RuntimeError: if T is unknown because the layer was called outside `run`, or the layer cannot be streamed within
            `advance`.
        ValueError: if the number of rows of `x` is not a multiple of T.

    Example:
        >>> with folded(10):
        ...     unfold(torch.rand(20, 4), LIF()).shape
        torch.Size([10, 2, 4])
    """
    values = run_values()
    time_steps = values.time_steps
    if values.phase == "replay" and recomputes():
        raise RuntimeError(
            f"Expected no activation checkpointing around {type(layer).__name__} with RateBackprop, which calls every "
            "layer once on rates. Remove it: the memory of RateBackprop does not grow with T"
        )
    if time_steps is None:
        raise RuntimeError(
            f"Expected {type(layer).__name__} to be called within `lightning_snn.run`, but the number of time steps is "
            "unknown. Call `lightning_snn.run(network, x)` with x of shape [T, B, ...], or run one time step with "
            "`layer.step(x, state)`"
        )
    if values.states is not None:
        values.states.check_entered(layer)
    if x.dim() == 0 or x.shape[0] % time_steps:
        raise ValueError(
            f"Expected the input of {type(layer).__name__} to have a multiple of T = {time_steps} rows, because time "
            f"is folded into the batch, but got the shape {tuple(x.shape)}"
        )
    return torch.unflatten(x, 0, (time_steps, -1))
