"""Twenty small spiking networks, as their libraries' tutorials write them: some train well, some cannot train.

Each is a LightningModule of its own loop, loss and neurons, with Adam at the learning rate of its source. Layers are
narrower than in the source where that keeps a run within a minute; depth, neurons, surrogate derivatives, losses and
initial weights are those of the source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import lightning.pytorch as pl
import snntorch
import torch
import torch.nn.functional as F
from snntorch import surrogate
from spikingjelly.activation_based import encoding, functional, layer, neuron
from spikingjelly.activation_based import surrogate as jelly_surrogate
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.networks import MLP, VGG, EventConvNet, RecurrentNet, ResidualConvNet

CLASSES = 10


class Classifier(pl.LightningModule):
    """Classifier of inputs `[B, ...]`; a subclass returns outputs `[T, B, CLASSES]` from `forward`."""

    learning_rate = 1e-3

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mean(0), y)

    def scores(self, x: Tensor) -> Tensor:
        outputs: Tensor = self(x)
        return outputs.mean(0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class Folded(Classifier):
    """A network of this library, with the input at every step, or with steps from the rows or frames of the input."""

    def __init__(self, make: Callable[[], nn.Module], sequence: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.sequence = make(), sequence

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = run(self.network, self.sequence(x))
        return outputs


class Loop(Classifier):
    """The loop of snntorch's tutorials over fully connected layers; reads out membrane potentials or spikes."""

    def __init__(self, sizes: tuple[int, ...], steps: int, read_out: str, **options: Any) -> None:
        super().__init__()
        self.connections = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.neurons = nn.ModuleList(snntorch.Leaky(**options) for _ in self.connections)
        self.steps, self.read_out = steps, read_out

    def forward(self, x: Tensor) -> Tensor:
        membranes = [each.init_leaky() for each in self.neurons]
        outputs = []
        for _ in range(self.steps):
            spikes = x.flatten(1)
            for index, (connection, neurons) in enumerate(zip(self.connections, self.neurons, strict=True)):
                spikes, membranes[index] = neurons(connection(spikes), membranes[index])
            outputs.append(spikes if self.read_out == "spikes" else membranes[-1])
        return torch.stack(outputs)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.read_out == "spikes":
            return F.cross_entropy(outputs.sum(0), y)
        # tutorial 5 sums the loss of every step
        return F.cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)))


class Hidden(Classifier):
    """A `Sequential` of snntorch's neurons with `init_hidden`, over a static input or over frames; spikes are counted.

    The loss is `ce_rate_loss` of tutorial 6, or `mse_count_loss` of tutorial 7.
    """

    def __init__(
        self, layers: Callable[[], list[nn.Module]], sequence: Callable[[Tensor], Tensor], counts: bool
    ) -> None:
        super().__init__()
        self.net, self.sequence, self.counts = nn.Sequential(*layers()), sequence, counts

    def forward(self, x: Tensor) -> Tensor:
        for each in self.net:
            if isinstance(each, snntorch.Leaky):
                each.reset_mem()
        return torch.stack([self.net(frame)[0] for frame in self.sequence(x)])

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.counts:
            wanted = torch.where(F.one_hot(y, CLASSES) > 0, 0.8 * len(outputs), 0.2 * len(outputs))
            return F.mse_loss(outputs.sum(0), wanted) / len(outputs)
        return F.cross_entropy(outputs.flatten(0, 1), y.repeat(len(outputs)))


class Jelly(Classifier):
    """A `Sequential` of SpikingJelly's layers in multi-step mode, with its usual loss on rates."""

    def __init__(self, layers: Callable[[], list[nn.Module]], sequence: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.sequence = nn.Sequential(*layers()), sequence
        functional.set_step_mode(self.net, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        outputs: Tensor = self.net(self.sequence(x))
        return outputs

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(outputs.mean(0), F.one_hot(y, CLASSES).float())


def static(steps: int) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the input at every step, `[B, ...]` to `[T, B, ...]`."""
    return lambda x: x.expand(steps, *x.shape)


def rows(x: Tensor) -> Tensor:
    """Return the rows of images `[B, 1, H, W]` as steps, `[H, B, W]`."""
    return x[:, 0].transpose(0, 1)


def frames(x: Tensor) -> Tensor:
    """Return frames `[B, T, ...]` with time first."""
    return x.transpose(0, 1)


def poisson(steps: int) -> Callable[[Tensor], Tensor]:
    """Return a function that draws spikes with the input as their probability."""
    encoder = encoding.PoissonEncoder()
    return lambda x: torch.stack([encoder(x) for _ in range(steps)])


def scaled(make: Callable[[], Classifier], factor: float) -> Classifier:
    """Return a network whose weights and biases are multiplied by a factor."""
    made = make()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    return made


def plain_mlp(*sizes: int, **options: Any) -> nn.Module:
    """Return Linear layers, as PyTorch draws their weights, with our LIF neurons between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for pair in pairwise(sizes):
        layers += [nn.Linear(*pair), LIF(**options)]
    return nn.Sequential(*layers[:-1])


def plain_convolutions() -> nn.Module:
    """Return a newcomer's first convolutional network, as PyTorch draws its weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        LIF(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        LIF(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        LIF(),
        nn.Linear(64, CLASSES),
    )


def tutorial_convolutions(channels: int, size: int, spike_grad: Callable[..., Any]) -> list[nn.Module]:
    """Return the convolutional network of snntorch's tutorials for frames of some channels, `size` by `size` last."""
    neurons = partial(snntorch.Leaky, beta=0.5, spike_grad=spike_grad, init_hidden=True)
    return [
        nn.Conv2d(channels, 12, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Conv2d(12, 32, 5),
        nn.MaxPool2d(2),
        neurons(),
        nn.Flatten(),
        nn.Linear(32 * size * size, CLASSES),
        neurons(output=True),
    ]


def tutorial_6() -> list[nn.Module]:
    """Return the convolutional network of snntorch's tutorial 6."""
    return tutorial_convolutions(1, 4, surrogate.fast_sigmoid(slope=25))


def tutorial_7() -> list[nn.Module]:
    """Return the network of snntorch's tutorial 7 for N-MNIST."""
    return tutorial_convolutions(2, 5, surrogate.atan())


def hidden_mlp() -> list[nn.Module]:
    """Return a small fully connected `init_hidden` network."""
    neurons = partial(snntorch.Leaky, beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=25), init_hidden=True)
    return [nn.Flatten(), nn.Linear(784, 128), neurons(), nn.Linear(128, CLASSES), neurons(output=True)]


def lif_fc_mnist(tau: float = 2.0) -> list[nn.Module]:
    """Return the one-layer network of SpikingJelly's `lif_fc_mnist`."""
    neurons = neuron.LIFNode(tau=tau, surrogate_function=jelly_surrogate.ATan())
    return [layer.Flatten(), layer.Linear(784, CLASSES, bias=False), neurons]


def deep_jelly(tau: float) -> list[nn.Module]:
    """Return fully connected LIF nodes, whose input is divided by tau."""
    made: list[nn.Module] = [layer.Flatten()]
    for pair in pairwise((784, 128, 128, CLASSES)):
        made += [layer.Linear(*pair), neuron.LIFNode(tau=tau, surrogate_function=jelly_surrogate.ATan())]
    return made


def conv_fashion_mnist(channels: int = 16) -> list[nn.Module]:
    """Return the network of SpikingJelly's `conv_fashion_mnist`, with fewer channels."""
    made: list[nn.Module] = []
    for inputs in (1, channels):
        made += [
            layer.Conv2d(inputs, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(surrogate_function=jelly_surrogate.ATan()),
            layer.MaxPool2d(2, 2),
        ]
    return [
        *made,
        layer.Flatten(),
        layer.Linear(channels * 7 * 7, channels * 4 * 4, bias=False),
        neuron.IFNode(surrogate_function=jelly_surrogate.ATan()),
        layer.Linear(channels * 4 * 4, CLASSES, bias=False),
        neuron.IFNode(surrogate_function=jelly_surrogate.ATan()),
    ]


def dvs_gesture_net(channels: int = 8) -> list[nn.Module]:
    """Return SpikingJelly's `DVSGestureNet` for frames of 34x34, narrower and without its last two poolings."""
    neurons = partial(neuron.LIFNode, surrogate_function=jelly_surrogate.ATan(), detach_reset=True)
    made: list[nn.Module] = []
    for index in range(5):
        made += [
            layer.Conv2d(channels if index else 2, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neurons(),
            *([layer.MaxPool2d(2, 2)] if index < 3 else []),
        ]
    return [
        *made,
        layer.Flatten(),
        layer.Dropout(0.5),
        layer.Linear(channels * 4 * 4, 64),
        neurons(),
        layer.Dropout(0.5),
        layer.Linear(64, 10 * CLASSES),
        neurons(),
        layer.VotingLayer(10),
    ]


class Entry(NamedTuple):
    """A network of the zoo: how it is made, and whether it is trained on digits or on events."""

    make: Callable[[], Classifier]
    data: str = "digits"


ZOO: dict[str, Entry] = {
    "ours: MLP": Entry(lambda: Folded(lambda: MLP(784, CLASSES, (128, 128)), static(10))),
    "ours: MLP, 6 layers": Entry(lambda: Folded(lambda: MLP(784, CLASSES, (128,) * 6), static(10))),
    "ours: RecurrentNet, rows": Entry(lambda: Folded(lambda: RecurrentNet(28, CLASSES, (64, 64)), rows)),
    "ours: ResidualConvNet": Entry(
        lambda: Folded(lambda: ResidualConvNet((1, 28, 28), CLASSES, (8, 16), blocks=1, stem_stride=2), static(6))
    ),
    "ours: VGG": Entry(lambda: Folded(lambda: VGG((1, 28, 28), CLASSES, (8, "A", 16, "A", 32)), static(4))),
    "ours: EventConvNet, N-MNIST": Entry(
        lambda: Folded(lambda: EventConvNet((2, 34, 34), CLASSES, (8, 16, 32), 64), frames), "events"
    ),
    "ours: LIF, PyTorch's weights, 6 layers": Entry(
        lambda: Folded(lambda: plain_mlp(784, *(128,) * 6, CLASSES), static(10))
    ),
    "ours: first conv-LIF network": Entry(lambda: Folded(plain_convolutions, static(4))),
    "ours: MLP x 100": Entry(
        lambda: scaled(lambda: Folded(lambda: plain_mlp(784, 128, 128, CLASSES), static(10)), 100)
    ),
    "ours: 20 layers, narrow surrogate": Entry(
        lambda: Folded(lambda: plain_mlp(784, *(64,) * 20, CLASSES, surrogate="fast_sigmoid"), static(6))
    ),
    "snntorch: tutorial 5": Entry(lambda: Loop((784, 256, CLASSES), 25, "membrane", beta=0.95)),
    "snntorch: 3 layers, spikes": Entry(lambda: Loop((784, 128, 128, CLASSES), 10, "spikes", beta=0.9)),
    "snntorch: tutorial 6": Entry(lambda: Hidden(tutorial_6, static(5), counts=False)),
    "snntorch: tutorial 7, N-MNIST": Entry(lambda: Hidden(tutorial_7, frames, counts=True), "events"),
    "snntorch: init_hidden x 0.02": Entry(lambda: scaled(lambda: Hidden(hidden_mlp, static(10), counts=False), 0.02)),
    "snntorch: 5 layers x 0.01": Entry(
        lambda: scaled(lambda: Loop((784, *(128,) * 4, CLASSES), 10, "membrane", beta=0.95), 0.01)
    ),
    "SpikingJelly: lif_fc_mnist": Entry(lambda: Jelly(lif_fc_mnist, poisson(20))),
    "SpikingJelly: conv_fashion_mnist": Entry(lambda: Jelly(conv_fashion_mnist, static(4))),
    "SpikingJelly: DVSGestureNet, N-MNIST": Entry(lambda: Jelly(dvs_gesture_net, frames), "events"),
    "SpikingJelly: LIF, tau 100": Entry(lambda: Jelly(lambda: deep_jelly(100.0), static(6))),
}
