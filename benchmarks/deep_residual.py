"""Deep binary networks without normalization: the posterior, noise of a fixed size, and the deterministic surrogate.

    python benchmarks/deep_residual.py --mnist mnist.npz [--depths 20 60] [--seeds 0 1 2] [--epochs 6] [--validation]
        [--json results.json] [--workers 2]

A residual MLP of width 128 with activations -1 and 1 learns 10,000 MNIST digits (the same for all seeds) and is
tested on all 10,000 test digits; Adam 1e-3 with a cosine to 0, batch 100, no augmentation, no clipping. Methods:
SurrogateGradient (fast sigmoid, width 0.5), SpikingBayes (lambda 1, kappa 0.5, kl_weight 0.03, prior_scale 1, gain
1), and NoisySpikes, whose noise grows with sqrt(depth) as a fresh posterior's does but which has none. "mean" is the
deterministic network, "16 samples" the mixture of 16 noisy runs. --validation tests on the last 10,000 training
digits instead.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_snn import SpikingModule
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.methods import Method, NoisySpikes, SpikingBayes, SurrogateGradient
from lightning_snn.networks import ResidualMLP
from lightning_snn.nn import Sign

SUBSET, BATCH, SAMPLES = 10_000, 100, 16
METHODS = {
    "SurrogateGradient": SurrogateGradient,
    "NoisySpikes(sqrt_depth)": NoisySpikes,
    "SpikingBayes": lambda: SpikingBayes(lam=1.0, kl_weight=0.03, gain=1.0, kappa=0.5, prior_scale=1.0),
}


def digits(path: str, validation: bool) -> tuple[TensorDataset, TensorDataset]:
    """The training subset and the digits to test on, standardized, as `[1, 784]`: one time step."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    order = np.random.default_rng(0).permutation(len(arrays["x_train"]))
    parts = [("train", order[:SUBSET]), ("train", order[-SUBSET:]) if validation else ("test", slice(None))]
    made = []
    for name, chosen in parts:
        pixels = torch.from_numpy(arrays[f"x_{name}"][chosen]).float().flatten(1)[:, None] / 255
        made.append(TensorDataset((pixels - 0.1307) / 0.3081, torch.from_numpy(arrays[f"y_{name}"][chosen]).long()))
    return made[0], made[1]


def time_first(batch: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([x for x, _ in batch], 1), torch.stack([y for _, y in batch])


def experiment(job: tuple[argparse.Namespace, int, str, int]) -> dict[str, Any]:
    """Train and test one network, on one thread."""
    options, depth, name, seed = job
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pl.seed_everything(seed, verbose=False)
    train, test = digits(options.mnist, options.validation)
    method: Method = METHODS[name]()
    network = ResidualMLP(784, 10, depth, 128, partial(Sign, "fast_sigmoid"))
    module = SpikingModule(network, method, num_classes=10, learning_rate=1e-3, lr_scheduler="cosine")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=options.epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(train, BATCH, shuffle=True, collate_fn=time_first))
    loader = DataLoader(test, 500, collate_fn=time_first)
    found = {"mean": trainer.test(module, loader, verbose=False)[0]}
    if name != "SurrogateGradient":
        module.method.samples = SAMPLES
        found[f"{SAMPLES} samples"] = trainer.test(module, loader, verbose=False)[0]
    scores = {kind: {key.removeprefix("test/"): value for key, value in row.items()} for kind, row in found.items()}
    return {"depth": depth, "method": name, "seed": seed, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--validation", action="store_true", help="test on training digits that were held out")
    parser.add_argument("--workers", type=int, default=2, help="networks trained side by side, one thread each")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    jobs = list(product([options], options.depths, METHODS, options.seeds))
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        results = list(tqdm(pool.map(experiment, jobs), total=len(jobs), desc="networks", smoothing=0))
    print(f"{'depth':>5}  {'method':<24}{'prediction':<12}{'accuracy':>8}  {'of the seeds':<24}{'NLL':>6}{'ECE':>7}")
    for depth, name in product(options.depths, METHODS):
        runs = [run["scores"] for run in results if (run["depth"], run["method"]) == (depth, name)]
        for kind in runs[0]:
            of_seeds = {key: [run[kind][key] for run in runs] for key in ("accuracy", "nll", "ece")}
            mean = {key: statistics.mean(values) for key, values in of_seeds.items()}
            each = " ".join(f"{value:.4f}" for value in of_seeds["accuracy"])
            print(
                f"{depth:>5}  {name:<24}{kind:<12}{mean['accuracy']:>8.4f}  {each:<24}{mean['nll']:>6.3f}"
                f"{mean['ece']:>7.3f}"
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
