"""What hardware costs a network of time to first spike in accuracy, and what fine-tuning brings back.

    python benchmarks/ttfs_constraints.py --mnist mnist.npz [--seeds 0 1 2] [--only time] [--json results.json]

MNIST, 784-340-10, batch 350: 12 epochs at full precision with windows that adapt (gamma 10), Adam with a learning rate
of 5e-4 that falls by a tenth every 5,000 steps. Windows are then set to the largest drives of the training images, and
for each constraint a copy is tested with it on all 10,000 test digits, fine-tuned under it for 2 epochs (Adam, 5e-4
falling to 1.2e-4), and tested again. "none" is fine-tuned without any constraint: recovery is measured against it.
Settings are compared on test data and none is chosen by them; the standard error of one accuracy is about 0.15 points.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from tqdm import tqdm

from lightning_snn.callbacks import HardwareConstraints, HardwareFineTuning
from lightning_snn.data.image_files import Images, read_mnist
from lightning_snn.nn.ttfs_mapping import TTFSNetwork, from_relu
from lightning_snn.nn.ttfs_windows import calibrate, grow

BATCH, RATE, HIDDEN = 350, 5e-4, 340

SETTINGS: dict[str, HardwareConstraints] = {
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


class Digits(pl.LightningModule):
    """Cross-entropy of a network on images; `decay` is what the learning rate falls by every step."""

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


def _trainer(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if callbacks else 0,
        check_val_every_n_epoch=epochs if callbacks else 1,
    )


def trained(train: DataLoader, epochs: int) -> TTFSNetwork:
    """A network at full precision, its windows as long as the largest drives of the training images."""
    relu = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    nn.init.kaiming_normal_(relu[0].weight)
    nn.init.xavier_normal_(relu[2].weight)
    for layer in (relu[0], relu[2]):
        nn.init.zeros_(layer.bias)
    network = from_relu(relu, 0.0, 1.0, torch.zeros(1, 784))
    _trainer(epochs).fit(Digits(network, 0.9 ** (1 / 5000), gamma=10.0), train)
    calibrate(network, (x for x, _ in train), zeta=0.0)
    return network


def fine_tuned(
    network: TTFSNetwork, constraints: HardwareConstraints, train: DataLoader, test: DataLoader, epochs: int
) -> Mapping[str, float]:
    """Accuracies without constraints, with them, and after fine-tuning under them."""
    # windows are those of the training images already
    hardware = HardwareFineTuning(constraints, start_epoch=0, learning_rate_factor=1.0, calibrate=False)
    module = Digits(copy.deepcopy(network), (1.2e-4 / RATE) ** (1 / (epochs * len(train))))
    _trainer(epochs, hardware).fit(module, train, test)
    return {name.rpartition("_")[2]: value for name, value in hardware.results.items()}


def experiment(job: tuple[argparse.Namespace, int]) -> list[dict[str, Any]]:
    """All settings for one seed."""
    options, seed = job
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    pl.seed_everything(seed, verbose=False)
    train_images, test_images = read_mnist(options.mnist)
    train, test = _loader(train_images, options.limit, True), _loader(test_images, options.limit, False)
    network = trained(train, options.epochs)
    rows = []
    for name in _chosen(options.only):
        torch.manual_seed(seed)
        accuracies = fine_tuned(network, SETTINGS[name], train, test, options.fine_tune_epochs)
        rows.append({"setting": name, "seed": seed, **accuracies})
    return rows


def _chosen(only: list[str] | None) -> list[str]:
    return [name for name in SETTINGS if not only or any(word in name for word in only)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="an .npz file, or torchvision's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="settings whose names hold one of these words; all by default")
    parser.add_argument("--epochs", type=int, default=12, help="at full precision")
    parser.add_argument("--fine-tune-epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="use so many training and test digits only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    if not _chosen(options.only):
        parser.error(f"Expected option --only to name some of {', '.join(SETTINGS)}, but got {options.only}")
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        jobs = [(options, seed) for seed in options.seeds]
        results = [row for rows in tqdm(pool.map(experiment, jobs), total=len(jobs), desc="seeds") for row in rows]
    print(f"accuracy in %, mean of the seeds {options.seeds}; in brackets after fine-tuning by seed")
    print(f"{'constraint':<24}  {'full precision':>14}  {'before':>6}  {'after':>6}")
    for name in _chosen(options.only):
        rows = [row for row in results if row["setting"] == name]
        mean = {
            moment: 100 * statistics.mean(row[moment] for row in rows)
            for moment in ("unconstrained", "before", "after")
        }
        print(
            f"{name:<24}  {mean['unconstrained']:>14.2f}  {mean['before']:>6.2f}  {mean['after']:>6.2f}  "
            f"({' '.join(format(100 * row['after'], '.2f') for row in rows)})"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
