"""Common code of the benchmarks of Expectation Propagation: digits as spikes, the two learners and their scores."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.callbacks.pass_scores import classification_scores
from lightning_snn.data import FixedBatches
from lightning_snn.data.image_files import read_mnist
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.methods.base import Progress
from lightning_snn.methods.ep.firing import firing_network
from lightning_snn.methods.tasks import Classification, Prediction, Regression
from lightning_snn.networks import MLP
from lightning_snn.nn import LIF
from lightning_snn.nn.encoders import ThresholdEncoder

HELD_OUT = 10_000
Likelihood = Literal["conditioned", "independent", "gaussian"]


class Digits(NamedTuple):
    """Pixels of 0 and 1 `[N, 1, 28, 28]`, and classes, for training and test."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def read_digits(path: str, validation: bool, limit: int | None = None) -> Digits:
    """Read MNIST as spikes.

    Args:
        path: an .npz file, or torchvision's folder.
        validation: test on the last 10,000 training images.
        limit: train on the first images only.
    """
    encode = ThresholdEncoder()
    train, test = (
        (encode(torch.from_numpy(part.images).float() / 255)[0], torch.from_numpy(part.labels))
        for part in read_mnist(path)
    )
    (x, y), (x_test, y_test) = train, test
    if validation:
        x, y, x_test, y_test = x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]
    return Digits(x[:limit], y[:limit], x_test, y_test)


def mlp(*hidden: int) -> nn.Module:
    """Return an MLP with 784 inputs and 10 outputs."""
    return MLP(784, 10, hidden)


def small_conv() -> nn.Module:
    """Return two convolutions of stride 2 and a readout: 28 x 28 pixels, 16 x 12 x 12, 32 x 4 x 4, 10."""
    convolutions = (nn.Conv2d(1, 16, 5, stride=2), LIF(), nn.Conv2d(16, 32, 5, stride=2), LIF())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10))


class Learner(Protocol):
    """Learner from batches `x [B, ...]`, `y [B, ...]`, with predictions."""

    network: nn.Module

    def learn(self, x: Tensor, y: Tensor) -> None: ...

    def predict(self, x: Tensor) -> Prediction: ...


class EP:
    """Expectation Propagation without a Trainer; `samples` and `batches` are the numbers per epoch."""

    def __init__(self, network: nn.Module, samples: int, batches: int, regression: bool = False, **options: Any):
        self.method = ExpectationPropagation(**options)
        self.method.task = Regression() if regression else Classification()
        self.network = self.method.prepare(network)
        self.optimizer = self.method.configure_optimizer(self.network)
        self.samples, self.batches, self.steps = samples, batches, 0

    def learn(self, x: Tensor, y: Tensor) -> None:
        self.network.train()
        self.method.progress = Progress(self.steps / self.batches, self.samples, self.steps)
        self.optimizer.zero_grad()
        self.method.training_step(self.network, x[None], y).objective.backward()
        self.optimizer.step()
        self.steps += 1

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        self.network.eval()
        return self.method.predict(self.network, x[None])


class Adam:
    """Maximum likelihood with point weights: hidden neurons output their firing probabilities.

    The likelihood is that of the class given that exactly one of independent outputs spikes ("conditioned", the softmax
    of their log-odds, which does not determine how often each spikes), of every output independently ("independent",
    as in Expectation Propagation), or of a value ("gaussian", the squared error).
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        likelihood: Likelihood = "conditioned",
        fused: bool = False,
    ):
        self.network = firing_network(network, outputs_spike=likelihood != "gaussian")
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate, fused=fused)
        self.likelihood = likelihood

    def learn(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        outputs = self.network(x)
        if self.likelihood == "conditioned":
            loss = F.cross_entropy(outputs, y)
        elif self.likelihood == "independent":
            truth = F.one_hot(y, outputs.shape[1]).to(outputs)
            loss = F.binary_cross_entropy_with_logits(outputs, truth, reduction="sum") / len(y)
        else:
            loss = F.mse_loss(outputs, y)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        outputs = self.network(x)
        if self.likelihood == "gaussian":
            return Prediction(outputs, categorical=False)
        spikes = outputs.sigmoid() if self.likelihood == "independent" else None
        return Prediction(outputs.softmax(1), spike_probabilities=spikes)


def batches(samples: Tensor, size: int, seed: int, epoch: int, fixed: bool) -> list[list[int]]:
    """Return the batches of an epoch: `fixed` batches in another order, or new batches in every epoch."""
    sampler = FixedBatches(samples, size, seed if fixed else 1000 * seed + epoch)
    sampler.set_epoch(epoch)
    return list(sampler)


def scores(learner: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return accuracy, accuracy of each output (nan if it is not determined), likelihood and calibration error."""
    predictions = [learner.predict(part) for part in x.split(1000)]
    spikes = [part.spike_probabilities for part in predictions if part.spike_probabilities is not None]
    return classification_scores(torch.cat([prediction.mean for prediction in predictions]), y, spikes)
