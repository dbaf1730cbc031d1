"""Tasks, independent of the learning rule: the readout, the loss and the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.functional.entropy import expected_entropy, predictive_entropy
from lightning_snn.functional.readout import READOUTS, ReadoutName, apply_to_valid, readout, readout_of_prefixes
from lightning_snn.nn.lengths import lengths_of

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

    Example:
        >>> samples = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> Prediction(samples.mean(0), samples=samples).mutual_information
        tensor([0.6931])
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
                f"Expected a prediction with samples for `{quantity}`, but got one without samples. Use a method "
                "that draws several, such as SpikingBayes(samples=16)"
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

    Example:
        >>> Task("sum").read(torch.ones(4, 2, 3))[0]
        tensor([4., 4., 4.])
    """

    def __init__(self, readout: Readout = "mean") -> None:
        if not callable(readout):
            check_choice("readout", readout, READOUTS)
        self.readout = readout

    def read(self, outputs: Tensor) -> Tensor:
        """Reduce the outputs of all time steps `[T, B, ...]` to one per sample `[B, ...]`, in float32 or wider.

        Within `nn.sequence_lengths` only valid steps count. A function receives those of samples of equal length.

        Raises:
            ValueError: if the network returned something other than a tensor.
        """
        outputs = _widened(outputs)
        lengths = lengths_of(outputs.shape[1])
        if not callable(self.readout):
            return readout(outputs, self.readout, lengths)
        return self.readout(outputs) if lengths is None else apply_to_valid(self.readout, outputs, lengths)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        """Compute the readout after each time step: row t is `read(outputs[: t + 1])`.

        Within `nn.sequence_lengths` the rows of a sample are equal from its length on.

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
            return torch.stack([self.read(outputs[: step + 1]) for step in range(len(outputs))])
        return readout_of_prefixes(outputs, self.readout, lengths_of(outputs.shape[1]))

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the loss, a scalar for logging and early stopping.

        Args:
            output: readout `[B, ...]` from `read`.
            y: targets `[B, ...]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        """Check that targets belong to a readout or a prediction; by default nothing.

        Args:
            output: readout or mean of a prediction, `[B, ...]`.
            y: targets.

        Raises:
            ValueError: if there is no sample, or the targets are of another shape.
        """

    def predict(self, output: Tensor) -> Prediction:
        """Return the prediction from the readout `[B, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no prediction")

    def combine(self, predictions: list[Prediction]) -> Prediction:
        """Return the mixture of K predictions, whose samples are their means."""
        samples = torch.stack([prediction.mean for prediction in predictions])
        return Prediction(samples.mean(0), None, samples, predictions[0].categorical)


class Classification(Task):
    """Classification: the readout is logits, the loss cross-entropy, and the prediction their softmax.

    Args:
        readout: see `Task`.
        num_classes: number of classes C, which outputs are compared with; None accepts any.

    Example:
        >>> Classification().predict(torch.zeros(1, 4)).mean
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(self, readout: Readout = "mean", num_classes: int | None = None) -> None:
        super().__init__(readout)
        self.num_classes = num_classes

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the cross-entropy.

        Args:
            output: logits `[B, C, ...]` from `read`.
            y: classes `[B, ...]`, integers, or class probabilities of the shape of `output`.

        Raises:
            ValueError: if there are not `num_classes` outputs, or targets of another shape.
        """
        self.check_targets(output, y)
        return F.cross_entropy(output, y.to(output.dtype) if y.is_floating_point() else y.long())

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        check_is_tensor(y)
        if output.dim() < 2 or self.num_classes not in (None, output.shape[1]):
            raise ValueError(
                f"Expected argument `network` to return {self.num_classes or 'C'} outputs per sample, one for each "
                f"class, but got a readout of shape {tuple(output.shape)}. Change the last layer or `num_classes`"
            )
        classes = (output.shape[0], *output.shape[2:])
        if not y.is_floating_point():
            _check_shape(output, y, "integer classes ", classes)
        elif tuple(y.shape) == classes:
            raise ValueError(
                f"Expected argument `y` of shape {classes} to be integer classes, but got {y.dtype}. Convert it with "
                "`y.long()`"
            )
        else:
            _check_shape(output, y, "class probabilities ", tuple(output.shape))

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output.softmax(-1))

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        mixture.mean = mixture.mean.clamp(max=1)  # rounding may give a mean above 1
        return mixture


class Regression(Task):
    """Regression: the readout is the predicted value, and the loss the mean squared error.

    Example:
        >>> Regression().loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor(2.)
    """

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        self.check_targets(output, y)
        return F.mse_loss(output, y.to(output.dtype))

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        check_is_tensor(y)
        _check_shape(output, y, "", tuple(output.shape))

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


def check_is_tensor(y: object) -> None:
    """Raise a ValueError if targets are no tensor, such as an array of NumPy."""
    if not isinstance(y, Tensor):
        raise ValueError(
            f"Expected argument `y` to be a tensor, but got a {type(y).__name__}. Convert it with `torch.as_tensor`"
        )


def _check_shape(output: Tensor, y: Tensor, kind: str, expected: tuple[int, ...]) -> None:
    if output.numel() == 0:
        raise ValueError(
            f"Expected at least one sample in a batch with targets, but got a readout of shape {tuple(output.shape)}. "
            "Leave empty batches out of the data"
        )
    if tuple(y.shape) != expected:
        raise ValueError(
            f"Expected argument `y` to be {kind}of shape {expected}, since the readout is of shape "
            f"{tuple(output.shape)}, but got {tuple(y.shape)}. Inputs are [T, B, ...] with time first and targets "
            "[B, ...]; one-hot targets become classes by `y.argmax(1)`"
        )


def _widened(outputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"Expected argument `network` to return one tensor [T*B, ...], but got a {type(outputs).__name__}. Return "
            "the outputs alone, for example by a module that selects them"
        )
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
