"""Verdicts of `InitializationCheck` on twenty networks, against their accuracy as they are and rescaled.

    python benchmarks/initialization.py --mnist mnist.npz --nmnist nmnist_events_small.npz --folder results
        [--seeds 0 1 2] [--networks "tutorial 6" VGG] [--json results.json]

The networks are those of `_zoo.py`: 17 on the first 600 digits of MNIST, and 3 on the first 600 recordings of N-MNIST
in 6 frames. Each is trained for 4 epochs in batches of 25, as it is and with `on_fail="rescale"`. Accuracy is that on
500 other training digits (200 recordings), "val", with which the bands of the verdicts were chosen, and on 1,000 test
digits (100 recordings), "test". Where the check rescales nothing, or undoes it, the second run is the first.

A verdict is wrong if it is "fail" for a network that trains above 0.3 and to within 5 points of its rescaled self, or
"ok" for one that stays below 0.2. Every network and seed is one result in the folder; those that are there already are
not computed again, so several processes may share the work.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from _timing import show
from _zoo import ZOO, Classifier
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import InitializationCheck
from lightning_snn.callbacks.initialization import overall

EPOCHS, BATCH, FRAMES, DURATION = 4, 25, 6, 315_000
Data = dict[str, tuple[Tensor, Tensor]]


def digits(path: str) -> Data:
    """Return images `[N, 1, 28, 28]` in [0, 1] and classes `[N]` for training, validation and test."""
    parts = {"train": ("train", 0, 600), "val": ("train", 50_000, 50_500), "test": ("test", 0, 1000)}
    with np.load(path) as file:
        return {
            name: (
                torch.from_numpy(file[f"x_{split}"][start:stop])[:, None].float() / 255,
                torch.from_numpy(file[f"y_{split}"][start:stop]).long(),
            )
            for name, (split, start, stop) in parts.items()
        }


def events(path: str) -> Data:
    """Return binary frames `[N, FRAMES, 2, 34, 34]` and classes `[N]` for training, validation and test."""
    found = {}
    with np.load(path) as file:
        for split in ("train", "test"):
            counts = np.diff(file[f"{split}_offsets"])
            sample = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
            x, y, p, t = (torch.from_numpy(file[f"{split}_{name}"].astype(np.int64)) for name in "xypt")
            frames = torch.zeros(len(counts), FRAMES, 2, 34, 34)
            frames[sample, (t * FRAMES // DURATION).clamp(max=FRAMES - 1), p, y, x] = 1
            found[split] = frames, torch.from_numpy(file[f"{split}_labels"]).long()
    x, y = found["train"]
    return {"train": (x[:600], y[:600]), "val": (x[800:], y[800:]), "test": found["test"]}


class StopUnlessRescaled(pl.Callback):
    """End a fit whose weights were left as they are, because it would be that without rescaling, to the last bit."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        check = next(each for each in trainer.callbacks if isinstance(each, InitializationCheck))
        trainer.should_stop = check.on_fail == "rescale" and not check.rescaled_findings


def trained(name: str, on_fail: str, data: Data, seed: int) -> dict[str, Any]:
    """Return the verdict before training and the accuracies after it, and what a rescaling did."""
    torch.manual_seed(seed)
    module = ZOO[name].make()
    check = InitializationCheck(on_fail=on_fail)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[check, StopUnlessRescaled()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(seed)
    trainer.fit(module, DataLoader(TensorDataset(*data["train"]), BATCH, shuffle=True))
    failed = sorted({f"{each.quantity} of {each.layer}" for each in check.findings if each.verdict == "fail"})
    return {
        "verdict": overall(check.findings),
        "failed": failed,
        "tried": any(each.quantity == "trial_loss" for each in check.findings),
        "rescaled verdict": overall(check.rescaled_findings) if check.rescaled_findings else None,
        **{part: accuracy(module, *data[part]) for part in ("val", "test")},
    }


@torch.no_grad()
def accuracy(module: Classifier, x: Tensor, y: Tensor) -> float:
    """Return the fraction of samples whose largest score is that of their class."""
    module.eval()
    torch.manual_seed(0)
    return (torch.cat([module.scores(part).argmax(1) for part in x.split(500)]) == y).double().mean().item()


def compared(name: str, data: Data, seed: int) -> dict[str, Any]:
    """Return the results of a network as it is, and rescaled if it fails."""
    plain = trained(name, "warn", data, seed)
    rescaled = trained(name, "rescale", data, seed) if plain["tried"] else plain
    if rescaled["rescaled verdict"] is None:
        rescaled = plain
    return {"network": name, "seed": seed, "plain": plain, "rescaled": rescaled}


def is_wrong(result: dict[str, Any], part: str) -> bool:
    """Return whether a verdict contradicts the accuracies on a part of the data."""
    verdict, plain, rescaled = result["plain"]["verdict"], result["plain"][part], result["rescaled"][part]
    return (verdict == "fail" and plain > 0.3 and plain > rescaled - 0.05) or (verdict == "ok" and plain < 0.2)


def table(results: list[dict[str, Any]], part: str) -> list[list[str]]:
    """Return a row for each network: verdicts, mean accuracies on a part of the data, and wrong verdicts."""
    rows = []
    for name in ZOO:
        found = [each for each in results if each["network"] == name]
        if not found:
            continue
        plain, rescaled = ([each[run][part] for each in found] for run in ("plain", "rescaled"))
        rows.append(
            [
                name,
                " ".join(each["plain"]["verdict"] for each in found),
                f"{statistics.mean(plain):.3f}",
                f"{statistics.mean(rescaled):.3f}",
                f"{min(after - before for before, after in zip(plain, rescaled, strict=True)):+.3f}",
                str(sum(each["rescaled"]["rescaled verdict"] is not None for each in found)),
                str(sum(is_wrong(each, part) for each in found)),
            ]
        )
    return rows


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--mnist", required=True, help="an .npz with x_train, y_train, x_test, y_test")
    made.add_argument("--nmnist", help="an .npz with the events of N-MNIST; without it its networks are left out")
    made.add_argument("--folder", required=True, help="a folder for the results, one file for each network and seed")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--networks", nargs="+", default=[""], help="only networks whose name has one of these parts")
    made.add_argument("--json", help="write all results to this file")
    options = made.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = {"digits": digits(options.mnist)} | ({"events": events(options.nmnist)} if options.nmnist else {})
    results = []
    for seed in options.seeds:
        for index, name in enumerate(ZOO):
            if ZOO[name].data not in data or not any(part in name for part in options.networks):
                continue
            path = folder / f"{index:02d}_{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(compared(name, data[ZOO[name].data], seed), indent=2))
            results.append(json.loads(path.read_text()))
            plain, rescaled = results[-1]["plain"], results[-1]["rescaled"]
            print(f"seed {seed}, {name}: {plain['verdict']}, {plain['val']:.3f} -> {rescaled['val']:.3f}", flush=True)
    for part in ("val", "test"):
        heading = ["network", "verdicts", f"{part} accuracy", "rescaled", "smallest gain", "rescaled in", "wrong"]
        show(heading, table(results, part), results, options.json)


if __name__ == "__main__":
    main()
