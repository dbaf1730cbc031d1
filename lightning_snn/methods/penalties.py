r"""Penalties on the activity of spiking layers, which every method that descends a loss adds to its objective.

A penalty is a function of the spikes of a layer. Within the training step of a method it receives them with the
gradient of that method: the surrogate gradient, the estimator of noisy spikes, or, for rate-based backpropagation,
that of the rate pass, where spikes are means over windows. A forward hook of one's own would see the spiking pass of
rate-based backpropagation, which has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between
from lightning_snn.nn.lengths import valid_steps, without_padding
from lightning_snn.nn.observation import as_steps, named_spiking_layers, takes_all_steps
from lightning_snn.nn.phase import check_records, on_spikes, rate_phase
from lightning_snn.nn.run_context import outputs_observed, run_values

# from the spikes of a layer [T, B, ...] to a scalar
Penalty = Callable[[Tensor], Tensor]


class ActivityPenalty:
    r"""Squared distance of firing rates from a target, :math:`w\, \mathrm{mean}_n (r_n - r^*)^2`.

    The rate :math:`r_n` of neuron n is its mean spike over time and samples. It is the same whether it is computed from
    spikes or from their means over windows, so the value does not depend on the method. Padded steps of sequences of
    different lengths do not count.

    Args:
        target_rate: target :math:`r^*` in spikes per step, from 0 to 1.
        weight: factor w, at least 0.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> ActivityPenalty(target_rate=0.1, weight=2.0)(torch.full((5, 3, 4), 0.6))
        tensor(0.5000)
    """

    def __init__(self, target_rate: float, weight: float = 1.0) -> None:
        check_between("target_rate", target_rate, 0.0, 1.0)
        check_between("weight", weight, 0.0, float("inf"))
        self.target_rate, self.weight = target_rate, weight

    masks_padding = True  # see `check_penalties_mask`

    def __call__(self, spikes: Tensor) -> Tensor:
        spikes = spikes.to(torch.promote_types(spikes.dtype, torch.float32))
        valid = valid_steps(*spikes.shape[:2])
        if valid is None:
            rates = spikes.mean((0, 1))
        else:
            rates = without_padding(spikes, valid).sum((0, 1)) / valid.sum()
        return self.weight * (rates - self.target_rate).square().mean()

    def __repr__(self) -> str:
        return f"ActivityPenalty(target_rate={self.target_rate:g}, weight={self.weight:g})"


@dataclass
class _Sequences:
    """Spikes of the calls of one layer: one sequence per call, or the steps of one sequence."""

    whole: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)

    def found(self) -> list[Tensor]:
        return [*self.whole, torch.cat(self.steps)] if self.steps else self.whole


class PenaltyCollector:
    """Context that collects the spikes of a training step with their gradient, and the penalties on them.

    Args:
        network: the prepared network; penalties are summed over its spiking layers.
        penalties: penalties by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> with PenaltyCollector(network, {"activity": ActivityPenalty(0.1)}) as collector:
        ...     outputs = run(network, torch.rand(10, 2, 4))
        >>> collector.values()["activity"].requires_grad
        True
    """

    def __init__(self, network: nn.Module, penalties: Mapping[str, Penalty]) -> None:
        self._layers, self._penalties = named_spiking_layers(network), penalties
        # by layer, and by call within `advance`, where a layer in two places has two sequences
        self._calls: dict[tuple[nn.Module, str | None], _Sequences] = {}
        self._differentiable = torch.is_grad_enabled()

    def __enter__(self) -> PenaltyCollector:
        self._observation = outputs_observed(self._layers.values(), self._collect)
        self._observation.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._observation.__exit__(*failure)

    def values(self) -> dict[str, Tensor]:
        """Return the sum over layers of each penalty, a scalar with a gradient.

        Raises:
            RuntimeError: if no spiking layer was called.
            ValueError: if a penalty is not a scalar.
        """
        sequences = [spikes for calls in self._calls.values() for spikes in calls.found()]
        if not sequences:
            raise RuntimeError(
                "Expected the training step to call the network's spiking layers, on which `penalties` act, but got no "
                "call of any"
            )
        found = {}
        for name, penalty in self._penalties.items():
            terms = [penalty(spikes) for spikes in sequences]
            if any(not isinstance(term, Tensor) or term.dim() > 0 for term in terms):
                raise ValueError(f"Expected penalty {name!r} to return a scalar tensor, but got {terms[0]!r}")
            found[name] = torch.stack(terms).sum()
        return found

    def _collect(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # the spiking pass of rate-based backpropagation has no gradient; its rate pass is not `on_spikes`
        if rate_phase() == "collect" or not (on_spikes() or rate_phase() == "replay"):
            return
        if self._differentiable:
            check_records(layer, "`penalties`")
        spikes = output[0] if isinstance(output, tuple) else output
        states = run_values().states
        piece = None if states is None else states.latest(layer)
        calls = self._calls.setdefault((layer, None if piece is None else piece.name), _Sequences())
        whole = piece is None and takes_all_steps(layer)
        (calls.whole if whole else calls.steps).append(as_steps(layer, spikes))


def check_penalties_mask(penalties: Mapping[str, Penalty]) -> None:
    """Raise a ValueError for penalties that would count the padding of sequences of different lengths.

    A penalty that sets ``masks_padding = True`` leaves padding out itself, by `nn.valid_steps`.
    """
    counting = [name for name, penalty in penalties.items() if not getattr(penalty, "masks_padding", False)]
    if counting:
        raise ValueError(
            f"Expected `penalties` that leave out padding for batches with `lengths`, but got {', '.join(counting)}. "
            "Mask the spikes by `lightning_snn.nn.valid_steps(T, B)` and set `masks_padding = True` on the function"
        )


def check_penalties(method: str, network: nn.Module, penalties: Mapping[str, Penalty], refusal: str | None) -> None:
    """Check penalties before training.

    Args:
        method: name of the method.
        network: the prepared network.
        penalties: penalties by name.
        refusal: why the method cannot add penalties, and what to do; None if it can.

    Raises:
        ValueError: if a penalty is not callable, the method has no penalties, or the network has no spiking layers.
    """
    for name, penalty in penalties.items():
        if not callable(penalty):
            raise ValueError(f"Expected penalty {name!r} to be a function of spikes [T, B, ...], but got {penalty!r}")
    if penalties and refusal is not None:
        raise ValueError(f"Expected no `penalties` for {method}, but got {', '.join(penalties)}: {refusal}")
    if penalties and not named_spiking_layers(network):
        raise ValueError(
            f"Expected a network with spiking layers for the `penalties` {', '.join(penalties)}, but got none. "
            "Register layers of your own with `lightning_snn.nn.register_spiking_layer`"
        )
