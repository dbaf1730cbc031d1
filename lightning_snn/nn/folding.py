"""Time folded into the batch: how a plain network runs over a sequence.

Inside a network tensors are `[T*B, ...]`, so any stateless layer works unchanged and runs as one large call; only
spiking layers unfold T. `run` is the one place that folds, tells the spiking layers T, and unfolds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

_time_steps: ContextVar[int | None] = ContextVar("time_steps", default=None)


@contextmanager
def folded(time_steps: int) -> Iterator[None]:
    """Within this context spiking layers read their input `[T*B, ...]` as `time_steps` steps. Contexts nest."""
    token = _time_steps.set(time_steps)
    try:
        yield
    finally:
        _time_steps.reset(token)


def time_steps() -> int | None:
    """T of the enclosing `run` or `folded`; None outside."""
    return _time_steps.get()


def run(network: nn.Module, x: Tensor) -> Any:
    """Run a network over a sequence.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        x: input, shape `[T, B, ...]`, time first.

    Returns:
        what the network returns with every tensor unfolded to `[T, B, ...]`; tuples, lists and dicts are walked
        through.

    Raises:
        ValueError: if `x` has no time and batch axis, or an output does not have `T * B` rows.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> run(network, torch.rand(10, 2, 4)).shape
        torch.Size([10, 2, 3])
    """
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(
            f"Expected argument `x` to be of shape [T, B, ...] with T of at least 1, but got {tuple(x.shape)}"
        )
    with folded(x.shape[0]):
        return _unfold_output(network(x.flatten(0, 1)), x.shape[0], x.shape[1])


def _unfold_output(output: Any, time_steps: int, batch_size: int) -> Any:
    if isinstance(output, (tuple, list)):
        parts = [_unfold_output(part, time_steps, batch_size) for part in output]
        # a named tuple takes its fields one by one
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, dict):
        return {key: _unfold_output(part, time_steps, batch_size) for key, part in output.items()}
    if output.shape[0] != time_steps * batch_size:
        raise ValueError(
            f"Expected the network to return {time_steps} * {batch_size} = {time_steps * batch_size} rows, one for "
            f"every time step and sample, but got the shape {tuple(output.shape)}"
        )
    return output.unflatten(0, (time_steps, batch_size))


def unfold(x: Tensor, layer: nn.Module) -> Tensor:
    """A spiking layer's view of its folded input: `[T*B, ...]` to `[T, B, ...]`.

    Raises:
        RuntimeError: if T is unknown, because the layer was called outside `run`.
        ValueError: if the rows of `x` are no multiple of T.
    """
    time_steps = _time_steps.get()
    if time_steps is None:
        raise RuntimeError(
            f"{type(layer).__name__} does not know the number of time steps. Call the network as "
            "`lightning_snn.run(network, x)` with x of shape [T, B, ...], or one step at a time with "
            "`layer.step(x, state)`"
        )
    if x.dim() == 0 or x.shape[0] % time_steps:
        raise ValueError(
            f"Expected the input of {type(layer).__name__} to have a multiple of T = {time_steps} rows, time folded "
            f"into the batch, but got the shape {tuple(x.shape)}"
        )
    return x.unflatten(0, (time_steps, -1))
