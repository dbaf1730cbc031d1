"""Verdict on the convergence of a fit, from the residuals of its last epoch."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

# standard deviations of the weights: an error of this size raises expected squared errors by 1 %
_TOLERANCE = 0.1
# an endless stream is a single epoch
_MOST_BATCHES = 1000


class Convergence:
    """Residuals of the updates by the batches of the present epoch; see `BatchUpdate.residual`.

    Example:
        >>> convergence = Convergence()
        >>> convergence.record(0, torch.tensor(0.5))
        >>> convergence.problem()[:63]
        'Expectation propagation has not converged: in the last epoch, a'
        >>> convergence.record(1, torch.tensor(0.01))
        >>> convergence.problem() is None
        True
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._residuals: deque[Tensor] = deque(maxlen=_MOST_BATCHES)

    def record(self, epoch: int, residual: Tensor) -> None:
        """Record the residual of an update in an epoch, a scalar."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._residuals.clear()
        self._residuals.append(residual)

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
