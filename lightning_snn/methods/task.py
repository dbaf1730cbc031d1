"""What is learned, apart from how: the readout, the loss and what a prediction is."""

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
Loss = Callable[[Tensor, Tensor], Tensor]  # from outputs [T, B, ...] and targets [B, ...] to a scalar


@dataclass
class Prediction:
    """What a network says about a batch, or, with a leading axis T in front of B, after each step of it.

    Attributes:
        mean: class probabilities `[B, C]`, or the predicted value `[B, ...]` of a regression.
        variance: predictive variance of a regression `[B, ...]`, None where the method has none.
        samples: the predictions behind the mean, `[K, B, ...]`, None where there is one only.
        categorical: whether mean and samples are class probabilities; the entropies are defined for these alone.
        spike_probabilities: probability `[B, C]` that each output neuron spikes, by itself, where outputs are spikes.
        variance_parts: where the variance comes from, each `[B, ...]`: "epistemic", what more data would reduce, and
            "spikes", the noise of neurons; of a regression also "noise", that of observations, all adding up to
            `variance`. Of a classification they are parts of the variance of each output's potential.
    """

    mean: Tensor
    variance: Tensor | None = None
    samples: Tensor | None = None
    categorical: bool = True
    spike_probabilities: Tensor | None = None
    variance_parts: Mapping[str, Tensor] | None = None

    @property
    def predictive_entropy(self) -> Tensor:
        """Entropy of the mean `H[mean_k p_k]`, `[B]`, in nats: the total uncertainty.

        Raises:
            ValueError: if this is no prediction of class probabilities.
        """
        self._check_categorical("predictive_entropy")
        return predictive_entropy(self.mean)

    @property
    def expected_entropy(self) -> Tensor:
        """Mean entropy of the samples `mean_k H[p_k]`, `[B]`, in nats: what no further training data would remove.

        Raises:
            ValueError: if this is no prediction of class probabilities, or one without samples.
        """
        return expected_entropy(self._samples("expected_entropy"))

    @property
    def mutual_information(self) -> Tensor:
        """Information that the class holds on the model, `H[mean_k p_k] - mean_k H[p_k]`, `[B]`, in nats (BALD).

        It is 0 for one sample and at least -1e-6, by rounding. A prediction without samples was not asked how its model
        might differ: rather than 0, which would claim certainty, there is an error.

        Raises:
            ValueError: if this is no prediction of class probabilities, or one without samples.
        """
        samples = self._samples("mutual_information")
        return self.predictive_entropy - expected_entropy(samples)

    def _samples(self, quantity: str) -> Tensor:
        self._check_categorical(quantity)
        if self.samples is None:
            raise ValueError(
                f"Expected a prediction with samples for `{quantity}`, such as a Bayesian method gives that draws "
                "several, but got one without"
            )
        return self.samples

    def _check_categorical(self, quantity: str) -> None:
        if not self.categorical:
            raise ValueError(
                f"Expected a prediction of class probabilities for `{quantity}`, but got one of a regression: its "
                "uncertainty is `variance`"
            )


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
        outputs = _widened(outputs)
        return self.readout(outputs) if callable(self.readout) else readout(outputs, self.readout)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        """What `read` gives after each time step: row t is `read(outputs[: t + 1])`.

        A named readout is computed in one pass over time; a function is called on every prefix, T times.

        Args:
            outputs: outputs of all steps, `[T, B, ...]`, T of at least 1.

        Returns:
            `[T, B, ...]`, in float32 or wider. `predict` and `combine` take it as they take what `read` returned.

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
        """The scalar that people read and stop early on, from what `read` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def predict(self, output: Tensor) -> Prediction:
        """The prediction from what `read` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no prediction")

    def combine(self, predictions: list[Prediction]) -> Prediction:
        """The mixture of K predictions; its samples are their means."""
        samples = torch.stack([prediction.mean for prediction in predictions])
        return Prediction(samples.mean(0), None, samples, predictions[0].categorical)


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
    # not torch.cumsum, which PyTorch refuses on GPUs where deterministic algorithms are asked for
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
