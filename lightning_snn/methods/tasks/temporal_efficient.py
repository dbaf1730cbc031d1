r"""Temporal efficient training: the loss of each time step instead of that of their mean.

.. math:: L = (1 - \lambda) \frac{1}{T} \sum_t \mathrm{CE}(o_t, y) + \lambda \frac{1}{T} \sum_t
    \frac{1}{C} \sum_c (o_{t,c} - \phi)^2

The second term keeps outputs near :math:`\phi`. The prediction is that of the readout, as for other classifications,
and predictions after few steps profit most. At T = 1 and :math:`\lambda = 0` the loss is the cross-entropy.

After Deng et al. 2022, Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting (ICLR, arXiv
2202.11946).
"""

from __future__ import annotations

from torch import Tensor

from lightning_snn.checks import check_between
from lightning_snn.methods.tasks.base import Readout
from lightning_snn.methods.tasks.classification import Classification, cross_entropies


class TemporalEfficient(Classification):
    r"""Classification whose loss is that of the output of each time step.

    Args:
        weight: :math:`\lambda` of the squared distance of outputs from `target`, in [0, 1].
        target: :math:`\phi`, for example the firing threshold.
        readout: of the prediction, see `Task`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> task = TemporalEfficient(weight=0.5, target=1.0)
        >>> task.sequence_loss(torch.zeros(4, 1, 2), torch.tensor([0]))  # 0.5 log 2 + 0.5
        tensor(0.8466)
    """

    def __init__(self, weight: float = 0.05, target: float = 1.0, readout: Readout = "mean") -> None:
        super().__init__(readout)
        check_between("weight", weight, 0.0, 1.0)
        check_between("target", target, -float("inf"), float("inf"))
        self.weight, self.target = weight, target
        self.per_step = True

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of the output of one step, `[B]`.

        Args:
            output: logits `[B, C, ...]`.
            y: as for `Classification`.
        """
        self.check_targets(output, y)
        distance = (output - self.target).square().flatten(1).mean(1)
        return (1 - self.weight) * cross_entropies(output, y) + self.weight * distance

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, target={self.target:g}, {super().extra_repr()}"
