"""Wrappers for modules that handle time themselves, so they can be parts of a network that `run` runs.

Inside `run` time is folded into the batch, `[T*B, ...]`. `OverTime` hands a module the whole sequence `[T, B, ...]`,
`PerStep` one step `[B, ...]` after the other. Nothing of a sequence is left for the next one: states that layers of
snntorch and SpikingJelly keep are reset before and after every call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.nn.conventions import mixes_steps, reset_states, takes_sequences
from lightning_snn.nn.folding import unfold, unfolded
from lightning_snn.nn.row_checks import is_batch_first
from lightning_snn.nn.stateful import StatefulLayer

Step = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]


class TimeWrapper(nn.Module):
    """Base of the wrappers.

    Args:
        module: a module that contains no layers of this library with a state, which need no wrapper.
        reset: resets the states that the module keeps; None resets those of snntorch and SpikingJelly.

    Raises:
        ValueError: if the module contains such layers.
    """

    def __init__(self, module: nn.Module, reset: Callable[[nn.Module], object] | None = None) -> None:
        super().__init__()
        for name, part in module.named_modules():
            if isinstance(part, (StatefulLayer, TimeWrapper)):
                raise ValueError(
                    f"Expected argument `module` of {type(self).__name__} to contain no layer that handles time "
                    f"inside `run`, but got {name or 'the module'}: {type(part).__name__}. Leave it outside"
                )
        self.module = module
        self.reset_module = reset_states if reset is None else reset

    @contextmanager
    def _from_rest(self) -> Iterator[None]:
        self.reset_module(self.module)
        try:
            with unfolded():
                yield
        finally:
            self.reset_module(self.module)


class OverTime(TimeWrapper):
    """A module that takes whole sequences, such as `nn.GRU`, attention over time or SpikingJelly's step mode "m".

    The output for a step may depend on later steps, as in bidirectional layers and attention without a mask; then
    `predict_anytime` is not a prediction from the past.

    Args:
        module: from `[T, B, ...]` to `[T, B, ...]`, or to a tuple whose first element is. `nn.MultiheadAttention` is
            called with its input as query, key and value.
        batch_first: whether the module takes `[B, T, ...]`; None reads the attribute of that name of the module or its
            first part that has one, else False.
        reset: resets the states that the module keeps, called with the module; None resets those of layers of snntorch
            and SpikingJelly.

    Raises:
        ValueError: if the module contains layers of this library with a state, or third-party layers that take one
            step per call.

    Shape:
        `[T*B, ...]` to `[T*B, ...]`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), OverTime(nn.GRU(8, 6)), nn.Linear(6, 3))
        >>> run(network, torch.rand(10, 2, 4)).shape
        torch.Size([10, 2, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        batch_first: bool | None = None,
        reset: Callable[[nn.Module], object] | None = None,
    ) -> None:
        super().__init__(module, reset)
        _check_call_convention(module, sequences=True)
        self.batch_first = is_batch_first(module) if batch_first is None else batch_first

    def forward(self, x: Tensor) -> Tensor:
        sequence = unfold(x, self)
        given = sequence.transpose(0, 1) if self.batch_first else sequence
        with self._from_rest():
            if isinstance(self.module, nn.MultiheadAttention):
                output = self.module(given, given, given, need_weights=False)
            else:
                output = self.module(given)
        output = output[0] if isinstance(output, tuple) else output
        output = output.transpose(0, 1) if self.batch_first else output
        if output.shape[:2] != sequence.shape[:2]:
            raise ValueError(
                f"Expected the module of OverTime, {type(self.module).__name__}, to return [T, B, ...] with T, B = "
                f"{tuple(sequence.shape[:2])}, but got the shape {tuple(output.shape)}"
            )
        folded: Tensor = output.flatten(0, 1)
        return folded

    def extra_repr(self) -> str:
        return f"batch_first={self.batch_first}"


class PerStep(TimeWrapper):
    """A module that takes one time step per call, such as `nn.GRUCell`, or layers of snntorch and SpikingJelly.

    A state that the module returns is passed on to the next step: that of a recurrent cell, and that of snntorch's
    neurons without `init_hidden`. Other modules keep their states themselves.

    Args:
        module: from `[B, ...]` to `[B, ...]`, or to a tuple whose first element is.
        step: how to call the module, ``(module, x, state) -> (output, state)`` with None as the first state; None
            follows the conventions of the module.
        reset: resets the states that the module keeps, called with the module; None resets those of layers of snntorch
            and SpikingJelly.

    Raises:
        ValueError: if the module contains layers of this library with a state, or third-party layers that take all
            steps per call.

    Shape:
        `[T*B, ...]` to `[T*B, ...]`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), PerStep(nn.GRUCell(8, 6)), nn.Linear(6, 3))
        >>> run(network, torch.rand(10, 2, 4)).shape
        torch.Size([10, 2, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step | None = None,
        reset: Callable[[nn.Module], object] | None = None,
    ) -> None:
        super().__init__(module, reset)
        _check_call_convention(module, sequences=False)
        self.step_module = _step_of(module) if step is None else step

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        steps = unfold(x, self).unbind(0)
        with self._from_rest():
            for step in steps:
                output, state = self.step_module(self.module, step, state)
                outputs.append(output)
        return torch.stack(outputs).flatten(0, 1)


def _check_call_convention(module: nn.Module, sequences: bool) -> None:
    wrapper, other = ("OverTime", "PerStep") if sequences else ("PerStep", "OverTime")
    remedy = {
        True: 'Use PerStep, or step_mode="m" for a layer of SpikingJelly',
        False: "Use OverTime",
    }[sequences]
    calls = "one step" if sequences else "all steps"
    for name, part in module.named_modules():
        if mixes_steps(part) and takes_sequences(part) != sequences:
            raise ValueError(
                f"Expected argument `module` of {wrapper} to contain no layer for {other}, but got "
                f"{name or 'the module'}: {type(part).__name__}, which takes {calls} per call. {remedy}"
            )


def _step_of(module: nn.Module) -> Step:
    if isinstance(module, nn.LSTMCell):
        return _step_of_lstm
    if isinstance(module, nn.RNNCellBase):
        return _step_of_cell
    if getattr(module, "init_hidden", None) is False:
        return _step_of_explicit_state
    return _step_without_state


def _step_of_lstm(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state = module(x, state)
    return state[0], state


def _step_of_cell(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state = module(x, state)
    return state, state


def _step_of_explicit_state(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    outputs = module(x, *(state or ()))
    # snntorch's recurrent neurons take their spikes as a part of the state
    recurrent = "spk" in inspect.signature(module.forward).parameters
    return outputs[0], outputs if recurrent else outputs[1:]


def _step_without_state(module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    output = module(x)
    return (output[0] if isinstance(output, tuple) else output), None
