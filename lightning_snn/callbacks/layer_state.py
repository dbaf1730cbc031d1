"""State that modules keep from one call to the next in addition to parameters, and its use by a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics import Metric

from lightning_snn.callbacks.dry_run import independent_copy, tensors_within
from lightning_snn.nn.conventions import conventions_of
from lightning_snn.nn.registry import is_spiking_layer

_MEMORIES = "_memories"  # attribute that holds the states of SpikingJelly's modules
_BASE_ATTRIBUTES = frozenset(vars(nn.Module()))
_MAX_ENTRIES = 16  # a state has few parts; longer lists are records
_PERTURBATION = 1e3  # far from the state of any network, within the range of half precision


class Location(NamedTuple):
    """Location of a tensor in a module: an attribute, or a key of a list, tuple, or dict in an attribute."""

    attribute: str
    key: Any = None

    def __str__(self) -> str:
        if self.key is None:
            return self.attribute
        return str(self.key) if self.attribute == _MEMORIES else f"{self.attribute}[{self.key!r}]"

    def read(self, module: nn.Module) -> Any:
        """Return the current value; None if there is none."""
        found = _holder(module, self.attribute).get(self.attribute)
        if self.key is None:
            return found
        try:
            return found[self.key]  # type: ignore[index]
        except (TypeError, LookupError):
            return None

    def write(self, module: nn.Module, value: Tensor) -> None:
        """Set the value to a tensor."""
        holder = _holder(module, self.attribute)
        if self.key is None:
            holder[self.attribute] = value
        elif isinstance(holder[self.attribute], tuple):
            parts = list(holder[self.attribute])
            parts[self.key] = value
            kind = type(holder[self.attribute])
            holder[self.attribute] = kind(*parts) if hasattr(kind, "_fields") else kind(parts)
        else:
            holder[self.attribute][self.key] = value


class Snapshot(NamedTuple):
    """Copy of a tensor that a module keeps.

    Attributes:
        values: copy of the tensor.
        has_graph: whether the tensor had an autograd graph.
    """

    values: Tensor
    has_graph: bool

    def equals(self, tensor: Any) -> bool:
        """Return whether a tensor has the same dtype, shape, and values."""
        return (
            isinstance(tensor, Tensor)
            and tensor.shape == self.values.shape
            and tensor.dtype == self.values.dtype
            and torch.equal(tensor.detach(), self.values)
        )


def find_states(module: nn.Module) -> Iterator[tuple[Location, Tensor]]:
    """Yield the floating-point tensors that a module itself keeps and that are neither parameters nor saved with it.

    Persistent buffers are kept on purpose, except for the membrane potential of a spiking layer. Metrics and
    normalization layers yield nothing.
    """
    if isinstance(module, (Metric, _NormBase)):
        return
    known = conventions_of(module)
    for name, buffer in module._buffers.items():
        if (
            buffer is not None
            and _is_floating(buffer)
            and (name in module._non_persistent_buffers_set or (known is not None and name == known.membrane))
        ):
            yield Location(name), buffer
    for name, value in vars(module).items():
        if name in _BASE_ATTRIBUTES:
            continue
        if _is_floating(value):
            yield Location(name), value
        elif isinstance(value, (list, tuple, dict)) and len(value) <= _MAX_ENTRIES:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((Location(name, key), part) for key, part in entries if _is_floating(part))


def is_reset(state: Tensor) -> bool:
    """Return whether a reset may leave a state: it has the same number everywhere, or is the same for all samples."""
    if state.numel() == 0 or bool((state == state.flatten()[0]).all()):
        return True
    return state.dim() > 1 and len(state) > 1 and bool((state == state[:1]).all())


def has_one_sample(state: Tensor) -> bool:
    """Return whether a state has no samples to compare: a batch of one, or no batch dimension."""
    return state.dim() < 2 or len(state) == 1


def is_per_sample(module: nn.Module, location: Location, state: Tensor, inputs: Any) -> bool:
    """Return whether a tensor is a state of samples and not, for example, a statistic.

    Every tensor of a spiking layer is. Others need a dimension in common with the inputs of the module, `[B, ...]` or
    `[T, B, ...]`.
    """
    if is_spiking_layer(module) or location.attribute == _MEMORIES:
        return True
    lengths = {length for tensor in tensors_within(inputs) if tensor.dim() > 1 for length in tensor.shape[:2]}
    return state.dim() > 1 and not lengths.isdisjoint(state.shape[:2])


def is_constant_by_design(location: Location) -> bool:
    """Return whether a state may act on calls that do not change it, like the mask of SpikingJelly's dropout."""
    return location.attribute == _MEMORIES


def used_states(
    module: nn.Module, locations: Sequence[Location], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Location]:
    """Return the locations whose tensors affect what a module returns or keeps after a call.

    The call is repeated on copies that share the module's parameters, without gradients and with the same random
    numbers: with the states as they are, and with states that are far from those of any network.

    Raises:
        Exception: errors of copying and calling.
    """
    unperturbed = _call_copy(module, locations, (), args, kwargs)

    def have_effect(perturbed: Sequence[Location]) -> bool:
        return not _have_same_results(unperturbed, _call_copy(module, locations, perturbed, args, kwargs))

    if not have_effect(locations):
        return []
    if len(locations) == 1:
        return list(locations)
    return [location for location in locations if have_effect((location,))]


def is_passed(state: Snapshot, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the arguments of a call contain a state."""
    return any(state.equals(tensor) for tensor in tensors_within((args, kwargs)))


def _holder(module: nn.Module, attribute: str) -> dict[str, Any]:
    return module._buffers if attribute in module._buffers else vars(module)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point()


class _CallResult(NamedTuple):
    """Result of a call: its outputs, the value at each location afterwards, and whether that is the value before."""

    outputs: list[Tensor]
    states: list[Any]
    unchanged: list[bool]


def _call_copy(
    module: nn.Module,
    locations: Sequence[Location],
    perturbed: Sequence[Location],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _CallResult:
    """Call a copy of a module, with some of its states perturbed."""
    copied = independent_copy(module, share_parameters=True)
    for part in copied.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(part, kind).clear()
    for location in perturbed:
        state = location.read(copied)
        noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(0)).to(state)
        location.write(copied, state + _PERTURBATION * noise)
    before = [Snapshot(location.read(copied).clone(), False) for location in locations]
    with isolate_rng(), torch.no_grad():
        torch.manual_seed(0)
        outputs = list(tensors_within(copied.forward(*args, **kwargs)))
    after = [location.read(copied) for location in locations]
    unchanged = [not isinstance(new, Tensor) or old.equals(new) for old, new in zip(before, after, strict=True)]
    return _CallResult(outputs, after, unchanged)


def _have_same_results(first: _CallResult, second: _CallResult) -> bool:
    pairs = list(zip(first.outputs, second.outputs, strict=False))
    # a state that only one call left unchanged was overwritten by the other, perhaps by its old value
    states = zip(first.unchanged, second.unchanged, first.states, second.states, strict=True)
    pairs += [(one, other) for unchanged, also_unchanged, one, other in states if not (unchanged and also_unchanged)]
    return len(first.outputs) == len(second.outputs) and all(_are_close(one, other) for one, other in pairs)


def _are_close(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
        return first is second
    if not first.is_floating_point():
        return torch.equal(first, second)
    # some kernels are not bit-identical when repeated
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
