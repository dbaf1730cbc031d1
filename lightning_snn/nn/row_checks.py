"""Checks that layers inside `run` take the rows `[T*B, ...]` of their input as independent of each other.

Time is folded into the batch there. A layer that takes rows for time steps, or that keeps a state from call to call,
mixes samples or loses time. Such layers are right on tensors that a module of its own unfolds, so what a call receives
decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lightning_snn.nn.conventions import conversion_of, kept_states, mixes_steps, takes_sequences
from lightning_snn.nn.run_context import in_this_thread, run_values

SEQUENCE_LAYERS = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)

OVER_TIME = "`lightning_snn.nn.OverTime`, which calls it on [T, B, ...]"
PER_STEP = "`lightning_snn.nn.PerStep`, which calls it step by step"

# names of the layers to check by network, with its direct children, which show whether it was edited
_watched: WeakKeyDictionary[nn.Module, tuple[list[ref[nn.Module] | None], list[str]]] = WeakKeyDictionary()


def checked_rows(network: nn.Module, time_steps: int, batch_size: int) -> AbstractContextManager[None]:
    """Return a context in which calls of layers that take rows for time steps, or keep a state, raise an error.

    The layers of a network are searched once. A network without such layers costs a look-up per run.

    Args:
        network: the network that is run.
        time_steps: number of time steps T.
        batch_size: number of samples B.

    Raises:
        ValueError: within the context, if a layer mixes the rows of its input; names the layer and what to do.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    children = network._modules.values()
    known = _watched.get(network)
    if known is None or not _are(children, known[0]):
        found = [None if child is None else ref(child) for child in children]
        known = _watched[network] = (found, _layers_to_watch(network))
    if not known[1]:
        return nullcontext()
    return _hooked({name: network.get_submodule(name) for name in known[1]}, time_steps, batch_size)


def sequence_reason(layer: nn.Module) -> str | None:
    """Return why a layer mixes the rows of a folded input, and what to do; None if it does not, or may not.

    What a layer with ``batch_first=True`` does depends on its input.
    """
    if isinstance(layer, SEQUENCE_LAYERS):
        if is_batch_first(layer):
            return None
        return (
            "it takes the rows, into which time is folded, for the steps of a sequence: wrap it in "
            f"{OVER_TIME}, or set batch_first=True for a sequence within each row"
        )
    if mixes_steps(layer):
        return f"it mixes time steps, but inside `run` time is folded into the rows: {_remedy(layer)}"
    return None


def is_batch_first(module: nn.Module) -> bool:
    """Return `batch_first` of a module or of its first part that has such an attribute, False without one."""
    declared = (vars(part).get("batch_first") for part in module.modules())
    return bool(next((value for value in declared if value is not None), False))


def _are(children: Collection[nn.Module | None], known: list[ref[nn.Module] | None]) -> bool:
    return len(children) == len(known) and all(
        child is (None if found is None else found()) for child, found in zip(children, known, strict=True)
    )


def _layers_to_watch(network: nn.Module) -> list[str]:
    found: list[str] = []
    within: set[nn.Module] = set()
    for name, layer in network.named_modules():
        if isinstance(layer, SEQUENCE_LAYERS) or mixes_steps(layer):
            if layer not in within:
                found.append(name)
            within.update(layer.modules())
    return found


@contextmanager
def _hooked(layers: dict[str, nn.Module], time_steps: int, batch_size: int) -> Iterator[None]:
    called: set[nn.Module] = set()
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = in_this_thread(partial(_check_call, name, layer, time_steps, batch_size, called))
            hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _check_call(
    name: str,
    own: nn.Module,
    time_steps: int,
    batch_size: int,
    called: set[nn.Module],
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Raise a ValueError if a call inside the run, outside of wrappers, mixes the rows of its input."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    # copies of the layer have the hook, too; another T is that of a run inside this one
    if layer is not own or not isinstance(x, Tensor) or run_values().time_steps != time_steps:
        return
    if isinstance(layer, SEQUENCE_LAYERS):
        reason = _sequence_refusal(layer, x, time_steps, batch_size)
    else:
        state_given = any(value is not None for value in [*args, *kwargs.values()][1:])
        reason = _state_refusal(layer, x, state_given, layer in called, time_steps, batch_size)
    called.add(layer)
    if reason is not None:
        raise ValueError(
            f"Expected layers inside `run` to take the T * B = {time_steps} * {batch_size} rows of their input as "
            f"independent, but got {name or 'the network'}: {type(layer).__name__} ({reason})"
        )


def _sequence_refusal(layer: nn.Module, x: Tensor, time_steps: int, batch_size: int) -> str | None:
    rows = time_steps * batch_size
    batch_first = is_batch_first(layer)
    if x.dim() == 2:
        mixed = x.shape[0] == rows and batch_size > 1
        remedy = f"wrap it in {OVER_TIME}"
    elif x.dim() == 3:
        length, batch = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
        mixed = batch % batch_size != 0 or (not batch_first and length == rows and batch_size > 1)
        remedy = f"set batch_first=True for a sequence within each row, or wrap it in {OVER_TIME}"
    else:
        return None
    return f"it takes rows for the steps of a sequence, input of shape {tuple(x.shape)}: {remedy}" if mixed else None


def _state_refusal(
    layer: nn.Module, x: Tensor, state_given: bool, called: bool, time_steps: int, batch_size: int
) -> str | None:
    rows = time_steps * batch_size
    if takes_sequences(layer):
        mixed = x.dim() < 2 or x.shape[0] != time_steps or x.shape[1] % batch_size != 0
    else:
        # a single step has as many rows as the batch
        mixed = x.dim() > 0 and x.shape[0] == rows and time_steps > 1
    if mixed:
        return f"it takes the rows, input of shape {tuple(x.shape)}, for one call: {_remedy(layer)}"
    if not called and not state_given and any(bool(state.any()) for state in kept_states(layer)):
        return f"it starts from the state that an earlier run left in it: {_remedy(layer)}"
    return None


def _remedy(layer: nn.Module) -> str:
    wrapper = OVER_TIME if takes_sequences(layer) else PER_STEP
    return f"{conversion_of(layer)}, or wrap this layer in {wrapper}"
