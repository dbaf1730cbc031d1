"""Values that a run hands to its layers: time steps, noise, the pass, states of a stream, and replaced forwards.

They belong to a thread, so several threads can run one network at once. Activation checkpointing calls layers again in
the backward pass, where the run is over and the thread may be another one. `remember_for_backward` makes the values of
the run hold there too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Variable

if TYPE_CHECKING:
    from lightning_snn.nn.noise import SpikeNoise, WeightDraws
    from lightning_snn.nn.states import LayerStates

Phase = Literal["collect", "replay"]
Hook = TypeVar("Hook", bound=Callable[..., Any])


class RunValues(NamedTuple):
    """Values of a run.

    Attributes:
        time_steps: number of time steps T; None outside a run.
        noise: use of the posterior; None for none.
        phase: pass of `rate_run`; None outside.
        observed: True while an observer computes quantities of a run again.
        states: states of the layers within `advance`; None in a run that starts from rest.
        forwards: forwards of the modules of `forward_replaced`; None outside.
        clock: an empty tensor `[T, 0]`, whose shape is T for compiled code; None where no compiler is loaded.
        observers: observers of the modules of `outputs_observed` in compiled code; None outside.
        lengths: number of valid steps of each sample, `[B]`, in sequences that are padded; None if all are valid.
    """

    time_steps: int | None = None
    noise: SpikeNoise | WeightDraws | None = None
    phase: Phase | None = None
    observed: bool = False
    states: LayerStates | None = None
    forwards: Mapping[nn.Module, Callable[..., Any]] | None = None
    clock: Tensor | None = None
    observers: Mapping[nn.Module, tuple[Callable[..., None], ...]] | None = None
    lengths: Tensor | None = None


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
    if torch.compiler.is_compiling():
        # compiled code is valid for one value of an integer, and for all values of a size
        return values if values.clock is None else values._replace(time_steps=values.clock.shape[0])
    if values.time_steps is None and _of_backward:
        return _of_backward.get(torch._C._current_graph_task_id(), values)
    return values


def steps_set(time_steps: int | None, rows: Tensor | None = None, **values: Any) -> AbstractContextManager[None]:
    """Return the context of `values_set` with T, which compiled modules take as a size and not as a constant.

    Args:
        time_steps: number of time steps T; None is unknown.
        rows: the folded input `[T*B, ...]` of the network.
        values: further values of the run.
    """
    compiler = None if torch.compiler.is_compiling() else sys.modules.get("torch._dynamo")
    if compiler is None or type(time_steps) is not int:
        return values_set(time_steps=time_steps, clock=None, **values)
    clock = torch.empty(time_steps, 0)
    for tensor in (clock,) if rows is None else (clock, rows):
        compiler.maybe_mark_dynamic(tensor, 0)
    return values_set(time_steps=time_steps, clock=clock, **values)


def recomputes() -> bool:
    """Return whether layers are called by activation checkpointing, a second time and outside their run."""
    if torch.compiler.is_compiling():
        return False
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
        # the node of an output comes before all nodes of its run; layers are not replaced in the backward pass
        values = _current.values._replace(forwards=None, clock=None, observers=None)
        node.register_prehook(partial(_enter_backward, values))


def _enter_backward(values: RunValues, gradients: tuple[Tensor, ...]) -> None:
    task = torch._C._current_graph_task_id()
    if task not in _of_backward:
        Variable._execution_engine.queue_callback(partial(_leave_backward, task))
    _of_backward[task] = values


def _leave_backward(task: int) -> None:
    _of_backward.pop(task, None)


Observer = Callable[[nn.Module, Any, Any], None]


@contextmanager
def outputs_observed(layers: Iterable[nn.Module], observer: Observer) -> Iterator[None]:
    """Enter a context in which a function receives module, inputs and output of calls of layers in this thread.

    A network may predict in some threads while it trains in another one, whose observer must not receive their calls.

    Args:
        layers: modules.
        observer: called after each call, as a forward hook.

    Example:
        >>> layer = LIF()
        >>> with outputs_observed([layer], lambda layer, inputs, output: print(tuple(output.shape))):
        ...     spikes = run(layer, torch.rand(10, 2, 4))
        (20, 4)
    """
    layers = list(layers)
    if torch.compiler.is_compiling():  # which cannot register hooks
        make_replaceable(layers)
        outer = _current.values.observers or {}
        added = {layer: (*outer.get(layer, ()), observer) for layer in layers}
        with values_set(observers={**outer, **added}):
            yield
        return
    handles = [layer.register_forward_hook(in_this_thread(observer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def in_this_thread(hook: Hook) -> Hook:
    """Return a forward hook that is not called for calls of its module in other threads than the present one.

    Example:
        >>> handle = LIF().register_forward_hook(in_this_thread(lambda layer, inputs, output: None))
    """
    thread = threading.get_ident()

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or threading.get_ident() == thread:
            return hook(*args, **kwargs)
        return None

    return call  # type: ignore[return-value]


class ThreadForward:
    """Forward of a module that some threads replace for a while, and that is the module's own in all others.

    Args:
        module: the module.
        own: forward that was set on the module before; None is that of its class.
    """

    def __init__(self, module: nn.Module, own: Callable[..., Any] | None) -> None:
        self.module, self.own = module, own
        self.users = 0  # contexts of all threads that replace it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = _current.values
        forward = (values.forwards or {}).get(self.module, self.own)
        if forward is None:
            output = type(self.module).forward(self.module, *args, **kwargs)
        else:
            output = forward(*args, **kwargs)
        for observer in (values.observers or {}).get(self.module, ()):
            observer(self.module, args, output)
        return output


_replacing = threading.Lock()


def make_replaceable(modules: Iterable[nn.Module]) -> None:
    """Prepare modules whose forward compiled code replaces, which cannot set and restore it.

    They keep a `ThreadForward`, which calls the forward of their class.
    """
    for module in modules:
        forward = vars(module).get("forward")
        if not isinstance(forward, ThreadForward):
            forward = ThreadForward(module, forward)
            forward.users = 1
            module.forward = forward


@contextmanager
def forward_replaced(modules: Iterable[nn.Module], call: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Enter a context in which, in this thread, `call(module, x)` replaces the forward of modules; hooks still run.

    A forward that was set on the instance of a module is restored at the end. Contexts of several threads may overlap,
    and contexts can be nested: the inner one replaces what both name.

    Args:
        modules: modules that are called with one tensor.
        call: from a module and its input to its output.
    """
    replaced = {module: partial(call, module) for module in modules}
    forwards = {**(_current.values.forwards or {}), **replaced}
    if torch.compiler.is_compiling():
        make_replaceable(replaced)
        with values_set(forwards=forwards):
            yield
        return
    with _replacing:
        for module in replaced:
            forward = vars(module).get("forward")
            if not isinstance(forward, ThreadForward):
                forward = ThreadForward(module, forward)
                module.forward = forward
            forward.users += 1
    try:
        with values_set(forwards=forwards):
            yield
    finally:
        with _replacing:
            for module in replaced:
                forward = vars(module)["forward"]
                forward.users -= 1
                if forward.users == 0:
                    _restore(module, forward.own)


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.forward = forward
