"""Table of the callbacks under test: a new callback adds a row, and every contract is tested on third-party modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl

from lightning_snn.callbacks import (
    ConformalSets,
    EnergyMonitor,
    ExactResume,
    FiringRateMonitor,
    GradientAlignment,
    HardwareConstraints,
    HardwareFineTuning,
    InitializationCheck,
    MembraneTrace,
    PassScores,
    PredictionWriter,
    Report,
    SpikeRaster,
    StateGuard,
    UncertaintyLogger,
)
from lightning_snn.callbacks.predictions import FURTHER_SCORES
from tests.support.third_party import Ours, SnntorchLoop, ThirdPartyModule


@dataclass(frozen=True)
class CallbackRow:
    """Row of a callback under test.

    Attributes:
        name: name in the tests.
        make: function that builds the callback, which may write into a folder; None leaves the choice to it.
        another: function that builds a second one for the same run; None uses `make`.
        module: module for tests that need only one.
        keys: prefix of the names of its metrics; empty if it logs none.
        trains_from: first epoch in which it changes training; None if it never does.
    """

    name: str
    make: Callable[[Path | None], pl.Callback]
    another: Callable[[Path | None], pl.Callback] | None = None
    module: type[ThirdPartyModule] = SnntorchLoop
    keys: str = ""
    trains_from: int | None = None


CALLBACKS = (
    CallbackRow(
        "energy_monitor",
        lambda folder: EnergyMonitor(every_n_batches=2, constants="horowitz_float32", folder=folder),
        lambda folder: EnergyMonitor(folder=folder, name="another"),
        keys="energy/",
    ),
    CallbackRow("exact_resume", lambda folder: ExactResume()),
    CallbackRow(
        "firing_rate_monitor",
        lambda folder: FiringRateMonitor(every_n_batches=2, folder=folder),
        lambda folder: FiringRateMonitor(folder=folder, name="another"),
        keys="firing_rates/",
    ),
    CallbackRow(
        "gradient_alignment",
        lambda folder: GradientAlignment(every_n_steps=3),
        lambda folder: GradientAlignment(every_n_steps=2, name="another"),
        module=Ours,
        keys="alignment/",
    ),
    CallbackRow(
        "hardware_fine_tuning",
        lambda folder: HardwareFineTuning(HardwareConstraints(weight_bits=2), start_epoch=1),
        trains_from=1,
        keys="hardware/",
    ),
    CallbackRow("initialization_check", lambda folder: InitializationCheck(), keys="initialization/"),
    CallbackRow(
        "membrane_trace",
        lambda folder: MembraneTrace(folder=folder, every_n_epochs=1),
        lambda folder: MembraneTrace(folder=folder, name="another"),
        keys="membrane/",
    ),
    CallbackRow("pass_scores", lambda folder: PassScores()),
    CallbackRow(
        "prediction_writer",
        lambda folder: PredictionWriter(folder),
        lambda folder: PredictionWriter(folder, name="another"),
    ),
    CallbackRow("report", lambda folder: Report(folder or "."), keys="test/"),
    CallbackRow(
        "spike_raster",
        lambda folder: SpikeRaster(every_n_epochs=1, folder=folder),
        lambda folder: SpikeRaster(folder=folder, name="another"),
    ),
    CallbackRow("state_guard", lambda folder: StateGuard()),
    CallbackRow(
        "uncertainty_logger",
        lambda folder: UncertaintyLogger(folder=folder, scores=FURTHER_SCORES, conformal=ConformalSets()),
        lambda folder: UncertaintyLogger(folder=folder, name="another"),
        keys="uncertainty/",
    ),
)
