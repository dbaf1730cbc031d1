"""Multi-label classification: any number of labels per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_positive
from lightning_snn.methods.tasks.base import Readout, Task, check_is_tensor, check_shape
from lightning_snn.methods.tasks.prediction import Prediction


class MultiLabel(Task):
    r"""Multi-label classification: the readout is one logit per label, and the prediction their sigmoid.

    The loss is the binary cross-entropy, the mean over labels of
    :math:`-[w_c\, y_c \log \sigma(o_c) + (1 - y_c) \log(1 - \sigma(o_c))]`.

    Args:
        pos_weight: weight w of each label where it is present, larger than 0, `[C]`; None is 1. Rare labels count more
            with a larger weight, for example absent over present.
        readout: see `Task`.

    Raises:
        ValueError: if a weight is not larger than 0.

    Example:
        >>> task = MultiLabel()
        >>> task.loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor(0.6931)
        >>> task.predict(torch.zeros(1, 2)).mean
        tensor([[0.5000, 0.5000]])
    """

    kind = "multi_label"

    def __init__(self, pos_weight: Sequence[float] | None = None, readout: Readout = "mean") -> None:
        super().__init__(readout)
        self.pos_weight = None if pos_weight is None else [float(weight) for weight in pos_weight]
        for weight in self.pos_weight or ():
            check_positive("pos_weight", weight)

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the binary cross-entropy of each sample, the mean over labels, `[B]`.

        Args:
            output: logits `[B, C, ...]`.
            y: 1 where a label is present and 0 where it is not, of the shape of `output`, integers, booleans or
                probabilities.

        Raises:
            ValueError: if there are not `num_classes` outputs, or targets of another shape.
        """
        self.check_targets(output, y)
        weight = None
        if self.pos_weight is not None:
            weight = output.new_tensor(self.pos_weight).view(-1, *(1,) * (output.dim() - 2))
        losses = F.binary_cross_entropy_with_logits(output, y.to(output.dtype), reduction="none", pos_weight=weight)
        return losses.flatten(1).mean(1)

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        check_is_tensor(y)
        labels = self.num_classes if self.pos_weight is None else len(self.pos_weight)
        for name, expected in (("num_classes", self.num_classes), ("pos_weight", labels)):
            if output.dim() < 2 or expected not in (None, output.shape[1]):
                raise ValueError(
                    f"Expected argument `network` to return {expected or 'C'} outputs per sample, one for each label "
                    f"of `{name}`, but got a readout of shape {tuple(output.shape)}. Change the last layer or `{name}`"
                )
        check_shape(output, y, "1 or 0 for each label, ", tuple(output.shape), "; classes become labels by `F.one_hot`")

    def evaluated(self, mean: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets as integers; a probability of at least 0.5 is a label that is present."""
        mean, y = super().evaluated(mean, y)
        return mean, (y >= 0.5).long()

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output.sigmoid(), categorical=False)

    def extra_repr(self) -> str:
        return f"pos_weight={self.pos_weight}, {super().extra_repr()}"
