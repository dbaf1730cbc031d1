"""Values that a run hands to its layers: the number of time steps, the noise, the pass, and the states of a stream.

They belong to a thread. Activation checkpointing calls layers again in the backward pass, where the run is over and
the thread may be another one. `remember_for_backward` makes the values of the run hold there too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Variable

if TYPE_CHECKING:
    from lightning_snn.nn.noise import SpikeNoise, WeightDraws
    from lightning_snn.nn.states import LayerStates

Phase = Literal["collect", "replay"]


class RunValues(NamedTuple):
    """Values of a run.

    Attributes:
        time_steps: number of time steps T; None outside a run.
        noise: use of the posterior; None for none.
        phase: pass of `rate_run`; None outside.
        observed: True while an observer computes quantities of a run again.
        states: states of the layers within `advance`; None in a run that starts from rest.
    """

    time_steps: int | None = None
    noise: SpikeNoise | WeightDraws | None = None
    phase: Phase | None = None
    observed: bool = False
    states: LayerStates | None = None


class _Current(threading.local):
    """Values of the present thread, set in `__init__`, which torch.compile can trace, unlike a ContextVar."""

    def __init__(self) -> None:
        self.values = RunValues()


_current = _Current()
# by the id of the backward pass
_of_backward: dict[int, RunValues] = {}


def run_values() -> RunValues:
    """Return the values of the enclosing run, or, in the backward pass, those of the run that is differentiated."""
    values = _current.values
    if values.time_steps is None and not torch.compiler.is_compiling() and _of_backward:
        return _of_backward.get(torch._C._current_graph_task_id(), values)
    return values


def recomputes() -> bool:
    """Return whether layers are called by activation checkpointing, a second time and outside their run."""
    return _current.values.time_steps is None and run_values().time_steps is not None


@contextmanager
def values_set(**values: Any) -> Iterator[None]:
    """Enter a context in which some values of the thread are replaced; contexts can be nested."""
    before = _current.values
    _current.values = before._replace(**values)
    try:
        yield
    finally:
        _current.values = before


def remember_for_backward(output: Tensor) -> None:
    """Make the values of this run hold in the backward pass through an output of its network."""
    if torch.compiler.is_compiling():
        return
    node = output.grad_fn
    if node is not None:
        # the node of an output comes before all nodes of its run
        node.register_prehook(partial(_enter_backward, _current.values))


def _enter_backward(values: RunValues, gradients: tuple[Tensor, ...]) -> None:
    task = torch._C._current_graph_task_id()
    if task not in _of_backward:
        Variable._execution_engine.queue_callback(partial(_leave_backward, task))
    _of_backward[task] = values


def _leave_backward(task: int) -> None:
    _of_backward.pop(task, None)
