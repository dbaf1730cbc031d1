"""Which callbacks are enrolled: a new one adds a row and is put through every promise on modules that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_snn.callbacks import (
    GradientAlignment,
    HardwareConstraints,
    HardwareFineTuning,
    InitializationCheck,
    Report,
    UncertaintyLogger,
)
from tests.contract.foreign import STEPS, Foreign, Ours, SnntorchLoop


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
        refuses: modules that it refuses, by their names, and why.
        exceptions: promises that it does not keep, and why.
    """

    name: str
    make: Callable[[Path], pl.Callback]
    another: Callable[[Path], pl.Callback] | None = None
    module: type[Foreign] = SnntorchLoop
    keys: str = ""
    trains_from: int | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    exceptions: Mapping[str, str] = field(default_factory=dict)


def over_time(batch: Any) -> Any:
    """What rates are measured on: a sequence of one constant input."""
    return batch[0].expand(STEPS, -1, -1), batch[1]


RATES = "rates are known of networks with time folded into the batch"
REFUSED_BY_RATES = dict.fromkeys(("SnntorchLoop", "SnntorchHidden", "SpikingJellySingle", "SpikingJellyMulti"), RATES)

CALLBACKS = (
    CallbackRow(
        "gradient_alignment",
        lambda folder: GradientAlignment(every_n_steps=3, read_batch=over_time),
        module=Ours,
        keys="alignment/",
        refuses=REFUSED_BY_RATES,
    ),
    CallbackRow(
        "hardware_fine_tuning",
        lambda folder: HardwareFineTuning(HardwareConstraints(weight_bits=2), start_epoch=1),
        trains_from=1,
        keys="hardware/",
        exceptions={"several_instances_share_a_run": "weights of a run are those of one chip"},
    ),
    CallbackRow("initialization_check", lambda folder: InitializationCheck(), keys="initialization/"),
    CallbackRow("report", Report, keys="test/"),
    CallbackRow(
        "uncertainty_logger",
        lambda folder: UncertaintyLogger(folder=folder),
        lambda folder: UncertaintyLogger(folder=folder, name="another"),
        keys="uncertainty/",
    ),
)
