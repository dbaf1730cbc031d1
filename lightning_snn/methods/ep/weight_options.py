"""Options of the weights, one for all layers or one per layer: their checks, and the weight families they select."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning_snn.checks import check_between, check_choice, check_positive
from lightning_snn.methods.ep.weights import WEIGHTS, GaussianWeights, LevelWeights, WeightName

# half the standard deviation of the initial log-odds between the extreme levels of hidden discrete weights
_JITTER = 0.5
_DISCRETE_BIAS_VARIANCE = 1.0


@dataclass(frozen=True)
class WeightOptions:
    """Options of the weights, which are described in `ExpectationPropagation`.

    Attributes:
        weights: kind of weights, one for all layers or one per layer.
        prior_variance: of Gaussian weights, likewise; None for the default.
        prior_split: of Gaussian weights, likewise; None for the default.
        amplitude: of discrete weights, likewise.
        levels: of "categorical" weights.

    Raises:
        ValueError: if an option is outside its range.
    """

    weights: WeightName | Sequence[WeightName]
    prior_variance: float | Sequence[float] | None
    prior_split: float | Sequence[float] | None
    amplitude: float | Sequence[float]
    levels: Sequence[float]

    def __post_init__(self) -> None:
        for name in _entries(self.weights):
            check_choice("weights", name, WEIGHTS)
        for variance in () if self.prior_variance is None else _entries(self.prior_variance):
            check_positive("prior_variance", variance)
        for split in () if self.prior_split is None else _entries(self.prior_split):
            check_between("prior_split", split, 0, 1)
            if split == 1:
                raise ValueError(
                    "Expected argument `prior_split` to be below 1, but got 1, which leaves nothing to learn"
                )
        for value in _entries(self.amplitude):
            check_positive("amplitude", value)
        levels = self.levels
        numbers = all(isinstance(level, (int, float)) and math.isfinite(level) for level in levels)
        if len(levels) < 2 or not numbers or any(low >= high for low, high in pairwise(levels)):
            raise ValueError(
                f"Expected argument `levels` to be at least 2 numbers in ascending order, but got {levels!r}"
            )

    def families(self, biases: Sequence[bool]) -> list[GaussianWeights | LevelWeights]:
        """Return the weight family of each layer.

        Args:
            biases: whether each weight layer has a bias.

        Raises:
            ValueError: if an option has another number of entries than there are weight layers.
        """
        count = len(biases)
        deep = count > 1
        names = per_layer("weights", self.weights, count)
        prior_variance, prior_split = self.prior_variance, self.prior_split
        if prior_variance is None:
            prior_variance = [3.0] * (count - 1) + [10.0] if deep else 0.1
        if prior_split is None:
            prior_split = 0.2 if deep else 0.0
        variances = per_layer("prior_variance", prior_variance, count)
        splits = per_layer("prior_split", prior_split, count)
        amplitudes = per_layer("amplitude", self.amplitude, count)
        families: list[GaussianWeights | LevelWeights] = []
        for index, name in enumerate(names):
            if name == "gaussian":
                families.append(GaussianWeights(variances[index], splits[index]))
                continue
            values = {"sign": (-1.0, 1.0), "binary": (0.0, 1.0)}.get(name, self.levels)
            families.append(
                LevelWeights(
                    [amplitudes[index] * level for level in values],
                    _JITTER if index < count - 1 else 0.0,
                    _DISCRETE_BIAS_VARIANCE if biases[index] else None,
                )
            )
        return families


def _entries(values: Any) -> Sequence[Any]:
    return [values] if isinstance(values, str) or not isinstance(values, Sequence) else values


def per_layer(name: str, values: Any, count: int) -> Sequence[Any]:
    """Return one entry per layer.

    Raises:
        ValueError: if there is another number of entries than layers.

    Example:
        >>> per_layer("damping", 0.5, 2), per_layer("damping", [0.5, 1.0], 2)
        ([0.5, 0.5], [0.5, 1.0])
    """
    entries = _entries(values)
    if entries is values and len(entries) != count:
        raise ValueError(
            f"Expected argument `{name}` to be one for all layers or {count}, one per weight layer, but got {values!r}"
        )
    return entries if entries is values else list(entries) * count
