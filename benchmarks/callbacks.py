"""Cost of each monitor in an epoch of the main job, `recipes/sbnn_dvs.py`, at its default interval.

    python benchmarks/callbacks.py [--json results.json] [--rounds 2] [--threads 1] [--only energy raster ...]

Every round trains the job for five epochs without a monitor and with each of them, in turn, from the same seed. An
epoch is training and validation, the latter with 8 samples per prediction as in the recipe. The first five epochs train
without noise and are the cheapest. Five is the longest default interval of a monitor. Times are CPU times, medians of
interleaved rounds:

- "with / without": the five epochs with a monitor divided by those without any in the same round; "none again" shows
  the noise.
- "inside": the fraction of the five epochs that is spent in the monitor's own hooks, including those on layers. It does
  not include work that the monitor causes elsewhere, such as writing more logged values.
- "largest": the same fraction in the epoch where it is largest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from _timing import parser, show
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from tqdm import tqdm

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
EPOCHS = 5


class Clock(pl.Callback):
    """CPU seconds of each epoch, and those of them inside a monitor."""

    def __init__(self, monitor: pl.Callback | None) -> None:
        self.inside = 0.0
        self.started: list[tuple[float, float]] = []
        self.spent: list[tuple[float, float]] = []
        self._depth = 0
        for name in dir(monitor) if monitor is not None else ():
            if name.startswith("on_"):
                setattr(monitor, name, self.timed(getattr(monitor, name)))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started.append((time.process_time(), self.inside))

    def stop(self) -> None:
        """Record the end of an epoch."""
        start, inside = self.started[-1]
        self.spent.append((time.process_time() - start, self.inside - inside))

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the callable with its seconds recorded, including those of hooks that it registers on layers."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return call(*args, **kwargs)
            self._depth += 1
            start = time.process_time()
            try:
                with self._timed_hooks():
                    return call(*args, **kwargs)
            finally:
                self.inside += time.process_time() - start
                self._depth -= 1

        return timed

    @contextmanager
    def _timed_hooks(self) -> Iterator[None]:
        kinds = ("register_forward_hook", "register_forward_pre_hook")
        plain = {kind: getattr(nn.Module, kind) for kind in kinds}

        def timed(register: Callable[..., Any]) -> Callable[..., Any]:
            return lambda layer, hook, **options: register(layer, self.timed(hook), **options)

        try:
            for kind in kinds:
                setattr(nn.Module, kind, timed(plain[kind]))
            yield
        finally:
            for kind in kinds:
                setattr(nn.Module, kind, plain[kind])


class Stop(pl.Callback):
    """Callback that stops a clock; the last callback of the trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.stop()


def main_job() -> RecipeCLI:
    """Build the main job as its recipe does, with a new network and without writing files."""
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


def epochs(make: Callable[[], pl.Callback] | None, folder: str) -> list[tuple[float, float]]:
    """Return the CPU seconds of each epoch, and those inside the monitor."""
    job, monitor = main_job(), None if make is None else make()
    clock = Clock(monitor)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        callbacks=[clock, *([] if monitor is None else [monitor]), Stop(clock)],
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
    return clock.spent


def main() -> None:
    made = parser(__doc__, threads=(1,))
    made.set_defaults(rounds=2)
    made.add_argument("--only", nargs="+", choices=list(MONITORS), default=list(MONITORS))
    options = made.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    contenders = {"none": None, "none again": None, **{name: MONITORS[name] for name in options.only}}
    results, rows = [], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in contenders}
        for _ in tqdm(range(options.rounds), desc="rounds"):
            for name, monitor in contenders.items():
                with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                    found[name].append(epochs(monitor, folder))
        totals = {name: [sum(spent for spent, _ in each) for each in rounds] for name, rounds in found.items()}
        for name, rounds in found.items():
            ratios = [mine / plain for mine, plain in zip(totals[name], totals["none"], strict=True)]
            inside = [sum(part for _, part in each) / sum(spent for spent, _ in each) for each in rounds]
            largest = [max(part / spent for spent, part in each) for each in rounds]
            medians = [statistics.median(values) for values in (totals[name], ratios, inside, largest)]
            results.append({"threads": threads, "monitor": name, "epochs": rounds, "ratio": medians[1]})
            cells = (f"{medians[0]:.1f}", f"{medians[1]:.3f}", *(f"{100 * share:.2f} %" for share in medians[2:]))
            rows.append([str(threads), name, *cells])
    show(["threads", "monitor", "5 epochs, s", "with / without", "inside", "largest"], rows, results, options.json)


if __name__ == "__main__":
    main()
