"""Scores of predicted class probabilities as torchmetrics classes.

The functional forms are in `lightning_snn.metrics.functional`, the calibration errors in
`lightning_snn.metrics.uncertainty`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_snn.metrics.functional import (
    accumulation_dtype,
    bit_accuracy,
    brier_score,
    check_pairs,
    negative_log_likelihood,
    within_pair_accuracy,
)


class WideStates(Metric):
    """Base of metrics whose floating-point states are float64 (float32 on Apple's MPS) and stay so under any cast.

    A sum in bfloat16 would stop growing after a few hundred samples. Casting the metric, or a module that holds it, to
    another dtype therefore does not change the states, and `set_dtype` has no effect.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> WideStates:
        def follow_device(tensor: Tensor) -> Tensor:
            # The device is read from a float32 tensor because `fn` may not support float64.
            device = fn(torch.zeros((), device=tensor.device)).device
            return tensor.to(accumulation_dtype(device)).to(device) if tensor.is_floating_point() else tensor.to(device)

        super()._apply(follow_device, exclude_state)
        return self


class RunningMean(WideStates):
    """Mean of one value per sample, over batches and over distributed processes.

    mean = sum_n v_n / N; nan if there was no sample. The states are the sum and N.

    Args:
        measure: name of the averaged quantity; the names of the states start with it.
        kwargs: see `torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, measure: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # MetricCollection shares the states of two metrics if the names and the values after the first batch agree.
        # Names that contain the quantity keep metrics apart whose first values happen to be equal.
        self._total_name = f"{measure}_total"
        self._count_name = f"{measure}_count"
        dtype = accumulation_dtype(torch.device("cpu"))
        self.add_state(self._total_name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state(self._count_name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Add values, one per sample."""
        total: Tensor = getattr(self, self._total_name)
        setattr(self, self._total_name, total + values.sum(dtype=total.dtype))
        setattr(self, self._count_name, getattr(self, self._count_name) + values.numel())

    def compute(self) -> Tensor:
        """Return the mean over all samples so far, a scalar; nan if there was none."""
        mean: Tensor = getattr(self, self._total_name) / getattr(self, self._count_name)
        return mean


class SampleMean(RunningMean, ABC):
    """Mean of a value that is computed from the class probabilities and the true class of a sample."""

    @abstractmethod
    def sample_values(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return the values to average, shape `(M,)`, for class probabilities `(N, C)` and classes `(N,)`."""

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: class probabilities, shape `(N, C)`, in [0, 1].
            targets: true classes, integers of shape `(N,)`, in [0, C).

        Raises:
            ValueError: if an argument is not as stated above.
        """
        self.add(self.sample_values(probabilities, targets))


class NegativeLogLikelihood(SampleMean):
    """Mean negative log-likelihood of the true classes, in nats; inf if a true class had probability 0.

    NLL = -1/N sum_n log p_n[y_n]

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.3466, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("negative_log_likelihood", **kwargs)

    def sample_values(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return -log p_n[y_n], shape `(N,)`."""
        return negative_log_likelihood(probabilities, targets, reduction="none")


class BrierScore(SampleMean):
    """Mean squared distance between the probabilities and the one-hot true class, a sum over classes within [0, 2].

    BS = 1/N sum_n sum_c (p_n[c] - 1[y_n = c])^2

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = BrierScore()
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 2.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("brier_score", **kwargs)

    def sample_values(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return sum_c (p_n[c] - 1[y_n = c])^2, shape `(N,)`."""
        return brier_score(probabilities, targets, reduction="none")


class WithinPairAccuracy(SampleMean):
    """Accuracy of distinguishing the two classes of a pair, over the samples whose true class is in a pair.

    A = 1/M sum_m 1[argmax_{c in pair(y_m)} p_m[c] = y_m], over the M samples whose class y_m belongs to a pair

    Args:
        pairs: disjoint pairs of classes. If both probabilities are equal, the first class of the pair is predicted.
        kwargs: see `torchmetrics.Metric`.

    Returns:
        `compute` returns a scalar within [0, 1]; nan if no sample belonged to a pair.

    Raises:
        ValueError: if `pairs` is not as stated above.

    Example:
        >>> metric = WithinPairAccuracy(pairs=[(0, 1)])
        >>> probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
        >>> metric.update(probabilities, torch.tensor([1, 1, 2]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, pairs: Sequence[tuple[int, int]], **kwargs: Any) -> None:
        check_pairs(pairs)
        super().__init__("_".join(["within_pair", *(f"{first}_{second}" for first, second in pairs)]), **kwargs)
        self.pairs = tuple((first, second) for first, second in pairs)

    def sample_values(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return 1 where the true class of the pair is the more probable one, else 0, shape `(M,)`."""
        return within_pair_accuracy(probabilities, targets, self.pairs, reduction="none")


class BitAccuracy(SampleMean):
    """Fraction of output neurons whose spike or silence is correct, each considered independently.

    A = 1/(N C) sum_n sum_c 1[(p_n[c] > 1/2) = (y_n = c)]

    This is not the accuracy among classes, and it is much higher: outputs that never spike reach 1 - 1/C. `update`
    takes the probability that each output spikes, shape `(N, C)`; the rows need not sum to one.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = BitAccuracy()
        >>> metric.update(torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("bit_accuracy", **kwargs)

    def sample_values(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return the fraction of correct outputs, shape `(N,)`."""
        return bit_accuracy(probabilities, targets, reduction="none")
