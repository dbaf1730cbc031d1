"""Exactness of networks of time to first spike: while training, after training, and after conversion.

    python benchmarks/ttfs_exactness.py trajectories --mnist mnist.npz [--seeds 0 1 2] [--json results.json]
    python benchmarks/ttfs_exactness.py mnist --mnist mnist.npz [--penalties 1e-3] [--validation]
    python benchmarks/ttfs_exactness.py cifar10 --cifar10 cifar10.npz

trajectories: MLPs of 2 layers (784-340-10) and of 8 (hidden 128), float64, 300 steps on batches of 128 digits. Trained
from the same He initialization with the same learning rates are: the ReLU network; its TTFS equivalent, with each
activation computed from its absolute spike time and windows that grow with gamma 10; the ReLU network with each
parameter changed to a neighboring float, as control; and neurons of slope 1 + sum_j W_j with the same W.
mnist: 784-340-10 on the 60,000 digits, 12 epochs, batch 350, Adam with a learning rate of 5e-4 that decays by a tenth
every 5,000 steps; ReLU, its TTFS equivalent with remaining times and with spike times, and with a penalty on remaining
times. --validation holds out 10,000 training digits, on which to choose the penalty.
cifar10: two networks with batch normalization, trained with ReLU on the training images for some epochs (SGD, cosine
decay to 0) and converted: convolutions with max-pools, normalized before and after the ReLU, the latter with scales of
both signs; and a ResNet of blocks of 16, 32 and 64 channels. In float64, with activations computed from absolute
spike times, and spikes clipped to windows that are 1.5 times as long as training images need, all test images are
compared with the ReLU network. The first images are also simulated event by event, with and without the delays of
spikes that skip layers.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from _peers import with_relu
from _timing import show
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data.image_files import Images, read_cifar10, read_mnist
from lightning_snn.methods import Method, SurrogateGradient, TimeToFirstSpike
from lightning_snn.methods.ttfs import AlphaLinear
from lightning_snn.methods.ttfs.events import simulate
from lightning_snn.methods.ttfs.mapping import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.windows import calibrate, grow, latency
from lightning_snn.metrics.ttfs import OverflowFraction, SpikesPerNeuron, agreement, record_emissions
from lightning_snn.networks import ResNet
from lightning_snn.optim import SGD

Result = dict[str, Any]

CLASSES, HELD_OUT = 10, 10_000
# He-initialized networks of both depths learn well at these
RATES: dict[str, dict[int, float]] = {"SGD": {2: 0.1, 8: 0.05}, "Adam": {2: 5e-4, 8: 5e-4}}
SIZES = {2: (784, 340, CLASSES), 8: (784, *[128] * 7, CLASSES)}


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers with ReLU in between, He-initialized, the readout Glorot-initialized; biases are 0."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        (nn.init.kaiming_normal_ if outputs != CLASSES else nn.init.xavier_normal_)(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def in_spikes(
    network: nn.Module, low: float, high: float, x: Tensor, calibration: Tensor | list[Tensor]
) -> TTFSNetwork:
    """Return the TTFS equivalent that computes activations from absolute spike times, with calibrated windows."""
    mapped = from_relu(network, low, high, x)
    for _, neurons in mapped.spiking:
        neurons.time_domain = True
    calibrate(mapped, calibration)
    return mapped


def tensors(images: Images, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1], and classes."""
    return torch.from_numpy(images.images).to(dtype) / 255, torch.from_numpy(images.labels)


def vectors(images: Images, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] as `[N, features]`, and classes."""
    x, y = tensors(images, dtype)
    return x.flatten(1), y


def trajectories(options: argparse.Namespace, seed: int) -> list[Result]:
    train, test = read_mnist(options.mnist)
    chosen = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(seed))[: 128 * options.steps]
    x, y = vectors(Images(train.images[chosen], train.labels[chosen]), torch.float64)
    x_test, y_test = vectors(test, torch.float64)
    batches = list(zip(x.split(128), y.split(128), strict=True))
    results = []
    for layers, sizes in SIZES.items():
        for optimizer in RATES:
            torch.manual_seed(seed)
            relu = mlp(sizes).double()
            networks = {
                "ReLU": relu,
                "first spikes": in_spikes(relu, 0.0, 1.0, batches[0][0], batches[0][0]),
                "ReLU + 1 ulp": one_ulp(relu),
                "slopes 1 + sum W": naive_alpha(relu),
            }
            start = parameters(relu)
            loss_differences = train_together(networks, optimizer, RATES[optimizer][layers], batches)
            with torch.no_grad():
                logits = {name: network(x_test) for name, network in networks.items()}
            moved = (parameters(relu) - start).abs().max().item()
            for name, network in networks.items():
                results.append(
                    {
                        "layers": layers,
                        "optimizer": optimizer,
                        "network": name,
                        "seed": seed,
                        "parameter difference": (parameters(network) - parameters(relu)).abs().max().item(),
                        "loss difference": loss_differences[name],
                        "logit difference": (logits[name] - logits["ReLU"]).abs().max().item(),
                        "test accuracy": (logits[name].argmax(1) == y_test).double().mean().item(),
                        "largest change of a ReLU parameter": moved,
                    }
                )
    return results


def one_ulp(network: nn.Module) -> nn.Module:
    """Return a copy with each parameter changed to a neighboring float, up or down."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in changed.parameters():
            toward = torch.where(torch.rand_like(parameter) < 0.5, -torch.inf, torch.inf).to(parameter)
            parameter.copy_(torch.nextafter(parameter, toward))
    return changed


def naive_alpha(network: nn.Sequential) -> nn.Sequential:
    """Return neurons whose slopes depend on their efficacies, with the same weights as efficacies."""
    *hidden, readout = (layer for layer in network if isinstance(layer, nn.Linear))
    layers = []
    for layer in hidden:
        layers.append(AlphaLinear(layer.in_features, layer.out_features, dtype=layer.weight.dtype))
        layers[-1].load_state_dict(layer.state_dict(), strict=False)
    return nn.Sequential(*layers, copy.deepcopy(readout))


def parameters(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def train_together(
    networks: dict[str, nn.Module], optimizer: str, rate: float, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Train networks on the same batches; return the largest difference of each loss to that of "ReLU"."""
    optimizers = {name: getattr(torch.optim, optimizer)(net.parameters(), rate) for name, net in networks.items()}
    largest = dict.fromkeys(networks, 0.0)
    for x, y in batches:
        losses = {}
        for name, network in networks.items():
            optimizers[name].zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizers[name].step()
            losses[name] = loss.item()
            if isinstance(network, TTFSNetwork):
                grow(network)
        largest = {name: max(largest[name], abs(loss - losses["ReLU"])) for name, loss in losses.items()}
    return largest


def mnist(options: argparse.Namespace, seed: int) -> list[Result]:
    (x, y), (x_test, y_test) = (vectors(images) for images in read_mnist(options.mnist))
    if options.validation:
        x, x_test, y, y_test = x[:-HELD_OUT], x[-HELD_OUT:], y[:-HELD_OUT], y[-HELD_OUT:]
    methods: dict[str, Method] = {
        "ReLU": SurrogateGradient(),
        "remaining times": TimeToFirstSpike(),
        "spike times": TimeToFirstSpike(time_domain=True),
        **{f"penalty {value:g}": TimeToFirstSpike(activity_penalty=value) for value in options.penalties},
    }
    results: list[Result] = []
    reference: Tensor | None = None
    for name, method in methods.items():
        torch.manual_seed(seed)
        network = method.prepare(mlp(SIZES[2]))
        optimizer = torch.optim.Adam(network.parameters(), 5e-4)
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.9 ** (1 / 5000))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(options.epochs or 12):
            fit_epoch(network, method, optimizer, schedule, shuffled(x, y, 350, generator))
        if isinstance(network, TTFSNetwork):
            calibrate(network, x)
        logits, spikes = answers(network, x_test)
        reference = logits if reference is None else reference
        correct = (logits.argmax(1) == y_test).double().mean().item()
        agrees = agreement(logits, reference).item()
        results.append(
            {"network": name, "seed": seed, "test accuracy": correct, "agreement with ReLU": agrees, **spikes}
        )
    return results


def shuffled(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for chosen in torch.randperm(len(x), generator=generator).split(size):
        yield x[chosen], y[chosen]


def fit_epoch(
    network: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    schedule: lr_scheduler.LRScheduler,
    batches: Iterator[tuple[Tensor, Tensor]],
) -> None:
    network.train()
    for x, y in batches:
        optimizer.zero_grad()
        method.training_step(network, x[None], y).objective.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def answers(network: nn.Module, x: Tensor) -> tuple[Tensor, Result]:
    """Return the logits of all images, and statistics of spikes for networks that spike."""
    network.eval()
    spikes, inputs, overflow = SpikesPerNeuron(), SpikesPerNeuron("encoder"), OverflowFraction()
    logits = []
    for batch in x.split(200):
        with record_emissions(network) as emissions:
            logits.append(network(batch))
        if emissions:
            for metric in (spikes, inputs, overflow):
                metric.update(emissions)
    if not emissions:
        return torch.cat(logits), {}
    return torch.cat(logits), {
        "spikes per neuron": spikes.compute().item(),
        "spikes per input": inputs.compute().item(),
        "overflow": overflow.compute().item(),
        "latency": latency(network).item(),
    }


def convolutional() -> nn.Module:
    """Return convolutions normalized before ReLU or, with scales of both signs, between ReLU and max-pools."""
    layers: list[nn.Module] = []
    for inputs, outputs, after in ((3, 16, False), (16, 32, True), (32, 64, True)):
        norm, relu = nn.BatchNorm2d(outputs), nn.ReLU()
        if after:
            nn.init.uniform_(norm.weight, -1, 1)
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            *((relu, norm) if after else (norm, relu)),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, CLASSES))


CIFAR10_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutional,
    "ResNet": lambda: with_relu(ResNet((3, 32, 32), CLASSES, (16, 32, 64), 1)),
}
MEAN, STD, RANGE = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), (-3.0, 3.0)


def cifar10(options: argparse.Namespace, seed: int) -> list[Result]:
    offset, scale = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    (x, y), (x_test, y_test) = (tensors(images) for images in read_cifar10(options.cifar10))
    x, x_test = (x - offset) / scale, ((x_test - offset) / scale).double()
    results = []
    for name, make in CIFAR10_NETWORKS.items():
        torch.manual_seed(seed)
        network, method, epochs = make(), SurrogateGradient(), options.epochs or 5
        optimizer = SGD(network.parameters(), lr=0.05)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 64))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            fit_epoch(network, method, optimizer, schedule, shuffled(x, y, 64, generator))
        network = network.double().eval()
        mapped = in_spikes(network, *RANGE, x_test[:1], [batch.double() for batch in x[:2000].split(200)])
        for _, neurons in mapped.spiking:
            neurons.overflow = "clip"
        expected, _ = answers(network, x_test)
        logits, spikes = answers(mapped, x_test)
        shown = x_test[: options.events]
        events = simulate(mapped, shown)
        undelayed = simulate(mapped, shown, delays=False).outputs
        results.append(
            {
                "network": name,
                "seed": seed,
                "neurons": sum(times[0].numel() for times in list(events.times.values())[1:]),
                "test accuracy": (expected.argmax(1) == y_test).double().mean().item(),
                "mismatches": int((logits.argmax(1) != expected.argmax(1)).sum()),
                "logit difference": (logits - expected).abs().max().item(),
                "largest logit": expected.abs().max().item(),
                **spikes,
                "images by event": options.events,
                "logit difference by event": (events.outputs - expected[: options.events]).abs().max().item(),
                "undelayed": (undelayed - expected[: options.events]).abs().max().item(),
                "early crossings": sum(events.early_crossings.values()),
            }
        )
    return results


COMMANDS = {"trajectories": trajectories, "mnist": mnist, "cifar10": cifar10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--mnist", help="an .npz file, or torchvision's folder")
    parser.add_argument("--cifar10", help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="training steps of trajectories")
    parser.add_argument("--epochs", type=int, help="12 for mnist and 5 for cifar10 by default")
    parser.add_argument("--penalties", type=float, nargs="+", default=[1e-3], help="on remaining times, for mnist")
    parser.add_argument("--validation", action="store_true", help="test mnist on held-out training digits")
    parser.add_argument("--events", type=int, default=2, help="number of images that cifar10 simulates event by event")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    data = "cifar10" if options.command == "cifar10" else "mnist"
    if getattr(options, data) is None:
        parser.error(f"Expected option --{data} to name the data, but it is missing")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    results = [row for seed in options.seeds for row in COMMANDS[options.command](options, seed)]
    columns = list(dict.fromkeys(key for row in results for key in row))
    show(columns, [[_cell(row.get(key, "")) for key in columns] for row in results], results, options.json)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
