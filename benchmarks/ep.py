"""Seconds and memory of Expectation Propagation and Adam on MNIST, 784-128-10, compared in one run.

    python benchmarks/ep.py --mnist mnist.npz [--seeds 0 1 2] [--threads 2] [--json results.json]
    python benchmarks/ep.py --mnist mnist.npz --tune

Time: the learners take turns on all 60,000 digits, one second each, so that changes in machine speed affect all. After
every second of training a learner is tested on the 10,000 test digits, which does not count as training time. Reported
is the time when it first reached 0.955. Adam maximizes the likelihood of the independent outputs that Expectation
Propagation observes, or ("conditioned") that of the class given one spike. All constants were chosen on the last
10,000 training digits with seed 0: Adam's by --tune, and those of Expectation Propagation among batches of 50 to 500,
1 to 3 iterations and 2 to 5 solver iterations.
Memory, in units of the weights and without data: the memory that a learner keeps after two epochs of two batches, its
weights and gradients included, and its peak. Batches of two sizes determine the part of the peak that grows with the
batch (activations).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from _ep import EP, Adam, Digits, Learner, batches, mlp, read_digits

from lightning_snn.cpu import keep_freed_memory
from lightning_snn.metrics.memory import peak_and_kept_bytes

TARGET, BATCH = 0.955, {"EP": 250, "Adam": 50, "Adam conditioned": 100}
EP_OPTIONS: dict[str, Any] = {"iterations": 1, "damping": 1.0, "solver_iterations": 2}
RATES = {"Adam": 1e-2, "Adam conditioned": 3e-3}
MEMORIES, SIZES = ("average", "per_batch", "adf"), (500, 1000)
TUNED_RATES, TUNED_BATCHES = (2e-3, 5e-3, 1e-2, 2e-2), (50, 100, 200, 500)


class Race:
    """Learner with its training time and the time when it reached the target."""

    def __init__(self, name: str, learner: Learner, data: Digits, size: int, seed: int) -> None:
        self.name, self.learner, self.data = name, learner, data
        self.seconds, self.tested, self.reached, self.steps = 0.0, 0.0, None, 0
        self.curve: list[tuple[float, float]] = []
        self._batches = self._all_batches(size, seed)
        self._a_pass = -(-len(data.x) // size)

    def _all_batches(self, size: int, seed: int) -> Iterator[list[int]]:
        epoch = 0
        while True:
            yield from batches(self.data.x, size, seed, epoch, fixed=isinstance(self.learner, EP))
            epoch += 1

    def run(self, until: float) -> None:
        """Train until the training time is `until` seconds, or the target is reached."""
        while self.reached is None and self.seconds < until:
            chosen = next(self._batches)
            start = time.perf_counter()
            self.learner.learn(self.data.x[chosen], self.data.y[chosen])
            self.seconds += time.perf_counter() - start
            self.steps += 1
            if self.seconds >= self.tested + 1:
                self._test()

    def _test(self) -> None:
        self.tested = self.seconds
        right = [
            (self.learner.predict(x).mean.argmax(1) == y).sum()
            for x, y in zip(self.data.x_test.split(1000), self.data.y_test.split(1000), strict=True)
        ]
        accuracy = sum(right).item() / len(self.data.y_test)  # type: ignore[union-attr]
        self.curve.append((self.seconds, accuracy))
        if accuracy >= TARGET:
            self.reached = self.seconds

    def result(self) -> dict[str, Any]:
        found = {"seconds": self.reached, "passes": self.steps / self._a_pass, "curve": self.curve}
        return {"learner": self.name, **found}


def race(racers: list[Race], most: float) -> list[dict[str, Any]]:
    """Train in turns of a second until all have reached the target or have used `most` seconds."""
    clock = 0.0
    while clock < most and any(racer.reached is None for racer in racers):
        clock += 1
        for racer in racers:
            racer.run(clock)
    return [racer.result() for racer in racers]


def learner(name: str, samples: int, batch: int, rate: float | None = None, **options: Any) -> Learner:
    if name == "EP":
        return EP(mlp(128), samples, -(-samples // batch), **{**EP_OPTIONS, **options})
    return Adam(mlp(128), rate or RATES[name], "conditioned" if name == "Adam conditioned" else "independent")


def timed(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    data = read_digits(options.mnist, validation=False)
    racers = []
    for name, batch in BATCH.items():
        torch.manual_seed(seed)
        racers.append(Race(name, learner(name, len(data.x), batch), data, batch, seed))
    return [{**row, "seed": seed} for row in race(racers, options.most)]


def tune(options: argparse.Namespace) -> None:
    """Print the seconds of Adam to the target on validation digits, for each rate and batch size."""
    data = read_digits(options.mnist, validation=True)
    for name, rate, batch in product(RATES, TUNED_RATES, TUNED_BATCHES):
        found = []
        for seed in options.seeds:
            torch.manual_seed(seed)
            (row,) = race([Race(name, learner(name, len(data.x), batch, rate), data, batch, seed)], 30.0)
            found.append(row["seconds"])
        seconds = " ".join("-" if value is None else f"{value:.1f}" for value in found)
        print(f"{name:<16}  learning rate {rate:<6g} batch {batch:<4}  seconds {seconds}", flush=True)


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return peaks in units of the weights, and the part that does not grow with the batch."""
    data = read_digits(options.mnist, validation=False, limit=2000)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in mlp(128).parameters())
    contenders: dict[str, Callable[[int], Learner]] = {
        **{f"EP, {kind}": lambda size, kind=kind: learner("EP", 2 * size, size, memory=kind) for kind in MEMORIES},
        "Adam": lambda size: learner("Adam", 2 * size, size),
    }
    rows = []
    small, large = SIZES
    for name, build in contenders.items():
        peaks = {}
        for size in SIZES:
            peaks[size], kept = peak_and_kept_bytes(lambda: _two_passes(build(size), data, size))  # noqa: B023
        fixed = peaks[small] - (peaks[large] - peaks[small]) / (large - small) * small
        rows.append(
            {
                "learner": name,
                "kept / weights": kept / weights,
                "peak / weights": peaks[large] / weights,
                "peak without activations / weights": fixed / weights,
            }
        )
    return rows


def _two_passes(learner: Learner, data: Digits, size: int) -> Learner:
    for epoch in range(2):
        for chosen in batches(data.x[: 2 * size], size, 0, epoch, fixed=True):
            learner.learn(data.x[chosen], data.y[chosen])
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=float, default=600.0, help="seconds after which a learner gives up")
    parser.add_argument("--tune", action="store_true", help="time Adam's rates and batches on validation digits")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.tune:
        return tune(options)
    memory_rows = memory(options)
    for row in memory_rows:
        print("  ".join(f"{key} {value:.2f}" if key != "learner" else f"{value:<16}" for key, value in row.items()))
    rows = []
    for seed in options.seeds:
        rows += timed(options, seed)
        for row in rows[-len(BATCH) :]:
            reached = "not reached" if row["seconds"] is None else f"{row['seconds']:.1f} s"
            print(
                f"seed {seed}  {row['learner']:<16}  {TARGET} after {reached}, {row['passes']:.2f} passes", flush=True
            )
    times = {name: [row["seconds"] or float("inf") for row in rows if row["learner"] == name] for name in BATCH}
    for name in RATES:
        ratios = [ep / adam for ep, adam in zip(times["EP"], times[name], strict=True)]
        print(f"EP / {name}: {statistics.median(ratios):.2f}  ({' '.join(format(ratio, '.2f') for ratio in ratios)})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"memory": memory_rows, "time": rows}, file, indent=2)


if __name__ == "__main__":
    main()
