"""Seconds, scores and memory of Expectation Propagation and Adam on MNIST, 784-128-10, compared in one run.

    python benchmarks/ep.py --mnist mnist.npz [--seeds 0 1 2 3 4] [--threads 1] [--json results.json]
    python benchmarks/ep.py --mnist mnist.npz --tune Adam [--seeds 0 1 2]
    python benchmarks/ep.py --mnist mnist.npz --tune EP [--seeds 0 1 2]
    python benchmarks/ep.py --mnist mnist.npz --count

Time: the learners take turns of 1/20 epoch on all 60,000 digits, so that changes in machine speed affect all. After
each turn a learner is tested on the 10,000 test digits, which does not count as training time. Reported is the training
time when the accuracy first reached 0.955: the time of the processor with one thread, else that of a clock. Adam
maximizes the likelihood of the independent outputs that Expectation Propagation observes, or ("conditioned") that of
the class given one spike; "fused" is PyTorch's option of the same optimizer.
All constants were chosen on the last 10,000 training digits, by --tune: every setting trains with the first seed, at
most as long as --most says, and the fastest fifth again in turns with all seeds, Adam's fused and not.
Scores: accuracy, negative log-likelihood and calibration error of Expectation Propagation after 1, 2 and 3 epochs, with
the constants of the race and with those for accuracy.
Memory, in units of the weights and without data: the memory that a learner keeps after two epochs of two batches, its
weights and gradients included, and its peak. Batches of two sizes determine the part of the peak that grows with the
batch (activations).
--count prints the operators that a step of each learner calls, and how many of them are matrix products or passes over
a tensor as large as the weights of the first layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from _ep import EP, Adam, Digits, Learner, batches, mlp, read_digits, scores
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_snn.cpu import keep_freed_memory
from lightning_snn.metrics.memory import peak_and_kept_bytes

TARGET, TURNS, PASSES = 0.955, 20, 3
MEMORIES, SIZES = ("average", "per_batch", "adf"), (500, 1000)


@dataclass(frozen=True)
class Setting:
    """Learner with its batch size; `options` are those of ExpectationPropagation, or of Adam."""

    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    adam: bool = True

    def build(self, samples: int, seed: int = 0) -> Learner:
        torch.manual_seed(seed)
        if self.adam:
            return Adam(mlp(128), **self.options)
        return EP(mlp(128), samples, -(-samples // self.batch), **self.options)

    def __str__(self) -> str:
        return "  ".join([f"batch {self.batch}", *(f"{name} {value}" for name, value in self.options.items())])


def adam(batch: int, rate: float, likelihood: str, fused: bool) -> Setting:
    return Setting(batch, {"learning_rate": rate, "likelihood": likelihood, "fused": fused})


RACE: dict[str, Any] = {
    "iterations": 1,
    "damping": 1.0,
    "solver_iterations": [1, 2],
    "prior_variance": [3.0, 30.0],
    "prior_split": 0.05,
    "fading": 0.9,
}
SETTINGS = {
    "EP": Setting(200, RACE, adam=False),
    "Adam": adam(100, 1e-2, "independent", fused=False),
    "Adam fused": adam(100, 1e-2, "independent", fused=True),
    "Adam conditioned": adam(200, 2e-2, "conditioned", fused=False),
    "Adam conditioned fused": adam(200, 2e-2, "conditioned", fused=True),
}
ACCURACY = Setting(500, {"iterations": 3, "damping": 0.4}, adam=False)
ADAM_GRID = [
    adam(batch, rate, likelihood, fused=True)
    for likelihood, rate, batch in product(
        ("conditioned", "independent"), (3e-3, 1e-2, 2e-2, 5e-2, 1e-1), (50, 100, 200, 500)
    )
]
EP_GRID = [
    Setting(batch, {**RACE, "solver_iterations": solver, "prior_variance": [3.0, last], "fading": fading}, adam=False)
    for fading, solver, batch, last in product((0.9, 0.0), ([1, 2], 1), (200, 250), (30.0, 10.0))
]


class Race:
    """Learner with its training time and the time when it reached the target."""

    def __init__(self, name: str, setting: Setting, data: Digits, seed: int) -> None:
        self.name, self.setting, self.data = name, setting, data
        self.learner = setting.build(len(data.x), seed)
        self.seconds, self.steps, self.reached = 0.0, 0, None
        self.curve: list[tuple[float, float, float]] = []
        self._batches = self._all_batches(seed)
        self._a_pass = -(-len(data.x) // setting.batch)
        # with several threads, processor time is the sum of theirs
        self._clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def _all_batches(self, seed: int) -> Iterator[list[int]]:
        epoch = 0
        while True:
            yield from batches(self.data.x, self.setting.batch, seed, epoch, fixed=isinstance(self.learner, EP))
            epoch += 1

    @property
    def passes(self) -> float:
        return self.steps / self._a_pass

    def run(self, turn: int) -> None:
        """Train until the end of a turn of 1/20 epoch, and test."""
        end = -(-turn * self._a_pass // TURNS)
        start = self._clock()
        while self.steps < end:
            chosen = next(self._batches)
            self.learner.learn(self.data.x[chosen], self.data.y[chosen])
            self.steps += 1
        self.seconds += self._clock() - start
        right = [
            (self.learner.predict(x).mean.argmax(1) == y).sum()
            for x, y in zip(self.data.x_test.split(1000), self.data.y_test.split(1000), strict=True)
        ]
        accuracy = torch.stack(right).sum().item() / len(self.data.y_test)
        self.curve.append((self.passes, self.seconds, accuracy))
        if accuracy >= TARGET:
            self.reached = self.seconds

    def result(self) -> dict[str, Any]:
        found = {"seconds": self.reached, "passes": self.passes, "curve": self.curve}
        return {"learner": self.name, "setting": str(self.setting), **found}


def race(racers: list[Race], most: float) -> list[dict[str, Any]]:
    """Train in turns until all have reached the target, or have used `most` seconds or three epochs."""
    for turn in range(1, PASSES * TURNS + 1):
        for racer in racers:
            if racer.reached is None and racer.seconds < most:
                racer.run(turn)
    return [racer.result() for racer in racers]


def tune(grid: Sequence[Setting], data: Digits, seeds: Sequence[int], most: float) -> None:
    """Print seconds and epochs to the target: of each setting with the first seed, of the best with all seeds."""
    found = {}
    for index, setting in enumerate(grid):
        (row,) = race([Race("", setting, data, seeds[0])], most)
        found[index] = row["seconds"] or float("inf")
        print(f"{setting}  seconds {found[index]:.2f}  passes {row['passes']:.2f}", flush=True)
    best = [grid[index] for index in sorted(found, key=found.__getitem__)[: -(-len(grid) // 5)]]
    best += [replace(each, options={**each.options, "fused": False}) for each in best if each.adam]
    print(f"the best in turns, seeds {list(seeds)}")
    rows = []
    for seed in seeds:
        rows += race([Race(str(setting), setting, data, seed) for setting in best], most)
    table = {
        str(setting): [
            (row["seconds"] or float("inf"), row["passes"]) for row in rows if row["learner"] == str(setting)
        ]
        for setting in best
    }
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in table.items()}
    for name in sorted(medians, key=medians.__getitem__):
        each = ", ".join(f"{seconds:.2f} ({passes:.2f})" for seconds, passes in table[name])
        print(f"{name}  median {medians[name]:.2f} s  (seconds (passes): {each})", flush=True)


def scored(name: str, setting: Setting, data: Digits, seed: int) -> list[dict[str, Any]]:
    """Return the scores of Expectation Propagation after 1, 2 and 3 epochs."""
    learner, rows = setting.build(len(data.x), seed), []
    for epoch in range(PASSES):
        start = time.process_time()
        for chosen in batches(data.x, setting.batch, seed, epoch, fixed=True):
            learner.learn(data.x[chosen], data.y[chosen])
        seconds = time.process_time() - start
        found = scores(learner, data.x_test, data.y_test)
        rows.append({"learner": name, "seed": seed, "pass": epoch + 1, "processor seconds": seconds, **found})
    return rows


def memory(data: Digits) -> list[dict[str, Any]]:
    """Return peaks in units of the weights, and the part that does not grow with the batch."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in mlp(128).parameters())
    contenders = {
        **{f"EP, {kind}": replace(SETTINGS["EP"], options=RACE | {"memory": kind}) for kind in MEMORIES},
        "Adam": SETTINGS["Adam"],
    }
    rows = []
    small, large = SIZES
    for name, setting in contenders.items():
        peaks = {}
        for size in SIZES:
            run = replace(setting, batch=size)
            peaks[size], kept = peak_and_kept_bytes(lambda: _two_passes(run, data, size))  # noqa: B023
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


def _two_passes(setting: Setting, data: Digits, size: int) -> Learner:
    learner = setting.build(2 * size)
    for epoch in range(2):
        for chosen in batches(data.x[: 2 * size], size, 0, epoch, fixed=True):
            learner.learn(data.x[chosen], data.y[chosen])
    return learner


class Counter(TorchDispatchMode):
    """Counts operators, and those among them that are products or touch a tensor of at least `large` elements."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.dispatches, self.products, self.passes = large, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        touched = [each for each in (*args, *outputs) if isinstance(each, torch.Tensor)]
        name = func._schema.name
        views = any(alias.alias_info is not None and not alias.alias_info.is_write for alias in func._schema.returns)
        if not views:
            self.dispatches += 1
            if any(word in name for word in ("mm", "embedding_bag", "::mv")):
                self.products += 1
            elif any(tensor.numel() >= self.large for tensor in touched):
                self.passes += 1
        return result


def count(data: Digits) -> None:
    """Print the operators of a step, in the first epoch and in the second."""
    for name, setting in SETTINGS.items():
        learner = setting.build(2 * setting.batch)
        for epoch in range(2):
            for chosen in batches(data.x[: 2 * setting.batch], setting.batch, 0, epoch, fixed=True):
                x, y = data.x[chosen], data.y[chosen]
                with Counter(128 * 784) as counter:
                    learner.learn(x, y)
            print(
                f"{name:<24} epoch {epoch + 1}  {counter.dispatches} operators, {counter.products} products, "
                f"{counter.passes} other passes over a tensor of the size of the weights or of the batch",
                flush=True,
            )


def report(rows: list[dict[str, Any]]) -> None:
    """Print the ratios of the seconds of Expectation Propagation to those of each other learner, and to the best."""
    times = {name: [row["seconds"] or float("inf") for row in rows if row["learner"] == name] for name in SETTINGS}
    others = [name for name in SETTINGS if name != "EP"]
    medians = {name: statistics.median(times[name]) for name in SETTINGS}
    best = min(others, key=medians.__getitem__)
    for name in SETTINGS:
        print(f"{name:<24} median {medians[name]:.2f} s")
    for name in others:
        ratios = [ep / adam for ep, adam in zip(times["EP"], times[name], strict=True)]
        each = " ".join(format(ratio, ".2f") for ratio in ratios)
        print(f"EP / {name}: {statistics.median(ratios):.2f}  ({each})" + ("  the fastest" if name == best else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=60.0, help="seconds after which a learner gives up")
    parser.add_argument("--tune", choices=("Adam", "EP"), help="time settings of this learner on validation digits")
    parser.add_argument("--count", action="store_true", help="count the operators of a step")
    parser.add_argument("--only", choices=("race", "scores", "memory"), help="one part of the comparison")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    if options.count:
        return count(read_digits(options.mnist, validation=False, limit=2000))
    data = read_digits(options.mnist, validation=options.tune is not None)
    if options.tune:
        grid = ADAM_GRID if options.tune == "Adam" else EP_GRID
        return tune(grid, data, options.seeds, options.most)
    found: dict[str, list[dict[str, Any]]] = {}
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "memory": lambda: _printed(memory(data._replace(x=data.x[:2000], y=data.y[:2000]))),
        "race": lambda: _raced(data, options),
        "scores": lambda: [
            row
            for name, setting in (("EP", SETTINGS["EP"]), ("EP for accuracy", ACCURACY))
            for seed in options.seeds
            for row in _printed(scored(name, setting, data, seed))
        ],
    }
    for name, part in parts.items():
        if options.only in (None, name):
            found[name] = part()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=2)


def _raced(data: Digits, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        found = race([Race(name, setting, data, seed) for name, setting in SETTINGS.items()], options.most)
        for row in found:
            reached = "not reached" if row["seconds"] is None else f"{row['seconds']:.2f} s"
            print(f"seed {seed}  {row['learner']:<24} {TARGET} after {reached}, {row['passes']:.2f} passes", flush=True)
        rows += [{**row, "seed": seed} for row in found]
    report(rows)
    return rows


def _printed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print("  ".join(values), flush=True)
    return rows


if __name__ == "__main__":
    main()
