"""Deep binary and spiking networks without normalization: noise, estimator and posterior, by depth.

    python benchmarks/deep_residual.py --mnist mnist.npz [--depths 20 60] [--seeds 0 1 2] [--epochs 6] [--validation]
        [--methods NAME ...] [--neuron sign] [--steps 1] [--network residual] [--width 128] [--train 10000]
        [--batch 100] [--samples 16] [--json results.json] [--workers 2]

A residual MLP with activations in {-1, 1}, or of LIF neurons (decay 0.5, the image at each of `--steps` steps), is
trained on MNIST digits (the same for all seeds) and tested on all 10,000 test digits; Adam 1e-3 with a cosine to 0, no
augmentation, no clipping. `--network plain` has no shortcuts. The methods are

- SurrogateGradient: no noise (fast sigmoid, width 0.5);
- NoisySpikes, without a posterior: noise that grows with sqrt(depth) as that of a new posterior, or is constant;
- SpikingBayes (kappa 0.5, kl_weight 0.03, prior_scale 1, gain 1) with lambda 1, 0.5, 0 and "auto".

"mean" is the deterministic network, "16 samples" the mixture of 16 noisy runs. "factor" is the second moment of the
gradient of the first currents over the squared mean, of each of 16 test digits, from 256 draws after training. "logged"
is `variance_factor/all`, the mean over the last epoch if it was measured in it, and "lambda" that of "auto" at the end.
--validation tests on the last 10,000 training digits instead. --epochs 0 measures the factor of new networks only.
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
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_snn import LIF, SpikingModule
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.methods import Method, NoisySpikes, SpikingBayes, SurrogateGradient
from lightning_snn.methods.base import Progress
from lightning_snn.methods.noisy import NoisyMethod
from lightning_snn.networks import MLP, ResidualMLP
from lightning_snn.nn import Moments, Sign

HELD_OUT, DIGITS, DRAWS = 10_000, 16, 256
POSTERIOR = {"kl_weight": 0.03, "gain": 1.0, "kappa": 0.5, "prior_scale": 1.0}
METHODS = {
    "SurrogateGradient": SurrogateGradient,
    "NoisySpikes(sqrt_depth)": NoisySpikes,
    "NoisySpikes(constant)": partial(NoisySpikes, profile="constant"),
    "SpikingBayes": partial(SpikingBayes, lam=1.0, **POSTERIOR),
    "SpikingBayes(0.5)": partial(SpikingBayes, lam=0.5, **POSTERIOR),
    "SpikingBayes(0)": partial(SpikingBayes, lam=0.0, **POSTERIOR),
    "SpikingBayes(auto)": partial(SpikingBayes, lam="auto", **POSTERIOR),
}
UNTRAINED = dict.fromkeys(("accuracy", "nll", "ece"), float("nan"))
USUAL = ["SurrogateGradient", "NoisySpikes(sqrt_depth)", "SpikingBayes"]


def digits(path: str, size: int, validation: bool) -> tuple[TensorDataset, TensorDataset]:
    """Return the training subset and the test digits, standardized, as `[1, 784]` with one time step."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    order = np.random.default_rng(0).permutation(len(arrays["x_train"]))
    parts = [("train", order[:size]), ("train", order[-HELD_OUT:]) if validation else ("test", slice(None))]
    made = []
    for name, chosen in parts:
        pixels = torch.from_numpy(arrays[f"x_{name}"][chosen]).float().flatten(1)[:, None] / 255
        made.append(TensorDataset((pixels - 0.1307) / 0.3081, torch.from_numpy(arrays[f"y_{name}"][chosen]).long()))
    return made[0], made[1]


def time_first(batch: list[Any], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images `[steps, B, 784]`, the same at every step, and labels `[B]`."""
    return torch.stack([x for x, _ in batch], 1).expand(steps, -1, -1), torch.stack([y for _, y in batch])


def gradient_factor(method: NoisyMethod, network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the second moment over the squared mean of the gradient of the first currents, mean over samples."""
    found: list[torch.Tensor] = []
    first = next(module for module in network.modules() if isinstance(module, nn.Linear) or hasattr(module, "kl_terms"))

    def keep(layer: nn.Module, inputs: Any, output: torch.Tensor | Moments) -> None:
        found.append(output.expectation if isinstance(output, Moments) else output)

    hook = first.register_forward_hook(keep)
    outputs = method.noisy_output(network, x.repeat_interleave(DRAWS, 1))
    hook.remove()
    loss = nn.functional.cross_entropy(outputs.mean(0), y.repeat_interleave(DRAWS), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, found[0])
    rows = gradient.unflatten(0, (len(x), -1, DRAWS)).transpose(0, 2).flatten(2)  # [draws, digits, steps * units]
    variance = rows.var(0).sum(-1)
    mean = (rows.mean(0).square().sum(-1) - variance / DRAWS).mean()
    return float(1 + variance.mean() / mean)


def new_network(module: SpikingModule, x: torch.Tensor, y: torch.Tensor, train_size: int) -> dict[str, float]:
    """Return the factor of a network without training, measured and logged; nothing without noise."""
    method = module.method
    if not isinstance(method, NoisyMethod):
        return {}
    method.progress = Progress(train_size=train_size)
    logged = method.training_step(module.network, x, y).metrics.get("variance_factor/all")
    found = {"factor": gradient_factor(method, module.network, x, y)}
    return found if logged is None else {**found, "logged": float(logged)}


def experiment(job: tuple[argparse.Namespace, int, str, int]) -> dict[str, Any]:
    """Train and test one network, on one thread."""
    options, depth, name, seed = job
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pl.seed_everything(seed, verbose=False)
    train, test = digits(options.mnist, options.train, options.validation)
    method: Method = METHODS[name]()
    neuron = partial(Sign, "fast_sigmoid") if options.neuron == "sign" else partial(LIF, 0.5)
    if options.network == "residual":
        network: nn.Module = ResidualMLP(784, 10, depth, options.width, neuron)
    else:
        network = MLP(784, 10, (options.width,) * depth, neuron, gain=1.0)
    module = SpikingModule(network, method, num_classes=10, learning_rate=1e-3, lr_scheduler="cosine")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    together = partial(time_first, steps=options.steps)
    x, y = together([test[index] for index in range(DIGITS)])
    if options.epochs == 0:
        found = new_network(module, x, y, options.train)
        return {"depth": depth, "method": name, "seed": seed, "scores": {"new": UNTRAINED}, **found}
    trainer = pl.Trainer(max_epochs=options.epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(train, options.batch, shuffle=True, collate_fn=together))
    logged = {}
    if (factor := trainer.callback_metrics.get("train/variance_factor/all")) is not None:
        logged["logged"] = float(factor)
    if getattr(module.method, "lam", None) == "auto":
        logged["lambda"] = float(module.method.lam_in_use)
    loader = DataLoader(test, 500, collate_fn=together)
    rows = {"mean": trainer.test(module, loader, verbose=False)[0]}
    if isinstance(module.method, NoisyMethod):
        logged["factor"] = gradient_factor(module.method, module.network, x, y)
        if options.samples:
            module.method.samples = options.samples
            rows[f"{options.samples} samples"] = trainer.test(module, loader, verbose=False)[0]
    scores = {kind: {key.removeprefix("test/"): value for key, value in row.items()} for kind, row in rows.items()}
    return {"depth": depth, "method": name, "seed": seed, "scores": scores, **logged}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=USUAL)
    parser.add_argument("--network", choices=("residual", "plain"), default="residual")
    parser.add_argument("--neuron", choices=("sign", "lif"), default="sign")
    parser.add_argument("--steps", type=int, default=1, help="time steps that show the image")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--train", type=int, default=10_000, help="digits for training")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16, help="noisy runs of a prediction; 0 for none")
    parser.add_argument("--validation", action="store_true", help="test on held-out training digits")
    parser.add_argument("--workers", type=int, default=2, help="networks trained in parallel, one thread each")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    jobs = list(product([options], options.depths, options.methods, options.seeds))
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        results = list(tqdm(pool.map(experiment, jobs), total=len(jobs), desc="networks", smoothing=0))
    print(
        f"{'depth':>5}  {'method':<24}{'prediction':<12}{'accuracy':>8}  {'of the seeds':<24}{'NLL':>6}{'ECE':>7}"
        f"{'lambda':>8}{'factor':>10}{'logged':>10}"
    )
    for depth, name in product(options.depths, options.methods):
        chosen = [run for run in results if (run["depth"], run["method"]) == (depth, name)]
        runs = [run["scores"] for run in chosen]
        measured = [
            f"{statistics.mean(run[key] for run in chosen):.3g}" if key in chosen[0] else ""
            for key in ("lambda", "factor", "logged")
        ]
        for kind in runs[0]:
            of_seeds = {key: [run[kind][key] for run in runs] for key in ("accuracy", "nll", "ece")}
            mean = {key: statistics.mean(values) for key, values in of_seeds.items()}
            each = " ".join(f"{value:.4f}" for value in of_seeds["accuracy"])
            print(
                f"{depth:>5}  {name:<24}{kind:<12}{mean['accuracy']:>8.4f}  {each:<24}{mean['nll']:>6.3f}"
                f"{mean['ece']:>7.3f}{measured[0]:>8}{measured[1]:>10}{measured[2]:>10}"
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
