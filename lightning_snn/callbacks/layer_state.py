"""What modules keep from one call to the next beside parameters, and whether a call depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics import Metric

from lightning_snn.callbacks.dry_run import independent_copy, tensors_within
from lightning_snn.nn.registry import conventions_of, is_spiking_layer

_MEMORIES = "_memories"  # where SpikingJelly's modules hold their states
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_MOST_ENTRIES = 16  # a state has few parts; longer lists are records
_FAR = 1e3  # a state that no network has, within the range of half precision


class Place(NamedTuple):
    """Where a module keeps a tensor: in an attribute, or under a key of a list, tuple or dict in an attribute."""

    attribute: str
    key: Any = None

    def __str__(self) -> str:
        if self.key is None:
            return self.attribute
        return str(self.key) if self.attribute == _MEMORIES else f"{self.attribute}[{self.key!r}]"

    def read(self, module: nn.Module) -> Any:
        """What is there now; None if nothing is."""
        found = _holder(module, self.attribute).get(self.attribute)
        if self.key is None:
            return found
        try:
            return found[self.key]  # type: ignore[index]
        except (TypeError, LookupError):
            return None

    def write(self, module: nn.Module, value: Tensor) -> None:
        """Put a tensor there."""
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


class Kept(NamedTuple):
    """A tensor that a module keeps, as it was at some time.

    Attributes:
        values: a copy of it.
        has_graph: whether it hung on a graph.
    """

    values: Tensor
    has_graph: bool

    def is_still(self, tensor: Any) -> bool:
        """Whether a tensor has these values."""
        return (
            isinstance(tensor, Tensor)
            and tensor.shape == self.values.shape
            and tensor.dtype == self.values.dtype
            and torch.equal(tensor.detach(), self.values)
        )


def places(module: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """The floating tensors that a module itself keeps and that are neither parameters nor saved with it.

    Persistent buffers are kept on purpose, except the membrane of a spiking layer. Nothing is found in metrics and in
    layers of normalization.
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
            yield Place(name), buffer
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE:
            continue
        if _is_floating(value):
            yield Place(name), value
        elif isinstance(value, (list, tuple, dict)) and len(value) <= _MOST_ENTRIES:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((Place(name, key), part) for key, part in entries if _is_floating(part))


def is_anew(state: Tensor) -> bool:
    """Whether a state is one that a reset leaves: the same number everywhere, or the same for all samples."""
    if state.numel() == 0 or bool((state == state.flatten()[0]).all()):
        return True
    return state.dim() > 1 and len(state) > 1 and bool((state == state[:1]).all())


def is_of_one_sample(state: Tensor) -> bool:
    """Whether a state has no samples to compare: that of a batch of one, or of a sample without an axis of batches."""
    return state.dim() < 2 or len(state) == 1


def belongs_to_samples(module: nn.Module, place: Place, state: Tensor, given: Any) -> bool:
    """Whether a tensor is the state of samples, and not, say, a statistic: it has an axis in common with what the
    module is given, `[B, ...]` or `[T, B, ...]`. Of spiking layers every tensor is."""
    if is_spiking_layer(module) or place.attribute == _MEMORIES:
        return True
    lengths = {length for tensor in tensors_within(given) if tensor.dim() > 1 for length in tensor.shape[:2]}
    return state.dim() > 1 and not lengths.isdisjoint(state.shape[:2])


def is_constant_by_design(place: Place) -> bool:
    """Whether a state may act on calls without being changed by them, as the mask of SpikingJelly's dropout does."""
    return place.attribute == _MEMORIES


def used_places(
    module: nn.Module, among: Sequence[Place], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Place]:
    """The places on whose tensors it depends what a module returns, or keeps, after a call.

    The call is made on copies that share the module's parameters, without gradients and with the same random numbers:
    as it is, and with other states, far from any that a network has.

    Raises:
        Exception: what copying and calling raise.
    """
    plain = _answer(module, among, (), args, kwargs)
    if _same(plain, _answer(module, among, among, args, kwargs)):
        return []
    if len(among) == 1:
        return list(among)
    return [place for place in among if not _same(plain, _answer(module, among, (place,), args, kwargs))]


def is_among(kept: Kept, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is given what was kept."""
    return any(kept.is_still(tensor) for tensor in tensors_within((args, kwargs)))


def reset(module: nn.Module) -> None:
    """Reset the state of every module within a module that knows how to: snntorch's `reset_mem()`, SpikingJelly's
    `reset()`."""
    for part in module.modules():
        how = _reset_of(part)
        if how is not None:
            how()


def _reset_of(module: nn.Module) -> Any:
    # snntorch's neurons have a tensor by the name of `reset`
    for name in ("reset_mem", "reset"):
        known = is_spiking_layer(module) or (name == "reset" and _MEMORIES in vars(module))
        how = getattr(module, name, None)
        if known and callable(how) and not isinstance(how, (Tensor, nn.Module)):
            return how
    return None


def _holder(module: nn.Module, attribute: str) -> dict[str, Any]:
    return module._buffers if attribute in module._buffers else vars(module)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point()


class _Answer(NamedTuple):
    """What a call returned, what is at each place afterwards, and whether that is what was there before."""

    output: list[Tensor]
    kept: list[Any]
    left: list[bool]


def _answer(
    module: nn.Module,
    among: Sequence[Place],
    changed: Sequence[Place],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _Answer:
    twin = _twin(module)
    for place in changed:
        place.write(twin, _far_from(place.read(twin)))
    before = [Kept(place.read(twin).clone(), False) for place in among]
    with isolate_rng(), torch.no_grad():
        torch.manual_seed(0)
        output = list(tensors_within(twin.forward(*args, **kwargs)))
    after = [place.read(twin) for place in among]
    left = [not isinstance(new, Tensor) or old.is_still(new) for old, new in zip(before, after, strict=True)]
    return _Answer(output, after, left)


def _same(first: _Answer, second: _Answer) -> bool:
    pairs = list(zip(first.output, second.output, strict=False))
    # what only one call left was overwritten by the other, perhaps by what happened to be there
    kept = zip(first.left, second.left, first.kept, second.kept, strict=True)
    pairs += [(one, other) for first_left, second_left, one, other in kept if not (first_left and second_left)]
    return len(first.output) == len(second.output) and all(_are_close(one, other) for one, other in pairs)


def _twin(module: nn.Module) -> nn.Module:
    """A copy without hooks, whose parameters are the module's own and which logs nothing."""
    twin = independent_copy(module, share_parameters=True)
    for part in twin.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(part, kind).clear()
    return twin


def _far_from(state: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return state + _FAR * torch.randn(state.shape, generator=generator).to(state)


def _are_close(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
        return first is second
    if not first.is_floating_point():
        return torch.equal(first, second)
    # not to the last bit, which some kernels do not repeat
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)
