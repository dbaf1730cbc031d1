"""Tasks with one class per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_between, check_positive
from lightning_snn.methods.tasks.base import Readout, Task, check_is_tensor, check_shape
from lightning_snn.methods.tasks.prediction import Prediction


class Classification(Task):
    """Classification: the readout is logits, the loss cross-entropy, and the prediction their softmax.

    Args:
        readout: see `Task`.
        num_classes: number of classes C, which outputs are compared with; None accepts any.

    Example:
        >>> Classification().predict(torch.zeros(1, 4)).mean
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    kind = "classification"

    def __init__(self, readout: Readout = "mean", num_classes: int | None = None) -> None:
        super().__init__(readout)
        self.num_classes = num_classes

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the cross-entropy of each sample, `[B]`.

        Args:
            output: logits `[B, C, ...]`.
            y: classes `[B, ...]`, integers, or class probabilities of the shape of `output`.

        Raises:
            ValueError: if there are not `num_classes` outputs, or targets of another shape.
        """
        self.check_targets(output, y)
        return cross_entropies(output, y)

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        check_is_tensor(y)
        if output.dim() < 2 or self.num_classes not in (None, output.shape[1]):
            raise ValueError(
                f"Expected argument `network` to return {self.num_classes or 'C'} outputs per sample, one for each "
                f"class, but got a readout of shape {tuple(output.shape)}. Change the last layer or `num_classes`"
            )
        classes = (output.shape[0], *output.shape[2:])
        one_hot = "; one-hot targets become classes by `y.argmax(1)`"
        if not y.is_floating_point():
            check_shape(output, y, "integer classes ", classes, one_hot)
        elif tuple(y.shape) == classes:
            raise ValueError(
                f"Expected argument `y` of shape {classes} to be integer classes, but got {y.dtype}. Convert it with "
                "`y.long()`"
            )
        else:
            check_shape(output, y, "class probabilities ", tuple(output.shape), one_hot)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output.softmax(-1))

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        mixture.mean = mixture.mean.clamp(max=1)  # rounding may give a mean above 1
        return mixture


class CrossEntropy(Classification):
    r"""Cross-entropy with smoothed labels and weights of classes.

    .. math:: L = \frac{\sum_b w_{y_b} \ell_b}{\sum_b w_{y_b}}, \qquad
        \ell_b = -\sum_c \left[(1 - \epsilon)\, 1_{c = y_b} + \epsilon / C\right] \log \pi_{b,c}

    With class weights, smoothed parts of :math:`\ell_b` have the weight of their own class, as in
    `torch.nn.CrossEntropyLoss`. Weights change the loss, not the metrics.

    Args:
        label_smoothing: :math:`\epsilon` in [0, 1].
        class_weights: weight of each class, larger than 0, `[C]`; None is 1 for all. Rare classes count more with a
            larger weight, for example ``1 / share``.
        readout: see `Task`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> CrossEntropy(label_smoothing=0.1).loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        readout: Readout = "mean",
    ) -> None:
        super().__init__(readout)
        check_between("label_smoothing", label_smoothing, 0.0, 1.0)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        for weight in self.class_weights or ():
            check_positive("class_weights", weight)

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        self.check_targets(output, y)
        if self.class_weights is None:
            return cross_entropies(output, y, self.label_smoothing)
        weight = output.new_tensor(self.class_weights)
        losses = cross_entropies(output, y, self.label_smoothing, weight)
        return losses if y.is_floating_point() else losses / weight[y.long()].mean()

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        super().check_targets(output, y)
        if self.class_weights is not None and output.shape[1] != len(self.class_weights):
            raise ValueError(
                f"Expected argument `class_weights` to have {output.shape[1]} entries, one for each class, but got "
                f"{len(self.class_weights)}"
            )

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing:g}, class_weights={self.class_weights}, {super().extra_repr()}"


def cross_entropies(output: Tensor, y: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each sample, `[B]`, the mean over further axes.

    Args:
        output: logits `[B, C, ...]`.
        y: classes `[B, ...]`, integers, or class probabilities of the shape of `output`.
        label_smoothing: as in `CrossEntropy`.
        weight: factor of each class, `[C]`.
    """
    y = y.to(output.dtype) if y.is_floating_point() else y.long()
    losses = F.cross_entropy(output, y, weight, reduction="none", label_smoothing=label_smoothing)
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def mean_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the mean over time.

    Args:
        outputs: logits `[T, B, C]`.
        y: true classes `[B]`.

    Returns:
        A scalar, in nats.

    Example:
        >>> mean_cross_entropy(torch.zeros(4, 2, 3), torch.tensor([0, 2]))
        tensor(1.0986)
    """
    return F.cross_entropy(outputs.mean(0), y)
