"""One run of a comparison: refused by its rule, started, continued, or left as it is."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.cli.comparison.record import RECORD, RunRecord
from lightning_snn.cli.folders import CONFIG, LAST_CHECKPOINT, FolderTaken, lock
from lightning_snn.cli.options import Options
from lightning_snn.cli.recipe import RecipeCLI
from lightning_snn.cli.resume import RESULTS
from lightning_snn.cli.stopping import StopSignals
from lightning_snn.methods import Progress, Step
from lightning_snn.metrics.memory import peak_bytes


class Refused(ValueError):
    """A rule cannot train this network on these data; the message says why."""


class ComparedRun(RecipeCLI):
    """Run that is tested with its last weights, and whose rule may refuse its network or its data.

    Args:
        recipe: see `RecipeCLI`.
        defaults: see `RecipeCLI`.
        presets: see `RecipeCLI`.
        group: group of all runs of the comparison in W&B.
        signals: see `RecipeCLI`.
        arguments: options of the run.
    """

    keeps_best = False

    def __init__(
        self,
        recipe: str,
        defaults: Options,
        presets: Mapping[str, Options],
        group: str,
        signals: StopSignals,
        arguments: Sequence[str],
    ) -> None:
        self.wandb_group = group
        super().__init__(recipe, defaults, presets, signals=signals, arguments=arguments)

    def refuse(self, error: Exception) -> NoReturn:
        """Raise the error of an option: `FolderTaken` as it is, and any other one as `Refused`."""
        if isinstance(error, FolderTaken):
            raise error
        raise Refused(str(error)) from error

    @property
    def has_own_optimizer(self) -> bool:
        """True if the rule brings its own optimizer, so no learning rate is to be chosen."""
        return self.model.method.configure_optimizer(self.model.network) is not None

    def peak_memory(self) -> int:
        """Return the memory that a training step allocates at its peak, in bytes, beyond that before it.

        It is measured on copies of network and method, on the first training batch, and changes nothing.

        Raises:
            Refused: if the rule cannot make the step.
        """
        data, device = self.datamodule, self.trainer.strategy.root_device
        with isolate_rng():
            data.prepare_data()
            data.setup("fit")
            x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
            x, y = x.to(device), y.to(device)
            network, method = (copy.deepcopy(part).to(device) for part in (self.model.network, self.model.method))
            method.progress = Progress(train_size=len(data.train_set))

            def objective() -> Tensor:
                step: Step = method.penalized_step(network, x, y)
                return step.objective

            try:
                method.check_time_steps(len(x))
                objective().backward()  # the first step may check more than later ones, and it creates the gradients
            except ValueError as error:
                self.refuse(error)
            return peak_bytes(lambda: objective().backward(), device)


def is_trained(folder: Path) -> bool:
    """Return whether a run has used its budget."""
    return (folder / RECORD).is_file()


def is_tested(folder: Path) -> bool:
    """Return whether a run has been tested."""
    return is_trained(folder) and (folder / RESULTS).is_file()


def arguments_to_go_on(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that start a run in a folder, or that continue the one that it holds.

    A run that was killed before its first checkpoint is removed and starts again.

    Args:
        folder: folder of the run.
        arguments: those of a new run.

    Raises:
        FolderTaken: if another process writes the run.
    """
    if (folder / CONFIG).is_file():
        held = lock(folder)
        if held is not None:
            held.close()
        if (folder / LAST_CHECKPOINT).is_file():
            return ["--ckpt_path", str(folder / LAST_CHECKPOINT)]
        shutil.rmtree(folder)
    return [*arguments, "--output", str(folder)]


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as they are given on a command line.

    Example:
        >>> as_arguments({"method": "RateBackprop", "method.window": 4, "network.hidden": [8]})
        ['--method', 'RateBackprop', '--method.window', '4', '--network.hidden', '[8]']
    """
    pairs = ((f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in options.items())
    return [part for pair in pairs for part in pair]


def recording() -> list[str]:
    """Return the arguments that add the record to the callbacks of a run."""
    return ["--trainer.callbacks+", f"{RunRecord.__module__}.{RunRecord.__qualname__}"]
