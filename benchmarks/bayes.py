"""What a posterior costs: a training step of SpikingBayes against SurrogateGradient on the same network, and K samples.

    python benchmarks/bayes.py [--json results.json] [--rounds 15] [--threads 2]

A step is forward, loss, backward and Adam on a batch of 128. The networks: 784-512-512-10 with LIF neurons on a
direct-coded image, T = 8, and a convolutional residual network on 3x32x32, T = 4, without normalization. Two matrix
products where one was are the floor, a ratio of 2. Then K = 16 samples of the first network at once against one
sample, both without gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from _timing import compare, parser, show
from torch import Tensor, nn

from lightning_snn import LIF
from lightning_snn.methods import Method, SpikingBayes, SurrogateGradient
from lightning_snn.methods.base import Progress
from lightning_snn.networks import MLP, ResidualConvNet

SAMPLES = 16


def training_step(method: Method, network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of a method on a prepared copy of the network."""
    method.progress = Progress(epoch=1.0, train_size=10_000)
    prepared = method.prepare(network)
    optimizer = torch.optim.Adam(prepared.parameters(), 1e-3)

    def call() -> None:
        optimizer.zero_grad()
        method.training_step(prepared, x, y).objective.backward()
        optimizer.step()

    return call


def prediction(samples: int, network: nn.Module, x: Tensor) -> Callable[[], None]:
    """The prediction of that many samples."""
    method = SpikingBayes(lam=1.0, samples=samples, gain=1.0)
    prepared = method.prepare(copy.deepcopy(network)).eval()

    def call() -> None:
        with torch.no_grad():
            method.predict(prepared, x)

    return call


def main() -> None:
    made = parser(__doc__, threads=(2,))
    made.add_argument("--batch", type=int, default=128)
    options = made.parse_args()
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        y = torch.randint(10, (options.batch,))
        image = torch.rand(options.batch, 784).expand(8, -1, -1)
        picture = torch.rand(options.batch, 3, 32, 32).expand(4, -1, -1, -1, -1)
        mlp, conv = MLP(784, 10, (512, 512)), ResidualConvNet(neuron=partial(LIF, beta=0.5))
        work: dict[str, dict[str, Callable[[], None]]] = {
            f"step of {name}": {
                "ours": training_step(SurrogateGradient(), network, x, y),
                **{
                    f"SpikingBayes(lam={lam:g})": training_step(SpikingBayes(lam=lam, gain=1.0), network, x, y)
                    for lam in (1.0, 0.5)
                },
            }
            for name, network, x in (("784-512-512-10", mlp, image), ("residual conv", conv, picture))
        }
        work["prediction"] = {"ours": prediction(1, mlp, image), f"K = {SAMPLES}": prediction(SAMPLES, mlp, image)}
        for name, contenders in work.items():
            found = compare(contenders, options.rounds)
            baseline = "one sample" if name == "prediction" else "SurrogateGradient"
            results.append({"threads": threads, "work": name, "baseline": baseline, **found})
            for contender, ms in found["ms"].items():
                label = baseline if contender == "ours" else contender
                rows.append([str(threads), name, label, f"{ms:.1f}", f"{found['ratio'][contender]:.2f}"])
    show(["threads", "work", "contender", "ms", "time / baseline"], rows, results, options.json)


if __name__ == "__main__":
    main()
