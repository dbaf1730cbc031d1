"""Time and memory of backpropagation through long sequences: kept whole, checkpointed and truncated.

    python benchmarks/long_sequences.py [--json results.json] [--rounds 5] [--threads 1] [--steps 16 64 256 512]

The network is 256-512-512-10 with LIF and AdaptiveLIF neurons on a batch of 16. A step is forward, cross-entropy of the
mean output and backward. Pieces have K steps, with K the power of two nearest to the square root of T. "kept" is what
a step keeps for its backward pass, "peak" the largest memory that it allocates, both by `SurrogateGradient`; the
gradient difference is the largest one, over the largest gradient, to that of the whole sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _timing import compare, parser, show
from torch import Tensor, nn
from tqdm import tqdm

from lightning_snn import LIF
from lightning_snn.methods import SurrogateGradient
from lightning_snn.metrics.memory import peak_and_kept_bytes, peak_bytes
from lightning_snn.nn import AdaptiveLIF

MEGABYTE = 1 << 20


def measure(steps: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    network = nn.Sequential(nn.Linear(256, 512), LIF(), nn.Linear(512, 512), AdaptiveLIF(0.95), nn.Linear(512, 10))
    x, y = torch.rand(steps, 16, 256), torch.randint(10, (16,))
    size = 2 ** round(math.log2(steps) / 2)
    methods = {
        "ours": SurrogateGradient(),
        "checkpoint": SurrogateGradient(checkpoint=size),
        "truncate": SurrogateGradient(truncate=size),
    }
    parameters = list(network.parameters())

    def forward(method: SurrogateGradient) -> Tensor:
        return method.training_step(network, x, y).objective

    def gradient(method: SurrogateGradient) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(method), parameters)

    def call(method: SurrogateGradient) -> Callable[[], object]:
        return lambda: gradient(method)

    found = compare({name: call(method) for name, method in methods.items()}, rounds, clock=time.process_time)
    whole = gradient(methods["ours"])
    largest = max(part.abs().max() for part in whole)
    rows = []
    for name, method in methods.items():
        difference = max((a - b).abs().max() for a, b in zip(gradient(method), whole, strict=True)) / largest
        _, kept = peak_and_kept_bytes(lambda method=method: forward(method))  # type: ignore[misc]
        rows.append(
            {
                "steps": steps,
                "threads": threads,
                "method": "whole" if name == "ours" else f"{name}={size}",
                "ms": found["ms"][name],
                "time_ratio": found["ratio"][name],
                "kept_mb": kept / MEGABYTE,
                "peak_mb": peak_bytes(call(method)) / MEGABYTE,
                "gradient_difference": difference.item(),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, [1])
    made.set_defaults(rounds=5)
    made.add_argument("--steps", type=int, nargs="+", default=[16, 64, 256, 512])
    options = made.parse_args(argv)
    results: list[dict[str, Any]] = []
    settings = [(steps, threads) for threads in options.threads for steps in options.steps]
    for steps, threads in tqdm(settings, desc="sequences", unit="setting"):
        results += measure(steps, options.rounds, threads)
    heading = ["T", "threads", "method", "CPU ms", "time / whole", "kept MB", "peak MB", "gradient difference"]
    cells = [
        [
            str(row["steps"]),
            str(row["threads"]),
            row["method"],
            f"{row['ms']:.1f}",
            f"{row['time_ratio']:.2f}",
            f"{row['kept_mb']:.2f}",
            f"{row['peak_mb']:.2f}",
            f"{row['gradient_difference']:.1e}",
        ]
        for row in results
    ]
    show(heading, cells, results, options.json)


if __name__ == "__main__":
    main()
