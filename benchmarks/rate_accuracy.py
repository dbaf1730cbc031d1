"""Accuracy of rate-based backpropagation against backpropagation through time: same network, same budget, same seeds.

    python benchmarks/rate_accuracy.py mnist --mnist mnist.npz [--steps 4 8] [--seeds 0 1 2] [--json results.json]
    python benchmarks/rate_accuracy.py nmnist --nmnist FOLDER --windows 1 5 --linked 5 [--validation]
    python benchmarks/rate_accuracy.py gestures --windows 1 5 --linked 5 --beta 0.5 [--validation]
    python benchmarks/rate_accuracy.py cifar10 --cifar10 cifar10.npz

mnist: the first 10,000 training digits repeated T times, a VGG A-12-A-24-24-A-32, 3 epochs, batch 64; tested on all
10,000 test digits. nmnist: recordings in 10 binary frames of 2x17x17, a VGG 16-A-24-24-A-32, 25 epochs, batch 32.
gestures: 704 simulated recordings of 32 people in 10 binary frames of 2x32x32, the same VGG after 2x2 averages, 25
epochs, batch 32, tested on 352 recordings of other people. cifar10: a ResNet with blocks of 16, 32 and 64 channels
after 2x2 averages, T = 4, 10 epochs, batch 64. All: batch normalization, LIF neurons with beta 0.2 and a detached
reset, SGD (a cosine to 0, momentum 0.9, weight decay 5e-4 on weights), no augmentation. --windows are numbers of
windows (without a number, backpropagation through time runs alone), --linked those of windows that are linked by the
states of neurons, and --beta is another decay. --validation tests on held-out data for choosing options: the next
10,000 digits, a fifth of the recordings, other people, a sixth of the images. The table lists, for each method, the MB
that a training step saves for its backward pass, the MB allocated at its peak, and the processor time of a training
step, in ms.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from _training import step_memory
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset
from tqdm import tqdm

from lightning_snn import SpikingModule
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import NMNIST, FrameDataModule, Gestures, split_stratified
from lightning_snn.data.image_files import Images, read_cifar10, read_mnist
from lightning_snn.methods import Method, RateBackprop, SurrogateGradient
from lightning_snn.networks import VGG, ResNet
from lightning_snn.nn import DetachedLIF
from lightning_snn.optim import SGD

FRAMES = 10  # per recording


@dataclass
class Task:
    """A data set, a network and the training settings.

    Attributes:
        train: inputs `[N, C, H, W]`, or over time `[N, T, C, H, W]`, and classes `[N]`.
        test: the same for the test data.
        network: returns a new network.
        epochs: number of epochs.
        batch: batch size.
        classes: number of classes.
    """

    train: TensorDataset
    test: TensorDataset
    network: Callable[[], nn.Module]
    epochs: int
    batch: int
    classes: int = 10


def neurons(options: argparse.Namespace) -> Callable[[], nn.Module]:
    return partial(DetachedLIF, options.beta)


def mnist(options: argparse.Namespace) -> Task:
    train, test = read_mnist(options.mnist)
    if options.validation:
        test = Images(train.images[10_000:20_000], train.labels[10_000:20_000])
    train = Images(train.images[:10_000], train.labels[:10_000])
    sets = [_standardized(images, (0.1307,), (0.3081,)) for images in (train, test)]
    return Task(*sets, lambda: VGG((1, 28, 28), 10, ("A", 12, "A", 24, 24, "A", 32), neuron=neurons(options)), 3, 64)


def nmnist(options: argparse.Namespace) -> Task:
    data = NMNIST(options.nmnist, time_steps=FRAMES, size=17, val_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train: Dataset = data.train_set if options.validation else ConcatDataset([data.train_set, data.val_set])
    sets = [_binary(frames) for frames in (train, _held_out(data, options))]
    return Task(*sets, lambda: VGG((2, 17, 17), 10, (16, "A", 24, 24, "A", 32), neuron=neurons(options)), 25, 32)


def gestures(options: argparse.Namespace) -> Task:
    data = Gestures(time_steps=FRAMES, train_subjects=32)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    sets = [_binary(frames) for frames in (data.train_set, _held_out(data, options))]
    channels = ("A", 16, "A", 24, 24, "A", 32)
    classes = data.num_classes
    return Task(*sets, lambda: VGG((2, 32, 32), classes, channels, neuron=neurons(options)), 25, 32, classes)


def _held_out(data: FrameDataModule, options: argparse.Namespace) -> Dataset:
    """Return the recordings to test on."""
    return data.val_set if options.validation else data.test_set


def _binary(frames: Dataset) -> TensorDataset:
    """Return frames that are 1 where a cell received any event."""
    x, y = zip(*(frames[index] for index in range(len(frames))), strict=True)
    return TensorDataset(torch.stack(list(map(torch.as_tensor, x))).float().clamp(max=1), torch.tensor(y))


def cifar10(options: argparse.Namespace) -> Task:
    train, test = read_cifar10(options.cifar10)
    if options.validation:
        kept, held_out = split_stratified(train.labels, 1 / 6, seed=0)
        train, test = (Images(train.images[part], train.labels[part]) for part in (kept, held_out))
    sets = [_standardized(images, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)) for images in (train, test)]

    def network() -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(2), ResNet((3, 16, 16), 10, (16, 32, 64), 1, neuron=neurons(options)))

    return Task(*sets, network, 10, 64)


def _standardized(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> TensorDataset:
    offset, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = (torch.from_numpy(images.images).float() / 255 - offset) / scale
    return TensorDataset(pixels, torch.from_numpy(images.labels).long())


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "mnist": mnist,
    "nmnist": nmnist,
    "gestures": gestures,
    "cifar10": cifar10,
}
RECORDINGS = "nmnist", "gestures"


def over_time(batch: list[tuple[Tensor, Tensor]], steps: int) -> tuple[Tensor, Tensor]:
    """Collate a batch `[T, B, C, H, W]` of recordings, or of images repeated T times."""
    x, y = torch.stack([x for x, _ in batch]), torch.stack([y for _, y in batch])
    return (x.expand(steps, *x.shape) if x.dim() == 4 else x.transpose(0, 1)), y


def experiment(job: tuple[argparse.Namespace, int, str, int]) -> dict[str, Any]:
    """Train and test one network, on one thread."""
    options, steps, name, seed = job
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pl.seed_everything(seed, verbose=False)
    task = TASKS[options.task](options)
    kind, *windows = name.split()
    method: Method = RateBackprop(int(windows[0]), link=kind == "linked") if windows else SurrogateGradient()
    optimizer = partial(SGD, lr=options.learning_rate)
    module = SpikingModule(task.network(), method, num_classes=task.classes, optimizer=optimizer, lr_scheduler="cosine")

    def loader(data: TensorDataset, batch: int, shuffle: bool = False) -> DataLoader:
        return DataLoader(data, batch, shuffle, collate_fn=lambda samples: over_time(samples, steps))

    memory = step_memory(module, *next(iter(loader(task.train, task.batch))))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    epochs = task.epochs if options.epochs is None else options.epochs
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    start = time.process_time()
    trainer.fit(module, loader(task.train, task.batch, True))
    milliseconds = 1e3 * (time.process_time() - start) / trainer.global_step
    loss = float(trainer.callback_metrics["train/loss_epoch"])
    scores = trainer.test(module, loader(task.test, 500), verbose=False)[0]
    return {
        "T": steps,
        "method": name,
        "seed": seed,
        "accuracy": scores["test/accuracy"],
        "nll": scores["test/nll"],
        "train loss": loss,
        "ms": milliseconds,
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    for name in ("mnist", "nmnist", "cifar10"):
        parser.add_argument(f"--{name}", help=f"the data of {name}")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="T of still images")
    parser.add_argument("--windows", type=int, nargs="*", default=[1])
    parser.add_argument("--linked", type=int, nargs="*", default=[], help="numbers of linked windows")
    parser.add_argument("--beta", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, help="another number of epochs than that of the data set")
    parser.add_argument("--validation", action="store_true", help="test on held-out data for choosing options")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    if options.task != "gestures" and getattr(options, options.task) is None:
        parser.error(f"Expected option --{options.task} to name the data, but it is missing")
    methods = ["BPTT", *(f"rate {each}" for each in options.windows), *(f"linked {each}" for each in options.linked)]
    all_steps = [FRAMES] if options.task in RECORDINGS else options.steps
    jobs = [(options, steps, method, seed) for seed, steps, method in product(options.seeds, all_steps, methods)]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for result in tqdm(pool.map(experiment, jobs), total=len(jobs), desc="trainings"):
            results.append(result)
            if options.json:
                Path(options.json).write_text(json.dumps(results, indent=2))
    print_table(results)


def print_table(results: list[dict[str, Any]]) -> None:
    """Print the means over seeds, and the accuracies of the seeds."""
    print(
        f"{'T':>3}  {'method':<9}  {'accuracy':>8}  {'nll':>6}  {'train loss':>10}  {'saved MB':>8}  {'peak MB':>7}  "
        f"{'ms':>5}"
    )
    for steps, method in dict.fromkeys((row["T"], row["method"]) for row in results):
        rows = [row for row in results if (row["T"], row["method"]) == (steps, method)]
        mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0] if key not in ("method", "seed")}
        print(
            f"{steps:>3}  {method:<9}  {mean['accuracy']:>8.4f}  {mean['nll']:>6.3f}  {mean['train loss']:>10.4f}  "
            f"{mean['saved MB']:>8.2f}  {mean['peak MB']:>7.2f}  {mean['ms']:>5.1f}  of seeds: "
            + " ".join(f"{row['accuracy']:.4f}" for row in rows)
        )


if __name__ == "__main__":
    main()
