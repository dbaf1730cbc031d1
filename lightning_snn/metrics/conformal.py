"""Conformal prediction sets as torchmetrics classes: the threshold, and coverage and size of the sets.

The functional forms are in `lightning_snn.metrics.functional`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.checks import check_fraction, check_integer
from lightning_snn.metrics.functional import (
    Score,
    accumulation_dtype,
    conformal_scores,
    conformal_threshold,
    true_class_scores,
)
from lightning_snn.metrics.functional.conformal import check_conformal, check_sets, covered
from lightning_snn.metrics.probability import WideStates
from lightning_snn.metrics.stored import StoredSamples


class ConformalThreshold(StoredSamples):
    """Threshold of conformal prediction sets, from held-out data: the calibration.

    It stores one score per sample, or one per sample and time step, until it is reset. See
    `lightning_snn.metrics.functional.conformal_scores` for the scores and `prediction_sets` for the sets.

    Args:
        alpha: chosen probability that a set lacks the true class, within (0, 1).
        score: "lac", "aps" or "raps".
        penalty: penalty of "raps" for each further class, at least 0.
        free_classes: number of classes without a penalty in "raps", at least 0.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> metric = ConformalThreshold(alpha=0.4, score="lac")
        >>> metric.update(torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None

    def __init__(
        self, alpha: float = 0.1, score: Score = "aps", penalty: float = 0.01, free_classes: int = 5, **kwargs: Any
    ) -> None:
        check_fraction("alpha", alpha)
        check_conformal(score, penalty, free_classes)
        # MetricCollection shares states of equal names and first values, and "raps" may begin like "aps".
        state = f"scores_{score}_{penalty!r}_{free_classes}".replace(".", "_")
        super().__init__(state, **kwargs)
        self._state = state
        self.alpha, self.score, self.penalty, self.free_classes = alpha, score, penalty, free_classes

    def update(self, probabilities: Tensor, targets: Tensor, generator: torch.Generator | None = None) -> None:
        """Add a batch of held-out data.

        Args:
            probabilities: class probabilities, shape `(N, C)`, in [0, 1], or after each time step, shape `(T, N, C)`.
            targets: true classes, integers of shape `(N,)`, in [0, C).
            generator: source of the random numbers of "aps" and "raps"; None uses none. Pass one to the scores of the
                test data too.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        scores = conformal_scores(probabilities, self.score, generator, self.penalty, self.free_classes)
        getattr(self, self._state).append(true_class_scores(scores, targets).movedim(-1, 0))

    def compute(self) -> Tensor:
        """Return the threshold over all samples so far, a scalar, or shape `(T,)`.

        Raises:
            ValueError: if there was no sample.
        """
        (scores,) = self.joined()
        return conformal_threshold(scores.movedim(0, -1), self.alpha)


class _SetMean(WideStates):
    """Base of means over prediction sets, perhaps of each time step."""

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    count: Tensor

    def __init__(self, measure: str, steps: int | None, **kwargs: Any) -> None:
        if steps is not None:
            check_integer("steps", steps)
        super().__init__(**kwargs)
        self.steps = steps
        self._measure = measure
        shape = () if steps is None else (steps,)
        self.add_state(measure, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add one integer per sample, shape `(N,)`, or `(T, N)` with time steps."""
        expected = "(N, C)" if self.steps is None else f"(T, N, C) with T = {self.steps}"
        if values.ndim != 1 + (self.steps is not None) or (self.steps is not None and len(values) != self.steps):
            raise ValueError(
                f"Expected argument `sets` to be of shape {expected}, but got the sets of {tuple(values.shape)} "
                "time steps and samples. Pass `steps=T` for sets after each time step."
            )
        setattr(self, self._measure, getattr(self, self._measure) + values.sum(-1))
        self.count = self.count + values.shape[-1]

    def compute(self) -> Tensor:
        """Return the mean over all samples so far, a scalar, or shape `(T,)`; nan if there was none."""
        total: Tensor = getattr(self, self._measure)
        return total.to(accumulation_dtype(total.device)) / self.count


class SetCoverage(_SetMean):
    """Coverage of prediction sets: the fraction of samples whose set contains the true class.

    Args:
        steps: number of time steps T, for sets after each of them; None for one set per sample.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `steps` is less than 1.

    Example:
        >>> metric = SetCoverage()
        >>> metric.update(torch.tensor([[True, True, False], [False, True, False]]), torch.tensor([0, 2]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = None
    plot_upper_bound = 1.0

    def __init__(self, steps: int | None = None, **kwargs: Any) -> None:
        super().__init__("covered", steps, **kwargs)

    def update(self, sets: Tensor, targets: Tensor) -> None:
        """Add a batch: sets, bool of shape `(N, C)` or `(T, N, C)`, and true classes, integers of shape `(N,)`.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        self.add(covered(sets, targets).long())


class SetSize(_SetMean):
    """Mean number of classes in prediction sets.

    Args:
        steps: number of time steps T, for sets after each of them; None for one set per sample.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `steps` is less than 1.

    Example:
        >>> metric = SetSize()
        >>> metric.update(torch.tensor([[True, True, False], [False, True, False]]))
        >>> metric.compute()
        tensor(1.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, steps: int | None = None, **kwargs: Any) -> None:
        super().__init__("size", steps, **kwargs)

    def update(self, sets: Tensor) -> None:
        """Add a batch of sets, bool of shape `(N, C)` or `(T, N, C)`.

        Raises:
            ValueError: if `sets` is not as stated above.
        """
        check_sets(sets)
        self.add(sets.sum(-1))
