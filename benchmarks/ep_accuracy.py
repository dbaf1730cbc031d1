"""Accuracy of Expectation Propagation after one and after a few epochs, next to Adam on the same network.

    python benchmarks/ep_accuracy.py mnist60k --mnist mnist.npz [--seeds 0 1 2] [--only sign] [--json results.json]
    python benchmarks/ep_accuracy.py mnist10k --mnist mnist.npz
    python benchmarks/ep_accuracy.py outputs --mnist mnist.npz
    python benchmarks/ep_accuracy.py conv --mnist mnist.npz
    python benchmarks/ep_accuracy.py regression

Digits are binarized between the gray values 127 and 128. Reported after every epoch are the accuracy among the ten
classes, the accuracy of each output (which is far higher and no substitute), negative log-likelihood and calibration
error.
mnist60k: all 60,000 digits: Gaussian weights with noisy and with Heaviside hidden neurons, or weights -a and +a
deployed as their more probable value, on 784-128-10; and 784-10. mnist10k: the first 10,000 digits, against Adam that
maximizes the likelihood of independent outputs, as Expectation Propagation observes them, with its usual learning rate
and with one chosen for four epochs; and that of the class given exactly one spike ("conditioned"). outputs:
independent outputs against a competition of the outputs ("winner"), with its usual noise and with less. conv: two
convolutions. regression: a simulated curve with a gap, 100-128-1, mean squared error to the curve, and standard
deviations without the noise of observations.
--validation tests on the last 10,000 training digits, where constants were chosen; those of the regression were chosen
with seeds 10 to 12. --set, --batch and --passes try other constants. An epoch of Expectation Propagation costs many
times the arithmetic of an epoch of Adam: this benchmark counts epochs; ep.py counts seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import yaml
from _ep import EP, Adam, Learner, batches, mlp, read_digits, scores, small_conv
from torch import Tensor, nn
from tqdm import tqdm

from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import NoisyCurve
from lightning_snn.networks import MLP

GAP = (1.25, 2.25)


@dataclass(frozen=True)
class Setting:
    """Learner with its number of epochs; `options` are those of ExpectationPropagation, or of Adam."""

    network: Callable[[], nn.Module]
    batch: int
    passes: int
    options: dict[str, Any] = field(default_factory=dict)
    adam: bool = False


QUICK = {"iterations": 3, "damping": 0.4}
DEEP, SHALLOW = partial(mlp, 128), mlp
CURVE = partial(MLP, 100, 1, (128,))
INDEPENDENT = {"likelihood": "independent"}

SETTINGS: dict[str, dict[str, Setting]] = {
    "mnist60k": {
        "784-128-10, gaussian": Setting(DEEP, 500, 3, QUICK),
        "784-128-10, heaviside": Setting(DEEP, 500, 2, {**QUICK, "activation": "heaviside"}),
        "784-128-10, sign, hard": Setting(
            DEEP, 250, 2, {**QUICK, "damping": 0.5, "weights": "sign", "deployment": "hard"}
        ),
        "784-10, gaussian": Setting(SHALLOW, 500, 1, QUICK),
    },
    "mnist10k": {
        "784-10, EP": Setting(SHALLOW, 500, 1, QUICK),
        "784-10, Adam 1e-3": Setting(SHALLOW, 100, 4, {**INDEPENDENT, "learning_rate": 1e-3}, adam=True),
        "784-10, Adam chosen": Setting(SHALLOW, 100, 4, {**INDEPENDENT, "learning_rate": 1e-2}, adam=True),
        "784-10, Adam conditioned": Setting(SHALLOW, 100, 4, {"learning_rate": 1e-2}, adam=True),
        "784-128-10, EP": Setting(DEEP, 500, 1, QUICK),
        "784-128-10, Adam 1e-3": Setting(DEEP, 100, 4, {**INDEPENDENT, "learning_rate": 1e-3}, adam=True),
        "784-128-10, Adam chosen": Setting(DEEP, 50, 4, {**INDEPENDENT, "learning_rate": 1e-2}, adam=True),
        "784-128-10, Adam conditioned": Setting(DEEP, 50, 4, {"learning_rate": 1e-2}, adam=True),
    },
    "outputs": {
        "784-10, independent": Setting(SHALLOW, 500, 2, QUICK),
        "784-10, winner": Setting(SHALLOW, 500, 2, {**QUICK, "output_activation": "winner"}),
        "784-10, winner, noise 0.1": Setting(
            SHALLOW, 500, 2, {**QUICK, "output_activation": "winner", "output_noise": 0.1}
        ),
        "784-128-10, independent": Setting(DEEP, 500, 2, QUICK),
        "784-128-10, winner": Setting(DEEP, 500, 2, {**QUICK, "output_activation": "winner"}),
    },
    "conv": {"conv, gaussian": Setting(small_conv, 1000, 2, {"iterations": 6, "damping": 0.4})},
    "regression": {
        "EP": Setting(
            CURVE,
            100,
            5,
            {
                "activation": "heaviside",
                "prior_variance": (1.0, 1.0),
                "prior_split": (0.1, 0.5),
                "iterations": 5,
                "damping": 0.3,
                "solver_iterations": 5,
                "noise_variance": 0.05**2,
            },
        ),
        "Adam": Setting(CURVE, 100, 100, {"learning_rate": 1e-2, "likelihood": "gaussian"}, adam=True),
    },
}


def experiment(job: tuple[argparse.Namespace, str, int]) -> list[dict[str, Any]]:
    """Return the scores of one setting after each epoch, on one thread."""
    options, name, seed = job
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    setting = settings(options)[name]
    if options.task == "regression":
        x, y, evaluate = curve(seed)
    else:
        limit = 10_000 if options.limit is None and options.task == "mnist10k" else options.limit
        x, y, x_test, y_test = read_digits(options.mnist, options.validation, limit)
        evaluate = partial(scores, x=x_test, y=y_test)
    torch.manual_seed(seed)
    regression = options.task == "regression"
    learner: Learner
    if setting.adam:
        learner = Adam(setting.network(), **setting.options)
    else:
        learner = EP(setting.network(), len(x), -(-len(x) // setting.batch), regression, **setting.options)
    rows, seconds = [], 0.0
    for epoch in range(setting.passes):
        start = time.perf_counter()
        for chosen in batches(x, setting.batch, seed, epoch, fixed=not setting.adam):
            learner.learn(x[chosen], y[chosen])
        seconds += time.perf_counter() - start
        rows.append({"setting": name, "seed": seed, "pass": epoch + 1, "seconds": seconds, **evaluate(learner)})
    return rows


def curve(seed: int) -> tuple[Tensor, Tensor, Callable[[Learner], dict[str, float]]]:
    """Return populations, values, and a function of scores on a grid: within the data, and in the gap."""
    data = NoisyCurve(seed=seed)
    data.setup()
    places, y = data.train_set.tensors  # type: ignore[union-attr]
    grid, spikes = data.grid(1001, -0.5, 4.5)
    truth = data.truth(grid)
    inside = torch.stack([(low <= grid) & (grid <= high) for low, high in data.intervals]).any(0)
    gap = (GAP[0] < grid) & (grid < GAP[1])

    def evaluate(learner: Learner) -> dict[str, float]:
        prediction = learner.predict(spikes[0])
        error = prediction.mean[:, 0] - truth
        found = {"mse": error[inside].square().mean().item(), "mse gap": error[gap].square().mean().item()}
        if prediction.variance_parts is None:
            return found
        sd = (prediction.variance_parts["epistemic"] + prediction.variance_parts["spikes"])[:, 0].sqrt()
        return {
            **found,
            "sd": sd[inside].mean().item(),
            "sd gap": sd[gap].mean().item(),
            "ratio": (sd[gap].mean() / sd[inside].mean()).item(),
            "2 sd cover": (error.abs() <= 2 * sd)[inside].double().mean().item(),
            "2 sd cover gap": (error.abs() <= 2 * sd)[gap].double().mean().item(),
        }

    return data.encoder(places)[0], y, evaluate


def settings(options: argparse.Namespace) -> dict[str, Setting]:
    """Return the settings of the task with the options of the command line."""
    found = {}
    for name, setting in SETTINGS[options.task].items():
        if options.only and not any(word in name for word in options.only):
            continue
        found[name] = replace(
            setting,
            batch=options.batch or setting.batch,
            passes=options.passes or setting.passes,
            options={**setting.options, **{key: yaml.safe_load(value) for key, value in options.set}},
        )
    return found


def report(results: list[dict[str, Any]], seeds: list[int]) -> None:
    """Print means over seeds after each epoch."""
    print(f"mean of the seeds {seeds}; in brackets accuracy, or mse, by seed")
    for setting in dict.fromkeys(row["setting"] for row in results):
        of_setting = [row for row in results if row["setting"] == setting]
        passes = sorted({row["pass"] for row in of_setting})
        for number in passes if len(passes) <= 10 else passes[9::10]:
            rows = [row for row in of_setting if row["pass"] == number]
            names = [name for name in rows[0] if name not in ("setting", "seed", "pass")]
            means = "  ".join(f"{name} {statistics.mean(row[name] for row in rows):.4g}" for name in names)
            first = "accuracy" if "accuracy" in names else "mse"
            print(f"{setting:<28} {number:>3}  {means}  ({' '.join(format(row[first], '.4g') for row in rows)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(SETTINGS))
    parser.add_argument("--mnist", help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2, and of the regression 0 to 4, if not given")
    parser.add_argument("--only", nargs="+", help="settings whose names contain one of these words; all by default")
    parser.add_argument("--validation", action="store_true", help="test on the last 10,000 training digits")
    parser.add_argument("--limit", type=int, help="train on the first digits only; 10,000 of mnist10k if not given")
    parser.add_argument("--batch", type=int, help="batch size, for all settings")
    parser.add_argument("--passes", type=int, help="epochs, for all settings")
    parser.add_argument(
        "--set",
        nargs="+",
        type=lambda text: tuple(text.split("=", 1)),
        default=[],
        metavar="NAME=VALUE",
        help="other options of the learners, such as damping=0.2 or prior_variance=[1,10]",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    if options.task != "regression" and options.mnist is None:
        parser.error("Expected option --mnist to name the digits, but it is missing")
    if not settings(options):
        parser.error(f"Expected option --only to name some of {', '.join(SETTINGS[options.task])}")
    seeds = options.seeds or list(range(5 if options.task == "regression" else 3))
    jobs = [(options, name, seed) for name in settings(options) for seed in seeds]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        results = [row for rows in tqdm(pool.map(experiment, jobs), total=len(jobs), desc="runs") for row in rows]
    report(results, seeds)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
