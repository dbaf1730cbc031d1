"""The run of a checkpoint: its folder, its options, and where a resumed run is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_snn.cli import slurm
from lightning_snn.cli.checkpoints import BEST
from lightning_snn.cli.choices import given_values
from lightning_snn.cli.folders import CONFIG, LAST_CHECKPOINT, refuse_existing
from lightning_snn.cli.reading import read_options
from lightning_snn.command_line import flat_options
from lightning_snn.files import copy_file

RESULTS, WANDB_ID = "metrics.json", "wandb_run_id.txt"
# of the command itself, and not of what it trains
_NOT_COMPARED = ("config", "ckpt_path", "output")


class Place(NamedTuple):
    """Place of a run on disk.

    Attributes:
        folder: its folder.
        message: what to print about it.
        goes_on: whether it goes on in the folder of an earlier run.
    """

    folder: Path
    message: str
    goes_on: bool = False


class Run(NamedTuple):
    """A run on disk.

    Attributes:
        folder: its folder, which holds `config.yaml`.
        checkpoint: the checkpoint from which to resume.
    """

    folder: Path
    checkpoint: Path

    @property
    def config(self) -> Path:
        """Options of the run."""
        return self.folder / CONFIG

    @property
    def finished(self) -> bool:
        """True if the run was tested."""
        return (self.folder / RESULTS).is_file()

    def goes_on_in_place(self, changes: Mapping[str, Any]) -> bool:
        """Return whether a resumed run is the same one: unfinished, from its last checkpoint, and with its options."""
        last = (self.folder / LAST_CHECKPOINT).resolve()
        return not changes and not self.finished and self.checkpoint.resolve() == last

    def copy_identity(self, output: Path) -> None:
        """Copy the best checkpoint and the name of the W&B run to the folder in which the same training goes on."""
        for name in (f"checkpoints/{BEST}.ckpt", WANDB_ID):
            if (self.folder / name).is_file():
                copy_file(self.folder / name, output / name)


def run_of_checkpoint(path: Path) -> Run | None:
    """Return the run to which a checkpoint belongs; None if there is no `config.yaml` beside it or one folder above."""
    for folder in (path.parent, path.parent.parent):
        if path.is_file() and (folder / CONFIG).is_file():
            return Run(folder, path)
    return None


def resumed_run(arguments: Sequence[str]) -> Run | None:
    """Return the run that the command line resumes by ``--ckpt_path``."""
    path = dict(given_values(arguments, ["ckpt_path"])).get("ckpt_path")
    return run_of_checkpoint(Path(path)) if isinstance(path, str) else None


def with_options_of(run: Run | None, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that take a run's options as defaults, which the given arguments override."""
    return [*arguments] if run is None else ["--config", str(run.config), *arguments]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ between two configurations, by dotted name.

    Example:
        >>> differences({"trainer": {"max_epochs": 2}, "output": "a"}, {"trainer": {"max_epochs": 3}, "output": "b"})
        {'trainer.max_epochs': (2, 3)}
    """
    old, new = flat_options(before), flat_options(after)
    names = [name for name in dict.fromkeys((*old, *new)) if name.partition(".")[0] not in _NOT_COMPARED]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def where_resumed(run: Run, changes: Mapping[str, Any], output: Path | None, new_folder: Callable[[], Path]) -> Place:
    """Return where a resumed run is kept.

    Args:
        run: the run that is resumed.
        changes: options that differ from those of the run.
        output: folder that the user chose.
        new_folder: returns a new folder.

    Raises:
        ValueError: if there is nothing to resume, or the chosen folder exists and is not that of the run.
    """
    if run.goes_on_in_place(changes) and (output is None or output.resolve() == run.folder.resolve()):
        return Place(run.folder, f"The run in {run.folder} goes on with its options.", goes_on=True)
    if run.finished and not changes:
        raise ValueError(
            f"Expected option --ckpt_path to be a checkpoint of an unfinished run, but the run in {run.folder} is "
            "finished. Give options that continue it, such as --trainer.max_epochs"
        )
    if output is not None:
        refuse_existing(output)
    folder = output or new_folder()
    listed = "".join(f"\n  --{name} {new} instead of {old}" for name, (old, new) in changes.items())
    options = f"its options, except{listed}" if changes else "its options."
    return Place(folder, f"The run in {run.folder} stays as it is and continues in {folder} with {options}")


def run_of_this_job(output: Path | None, folder: Path, configuration: str) -> Path | None:
    """Return the folder in which this job of SLURM wrote a run before it was started again; None if there is none.

    Args:
        output: folder that the user chose.
        folder: folder of the runs of the recipe, if the user chose none.
        configuration: options of this command, as YAML; those of the run must be the same.

    Raises:
        ValueError: if the configuration of a run of this job is damaged.
    """
    if not slurm.is_requeued():
        return None
    for each in (output,) if output is not None else sorted(folder.glob("*"), reverse=True):
        is_candidate = slurm.is_of_this_job(each) and (each / CONFIG).is_file()
        if is_candidate and not differences(read_options(each / CONFIG), yaml.safe_load(configuration)):
            return each
    return None
