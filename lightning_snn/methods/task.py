"""Tasks, independent of the learning rule: the readout, the loss and the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.functional.entropy import expected_entropy, predictive_entropy
from lightning_snn.functional.readout import READOUTS, ReadoutName, readout

Readout = ReadoutName | Callable[[Tensor], Tensor]
# from outputs [T, B, ...] and targets [B, ...] to a scalar
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Prediction:
    """Prediction for a batch.

    The prediction after each time step has an axis T before B.

    Attributes:
        mean: class probabilities `[B, C]`, or the predicted value `[B, ...]` of a regression.
        variance: predictive variance of a regression `[B, ...]`; None if the method has none.
        samples: the K predictions whose mean is `mean`, `[K, B, ...]`; None if there is only one.
        categorical: whether mean and samples are class probabilities. The entropies are defined only for these.
        spike_probabilities: probability `[B, C]` that each output neuron spikes; None if the outputs are not spikes.
        variance_parts: parts of the variance, each `[B, ...]`: "epistemic", which more data would reduce, and "spikes",
            the noise of neurons. For a regression there is also "noise", that of observations, and the sum is
            `variance`. For a classification they are parts of the variance of each output's membrane potential.
    """

    mean: Tensor
    variance: Tensor | None = None
    samples: Tensor | None = None
    categorical: bool = True
    spike_probabilities: Tensor | None = None
    variance_parts: Mapping[str, Tensor] | None = None

    @property
    def predictive_entropy(self) -> Tensor:
        """Total uncertainty: the entropy of the mean `H[mean_k p_k]`, `[B]`, in nats.

        Raises:
            ValueError: if this is not a prediction of class probabilities.
        """
        self._check_categorical("predictive_entropy")
        return predictive_entropy(self.mean)

    @property
    def expected_entropy(self) -> Tensor:
        """Aleatoric uncertainty: the mean entropy of the samples `mean_k H[p_k]`, `[B]`, in nats.

        More training data would not reduce it.

        Raises:
            ValueError: if this is not a prediction of class probabilities, or has no samples.
        """
        return expected_entropy(self._samples("expected_entropy"))

    @property
    def mutual_information(self) -> Tensor:
        """Mutual information of class and model (BALD), `H[mean_k p_k] - mean_k H[p_k]`, `[B]`, in nats.

        It is 0 for one sample, and rounding may decrease it to -1e-6. Without samples it is unknown. A value of 0 would
        claim certainty, so there is an error instead.

        Raises:
            ValueError: if this is not a prediction of class probabilities, or has no samples.
        """
        samples = self._samples("mutual_information")
        return self.predictive_entropy - expected_entropy(samples)

    def _samples(self, quantity: str) -> Tensor:
        self._check_categorical(quantity)
        if self.samples is None:
            raise ValueError(
                f"Expected a prediction with samples for `{quantity}`, but got one without samples. Use a Bayesian "
                "method that draws several."
            )
        return self.samples

    def _check_categorical(self, quantity: str) -> None:
        if not self.categorical:
            raise ValueError(
                f"Expected a prediction of class probabilities for `{quantity}`, but got one of a regression. Use "
                "`variance` as its uncertainty."
            )


class Task:
    """Base class of the tasks: a readout over time, a loss and a prediction.

    Args:
        readout: "mean", "max", "last", "sum", or a function `[T, B, ...] -> [B, ...]`.
    """

    def __init__(self, readout: Readout = "mean") -> None:
        if not callable(readout):
            check_choice("readout", readout, READOUTS)
        self.readout = readout

    def read(self, outputs: Tensor) -> Tensor:
        """Reduce the outputs of all time steps `[T, B, ...]` to one per sample `[B, ...]`, in float32 or wider."""
        outputs = _widened(outputs)
        return self.readout(outputs) if callable(self.readout) else readout(outputs, self.readout)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        """Compute the readout after each time step: row t is `read(outputs[: t + 1])`.

        A named readout takes one pass over time. A function is called T times, on every prefix.

        Args:
            outputs: outputs of all time steps, `[T, B, ...]`, T of at least 1.

        Returns:
            A tensor `[T, B, ...]` in float32 or wider, which `predict` and `combine` accept like the result of `read`.

        Raises:
            ValueError: if there is no time step.
        """
        if len(outputs) == 0:
            raise ValueError(
                f"Expected argument `outputs` to have at least one time step, but got {tuple(outputs.shape)}"
            )
        outputs = _widened(outputs)
        if callable(self.readout):
            return torch.stack([self.readout(outputs[: step + 1]) for step in range(len(outputs))])
        return _PREFIX_READOUTS[self.readout](outputs)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss, a scalar for logging and early stopping.

        Args:
            output: readout `[B, ...]` from `read`.
            y: targets `[B, ...]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def predict(self, output: Tensor) -> Prediction:
        """Return the prediction from the readout `[B, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no prediction")

    def combine(self, predictions: list[Prediction]) -> Prediction:
        """Return the mixture of K predictions, whose samples are their means."""
        samples = torch.stack([prediction.mean for prediction in predictions])
        return Prediction(samples.mean(0), None, samples, predictions[0].categorical)


class Classification(Task):
    """Classification: the readout is logits, the loss cross-entropy, and the prediction their softmax."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output.softmax(-1))

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        mixture.mean = mixture.mean.clamp(max=1)  # rounding may give a mean above 1
        return mixture


class Regression(Task):
    """Regression: the readout is the predicted value, and the loss the mean squared error."""

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        if output.shape != y.shape:
            raise ValueError(
                f"Expected argument `y` to have the readout's shape {tuple(output.shape)}, but got {tuple(y.shape)}"
            )
        return F.mse_loss(output, y)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output, categorical=False)

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        assert mixture.samples is not None
        mixture.variance = mixture.samples.var(0, correction=0)
        return mixture


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


def _widened(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _running(outputs: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    # torch.cumsum raises an error on GPUs with deterministic algorithms.
    return torch.stack(list(accumulate(outputs, combine)))


def _running_mean(outputs: Tensor) -> Tensor:
    steps = torch.arange(1, len(outputs) + 1, dtype=outputs.dtype, device=outputs.device)
    return _running(outputs, torch.add) / steps.view(-1, *(1,) * (outputs.dim() - 1))


_PREFIX_READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _running_mean,
    "max": lambda outputs: _running(outputs, torch.maximum),
    "last": lambda outputs: outputs,
    "sum": lambda outputs: _running(outputs, torch.add),
}
