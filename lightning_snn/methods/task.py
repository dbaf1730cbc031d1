"""What is learned, apart from how: the readout, the loss and what a prediction is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.functional.readout import READOUTS, ReadoutName, readout

Readout = ReadoutName | Callable[[Tensor], Tensor]


@dataclass
class Prediction:
    """What a network says about a batch.

    Attributes:
        mean: class probabilities `[B, C]`, or the predicted value `[B, ...]` of a regression.
        variance: predictive variance of a regression `[B, ...]`, None where the method has none.
        samples: the predictions behind the mean, `[K, B, ...]`, None where there is one only.
    """

    mean: Tensor
    variance: Tensor | None = None
    samples: Tensor | None = None


class Task:
    """Base of the tasks: a readout over time, a loss on what it gives, and a prediction.

    Args:
        readout: "mean", "max", "last", "sum", or a function `[T, B, ...] -> [B, ...]`.
    """

    def __init__(self, readout: Readout = "mean") -> None:
        if not callable(readout):
            check_choice("readout", readout, READOUTS)
        self.readout = readout

    def read(self, outputs: Tensor) -> Tensor:
        """One output a sample, `[B, ...]`, from the outputs of all steps `[T, B, ...]`, in float32 or wider."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.readout(outputs) if callable(self.readout) else readout(outputs, self.readout)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """The scalar that people read and stop early on, from what `read` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def predict(self, output: Tensor) -> Prediction:
        """The prediction from what `read` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no prediction")

    def combine(self, predictions: list[Prediction]) -> Prediction:
        """The mixture of K predictions; its samples are their means."""
        samples = torch.stack([prediction.mean for prediction in predictions])
        return Prediction(samples.mean(0), None, samples)


class Classification(Task):
    """Cross-entropy of the readout as logits; probabilities by softmax."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output.softmax(-1))

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        mixture.mean = mixture.mean.clamp(max=1)  # a mean of ones may round to more than 1
        return mixture


class Regression(Task):
    """Squared error of the readout."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        if output.shape != y.shape:
            raise ValueError(
                f"Expected the target of a regression to have the readout's shape {tuple(output.shape)}, but got "
                f"{tuple(y.shape)}"
            )
        return F.mse_loss(output, y)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output)

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        assert mixture.samples is not None
        mixture.variance = mixture.samples.var(0, correction=0)
        return mixture
