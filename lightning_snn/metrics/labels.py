"""Scores of predicted probabilities of labels, any number of which a sample has."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_snn.metrics.probability import RunningMean


class LabelNegativeLogLikelihood(RunningMean):
    """Mean negative log-likelihood of labels, in nats; inf if a label had probability 0 of what it was.

    NLL = -1/(N C) sum_n sum_c [y_nc log p_nc + (1 - y_nc) log(1 - p_nc)]

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = LabelNegativeLogLikelihood()
        >>> metric.update(torch.tensor([[0.5, 1.0]]), torch.tensor([[1, 1]]))
        >>> metric.compute()
        tensor(0.3466, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("label_negative_log_likelihood", **kwargs)

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: probability of each label, shape `(N, C)`, in [0, 1].
            targets: 1 where a label is present and 0 where it is not, of the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        if probabilities.shape != targets.shape:
            raise ValueError(
                f"Expected argument `targets` of shape {tuple(probabilities.shape)}, but got {tuple(targets.shape)}"
            )
        # of what each label was; no product, because 0 log 0 would be nan
        likelihood = probabilities.where(targets.bool(), 1 - probabilities)
        self.add(-likelihood.log().flatten(1).mean(1))
