"""Verdicts of `InitializationCheck` on good and bad initializations, and test accuracy with `on_fail="rescale"`.

    python benchmarks/initialization.py --mnist mnist.npz [--json results.json] [--seeds 0 1 2]

MNIST: the first 3,000 training digits, given at each of 10 time steps; accuracy after two epochs on the last 9,000 test
digits (the distance xi of the rescaling was chosen with the first 1,000). Two networks, both trained by Adam, learning
rate 1e-3, batches of 100: six layers of 128 of our LIF neurons, and a snntorch loop over time with four hidden layers
of 128 whose last membrane potential is read out. Weights and biases are those of torch's initialization, or multiplied
by 0.01 or 100, each without and with rescaling.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import snntorch
import torch
import torch.nn.functional as F
from _timing import parser, show
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import run
from lightning_snn.callbacks import InitializationCheck
from lightning_snn.callbacks.initialization import overall
from lightning_snn.networks import MLP

STEPS, WIDTH, CLASSES = 10, 128, 10


class Classifier(pl.LightningModule):
    """Classifier with a loss and an optimizer."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Folded(Classifier):
    """Six layers of our neurons, time folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = MLP(784, CLASSES, (WIDTH,) * 6)

    def forward(self, x: Tensor) -> Tensor:
        return run(self.layers, x.expand(STEPS, -1, -1)).mean(0)


class Loop(Classifier):
    """A loop over snntorch's neurons, whose last membrane potential is read out."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (784, *(WIDTH,) * 4, CLASSES)
        self.connections = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.95) for _ in self.connections)

    def forward(self, x: Tensor) -> Tensor:
        membranes = [neuron.init_leaky() for neuron in self.neurons]
        read_out = []
        for _ in range(STEPS):
            spikes = x
            for index, (connection, neuron) in enumerate(zip(self.connections, self.neurons, strict=True)):
                spikes, membranes[index] = neuron(connection(spikes), membranes[index])
            read_out.append(membranes[-1])
        return torch.stack(read_out).mean(0)


NETWORKS: dict[str, Callable[[], Classifier]] = {"ours, 6 layers": Folded, "snntorch loop, 5 layers": Loop}
CASES: dict[str, tuple[float, bool]] = {
    "default": (1.0, False),
    "default, rescaled": (1.0, True),
    "x 0.01": (0.01, False),
    "x 0.01, rescaled": (0.01, True),
    "x 100": (100.0, False),
    "x 100, rescaled": (100.0, True),
}


def trained(
    make: Callable[[], Classifier], scale: float, rescales: bool, data: dict[str, tuple[Tensor, Tensor]], seed: int
) -> tuple[str, float]:
    """Return the worst verdict before training, or those before and after rescaling, and the final test accuracy."""
    torch.manual_seed(seed)
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    check = InitializationCheck(on_fail="rescale" if rescales else "warn")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[check],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(*data["train"]), 100, shuffle=True))
    x, y = data["test"]
    with torch.no_grad():
        right = torch.cat([module(part).argmax(1) for part in x.split(1000)]) == y
    measured = filter(None, (check.findings, check.rescaled_findings))
    return " > ".join(map(overall, measured)), right.double().mean().item()


def digits(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return inputs `[N, 784]` in [0, 1] and classes `[N]` of the training and the test data."""
    with np.load(path) as file:
        parts = {"train": ("train", slice(3000)), "test": ("test", slice(1000, None))}
        return {
            name: (
                torch.from_numpy(file[f"x_{split}"][part]).flatten(1) / 255,
                torch.from_numpy(file[f"y_{split}"][part]).long(),
            )
            for name, (split, part) in parts.items()
        }


def main() -> None:
    made = parser(__doc__, threads=(1,))
    made.add_argument("--mnist", required=True, help="an .npz with x_train, y_train, x_test, y_test")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = made.parse_args()
    torch.set_num_threads(options.threads[0])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = digits(options.mnist)
    results, rows = [], []
    for network, make in NETWORKS.items():
        for case, (scale, rescales) in CASES.items():
            found = [trained(make, scale, rescales, data, seed) for seed in options.seeds]
            verdicts, accuracies = zip(*found, strict=True)
            results.append({"network": network, "case": case, "verdicts": verdicts, "accuracies": accuracies})
            each = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
            rows.append([network, case, ", ".join(dict.fromkeys(verdicts)), f"{statistics.mean(accuracies):.3f}", each])
    show(["network", "weights", "verdict", "accuracy", "by seed"], rows, results, options.json)


if __name__ == "__main__":
    main()
