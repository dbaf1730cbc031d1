"""Lengths of padded sequences: what is valid in a batch whose samples have different numbers of time steps.

The lengths are a value of the run, as T is. Readouts, penalties and observers ask for the valid steps; layers need not
know of them, because outputs do not depend on later steps. Batch normalization does: the context replaces its call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_snn.nn.layer_rules import Refusal, refuse
from lightning_snn.nn.row_checks import SEQUENCE_LAYERS
from lightning_snn.nn.run_context import forward_replaced, run_values, values_set
from lightning_snn.nn.time_wrappers import OverTime

_EXPECTED = "Expected argument `lengths` of a batch to be a tensor of B integers from 1 to T"


def check_lengths(lengths: Any, time_steps: int, like: Tensor, values: bool = True) -> Tensor:
    """Return the lengths of a batch as int64.

    Args:
        lengths: number of valid time steps of each sample, integers `[B]`.
        time_steps: number of time steps T of the padded batch.
        like: inputs `[T, B, ...]`, with whose batch size and device the lengths are compared.
        values: whether the values are compared with T, for which another device than a CPU finishes its work first.

    Raises:
        ValueError: if `lengths` is no such tensor, is on another device than the inputs, or holds numbers outside of 1
            to T.

    Example:
        >>> check_lengths(torch.tensor([3, 5], dtype=torch.int32), 5, torch.rand(5, 2, 4))
        tensor([3, 5])
    """
    if not isinstance(lengths, Tensor):
        raise ValueError(
            f"{_EXPECTED}, but got a {type(lengths).__name__}. Convert it with `torch.as_tensor`, on the device of `x`"
        )
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"{_EXPECTED}, but got {lengths.dtype}. Convert the numbers of steps with `lengths.long()`")
    samples = like.shape[1]
    if lengths.shape != (samples,):
        raise ValueError(
            f"{_EXPECTED}, with B = {samples} samples, but got the shape {tuple(lengths.shape)}. Pass one number of "
            "valid steps per sample"
        )
    if lengths.device != like.device:
        raise ValueError(
            f"{_EXPECTED}, on {like.device} as the inputs are, but got {lengths.device}. Move it with "
            "`lengths.to(x.device)`"
        )
    if values and samples and lengths.device.type != "meta":
        least, most = lengths.min().item(), lengths.max().item()
        if least < 1 or most > time_steps:
            raise ValueError(
                f"{_EXPECTED}, here T = {time_steps}, but got lengths from {least} to {most}. Leave empty sequences "
                "out, and count only the steps that `x` holds"
            )
    return lengths.long()


def lengths_of(samples: int) -> Tensor | None:
    """Return the numbers of valid steps in the enclosing `sequence_lengths`, None outside.

    Args:
        samples: number of samples; a multiple of those of the context has the same number of rows for each of them.

    Raises:
        ValueError: if `samples` is no such multiple.
    """
    lengths = run_values().lengths
    if lengths is None:
        return None
    if samples % len(lengths):
        raise ValueError(
            f"Expected a multiple of the {len(lengths)} samples whose `lengths` are known, but got {samples}. Keep "
            "time and batch in the first axis of every layer, or train on sequences of equal length"
        )
    rows = samples // len(lengths)
    return lengths if rows == 1 else lengths.repeat_interleave(rows)


def valid_steps(time_steps: int, samples: int) -> Tensor | None:
    """Return which steps of each sample are valid in the enclosing `sequence_lengths`; None if all are.

    Args:
        time_steps: number of time steps T.
        samples: number of samples B.

    Returns:
        A boolean tensor `[T, B]`, True at the steps before the length of the sample.

    Raises:
        ValueError: as `lengths_of`.

    Example:
        >>> with sequence_lengths(torch.tensor([1, 2])):
        ...     valid_steps(2, 2)
        tensor([[ True,  True],
                [False,  True]])
    """
    lengths = lengths_of(samples)
    if lengths is None:
        return None
    return torch.arange(time_steps, device=lengths.device).unsqueeze(1) < lengths


def over_steps(valid: Tensor, like: Tensor) -> Tensor:
    """Return a mask `[T, B]` with as many axes as a tensor `[T, B, ...]`."""
    return valid.view(*valid.shape, *(1,) * (like.dim() - 2))


def without_padding(steps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return a tensor `[T, B, ...]` with zeros at padded steps; itself where all are valid.

    Args:
        steps: any tensor over time.
        valid: the valid steps `[T, B]`; None is those of the enclosing `sequence_lengths`.

    Example:
        >>> with sequence_lengths(torch.tensor([1, 2])):
        ...     without_padding(torch.ones(2, 2))
        tensor([[1., 1.],
                [0., 1.]])
    """
    valid = valid_steps(*steps.shape[:2]) if valid is None else valid
    return steps if valid is None else torch.where(over_steps(valid, steps), steps, 0)


def valid_rows(rows: Tensor, time_steps: int) -> Tensor:
    """Return the valid rows of a folded tensor `[T*B, ...]`, all of them outside of `sequence_lengths`.

    Their number depends on the data, so another device than a CPU finishes its work first.
    """
    valid = valid_steps(time_steps, rows.shape[0] // time_steps)
    return rows if valid is None else rows[valid.flatten()]


@contextmanager
def sequence_lengths(
    lengths: Tensor | None, network: nn.Module | None = None, time_steps: int | None = None
) -> Iterator[None]:
    """Enter a context in which the samples of a batch have different numbers of valid time steps.

    Within it, readouts, penalties and observers count no step at or after the length of a sample, and batch
    normalization in training mode has the statistics of valid steps. `SpikingModule` enters it for batches
    ``(x, y, lengths)``.

    Args:
        lengths: number of valid steps of each sample, integers `[B]` of at least 1; None changes nothing.
        network: the network that runs in this context, whose batch normalization is masked; None masks none.
        time_steps: number of time steps T of the inputs, which masked batch normalization needs.

    Raises:
        ValueError: if outputs of the network depend on later steps, and so on padding; names the layers.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), LIF(), nn.Linear(8, 3))
        >>> x, lengths = torch.rand(10, 2, 4), torch.tensor([7, 10])
        >>> with sequence_lengths(lengths, network, 10):
        ...     outputs = run(network, x)
    """
    if lengths is None:
        yield
        return
    norms = []
    if network is not None:
        refuse("a network on batches with `lengths`", _looking_ahead(network))
        norms = normalizing_layers(network)
    with values_set(lengths=lengths), _masked(norms, lengths, time_steps):
        yield


def later_steps(start: int) -> AbstractContextManager[None]:
    """Return a context for a piece of a sequence that starts at step `start`, in which lengths count from there."""
    lengths = run_values().lengths
    return nullcontext() if lengths is None else values_set(lengths=(lengths - start).clamp(min=0))


def repeated_samples(count: int) -> AbstractContextManager[None]:
    """Return a context in which the batch holds `count` copies of all its samples, one after the other."""
    lengths = run_values().lengths
    return nullcontext() if lengths is None or count == 1 else values_set(lengths=lengths.repeat(count))


def normalizing_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers whose output or running statistics are those of all rows of a batch."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, _NormBase) and (layer.training or layer.running_mean is None)
    ]


def normalizing_refusals(network: nn.Module) -> list[Refusal]:
    """Return the layers of `normalizing_layers` for a method that cannot mask them."""
    reason = "its statistics would count padding: remove it, or use SurrogateGradient"
    names = {module: name for name, module in network.named_modules()}
    return [Refusal(names[layer], layer, reason) for layer in normalizing_layers(network)]


def _looking_ahead(network: nn.Module) -> Iterator[Refusal]:
    for name, layer in network.named_modules():
        if not isinstance(layer, OverTime):
            continue
        for part in layer.modules():
            causal = isinstance(part, nn.RNNBase) and not part.bidirectional
            if isinstance(part, SEQUENCE_LAYERS) and not causal:
                reason = f"{type(part).__name__} looks at later steps, which are padding: use a causal layer"
                yield Refusal(name, layer, reason)
                break


def _masked(norms: list[nn.Module], lengths: Tensor, time_steps: int | None) -> AbstractContextManager[None]:
    if not norms:
        return nullcontext()
    if time_steps is None:
        raise ValueError("Expected argument `time_steps` to be an integer for batch normalization, but got None")
    # once for all layers, because it waits for the device
    valid = torch.arange(time_steps, device=lengths.device).unsqueeze(1) < lengths
    rows = valid.flatten().nonzero().squeeze(1)
    return forward_replaced(norms, _on_rows(rows, valid.numel()))


def _on_rows(rows: Tensor, total: int) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        if x.shape[0] != total:
            raise ValueError(
                f"Expected {type(layer).__name__} to take the T * B = {total} rows of a batch with `lengths`, but got "
                f"the shape {tuple(x.shape)}, in which valid steps are not known. Keep time and batch in its first "
                "axis, or train on sequences of equal length"
            )
        output: Tensor = type(layer).forward(layer, x.index_select(0, rows))
        return output.new_zeros(total, *output.shape[1:]).index_copy(0, rows, output)

    return call
