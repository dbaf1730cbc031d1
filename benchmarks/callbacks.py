"""What each monitor adds to an epoch of the main job, `recipes/sbnn_dvs.py`, at its default interval.

    python benchmarks/callbacks.py [--json results.json] [--rounds 5] [--threads 1] [--only energy raster ...]

Every round trains the job anew for two epochs without a monitor and with each of them, in turn, from the same seed. An
epoch is training and validation, the latter by 8 samples a prediction as the recipe has it. What is done once a run,
such as the check of an initialisation, falls into the first epoch; the second is one of many. Times are those of the
processor, medians of interleaved rounds, given as a ratio to the same round's run without any monitor: 1.03 is an
overhead of 3 %. "none" is run twice, so that the ratio of the two tells what is noise.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from _timing import parser, show
from lightning.pytorch.loggers import CSVLogger

from lightning_snn.callbacks import (
    EnergyMonitor,
    FiringRateMonitor,
    InitializationCheck,
    MembraneTrace,
    SpikeRaster,
    StateGuard,
    UncertaintyLogger,
)
from lightning_snn.cli import RecipeCLI

MONITORS: dict[str, Callable[[], pl.Callback]] = {
    "energy": EnergyMonitor,
    "firing_rates": FiringRateMonitor,
    "initialization_check": InitializationCheck,
    "membrane_trace": MembraneTrace,
    "spike_raster": SpikeRaster,
    "state_guard": StateGuard,
    "uncertainty": UncertaintyLogger,
}
EPOCHS = 2


class Clock(pl.Callback):
    """Seconds of the processor from the begin of an epoch to its end, those of the callbacks between included."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started.append(time.process_time())


class Stop(pl.Callback):
    """The other end of a clock: the last callback of a trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.ended.append(time.process_time())


def main_job() -> RecipeCLI:
    """The main job as its recipe builds it, with a fresh network; nothing is written."""
    path = Path(__file__).resolve().parents[1] / "recipes" / "sbnn_dvs.py"
    spec = importlib.util.spec_from_file_location("sbnn_dvs", path)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    given, sys.argv = sys.argv, [str(path), "--trainer.logger", "false"]
    try:
        return RecipeCLI(str(path), recipe.DEFAULTS, recipe.PRESETS)
    finally:
        sys.argv = given


def epochs(monitor: Callable[[], pl.Callback] | None, folder: str) -> list[float]:
    """Seconds of the processor that each epoch takes."""
    job, clock = main_job(), Clock()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        callbacks=[clock, *([] if monitor is None else [monitor()]), Stop(clock)],
        logger=CSVLogger(folder),
        default_root_dir=folder,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(job.model, job.datamodule)
    return [end - start for start, end in zip(clock.started, clock.ended, strict=True)]


def main() -> None:
    made = parser(__doc__, threads=(1,))
    made.set_defaults(rounds=5)
    made.add_argument("--only", nargs="+", choices=list(MONITORS), default=list(MONITORS))
    options = made.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    contenders = {"none": None, "none again": None, **{name: MONITORS[name] for name in options.only}}
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, monitor in contenders.items():
                with tempfile.TemporaryDirectory() as folder:
                    seconds[name].append(epochs(monitor, folder))
        for name, taken in seconds.items():
            ratios = [
                [a / b for a, b in zip(mine, plain, strict=True)]
                for mine, plain in zip(taken, seconds["none"], strict=True)
            ]
            median = [statistics.median(column) for column in zip(*ratios, strict=True)]
            spent = [statistics.median(column) for column in zip(*taken, strict=True)]
            results.append({"threads": threads, "monitor": name, "seconds": spent, "ratio": median, "ratios": ratios})
            rows.append([str(threads), name, *(f"{value:.2f}" for value in spent), *(f"{v:.3f}" for v in median)])
    show(["threads", "monitor", "first s", "second s", "first / none", "second / none"], rows, results, options.json)


if __name__ == "__main__":
    main()
