"""The command of a recipe: runs it, and ends with a message and a status that say how it ended."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Mapping

from lightning.pytorch.plugins.environments import LightningEnvironment

from lightning_snn.cli import slurm
from lightning_snn.cli.catalog import invocation
from lightning_snn.cli.folders import CONFIG, LAST_CHECKPOINT
from lightning_snn.cli.interrupts import CTRL_C, is_ctrl_c
from lightning_snn.cli.options import Options
from lightning_snn.cli.recipe import RecipeCLI
from lightning_snn.cli.stopping import Stopped, StopSignals
from lightning_snn.cpu import keep_freed_memory

# messages that Lightning logs on every run and that need no action
_IGNORED_MESSAGES = ("💡", "TPU available", "Loading `train_dataloader` to estimate", "`weights_only` was not set")
_IGNORED_WARNINGS = (
    ".*does not have many workers",  # frames are in memory or mapped, so workers would only cost time
    ".*smaller than the logging interval",
    ".*LeafSpec",
    "Checkpoint directory .* exists and is not empty",  # a resumed run
)


def main(
    recipe: str,
    defaults: Options,
    presets: Mapping[str, Options] | None = None,
    variants: Mapping[str, Options] | None = None,
) -> RecipeCLI:
    """Run a recipe with the options of the command line: train, test the best checkpoint on validation data, report.

    Ctrl-C ends the run at once; its last checkpoint is kept. SIGTERM, and in a batch job of SLURM the signal SIGUSR1,
    end training after a batch whose state is saved. On SIGUSR1, SLURM is then asked to start the job again. If SLURM
    starts a job again, for whatever reason, the same command goes on in the same folder.

    Args:
        recipe: path of the script, `__file__`; its stem is part of the folder of the run and a tag in W&B.
        defaults: options and their values, such as ``{"data": "Gestures", "trainer.max_epochs": 30}``.
        presets: default options per class name, such as ``{"NMNIST": {"data.size": 34, "trainer.max_epochs": 20}}``.
            If the class is chosen, they override `defaults`, and the user's options override them.
        variants: default options per variant, which ``--NAME true`` selects, such as
            ``{"small": {"network": "ResNet", "network.blocks": 1}}``. They override `presets`, and the user's options
            override them; options of a class are ignored if the user chooses another class.

    Returns:
        The command line, with its `trainer`, `model`, `datamodule` and `report`.

    Raises:
        SystemExit: with status 2 for bad options; with 128 plus the number of the signal, so 130 after Ctrl-C and
            143 after SIGTERM, after a message on how to resume.
    """
    prepare_process()
    cli = None
    with StopSignals() as signals:
        try:
            cli = RecipeCLI(recipe, defaults, presets or {}, variants or {}, signals)
            cli.run()
        except (KeyboardInterrupt, SystemExit) as stop:
            if not is_interruption(stop):
                raise
            sys.exit(_end(cli, stop))
    return cli


def prepare_process() -> None:
    """Keep freed memory, and leave out messages of Lightning that need no action."""
    keep_freed_memory()
    ignore_messages()


def ignore_messages() -> None:
    """Leave out messages and warnings of Lightning that need no action, for the rest of this process."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_relevant)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def is_interruption(stop: BaseException) -> bool:
    """Return whether a signal or Ctrl-C ended a run; then Ctrl-C is ignored, so that no message is lost to another."""
    interrupted = is_ctrl_c(stop) or isinstance(stop, Stopped)
    if interrupted and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return interrupted


def exit_status(stop: BaseException) -> int:
    """Return the exit status of a process that a signal or Ctrl-C ended, as shells count."""
    return 128 + stop.signal if isinstance(stop, Stopped) else CTRL_C


def how_to_resume(cli: RecipeCLI | None, saved: bool = False) -> str:
    """Return the message for a user whose run was stopped.

    Args:
        cli: the command line; None if the options were not yet read.
        saved: whether the state after the last batch was saved.
    """
    if cli is None:
        return "Stopped before the run started."
    last = cli.output / LAST_CHECKPOINT
    if not last.is_file():
        folder = f"remove {cli.output} and " if (cli.output / CONFIG).is_file() else ""
        return f"Stopped before the first checkpoint; {folder}start again with the same command."
    kept = "after the last batch" if saved else "starting the unfinished epoch again"
    command = shlex.join([*invocation(), "--ckpt_path", str(last)])
    return f"Stopped; the last checkpoint is kept. Resume with the same options, {kept}, with\n  {command}"


def _end(cli: RecipeCLI | None, stop: BaseException) -> int:
    """Say how a stopped run can be resumed, and return the exit status of this process."""
    trainer = getattr(cli, "trainer", None)
    is_first = trainer is None or trainer.is_global_zero
    saved = isinstance(stop, Stopped) and stop.saved
    if is_first:
        print("\n" + how_to_resume(cli, saved), file=sys.stderr)
    if not isinstance(stop, Stopped):
        return exit_status(stop)
    if is_first and stop.signal == slurm.requeue_signal():
        print(slurm.requeue(), file=sys.stderr)
    if trainer is None:
        return exit_status(stop)
    strategy = trainer.strategy
    if is_first and strategy.launcher is not None:
        strategy.launcher.kill(signal.SIGTERM)
    # the first process, which started the others, kills everything if one of them fails
    is_started = isinstance(getattr(strategy, "cluster_environment", None), LightningEnvironment)
    return exit_status(stop) if is_first or not is_started else 0


def _is_relevant(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IGNORED_MESSAGES)
