"""Time and memory of a training step by rate-based backpropagation, against backpropagation through time.

    python benchmarks/rate.py [--json results.json] [--rounds 9] [--threads 1] [--steps 4 8 16 32]

The networks are VGG 16-16-A-32-32-A-64 and a ResNet with blocks of 16, 32 and 64 channels, both with batch
normalization and average pooling, on 8 images of 3x32x32 repeated T times. A step is forward, cross-entropy of the
mean output, backward and SGD. The ideal is T forward passes without autograd and one training step of the same network
with ReLU. Times are CPU times, medians of interleaved rounds. The memory is that saved for the backward pass of a step,
and the peak of the allocated memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _peers import Forward, in_snntorch, in_spikingjelly, with_relu
from _timing import compare, parser, show
from torch import Tensor, nn

from lightning_snn.methods.rate import rate_run
from lightning_snn.metrics.memory import peak_bytes, saved_bytes
from lightning_snn.networks import VGG, ResNet
from lightning_snn.nn import run

BATCH = 8
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG": lambda: VGG(channels=(16, 16, "A", 32, 32, "A", 64)),
    "ResNet": lambda: ResNet(channels=(16, 32, 64), blocks=1),
}


def training_step(network: nn.Module, forward: Forward, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a training step on inputs `x [T, B, ...]`: forward, loss, backward and optimizer."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(network, x).mean(0), y).backward()
        optimizer.step()

    return call


def streamed(network: nn.Module, x: Tensor) -> Tensor:
    return rate_run(network, x, streaming=True)


def contenders(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Callable[[], None]]:
    """Return a training step of each method and library."""
    network = make()
    ann = training_step(with_relu(network), run, x[:1], y)
    untrained = make()

    def ideal() -> None:
        with torch.no_grad():
            run(untrained, x)
        ann()

    calls = {
        "ours": training_step(network, rate_run, x, y),
        "streaming": training_step(make(), streamed, x, y),
        "ideal": ideal,
        "BPTT": training_step(make(), run, x, y),
    }
    for name, peer in {"snntorch": in_snntorch(make()), "SpikingJelly": in_spikingjelly(make())}.items():
        if peer is not None:
            calls[f"{name} BPTT"] = training_step(*peer, x, y)
    return calls


def memory(make: Callable[[], nn.Module], forward: Forward, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the MB saved for the backward pass and the MB at the peak of a step."""
    network = make()
    step = training_step(network, forward, x, y)
    step()  # allocates gradients and momentum
    kept = saved_bytes(lambda: F.cross_entropy(forward(network, x).mean(0), y), network.parameters())
    return {"saved": kept / 1e6, "peak": peak_bytes(step) / 1e6}


def main() -> None:
    made = parser(__doc__, threads=(1,))
    made.set_defaults(rounds=9)
    made.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    made.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options = made.parse_args()
    results, times, bytes_ = [], [], []
    for name in options.networks:
        for steps in options.steps:
            torch.manual_seed(0)
            x = torch.rand(BATCH, 3, 32, 32).expand(steps, -1, -1, -1, -1)
            y = torch.randint(10, (BATCH,))
            for threads in options.threads:
                torch.set_num_threads(threads)
                found = compare(contenders(NETWORKS[name], x, y), options.rounds, clock=time.process_time)
                results.append({"network": name, "T": steps, "threads": threads, **found})
                ratio = found["ratio"]
                times += [
                    [name, str(steps), str(threads), contender, f"{ms:.1f}", f"{ratio[contender]:.2f}"]
                    for contender, ms in found["ms"].items()
                ]
            forwards = {"ours": rate_run, "streaming": streamed, "BPTT": run}
            used = {method: memory(NETWORKS[name], forward, x, y) for method, forward in forwards.items()}
            results.append({"network": name, "T": steps, "MB": used})
            bytes_ += [
                [
                    name,
                    str(steps),
                    method,
                    f"{mb['saved']:.3f}",
                    f"{mb['saved'] / used['ours']['saved']:.3f}",
                    f"{mb['peak']:.2f}",
                ]
                for method, mb in used.items()
            ]
    show(["network", "T", "threads", "contender", "CPU ms", "time / ours"], times, [], None)
    show(["network", "T", "method", "saved MB", "saved / ours", "peak MB"], bytes_, [], None)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
