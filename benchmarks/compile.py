"""Whole training steps of a `SpikingModule`, compiled by `SpikingModule.compile()` against not compiled.

    python benchmarks/compile.py [--json results.json] [--rounds 15] [--threads 1 2] [--methods ...] [--backend NAME]

Two networks: "readme", the convolutional network of the README on 2x32x32 frames, and "vgg", the VGG 16-16-A-32-32-A-64
with batch normalization on 3x32x32 images; T = 16, batch 8. A step is forward, loss, backward and Adam. Compiled and
plain steps alternate; times are the fastest of the rounds, because other work on a machine only adds to them, and the
ratio is compiled over plain, below 1 if compiling pays. Before it is timed, the first compiled step is compared with
the plain one: "difference" is the largest of a gradient, over its largest entry. "first" is the first compiled step in
seconds, with the compilation, and "next T" the first with T = 12, which must not compile again. Needs a C++ compiler on
a CPU. A minute or two with the default methods.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _timing import parser, show
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.methods import Method, NoisySpikes, Progress, RateBackprop, SpikingBayes, SurrogateGradient

T, NEXT_T, B, CLASSES = 16, 12, 8, 10
METHODS: dict[str, Callable[[], Method]] = {
    "SurrogateGradient": SurrogateGradient,
    "RateBackprop": RateBackprop,
    "NoisySpikes": NoisySpikes,
    "SpikingBayes": SpikingBayes,
}


def readme() -> tuple[nn.Module, tuple[int, ...]]:
    network = nn.Sequential(
        *(nn.Conv2d(2, 16, 5, stride=2, padding=2), LIF(), nn.Conv2d(16, 32, 3, stride=2, padding=1), LIF()),
        *(nn.Flatten(), nn.Linear(32 * 8 * 8, CLASSES)),
    )
    return network, (2, 32, 32)


def vgg() -> tuple[nn.Module, tuple[int, ...]]:
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, "A", 32, 32, "A", 64):
        if isinstance(width, str):
            layers.append(nn.AvgPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), LIF(0.5)]
        channels = width
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return network, (3, 32, 32)


NETWORKS = {"readme": readme, "vgg": vgg}


def build(network: str, method: str) -> SpikingModule:
    torch.manual_seed(0)
    module = SpikingModule(NETWORKS[network]()[0], METHODS[method](), num_classes=CLASSES)
    module.method.progress = Progress(1.5, 1000, step=1)
    return module


def batch(network: str, steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    shape = NETWORKS[network]()[1]
    x = (torch.rand(steps, B, *shape, generator=generator) < 0.3).float()
    return x, torch.randint(CLASSES, (B,), generator=generator)


def step(module: SpikingModule) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.Adam(module.parameters())

    def call(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        module.training_step((x, y), 0).backward()
        optimizer.step()

    return call


def gradients(module: SpikingModule, x: Tensor, y: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    objective = module.training_step((x, y), 0)
    return list(torch.autograd.grad(objective, [each for each in module.parameters() if each.requires_grad]))


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def measured(network: str, method: str, backend: str, rounds: int) -> dict[str, Any]:
    torch._dynamo.reset()
    plain, compiled = build(network, method), build(network, method)
    compiled.compile(backend=backend)
    x, y = batch(network, T)
    start = time.perf_counter()
    found = gradients(compiled, x, y)
    first = time.perf_counter() - start
    expected = gradients(plain, x, y)
    difference = max(
        float((a - b).abs().amax() / b.abs().amax().clamp(min=1e-30)) for a, b in zip(found, expected, strict=True)
    )
    next_t = seconds(gradients, compiled, *batch(network, NEXT_T))
    calls = {"plain": step(plain), "compiled": step(compiled)}
    for _ in range(2):
        for call in calls.values():
            call(x, y)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(1e3 * seconds(call, x, y))
    fastest = {name: min(values) for name, values in times.items()}
    return {
        "network": network,
        "method": method,
        "ms": fastest,
        "ratio": fastest["compiled"] / fastest["plain"],
        "difference": difference,
        "first": first,
        "next_t": next_t,
    }


def main() -> None:
    made = parser(__doc__, threads=(2,))
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=["SurrogateGradient", "RateBackprop"])
    made.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    made.add_argument("--backend", default="inductor", help="backend of torch.compile")
    options = made.parse_args()
    # random numbers of the compiler are others than those of a step that is not compiled
    torch._inductor.config.fallback_random = True
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for network in options.networks:
            for method in options.methods:
                print(f"{network}, {method}, {threads} threads: compiling ...", file=sys.stderr, flush=True)
                found = measured(network, method, options.backend, options.rounds)
                results.append({"threads": threads, "T": T, "batch": B, "backend": options.backend, **found})
                ms = found["ms"]
                row = [str(threads), network, method, f"{ms['plain']:.1f}", f"{ms['compiled']:.1f}"]
                row += [f"{found['ratio']:.2f}", f"{found['difference']:.1e}"]
                rows.append([*row, f"{found['first']:.1f}", f"{found['next_t']:.1f}"])
                print(f"  ratio {found['ratio']:.2f}", file=sys.stderr, flush=True)
    heading = ["threads", "network", "method", "plain ms", "compiled ms", "compiled / plain", "difference"]
    show([*heading, "first s", "next T s"], rows, results, options.json)


if __name__ == "__main__":
    main()
