"""Verdict on the convergence of a fit, from the residuals of its last epoch and from the stability of its steps."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from lightning_snn.methods.ep.stability import Stability

# standard deviations of the weights: an error of this size raises expected squared errors by 1 %
_TOLERANCE = 0.1
# an endless stream is a single epoch
_MOST_BATCHES = 1000
# power iterations of a measurement of stability, with two iterations each, and the largest share of these in a fit
_STABILITY_STEPS, _STABILITY_SHARE = 6, 0.01


class Convergence:
    """Residuals of the updates by the batches of the present epoch, and when to measure the stability of the steps.

    Attributes:
        stability_steps: power iterations of a measurement.

    Example:
        >>> convergence = Convergence()
        >>> convergence.record(0, torch.tensor(0.5))
        >>> convergence.problem()[:63]
        'Expectation propagation has not converged: in the last epoch, a'
        >>> convergence.record(1, torch.tensor(0.01))
        >>> convergence.problem() is None
        True
    """

    stability_steps = _STABILITY_STEPS

    def __init__(self) -> None:
        self._epoch = 0
        self._residuals: deque[Tensor] = deque(maxlen=_MOST_BATCHES)
        self._iterations, self._due = 0, 2 * _STABILITY_STEPS / _STABILITY_SHARE

    def record(self, epoch: int, residual: Tensor) -> None:
        """Record the residual of an update in an epoch, a scalar."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._residuals.clear()
        self._residuals.append(residual)

    def stability_due(self, iterations: int, returning: bool, residual: Tensor) -> bool:
        """Count the iterations of an update, and return whether to measure the stability of the steps after it.

        It is measured where a batch that returns has converged, when it costs at most a percent of the iterations so
        far. If the estimate has not settled, it is measured again when these have doubled.

        Args:
            iterations: number of iterations of the update.
            returning: whether the batch had an earlier update.
            residual: `BatchUpdate.residual`, which is read only when a measurement is due.
        """
        self._iterations += iterations
        if not returning or self._iterations < self._due:
            return False
        converged = residual.item() < _TOLERANCE
        self._due = (2 if converged else 1.1) * self._iterations
        return converged

    def stability_problem(self, stability: Stability, damping: float) -> str | None:
        """Return what is wrong with a damping and what to do, if anything; one settled estimate is enough for a fit."""
        if stability.settled:
            self._due = math.inf
        return stability.problem(damping)

    def problem(self) -> str | None:
        """Return what is wrong with the fit and what to do; None if it converged or there was no update."""
        if not self._residuals:
            return None
        residuals = torch.stack(list(self._residuals))
        count, median = len(residuals), residuals.median().item()
        diverged = int((~residuals.isfinite()).sum())
        if diverged:
            return (
                f"Expectation propagation has diverged: in the last epoch, {diverged} of {count} updates ended with "
                "messages that are not finite or too wide. Reduce `damping`, the batch size or the size of the inputs"
            )
        if median > _TOLERANCE:
            return (
                f"Expectation propagation has not converged: in the last epoch, a further iteration without damping "
                f"would have moved the weights by {median:.2g} of their standard deviations, the median of {count} "
                f"batches, and not by less than {_TOLERANCE:g}. Train for more epochs or with more `iterations`; if "
                "`train/residual` does not decrease, reduce `damping` or the batch size"
            )
        return None
