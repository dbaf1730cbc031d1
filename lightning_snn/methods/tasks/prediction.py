"""Predictions: means, variances and samples, with the uncertainties that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_snn.functional.entropy import expected_entropy, predictive_entropy


@dataclass
class Prediction:
    """Prediction for a batch.

    The prediction after each time step, and that of a task with targets for each, has an axis T before B.

    Attributes:
        mean: class probabilities `[B, C]`, the probability of each label, or the predicted value `[B, ...]` of a
            regression.
        variance: predictive variance of a regression `[B, ...]`; None if the method has none.
        samples: the K predictions whose mean is `mean`, `[K, B, ...]`; None if there is only one.
        categorical: whether mean and samples are class probabilities. The entropies are defined only for these.
        spike_probabilities: probability `[B, C]` that each output neuron spikes; None if the outputs are not spikes.
        variance_parts: parts of the variance, each `[B, ...]`: "epistemic", which more data would reduce, and "spikes",
            the noise of neurons. For a regression there is also "noise", that of observations, and the sum is
            `variance`. For a classification they are parts of the variance of each output's membrane potential.
        per_step: whether this is the prediction of a task with a target for each time step, with an axis T before B.

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
    per_step: bool = False

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
                f"Expected a prediction of class probabilities for `{quantity}`, but got one of a regression or of "
                "several labels. Use `variance` as the uncertainty of a regression."
            )
