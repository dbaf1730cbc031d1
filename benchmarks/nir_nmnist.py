"""A network of another library, read from a NIR file: accuracy on N-MNIST as it is, and after one epoch of fine-tuning.

    python benchmarks/nir_nmnist.py --nir cnn_sinabs.nir --nmnist nmnist_events_small.npz
    python benchmarks/nir_nmnist.py --nir cnn_sinabs.nir --nmnist nmnist_events_small.npz --tune rate bayes
    python benchmarks/nir_nmnist.py --nir cnn_sinabs.nir --nmnist nmnist_events_small.npz --tune rate --validation

cnn_sinabs.nir is the IF network for N-MNIST of the NIR paper (Pedersen et al. 2024). Frames hold the counts of events
within 1 ms, 300 of them from the first event on; the class is that of most output spikes. sinabs subtracts the
threshold from the membrane potential, and the file says that it is set to zero: both are tested on the test recordings.
Fine-tuning: one epoch with reset "zero" on the training recordings but a tenth, Adam, batches of 10, one seed.
--validation tests on that tenth, by which the learning rate was chosen.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_snn import SpikingModule, run
from lightning_snn.convert import from_nir
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import split_stratified
from lightning_snn.methods import Method, RateBackprop, SpikingBayes

STEPS, SIDE, CLASSES = 300, 34, 10


class Recordings(Dataset):
    """Recordings of N-MNIST as frames `[300, 2, 34, 34]`, channel first, then y before x.

    Args:
        path: file with ``x, y, p, t`` of all events, and ``offsets`` and ``labels``, per split.
        split: "train" or "test".
    """

    def __init__(self, path: Path, split: str) -> None:
        with np.load(path) as file:
            self.x, self.y, self.p, self.t = (file[f"{split}_{name}"] for name in "xypt")
            self.offsets, self.labels = file[f"{split}_offsets"], file[f"{split}_labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        times = self.t[part].astype(np.int64)
        steps = (times - times.min()) // 1000
        kept = steps < STEPS
        frames = np.zeros((STEPS, 2, SIDE, SIDE), np.float32)
        np.add.at(frames, (steps[kept], self.p[part][kept], self.y[part][kept], self.x[part][kept]), 1)
        return torch.from_numpy(frames), int(self.labels[index])


def method_named(name: str, kappa: float) -> Method:
    if name == "rate":
        return RateBackprop()
    return SpikingBayes(keep_weights=True, kappa=kappa, kl_weight=1e-3, warmup_epochs=0)


def loader(data: Dataset, shuffle: bool = False) -> DataLoader:
    def time_first(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        frames, labels = zip(*samples, strict=True)
        return torch.stack(frames, 1), torch.tensor(labels)

    return DataLoader(data, 10, shuffle, collate_fn=time_first)


def scores(network: torch.nn.Module, data: Dataset) -> str:
    """Return accuracy, cross-entropy of the counts of output spikes in nats, and output spikes per recording."""
    with torch.no_grad():
        pairs = [(run(network, x).sum(0), y) for x, y in loader(data)]
    counts, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    right, loss = (counts.argmax(1) == labels).float().mean().item(), F.cross_entropy(counts, labels).item()
    return f"{right:>8.4f}  {loss:>13.4f}  {counts.sum(1).mean().item():>13.1f}"


def fine_tune(options: argparse.Namespace, name: str, train: Dataset, test: Dataset) -> str:
    """Return the scores after an epoch."""
    pl.seed_everything(options.seed, verbose=False)
    method = method_named(name, options.kappa)
    network = from_nir(options.nir, reset="zero")
    module = SpikingModule(network, method, CLASSES, readout="sum", learning_rate=options.learning_rate)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, **quiet).fit(module, loader(train, True))
    return scores(module.network.eval(), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nir", type=Path, required=True, help="file of the network")
    parser.add_argument("--nmnist", type=Path, required=True, help="recordings in one file")
    parser.add_argument("--tune", nargs="+", default=[], choices=("rate", "bayes"))
    parser.add_argument("--learning_rate", type=float, default=1e-5, help="of the fine-tuning")
    parser.add_argument("--kappa", type=float, default=0.05, help="width of the posterior of SpikingBayes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="test on held-out training recordings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    recordings = Recordings(options.nmnist, "train")
    kept, held_out = split_stratified(recordings.labels, 0.1, seed=0)
    train = torch.utils.data.Subset(recordings, kept.tolist())
    test: Dataset = Recordings(options.nmnist, "test")
    if options.validation:
        test = torch.utils.data.Subset(recordings, held_out.tolist())
    print(f"{'network':<24}  {'accuracy':>8}  {'cross-entropy':>13}  {'output spikes':>13}")
    for reset in ("subtract", "zero"):
        print(f"reset {reset:<18}  {scores(from_nir(options.nir, reset=reset), test)}", flush=True)
    for name in options.tune:
        print(f"{name + ', one epoch':<24}  {fine_tune(options, name, train, test)}", flush=True)


if __name__ == "__main__":
    main()
