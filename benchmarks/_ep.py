"""What the benchmarks of Expectation Propagation share: digits as spikes, the two learners and their scores."""

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
from lightning_snn.methods.task import Classification, Prediction, Regression
from lightning_snn.networks import MLP
from lightning_snn.nn import LIF
from lightning_snn.nn.encoders import ThresholdEncoder

HELD_OUT = 10_000
Likelihood = Literal["conditioned", "independent", "gaussian"]


class Digits(NamedTuple):
    """Pixels of 0 and 1 `[N, 1, 28, 28]`, and classes, to learn from and to be tested on."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def read_digits(path: str, validation: bool, limit: int | None = None) -> Digits:
    """MNIST in spikes; `validation` tests on the last 10,000 training images, `limit` learns from the first ones."""
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
    """784 inputs, hidden layers, 10 outputs."""
    return MLP(784, 10, hidden)


def small_conv() -> nn.Module:
    """Two convolutions of stride 2 and a readout: 28 x 28 pixels, 16 x 12 x 12, 32 x 4 x 4, 10."""
    convolutions = (nn.Conv2d(1, 16, 5, stride=2), LIF(), nn.Conv2d(16, 32, 5, stride=2), LIF())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10))


class Learner(Protocol):
    """What learns from batches `x [B, ...]`, `y [B, ...]` and predicts."""

    network: nn.Module

    def learn(self, x: Tensor, y: Tensor) -> None: ...

    def predict(self, x: Tensor) -> Prediction: ...


class EP:
    """Expectation Propagation, the Trainer apart; `samples` and `batches` are those of a pass."""

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
    """Maximum likelihood with point weights: hidden neurons hand on their firing probabilities.

    The likelihood is that of the class given that exactly one of independent outputs spikes ("conditioned", the softmax
    of their log-odds, which leaves open how often each spikes by itself), of every output by itself ("independent",
    what Expectation Propagation observes), or of a value ("gaussian", the squared error).
    """

    def __init__(self, network: nn.Module, learning_rate: float, likelihood: Likelihood = "conditioned"):
        self.network = firing_network(network, outputs_spike=likelihood != "gaussian")
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate)
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
    """The batches of an epoch: always the same ones in another order, or others every time."""
    sampler = FixedBatches(samples, size, seed if fixed else 1000 * seed + epoch)
    sampler.set_epoch(epoch)
    return list(sampler)


def scores(learner: Learner, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, accuracy of each output by itself (nan if that is left open), likelihood and calibration error."""
    predictions = [learner.predict(part) for part in x.split(1000)]
    spikes = [part.spike_probabilities for part in predictions if part.spike_probabilities is not None]
    return classification_scores(torch.cat([prediction.mean for prediction in predictions]), y, spikes)
