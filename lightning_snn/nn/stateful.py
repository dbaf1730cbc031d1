"""Layers that carry a state from step to step: how they run over a sequence, and the decays and thresholds they own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_snn.checks import check_between, check_fraction, check_integer, check_positive
from lightning_snn.nn.description import describe_layer, differences
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.run_context import run_values

PerChannel = float | Sequence[float] | Tensor
Range = Literal["decay", "positive"]


class StatefulLayer(nn.Module):
    """Base of the layers with a state: `scan` runs them over a sequence, `step` over a single time step.

    The state is an argument and a result of both and never stays on the module, so nothing leaks between batches.

    Decays and thresholds are declared by `declare` and read by `value`: a number for all neurons or one per channel,
    fixed or learned. A fixed number stays a Python number, exact in every dtype; fixed values per channel are a buffer
    ``{name}_channels``. A learned decay is stored as its logit ``{name}_logit`` and a learned positive value as its
    logarithm ``{name}_log``, so no optimizer step can take it out of its range.

    A state dict carries fixed numbers and other constants in its metadata, without keys of their own. Loading them into
    a layer with other constants is an error, and with ``strict=False`` they are listed as unexpected keys.

    Example:
        >>> class Average(StatefulLayer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.declare("beta", 0.5)
        ...
        ...     def scan(self, x, state=None):
        ...         state = torch.zeros_like(x[0]) if state is None else state
        ...         outputs = []
        ...         for step in x.unbind(0):
        ...             state = self.value("beta") * state + step
        ...             outputs.append(state)
        ...         return torch.stack(outputs), state
        >>> run(Average(), torch.ones(3, 1, 1)).flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """

    def __init__(self) -> None:
        super().__init__()
        self._ranges: dict[str, Range] = {}
        self._numbers: dict[str, float] = {}

    def forward(self, x: Any) -> Any:
        """Run the layer inside `lightning_snn.run`, on a folded input `[T*B, ...]`.

        Within `lightning_snn.advance` it starts from the state that the steps before left.
        """
        states = run_values().states
        if states is None:
            return self.scan(unfold(x, self))[0].flatten(0, 1)
        with states.entered(self) as call:
            sequence = unfold(x, self)
            outputs, state = self.scan(sequence, call.before(sequence[0]))
            call.keep(state)
        return outputs.flatten(0, 1)

    def initial_state(self, x: Tensor) -> Any:
        """Return the state of rest for a step `x` `[B, ...]`, the samples in dimension 0 of each of its tensors.

        A stream needs it to reset some samples, and to load a saved state.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no initial_state")

    def scan(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run the layer over a sequence.

        Args:
            x: input, shape `[T, B, ...]`.
            state: state that a previous call returned; None is the state of rest.

        Returns:
            outputs `[T, B, ...]` and the state after the last step.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no scan")

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run the layer over one time step, for streaming.

        Args:
            x: input, shape `[B, ...]`.
            state: state that a previous call returned; None is the state of rest.

        Returns:
            output `[B, ...]` and the next state.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def declare(
        self, name: str, value: PerChannel, learned: bool = False, channels: int | None = None, kind: Range = "decay"
    ) -> None:
        """Declare a decay or a positive value that `value` then reads; to be called once, in ``__init__``.

        Args:
            name: of the value.
            value: a number, or one per channel.
            learned: whether it is trained.
            channels: number of channels if a number should become one value per channel.
            kind: "decay" is in [0, 1], in (0, 1) if it is learned; "positive" is larger than 0.

        Raises:
            ValueError: if the value is outside its range or of another number of channels.
        """
        if "_ranges" not in vars(self):
            raise RuntimeError(f"Call super().__init__() of {type(self).__name__} before `declare`")
        values = _values(name, value, channels)
        for each in values.flatten().tolist():
            if kind == "positive":
                check_positive(name, each)
            elif learned:
                check_fraction(name, each)
            else:
                check_between(name, each, 0.0, 1.0)
        self._ranges[name] = kind
        if learned:
            stored = values.log() if kind == "positive" else torch.logit(values)
            self.register_parameter(_stored_name(name, kind), nn.Parameter(stored.float()))
        elif values.dim() == 0:
            self._numbers[name] = values.item()
        else:
            self.register_buffer(f"{name}_channels", values.float())

    def value(self, name: str, like: Tensor | None = None) -> float | Tensor:
        """Return a declared value: a number, or a tensor of shape `[]` or `[channels]`.

        Args:
            name: of the value.
            like: a step `[B, C, ...]`, such as the membrane potential, to which values per channel are shaped to
                broadcast.
        """
        found: float | Tensor
        if name not in self._ranges:
            declared = ", ".join(self._ranges) or "none"
            raise KeyError(f"{type(self).__name__} declares no value {name!r}; declared: {declared}")
        if name in self._numbers:
            found = self._numbers[name]
        elif (parameter := self.parameter_of(name)) is not None:
            found = parameter.exp() if self._ranges[name] == "positive" else torch.sigmoid(parameter)
        else:
            found = self.get_buffer(f"{name}_channels")
        return found if like is None else over_channels(found, like)

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the declared values, learned ones included."""
        return tuple(self._ranges)

    @property
    def fixed_numbers(self) -> dict[str, float]:
        """Declared values that are fixed Python numbers, which no parameter or buffer holds."""
        return dict(self._numbers)

    def range_of(self, name: str) -> Range:
        """Return the range of a declared value, which says how it is stored if it is learned."""
        return self._ranges[name]

    def parameter_of(self, name: str) -> Tensor | None:
        """Return the parameter behind a learned value, or its value if it is parametrized; None if it is fixed."""
        stored = _stored_name(name, self._ranges[name])
        if parametrize.is_parametrized(self, stored):
            return getattr(self, stored)  # type: ignore[no-any-return]
        return self._parameters.get(stored)

    def take_values(self, other: StatefulLayer) -> None:
        """Declare the values of another layer; parameters and buffers are copied.

        They are registered before the parameters that this layer already has, as if it had declared them first.

        Args:
            other: the layer whose values are copied.
        """
        owned = dict(self._parameters)
        self._parameters.clear()
        for name, kind in other._ranges.items():
            self._ranges[name] = kind
            self._numbers.pop(name, None)
            self._buffers.pop(f"{name}_channels", None)
            stored = _stored_name(name, kind)
            owned.pop(stored, None)
            parameter = other.parameter_of(name)
            if name in other._numbers:
                self._numbers[name] = other._numbers[name]
            elif parameter is not None:
                self.register_parameter(stored, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            else:
                self.register_buffer(f"{name}_channels", other.get_buffer(f"{name}_channels").clone())
        self._parameters.update(owned)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["constants"] = describe_layer(self)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)
        saved, name = local_metadata.get("constants"), prefix[:-1]
        if saved is not None:
            _strict, _missing, unexpected, _errors = arguments
            unexpected += differences({name: saved}, {name: describe_layer(self)})  # an error only if strict

    def extra_repr(self) -> str:
        return ", ".join(
            _describe(name, self.value(name), self.parameter_of(name) is not None) for name in self._ranges
        )


def over_channels(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a value per channel to broadcast over dimension 1 of `x` `[B, C, ...]`; numbers and scalars pass through.

    Raises:
        ValueError: if the number of channels differs.
    """
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if x.dim() < 2 or x.shape[1] != value.shape[0]:
        raise ValueError(
            f"Expected an input with {value.shape[0]} channels in dimension 1, but got the shape {tuple(x.shape)}"
        )
    return value.view(-1, *(1,) * (x.dim() - 2))


def _stored_name(name: str, kind: Range) -> str:
    return f"{name}_log" if kind == "positive" else f"{name}_logit"


def _values(name: str, value: PerChannel, channels: int | None) -> Tensor:
    if channels is not None:
        check_integer("channels", channels)
    expected = "a number or one per channel" if channels is None else f"a number or {channels} numbers"
    try:
        values = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {value!r}") from error
    if values.dim() > 1 or (values.dim() == 1 and channels not in (None, values.shape[0])):
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got the shape {tuple(values.shape)}")
    return values.expand(channels).clone() if channels is not None else values


def _describe(name: str, value: float | Tensor, learned: bool) -> str:
    if not isinstance(value, Tensor):
        text = f"{value:g}"
    elif value.dim() == 0:
        text = f"{value.item():.3g}"
    else:
        text = f"[{value.shape[0]} channels]"
    return f"{name}={text}" + (" (learned)" if learned else "")
