"""Outputs over time, as spiking networks of other libraries return them, reduced to one output per sample."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from lightning_snn.callbacks.predictions import describe

Outputs = Literal["probabilities", "logits"]


class Readout(NamedTuple):
    """Outputs `[B, C]` that were computed from outputs of all time steps.

    Attributes:
        outputs: mean over time, `[B, C]`.
        quantity: what was averaged, in words.
        spikes: whether these are firing rates.
        probabilities: whether they may be class probabilities; spikes and membrane potentials are not.
    """

    outputs: Tensor
    quantity: str
    spikes: bool = False
    probabilities: bool = False

    def report(self, origin: str) -> str:
        """Return what was averaged and what follows from it, for a message about outputs from somewhere."""
        consequence = ""
        if self.spikes:
            consequence = ", the firing rates. Treated as logits they give nearly uniform probabilities"
        elif not self.probabilities:
            consequence = " as logits, and the spikes are ignored"
        return (
            f"Of the values {origin}, the mean of {self.quantity} over time is used{consequence}. Pass `predict` to "
            "compute class probabilities [B, C] in another way."
        )


def read_over_time(value: Any) -> Readout | None:
    """Return the readout of outputs of all time steps; None for other values.

    - Outputs `[T, B, C]`: their mean over time, which is the firing rate if they are spikes.
    - Spikes and membrane potentials, a pair of tensors `[T, B, C]` as snntorch's networks return them: the mean
      membrane potential. The softmax of firing rates, which are at most 1, is nearly uniform.

    Spikes are values of which all but 0 are equal.

    Args:
        value: outputs of a network.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
        >>> read_over_time(spikes).outputs
        tensor([[1.0000, 0.5000]])
        >>> read_over_time((spikes, 3 * spikes - 1)).outputs
        tensor([[2.0000, 0.5000]])
    """
    if isinstance(value, (tuple, list)) and len(value) == 2:
        first, second = value
        if not (_is_over_time(first) and _is_over_time(second) and first.shape == second.shape):
            return None
        if not _are_spikes(first):
            first, second = second, first
        return Readout(second.mean(0), "membrane potentials") if _are_spikes(first) else None
    if not _is_over_time(value):
        return None
    if _are_spikes(value):
        return Readout(value.mean(0), "spikes", spikes=True)
    return Readout(value.mean(0), "outputs", probabilities=True)


def check_time_first(value: Any, targets: Any, origin: str) -> None:
    """Raise an error if outputs of all time steps have another number of samples than the targets.

    Args:
        value: outputs that `read_over_time` takes.
        targets: targets of the batch; not checked if they are not a tensor `[B, ...]`.
        origin: where the outputs come from, for the error message.

    Raises:
        ValueError: if the second axis is not that of the samples.
    """
    outputs = value if isinstance(value, Tensor) else value[0]
    if isinstance(targets, Tensor) and targets.dim() and outputs.shape[1] != len(targets):
        axis = ", which looks like [B, T, C]" if len(outputs) == len(targets) else ""
        raise ValueError(
            f"Expected outputs [T, B, C] of B = {len(targets)} samples {origin}, but got {describe(outputs)}{axis}. "
            "Return outputs with time first, or pass `predict` to compute class probabilities [B, C]."
        )


def check_probabilities_or_logits(outputs: Tensor, kind: Outputs, origin: str, is_chosen: bool) -> str | None:
    """Raise an error if outputs do not look like what they are taken for.

    Args:
        outputs: outputs of a batch, `[B, C]`.
        kind: what they are taken for.
        origin: where the outputs come from, for messages.
        is_chosen: whether a user chose the kind, so that logits that look like probabilities are fine.

    Returns:
        A warning if logits lie within [0, 1]; None if there is nothing to warn about.

    Raises:
        ValueError: if probabilities are negative or do not sum to 1, or logits do both.
    """
    are_probabilities = bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 0.01).all())
    if kind == "probabilities" and not are_probabilities:
        raise ValueError(
            f"Expected class probabilities {origin}, at least 0 with rows that sum to 1, but got values from "
            f'{outputs.min():g} to {outputs.max():g}. For logits pass outputs="logits".'
        )
    if kind == "probabilities" or is_chosen:
        return None
    if are_probabilities:
        raise ValueError(
            f"Expected logits {origin}, but got rows that are at least 0 and sum to 1. For class probabilities "
            'pass outputs="probabilities"; if these are logits, pass outputs="logits".'
        )
    # zeros alone come from a silent network and are no evidence
    if not (outputs >= 0).all() or not (outputs <= 1).all() or not (outputs > 0).any():
        return None
    return (
        f"Values {origin} are treated as logits, but lie within [0, 1], like spike rates and sigmoids. If they "
        'are logits, pass outputs="logits"; if not, pass `predict` to convert them to probabilities.'
    )


def _is_over_time(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point() and value.numel() > 0


def _are_spikes(values: Tensor) -> bool:
    return bool(((values == 0) | (values == values.max())).all() and values.max() >= 0)
