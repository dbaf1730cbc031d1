"""States of the layers of a network while it advances by some time steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from torch import nn

State = Any  # a tensor, or a tuple or NamedTuple of States


class StepOf(NamedTuple):
    """Shape, dtype and device of a step `[B, ...]` of the input of a layer.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        device: its device.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        """Return a step of zeros, in float32 or wider."""
        return torch.zeros(self.shape, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)


@dataclass
class StatefulCall:
    """A call of a layer that starts from the state of an earlier one.

    Attributes:
        name: name of the state.
        given: state before the call; None is the state of rest.
        after: state after the call.
        step: a step of the input of the layer; None before it is called.
        records: whether the call builds a graph.
    """

    name: str
    given: State
    records: bool = False
    after: State = None
    step: StepOf | None = None

    def keep(self, state: State) -> None:
        """Take the state after the call, without the rest of a sequence of which it is a view."""
        compiling = torch.compiler.is_compiling()
        self.after = state if compiling else tree_map(lambda leaf: leaf.clone() if leaf._is_view() else leaf, state)

    def before(self, step: Tensor) -> State:
        """Return the state before the call on the device of the input, whose first step is `step` `[B, ...]`.

        Raises:
            ValueError: if the state belongs to another number of samples.
        """
        # not the tensor, which would keep the whole sequence until the backward pass
        self.step = StepOf(step.shape, step.dtype, step.device)
        for leaf in tree_leaves(self.given):
            if isinstance(leaf, Tensor) and leaf.shape[:1] != step.shape[:1]:
                name = self.name or "the network"
                raise ValueError(
                    f"Expected argument `x` with B = {leaf.shape[0]} samples, as those of the state of {name}, but got "
                    f"{step.shape[0]}. Pass the same samples, or begin from rest"
                )
        # states follow a network that moves
        return tree_map(lambda leaf: leaf.to(step.device) if isinstance(leaf, Tensor) else leaf, self.given)


class LayerStates:
    """States by layer and call: those before a pass through the network, and those after it.

    A layer has its qualified name in the network, and ``name#k`` in its k-th further call, so a module that stands in
    two places has two states.

    Args:
        names: qualified name of every module of the network.
        before: states by name; None is the state of rest.
    """

    def __init__(self, names: Mapping[nn.Module, str], before: Mapping[str, State] | None) -> None:
        # by identity, because a compiled network would be traced again as the keys of a dict
        self.names = {id(layer): name for layer, name in names.items()}
        self.before = before
        self.calls: dict[str, StatefulCall] = {}
        self._counts: dict[str, int] = {}
        self._latest: dict[int, StatefulCall] = {}
        self._inside: nn.Module | None = None
        self._complete = False

    @contextmanager
    def entered(self, layer: nn.Module) -> Iterator[StatefulCall]:
        """Enter a call of a layer.

        Yields:
            the call, which holds the state before it, and receives the state after it.

        Raises:
            ValueError: if the layer is no part of the network, or there is no state of this call.
        """
        call = self._call_of(layer)
        outer, self._inside = self._inside, layer
        try:
            yield call
        finally:
            self._inside = outer
        if not self._complete:
            self.calls[call.name] = self._latest[id(layer)] = call

    def latest(self, layer: nn.Module) -> StatefulCall | None:
        """Return the latest call of a layer, None if it has not been called."""
        return self._latest.get(id(layer))

    def check_entered(self, layer: nn.Module) -> None:
        """Raise a RuntimeError if a layer unfolds its input without a state."""
        if layer is not self._inside:
            raise RuntimeError(
                f"{type(layer).__name__} mixes time steps and defines no `scan(x, state)`, so it cannot be streamed. "
                "Derive it from `lightning_snn.nn.StatefulLayer` without a forward of its own, or run the whole "
                "sequence with `lightning_snn.run`"
            )

    def after(self) -> dict[str, State]:
        """Return the states after the pass, which ends here.

        Raises:
            ValueError: if the pass called other layers than the one before.
        """
        self._complete = True
        if self.before is not None and (missed := self.before.keys() - self.calls.keys()):
            raise ValueError(
                f"Expected a network that calls the same layers in every pass, but {', '.join(sorted(missed))} was not "
                "called. Begin from rest"
            )
        return {name: call.after for name, call in self.calls.items()}

    def _call_of(self, layer: nn.Module) -> StatefulCall:
        if id(layer) not in self.names:
            raise ValueError(
                f"Expected layers with a state to be parts of the network, but {type(layer).__name__} is none. Make it "
                "an attribute of the module that calls it"
            )
        name = self.names[id(layer)]
        if self._complete:
            # activation checkpointing calls it again in the backward pass
            where = f"around {name}: {type(layer).__name__}"
            if self._counts[name] > 1:
                raise RuntimeError(
                    f"Expected no activation checkpointing {where}, which is called {self._counts[name]} times in a "
                    "pass. Checkpoint the calls of `advance`"
                )
            if not self.calls[name].records:
                raise RuntimeError(
                    f"Expected activation checkpointing with use_reentrant=False {where}, because the other kind has "
                    "no gradient through its state"
                )
        else:
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            name = f"{name}#{count}" if count else name
        if self.before is not None and name not in self.before:
            raise ValueError(
                f"Expected argument `state` to hold a state of {name or 'the network'}, but got those of "
                f"{', '.join(self.before) or 'no layer'}. Pass what the network itself returned, or None to begin from "
                "rest"
            )
        given = None if self.before is None else self.before[name]
        return StatefulCall(name, given, torch.is_grad_enabled())
