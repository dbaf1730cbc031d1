"""Accuracy that hardware constraints cost a network of time to first spike, and recovery by fine-tuning.

    python benchmarks/ttfs_constraints.py --mnist mnist.npz [--seeds 0 1 2] [--only time] [--json results.json]
    python benchmarks/ttfs_constraints.py --cifar10 cifar10.npz [--validation]

MNIST, 784-340-10, batch 350: 12 epochs at full precision with windows that adapt (gamma 10), Adam with a learning rate
of 5e-4 that decays by a tenth every 5,000 steps. Fine-tuning: 2 epochs, Adam, 5e-4 decaying to 1.2e-4.
CIFAR-10, a VGG 32-M-64-64-M-128-128-M of batch-normalized convolutions and ReLU, batch 64, images shifted and mirrored:
10 epochs, Adam, 3e-3 with cosine decay to 0. The epoch with the best likelihood of held-out images is converted to
first spikes. Fine-tuning: 5 epochs, Adam, 3e-4 with cosine decay to 0.

Windows are set to the largest potentials of the training images. For each constraint a copy is tested with it on all
test images, fine-tuned under it, and tested again. "none" is fine-tuned without any constraint: recovery is measured
against it. No setting is chosen by test data: --validation measures on held-out training images instead. The standard
error of one accuracy is about 0.15 points for 10,000 digits, and one point for 2,000 photographs.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, TensorDataset
from tqdm import tqdm

from lightning_snn import SpikingModule
from lightning_snn.callbacks import HardwareConstraints, HardwareFineTuning
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import CIFAR10
from lightning_snn.data.image_files import Images, read_mnist
from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs.mapping import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.windows import calibrate, grow
from lightning_snn.networks import VGG

BATCH, RATE, HIDDEN = 350, 5e-4, 340
FINE_TUNE_RATE = 3e-4

DIGIT_SETTINGS: dict[str, HardwareConstraints] = {
    "none": HardwareConstraints(),
    **{f"time {bits} bits": HardwareConstraints(time_bits=bits) for bits in (8, 6, 5, 4, 3, 2, 1)},
    **{f"weights {bits} bits": HardwareConstraints(weight_bits=bits) for bits in (8, 6, 5, 4, 3, 2)},
    **{
        f"weights {bits} bits, {percentile} %": HardwareConstraints(weight_bits=bits, weight_percentile=percentile)
        for bits in (4, 3, 2)
        for percentile in (99.9, 99.0)
    },
    **{f"jitter {jitter}": HardwareConstraints(jitter=jitter) for jitter in (0.01, 0.03, 0.1, 0.3, 1.0)},
    **{f"jitter {jitter}, silent too": HardwareConstraints(jitter=jitter, jitter_silent=True) for jitter in (0.1, 0.3)},
    **{f"latency / {factor}": HardwareConstraints(latency_factor=factor) for factor in (2, 4, 8, 16, 32)},
    **{f"slope mismatch {sigma}": HardwareConstraints(slope_mismatch=sigma) for sigma in (0.01, 0.03, 0.1)},
    "combined, 4 bits": HardwareConstraints(
        jitter=0.05, time_bits=4, weight_bits=4, weight_percentile=99.9, latency_factor=4
    ),
    "combined, 3 bits": HardwareConstraints(
        jitter=0.05, time_bits=3, weight_bits=3, weight_percentile=99.0, latency_factor=4
    ),
}
PHOTOGRAPH_SETTINGS: dict[str, HardwareConstraints] = {
    "none": HardwareConstraints(),
    "weights 6 bits": HardwareConstraints(weight_bits=6),
    "weights 6 bits, ranges a channel": HardwareConstraints(weight_bits=6, weight_ranges="channel"),
    "time 6 bits": HardwareConstraints(time_bits=6),
    "combined, 6 bits": HardwareConstraints(
        jitter=0.01, time_bits=6, weight_bits=6, weight_ranges="channel", latency_factor=2
    ),
}


class Digits(pl.LightningModule):
    """Cross-entropy of a network on images; `decay` is the factor of the learning rate per step."""

    def __init__(self, network: nn.Module, decay: float, gamma: float | None = None) -> None:
        super().__init__()
        self.network, self.decay, self.gamma = network, decay, gamma

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.gamma is not None:
            grow(self.network, self.gamma)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        correct = (self.network(batch[0]).argmax(1) == batch[1]).double().mean()
        self.log("val/accuracy", correct, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), RATE)
        schedule = lr_scheduler.ExponentialLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _loader(images: Images, limit: int | None, shuffle: bool) -> DataLoader:
    x = torch.from_numpy(images.images[:limit]).flatten(1).float() / 255
    data = TensorDataset(x, torch.from_numpy(images.labels[:limit]))
    sampler = RandomSampler(data) if shuffle else SequentialSampler(data)
    return DataLoader(data, sampler=BatchSampler(sampler, BATCH, drop_last=False), batch_size=None)


def _trainer(epochs: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, "limit_val_batches": 1.0 if callbacks else 0, **options},
    )


def trained(train: DataLoader, epochs: int) -> TTFSNetwork:
    """Train a network at full precision and set its windows to the largest potentials of the training images."""
    relu = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    nn.init.kaiming_normal_(relu[0].weight)
    nn.init.xavier_normal_(relu[2].weight)
    for layer in (relu[0], relu[2]):
        nn.init.zeros_(layer.bias)
    network = from_relu(relu, 0.0, 1.0, torch.zeros(1, 784))
    _trainer(epochs).fit(Digits(network, 0.9 ** (1 / 5000), gamma=10.0), train)
    calibrate(network, (x for x, _ in train), zeta=0.0)
    return network


def _measured(
    module: pl.LightningModule, constraints: HardwareConstraints, epochs: int, *data: Any
) -> dict[str, float]:
    """Return accuracies without constraints, with them, and after fine-tuning under them."""
    # windows are calibrated on the training images already
    hardware = HardwareFineTuning(constraints, start_epoch=0, learning_rate_factor=1.0, calibrate=False)
    _trainer(epochs, hardware, check_val_every_n_epoch=epochs).fit(module, *data)
    return {name.rpartition("_")[2]: value for name, value in hardware.results.items()}


Measure = Callable[[HardwareConstraints], Mapping[str, float]]


def digits(options: argparse.Namespace, seed: int) -> Measure:
    """Train on MNIST, and return a function that measures a constraint."""
    train_images, test_images = read_mnist(options.mnist)
    train, test = _loader(train_images, options.limit, True), _loader(test_images, options.limit, False)
    network = trained(train, options.epochs or 12)
    epochs = options.fine_tune_epochs or 2

    def measure(constraints: HardwareConstraints) -> Mapping[str, float]:
        module = Digits(copy.deepcopy(network), (1.2e-4 / RATE) ** (1 / (epochs * len(train))))
        return _measured(module, constraints, epochs, train, test)

    return measure


class Photographs(CIFAR10):
    """CIFAR-10 with validation on held-out training images, or on the test images.

    Args:
        root: see `CIFAR10`.
        seed: see `CIFAR10`.
        limit: number of images to use of each part.
    """

    def __init__(self, root: str, seed: int, limit: int | None) -> None:
        super().__init__(root, time_steps=1, augmentation=True, batch_size=64, seed=seed)
        self.limit, self.validate_on_test = limit, False

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        # files are sorted by class
        train, val, test = (
            part if self.limit is None else Subset(part, range(0, len(part), -(-len(part) // self.limit)))
            for part in super().load_sets()
        )
        return train, val, test

    def val_dataloader(self) -> DataLoader:
        return self.test_dataloader() if self.validate_on_test else super().val_dataloader()


def photographs(options: argparse.Namespace, seed: int) -> Measure:
    """Train on CIFAR-10, convert, and return a function that measures a constraint."""
    keep_freed_memory()
    data = Photographs(options.cifar10, seed, options.limit)
    network = VGG(data.frame_shape, data.num_classes, (32, "M", 64, 64, "M", 128, 128, "M"), relu=True)
    module = SpikingModule(network, num_classes=data.num_classes, learning_rate=3e-3, lr_scheduler="cosine")
    with TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val/nll")
        _trainer(options.epochs or 10, best, enable_checkpointing=True).fit(module, data)
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    method = TimeToFirstSpike(input_shape=data.frame_shape, gamma=None)
    mapped = method.prepare(module.network)
    images = (data.on_after_batch_transfer(batch, 0)[0][0] for batch in data.train_dataloader())
    calibrate(mapped, images, zeta=0.0)
    data.validate_on_test = not options.validation

    def measure(constraints: HardwareConstraints) -> Mapping[str, float]:
        tuned = SpikingModule(
            mapped, method, data.num_classes, learning_rate=options.fine_tune_rate, lr_scheduler="cosine"
        )
        return _measured(tuned, constraints, options.fine_tune_epochs or 5, data)

    return measure


PARTS = {"mnist": (digits, DIGIT_SETTINGS), "cifar10": (photographs, PHOTOGRAPH_SETTINGS)}


def experiment(job: tuple[argparse.Namespace, str, int]) -> list[dict[str, Any]]:
    """Measure all settings of a part for one seed."""
    options, part, seed = job
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    pl.seed_everything(seed, verbose=False)
    prepare, settings = PARTS[part]
    measure = prepare(options, seed)
    rows = []
    for name in _chosen(settings, options.only):
        torch.manual_seed(seed)
        rows.append({"part": part, "setting": name, "seed": seed, **measure(settings[name])})
    return rows


def _chosen(settings: Mapping[str, HardwareConstraints], only: list[str] | None) -> list[str]:
    return [name for name in settings if not only or any(word in name for word in only)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FILE", help="an .npz file, or torchvision's folder")
    parser.add_argument("--cifar10", metavar="FILE", help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="settings whose names contain one of these words; all by default")
    parser.add_argument("--epochs", type=int, help="at full precision; by default 12 for MNIST and 10 for CIFAR-10")
    parser.add_argument("--fine-tune-epochs", type=int, help="by default 2 for MNIST and 5 for CIFAR-10")
    parser.add_argument(
        "--fine-tune-rate", type=float, default=FINE_TUNE_RATE, help="initial learning rate on CIFAR-10"
    )
    parser.add_argument("--validation", action="store_true", help="measure CIFAR-10 on held-out training images")
    parser.add_argument("--limit", type=int, help="number of images to use of each part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    parts = [part for part in PARTS if getattr(options, part)]
    if not parts:
        parser.error("Expected option --mnist or --cifar10, but got neither")
    for part in parts:
        if not _chosen(PARTS[part][1], options.only):
            parser.error(f"Expected option --only to name some of {', '.join(PARTS[part][1])}, but got {options.only}")
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        jobs = [(options, part, seed) for part in parts for seed in options.seeds]
        results = [row for rows in tqdm(pool.map(experiment, jobs), total=len(jobs), desc="runs") for row in rows]
    for part in parts:
        show(part, [row for row in results if row["part"] == part], options.seeds)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))


def show(part: str, results: list[dict[str, Any]], seeds: list[int]) -> None:
    print(f"{part}: accuracy in %, mean of the seeds {seeds}; in brackets after fine-tuning by seed")
    print(f"{'constraint':<32}  {'full precision':>14}  {'before':>6}  {'after':>6}")
    for name in dict.fromkeys(row["setting"] for row in results):
        rows = [row for row in results if row["setting"] == name]
        mean = {
            moment: 100 * statistics.mean(row[moment] for row in rows)
            for moment in ("unconstrained", "before", "after")
        }
        print(
            f"{name:<32}  {mean['unconstrained']:>14.2f}  {mean['before']:>6.2f}  {mean['after']:>6.2f}  "
            f"({' '.join(format(100 * row['after'], '.2f') for row in rows)})"
        )


if __name__ == "__main__":
    main()
