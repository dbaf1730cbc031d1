"""Time of a training step with time to first spike, compared with the same ReLU network.

    python benchmarks/ttfs.py [--json results.json] [--rounds 41] [--threads 1] [--networks MLP ...]

A step is the forward pass, cross-entropy, backward pass, Adam and, with spikes, the growth of windows. The networks: an
MLP 784-340-10 at a batch of 350; 16 x 128, 15 hidden layers of 128, and 8 x 512, 7 of 512, both from 784 inputs to 10
classes at a batch of 128; and a convolutional network 32-32-pool-64-pool-128-10 on 32 images of 3x32x32. Layers
exchange remaining times, or remaining times computed from absolute spike times. Times are CPU times, medians of
interleaved rounds of several steps; "ReLU" against itself shows the precision of the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from _timing import compare, parser, show
from torch import Tensor, nn

from lightning_snn.methods.ttfs.mapping import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.windows import grow

CLASSES, STEPS = 10, 3  # steps per round


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return He-initialized linear layers with ReLU in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, pooled in ((3, 32, False), (32, 32, True), (32, 64, True)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 128), nn.ReLU(), nn.Linear(128, CLASSES))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "784-340-10": (lambda: mlp((784, 340, CLASSES)), (350, 784)),
    "16 x 128": (lambda: mlp((784, *[128] * 15, CLASSES)), (128, 784)),
    "8 x 512": (lambda: mlp((784, *[512] * 7, CLASSES)), (128, 784)),
    "conv": (convolutional, (32, 3, 32, 32)),
}


def training_steps(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that makes a round of training steps."""
    optimizer = torch.optim.Adam(network.parameters(), 5e-4)

    def call() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            if isinstance(network, TTFSNetwork):
                grow(network)

    return call


def in_spikes(relu: nn.Module, x: Tensor, time_domain: bool) -> TTFSNetwork:
    network = from_relu(relu, 0.0, 1.0, x)
    for _, neurons in network.spiking:
        neurons.time_domain = time_domain
    return network


def main() -> None:
    made = parser(__doc__, threads=(1,))
    made.set_defaults(rounds=41)
    made.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options = made.parse_args()
    results, rows = [], []
    for name in options.networks:
        make, shape = NETWORKS[name]
        torch.manual_seed(0)
        relu, x, y = make(), torch.rand(shape), torch.randint(CLASSES, shape[:1])
        networks = {
            "remaining time": in_spikes(relu, x, False),
            "time domain": in_spikes(relu, x, True),
            "ReLU": make(),
        }
        for threads in options.threads:
            torch.set_num_threads(threads)
            for payload, network in networks.items():
                steps = {"ours": training_steps(network, x, y), "ReLU": training_steps(relu, x, y)}
                found = compare(steps, options.rounds, clock=time.process_time)
                milliseconds = {contender: ms / STEPS for contender, ms in found["ms"].items()}
                overhead = 1 / found["ratio"]["ReLU"]
                results.append(
                    {"network": name, "threads": threads, "payload": payload, "ms": milliseconds, "overhead": overhead}
                )
                times = [f"{milliseconds[contender]:.2f}" for contender in ("ReLU", "ours")]
                rows.append([name, str(threads), payload, *times, f"{overhead:.3f}"])
    show(["network", "threads", "payload", "ReLU CPU ms", "CPU ms", "time / ReLU"], rows, results, options.json)


if __name__ == "__main__":
    main()
