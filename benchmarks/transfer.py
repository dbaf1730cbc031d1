"""Transfer to other recordings: `EventConvNet` against a linear model and a plain convolutional network, same data.

    python benchmarks/transfer.py gestures [--subjects 32] [--seeds 0 1 2] [--epochs 18] [--json results.json]
    python benchmarks/transfer.py nmnist --nmnist FOLDER [--epochs 20]
    python benchmarks/transfer.py gestures --subjects 32 --validation --augmentation none shift mirror drop

gestures: the simulated gestures of `--subjects` people (128 in the main job, a quarter by default), tested on the 16
test people, under the lights of training and under the unseen light. nmnist: the recordings of `Train`, tested on those
of `Test`. Models; the networks with the augmentation that the data module has by default, Adam, a cosine to 0, gradient
clipping at 1, the last epoch:

- linear: logistic regression on the square root of the frames summed over time, without augmentation, with the L2
  penalty that is best on validation data.
- plain: convolutions of 16 and 32 channels with batch normalization and LIF neurons, and a linear readout.
- event: `EventConvNet` with `SurrogateGradient`.
- small: the same with 64 hidden neurons and without delays, as with `--small true` of the recipe.
- bayes: `EventConvNet` with `SpikingBayes`, as in `recipes/sbnn_dvs.py`.

--augmentation trains `event` once with each of the named augmentations: "none"; "default"; or the default and a change.
--validation tests on validation people or recordings, on which every constant here was chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import runpy
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lightning_snn import LIF, SpikingModule
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import NMNIST, FrameDataModule, Gestures
from lightning_snn.methods import Method, SpikingBayes, SurrogateGradient
from lightning_snn.networks import EventConvNet
from lightning_snn.nn import unfold
from lightning_snn.nn.folding import time_steps

RECIPE = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "sbnn_dvs.py"))
MODELS = ("linear", "plain", "event", "small", "bayes")
LEARNING_RATE = 3e-3
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"max_shift": 0, "mirror": False},
    "shift": {"mirror": False},
    "mirror": {"max_shift": 0},
    "shift 1": {"max_shift": 1},
    "shift 4": {"max_shift": 4},
    "drop": {"drop_events": 0.3},
    "jitter": {"time_jitter": 0.2},
    "noise": {"noise_events": 0.2},
}


PENALTIES = (1e-3, 1e-2, 1e-1)  # of the squared weights, per sample


def summed_frames(data: FrameDataModule, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Return the square root of the frames summed over time `[N, features]`, and the classes."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return torch.cat([x.sum(0).sqrt().flatten(1) for x, _ in batches]), torch.cat([y for _, y in batches])


def logistic_regression(x: Tensor, y: Tensor, classes: int, penalty: float) -> nn.Linear:
    """Return the minimum of cross entropy and penalty, which has no other one."""
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return layer


class SummedFrames(nn.Module):
    """A linear layer on the square root of the frames summed over time."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(unfold(x, self).sum(0).sqrt().flatten(1))
        return output.repeat(time_steps() or 1, 1)


def fitted_linear(data: FrameDataModule) -> SummedFrames:
    data.prepare_data()
    data.setup()
    x, y = summed_frames(data, data.train_dataloader())
    held_x, held_y = summed_frames(data, data.val_dataloader())
    layers = [logistic_regression(x, y, data.num_classes, penalty) for penalty in PENALTIES]
    with torch.no_grad():
        return SummedFrames(min(layers, key=lambda layer: float(nn.functional.cross_entropy(layer(held_x), held_y))))


def network_of(name: str, data: FrameDataModule) -> nn.Module:
    """Return a new network of a model."""
    shape, classes = data.frame_shape, data.num_classes
    if name == "plain":
        rows, columns = (-(-size // 4) for size in shape[1:])
        return nn.Sequential(
            *(nn.Conv2d(shape[0], 16, 5, 2, 2), nn.BatchNorm2d(16), LIF()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), LIF()),
            *(nn.Flatten(), nn.Linear(32 * rows * columns, classes)),
        )
    small = {"hidden": 64, "delays": (0,)} if name == "small" else {}
    return EventConvNet(shape, classes, **small)  # type: ignore[arg-type]


def preset(kind: str, group: str) -> dict[str, Any]:
    """Return the options of a group that the recipe sets for a class."""
    options = RECIPE["PRESETS"].get(kind, {}).items()
    return {name.removeprefix(f"{group}."): value for name, value in options if name.startswith(f"{group}.")}


def data_of(options: argparse.Namespace, augmentation: str) -> FrameDataModule:
    changes = AUGMENTATIONS[augmentation]
    if options.task == "gestures":
        return Gestures(train_subjects=options.subjects, val_subjects=options.val_subjects, **changes)
    digits = {name: value for name, value in changes.items() if name != "mirror"}
    return NMNIST(options.nmnist, **{**preset("NMNIST", "data"), "size": options.size, **digits})


def experiment(options: argparse.Namespace, name: str, augmentation: str, seed: int) -> dict[str, Any]:
    """Train and test one model."""
    pl.seed_everything(seed, verbose=False)
    data = data_of(options, augmentation)
    method: Method = SurrogateGradient()
    if name == "bayes":
        method = SpikingBayes(**preset("SpikingBayes", "method"))
    module = SpikingModule(
        fitted_linear(data) if name == "linear" else network_of(name, data),
        method,
        num_classes=data.num_classes,
        pairs=data.pairs,
        learning_rate=LEARNING_RATE,
        lr_scheduler="cosine",
    )
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if name != "linear":
        trainer.fit(module, data)
    return {
        "model": name,
        "augmentation": augmentation,
        "seed": seed,
        "weights": sum(parameter.numel() for parameter in module.network.parameters()),
        **scores(module, data, options.validation),
    }


@torch.no_grad()
def scores(module: SpikingModule, data: FrameDataModule, validation: bool) -> dict[str, float]:
    """Return the metrics on validation or test data, and on the test recordings under the unseen light."""
    module.eval()
    data.trainer = None  # batches are not augmented
    loader = data.val_dataloader() if validation else data.test_dataloader()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    predicted = torch.cat([module.method.predict(module.network, x).mean for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    parts = {"": torch.ones_like(labels, dtype=torch.bool)}
    if isinstance(data, Gestures) and not validation:
        parts["unseen light: "] = torch.as_tensor(data.splits[2].under_unseen_light)
    found = {}
    for prefix, part in parts.items():
        metrics: MetricCollection = module.test_metrics.clone(prefix=prefix)
        metrics.reset()
        metrics.update(predicted[part], labels[part])
        found.update({key: float(value) for key, value in metrics.compute().items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["gestures", "nmnist"])
    parser.add_argument("--nmnist", help="folder of N-MNIST")
    parser.add_argument("--size", type=int, default=34, help="rows and columns of a frame of N-MNIST, 34 or 17")
    parser.add_argument("--subjects", type=int, default=32, help="people in the training set of the gestures")
    parser.add_argument("--val_subjects", type=int, default=12, help="people in their validation set")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["linear", "plain", "event"])
    parser.add_argument("--augmentation", nargs="+", choices=AUGMENTATIONS, default=["default"])
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="test on validation data")
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    if options.task == "nmnist" and options.nmnist is None:
        parser.error("Expected option --nmnist to name the folder of N-MNIST, but it is missing")
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = []
    for name in options.models:
        for augmentation in options.augmentation:
            rows = []
            for seed in options.seeds:
                rows.append(experiment(options, name, augmentation, seed))
                results.append(rows[-1])
                if options.json:
                    Path(options.json).write_text(json.dumps(results, indent=2))
            kept = [key for key in rows[0] if isinstance(rows[0][key], float)]
            mean = {key: statistics.mean(row[key] for row in rows) for key in kept}
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in mean.items() if "brier" not in key)
            print(f"{name:<7} {augmentation:<8} {rows[0]['weights']:>7} weights  {numbers}", flush=True)


if __name__ == "__main__":
    main()
