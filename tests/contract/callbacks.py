"""Which callbacks are enrolled: a new one adds a row and is put through every promise on modules that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl

from lightning_snn.callbacks import (
    EnergyMonitor,
    FiringRateMonitor,
    GradientAlignment,
    HardwareConstraints,
    HardwareFineTuning,
    InitializationCheck,
    MembraneTrace,
    Report,
    SpikeRaster,
    StateGuard,
    UncertaintyLogger,
)
from tests.contract.foreign import Foreign, Ours, SnntorchLoop


@dataclass(frozen=True)
class CallbackRow:
    """A callback as it is put to the test.

    Attributes:
        name: what the tests call it.
        make: builds the callback, which may write into a folder.
        another: builds a second one for the same run; None builds the same.
        module: on which it is tested where one module is enough.
        keys: what the names of its metrics begin with; empty if it logs none.
        trains_from: the epoch from which on it takes part in training; None if it never does.
        exceptions: promises that it does not keep, and why.
    """

    name: str
    make: Callable[[Path], pl.Callback]
    another: Callable[[Path], pl.Callback] | None = None
    module: type[Foreign] = SnntorchLoop
    keys: str = ""
    trains_from: int | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict)


CALLBACKS = (
    CallbackRow(
        "energy_monitor",
        lambda folder: EnergyMonitor(every_n_batches=2, constants="horowitz_float32", folder=folder),
        lambda folder: EnergyMonitor(folder=folder, name="another"),
        keys="energy/",
    ),
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
        exceptions={"several_instances_share_a_run": "weights of a run are those of one chip"},
    ),
    CallbackRow("initialization_check", lambda folder: InitializationCheck(), keys="initialization/"),
    CallbackRow(
        "membrane_trace",
        lambda folder: MembraneTrace(folder=folder, every_n_epochs=1),
        lambda folder: MembraneTrace(folder=folder, name="another"),
        keys="membrane/",
    ),
    CallbackRow("report", Report, keys="test/"),
    CallbackRow(
        "spike_raster",
        lambda folder: SpikeRaster(every_n_epochs=1, folder=folder),
        lambda folder: SpikeRaster(folder=folder, name="another"),
    ),
    CallbackRow("state_guard", lambda folder: StateGuard()),
    CallbackRow(
        "uncertainty_logger",
        lambda folder: UncertaintyLogger(folder=folder),
        lambda folder: UncertaintyLogger(folder=folder, name="another"),
        keys="uncertainty/",
    ),
)
