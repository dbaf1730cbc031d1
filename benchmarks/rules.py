"""Accuracy, uncertainty, memory and time of the learning rules that go through time: same network, budget and seeds.

    python benchmarks/rules.py mnist --mnist mnist.npz [--hidden 256] [--time_steps 8] [--learning_rates 1e-3 3e-3]
    python benchmarks/rules.py nmnist --nmnist FOLDER
    python benchmarks/rules.py gestures
    python benchmarks/rules.py spoken --recurrent --beta 0.9 --kappa 0.9 --hidden 128 --epochs 20

mnist: the first 10,000 training digits repeated T times, tested on all 10,000 test digits. nmnist: recordings in 10
frames of 17x17. gestures: the simulated gestures of `Gestures`, in its default frames, averaged over 4x4 cells. spoken:
the simulated digits of `SpokenDigits`, in 50 time bins and 70 channels, of 32 people, tested on 8 others. Inputs of
recordings are divided by their root mean square over the training data. The network has fully connected layers of LIF
neurons with decay --beta and a detached reset; with --recurrent, layers of `RecurrentLIF`; with --kappa, a leaky
integrator of that decay after the readout. Adam with a cosine to 0, batches of 64. Rules that are not defined for the
network are listed with the reason. With several --learning_rates, each rule is trained at each of them with the first
seed, and the smallest NLL on held-out training data chooses: the next 10,000 digits, or the validation split, of other
people. Test data choose nothing.

MB are what a training step saves for its backward pass, and the memory at its peak, beyond that before it. Seconds are
those of the processor in the fit, on one thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from _training import step_memory
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.data import NMNIST, Gestures, SpokenDigits
from lightning_snn.data.image_files import Images, read_mnist
from lightning_snn.methods import EProp, Method, OnlineThroughTime, RateBackprop, SurrogateGradient
from lightning_snn.networks.initial_weights import draw_weights
from lightning_snn.nn import LIF, LeakyIntegrator, RecurrentLIF

METHODS: dict[str, Callable[[], Method]] = {
    "BPTT": SurrogateGradient,
    "rates": RateBackprop,
    "rates, 2 windows": lambda: RateBackprop(2),
    "OTTT": OnlineThroughTime,
    "SLTT": lambda: OnlineThroughTime(trace=False),
    "SLTT, 4 steps": lambda: OnlineThroughTime(trace=False, steps=4),
    "OTTT, streaming": lambda: OnlineThroughTime(streaming=True),
    "e-prop, symmetric": EProp,
    "e-prop, adaptive": lambda: EProp("adaptive"),
    "e-prop, random": lambda: EProp("random"),
}


class Splits(NamedTuple):
    """Data to train on, to choose learning rates by, and to test on."""

    train: Dataset
    validation: Dataset
    test: Dataset


EPOCHS, BATCH, CLASSES = 5, 64, {"mnist": 10, "nmnist": 10, "gestures": 11, "spoken": 20}


def mnist(options: argparse.Namespace) -> Splits:
    train, test = read_mnist(options.mnist)
    held_out = Images(train.images[10_000:20_000], train.labels[10_000:20_000])
    train = Images(train.images[:10_000], train.labels[:10_000])
    return Splits(*(_repeated(images) for images in (train, held_out, test)))


def _repeated(images: Images) -> TensorDataset:
    pixels = (torch.from_numpy(images.images).float() / 255 - 0.1307) / 0.3081
    return TensorDataset(pixels.flatten(1), torch.from_numpy(images.labels).long())


def nmnist(options: argparse.Namespace) -> Splits:
    return _frames(NMNIST(options.nmnist, time_steps=10, size=17, val_fraction=0.2), 1)


def gestures(options: argparse.Namespace) -> Splits:
    return _frames(Gestures(), 4)


def spoken(options: argparse.Namespace) -> Splits:
    people = {"train_speakers": 32, "val_speakers": 8, "test_speakers": 8}
    return _frames(SpokenDigits(time_steps=50, channels=70, **people))


def _frames(data: Any, cells: int | None = None) -> Splits:
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    splits = [_loaded(frames, cells) for frames in (data.train_set, data.val_set, data.test_set)]
    rms = splits[0].tensors[0].square().mean().sqrt()
    return Splits(*(TensorDataset(each.tensors[0] / rms, each.tensors[1]) for each in splits))


def _loaded(frames: Any, cells: int | None) -> TensorDataset:
    """Return the frames of a data set, flat: whether a cell received an event, averaged over cells, or the counts."""
    x, y = zip(*(frames[index][:2] for index in range(len(frames))), strict=True)
    counts = torch.stack([torch.as_tensor(each) for each in x]).float()
    if cells is not None:
        counts = counts.clamp(max=1)
        counts = nn.functional.avg_pool2d(counts.flatten(0, 1), cells).unflatten(0, counts.shape[:2])
    return TensorDataset(counts.flatten(2), torch.as_tensor(y).long())


TASKS: dict[str, Callable[[argparse.Namespace], Splits]] = {
    "mnist": mnist,
    "nmnist": nmnist,
    "gestures": gestures,
    "spoken": spoken,
}


def make_network(features: int, classes: int, options: argparse.Namespace) -> nn.Module:
    """Return fully connected layers with spiking neurons, before a linear readout."""
    layers: list[nn.Module] = []
    for size in options.hidden:
        beta = options.beta
        neurons = RecurrentLIF(size, beta, detach_reset=True) if options.recurrent else LIF(beta, detach_reset=True)
        layers += [nn.Linear(features, size), neurons]
        features = size
    draw_weights(layers, options.gain)
    layers.append(nn.Linear(features, classes))
    if options.kappa is not None:
        layers.append(LeakyIntegrator(options.kappa))
    return nn.Sequential(*layers)


def over_time(batch: list[tuple[Tensor, Tensor]], steps: int) -> tuple[Tensor, Tensor]:
    """Collate a batch `[T, B, N]` of recordings `[T, N]`, or of images `[N]` that are repeated T times."""
    x, y = torch.stack([x for x, _ in batch]), torch.stack([y for _, y in batch])
    return (x.expand(steps, *x.shape) if x.dim() == 2 else x.transpose(0, 1)), y


def experiment(
    options: argparse.Namespace, train: Dataset, test: Dataset, name: str, rate: float, seed: int
) -> dict[str, Any]:
    """Train and test one network, on one thread; the result of a rule that is refused has the reason."""
    pl.seed_everything(seed, verbose=False)
    collate = partial(over_time, steps=options.time_steps)
    x, _ = collate([train[index] for index in range(BATCH)])
    network = make_network(x.shape[-1], CLASSES[options.task], options)
    try:
        module = SpikingModule(
            network, METHODS[name](), CLASSES[options.task], learning_rate=rate, lr_scheduler="cosine"
        )
    except ValueError as error:
        return {"method": name, "refused": str(error)}
    memory = step_memory(module, *collate([train[index] for index in range(BATCH)]))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=options.epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    pl.seed_everything(seed, verbose=False)
    start = time.process_time()
    trainer.fit(module, DataLoader(train, BATCH, True, collate_fn=collate, drop_last=True))
    seconds = time.process_time() - start
    scores = trainer.test(module, DataLoader(test, 500, collate_fn=collate), verbose=False)[0]
    found = {key: scores[f"test/{key}"] for key in ("accuracy", "nll", "ece")}
    return {"method": name, "rate": rate, "seed": seed, **found, **memory, "seconds": seconds}


def chosen_rate(options: argparse.Namespace, splits: Splits, name: str) -> float:
    """Return the learning rate of the smallest NLL on validation data, with the first seed."""
    rates = options.learning_rates
    if len(rates) == 1:
        return rates[0]
    rows = [experiment(options, splits.train, splits.validation, name, rate, options.seeds[0]) for rate in rates]
    if "refused" not in rows[0]:
        tried = ", ".join(f"{row['rate']:g} {row['accuracy']:.3f} / {row['nll']:.3f}" for row in rows)
        print(f"{name:<20} validation accuracy / NLL by learning rate: {tried}", flush=True)
    return rates[min(range(len(rates)), key=lambda index: rows[index].get("nll", 0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--mnist", help="file or folder of MNIST")
    parser.add_argument("--nmnist", help="folder of N-MNIST")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--hidden", type=int, nargs="+", default=[256], help="sizes of the hidden layers")
    parser.add_argument("--recurrent", action="store_true", help="recurrent hidden layers")
    parser.add_argument("--beta", type=float, default=0.5, help="decay of the neurons per step")
    parser.add_argument("--kappa", type=float, help="decay per step of a leaky integrator after the readout")
    parser.add_argument("--gain", type=float, default=1.7, help="weights start as N(0, gain^2 / fan-in)")
    parser.add_argument("--time_steps", type=int, default=8, help="T of still images")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    if getattr(options, options.task, "") is None:
        parser.error(f"Expected option --{options.task} to name the data, but it is missing")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    splits = TASKS[options.task](options)
    results = []
    for name in options.methods:
        rate = chosen_rate(options, splits, name)
        rows = [experiment(options, splits.train, splits.test, name, rate, seed) for seed in options.seeds]
        results += rows
        print(line(name, rows), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the line of a method: means over the seeds, and the accuracy of each."""
    if "refused" in rows[0]:
        return f"{name:<24} {rows[0]['refused']}"
    columns = ("rate", "accuracy", "nll", "ece", "saved MB", "peak MB", "seconds")
    mean = {key: statistics.mean(row[key] for row in rows) for key in columns}
    of_seeds = " ".join(f"{row['accuracy']:.4f}" for row in rows)
    return f"{name:<24} " + "  ".join(f"{key} {value:.4f}" for key, value in mean.items()) + f"  of seeds: {of_seeds}"


if __name__ == "__main__":
    main()
