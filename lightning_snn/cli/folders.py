"""The folder of a run: a name that no other run has, and the claim that keeps other processes out of it."""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path
from typing import IO

from lightning_snn.cli.checkpoints import LAST

CONFIG = "config.yaml"
LAST_CHECKPOINT = Path("checkpoints", LAST)
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


class FolderTaken(ValueError):
    """The folder of a run exists already, or another process writes into it."""


def new_folder(recipe: str, seed: object) -> Path:
    """Return a folder for a run, without creating it: ``runs/RECIPE/TIME_seedSEED_UNIQUE``.

    Runs that start in the same second, such as those of a job array, differ in the last part, which is random and
    independent of any seed.

    Args:
        recipe: name of the recipe.
        seed: seed of the run.
    """
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    return Path("runs", recipe, f"{started}_seed{seed}_{uuid.uuid4().hex[:8]}")


def refuse_existing(folder: Path) -> None:
    """Raise an error if a folder exists, because a run writes only into a folder that it created.

    Raises:
        FolderTaken: names the folder, and how to resume the run that it holds.
    """
    if not os.path.lexists(folder):
        return
    if (folder / LAST_CHECKPOINT).is_file() and (folder / CONFIG).is_file():
        raise FolderTaken(
            f"Expected option --output to be a new folder, but {folder} holds a run. Choose another folder, or resume "
            f"that run with --ckpt_path {folder / LAST_CHECKPOINT}"
        )
    held = "holds a run without a checkpoint" if (folder / CONFIG).is_file() else "exists"
    raise FolderTaken(
        f"Expected option --output to be a new folder, but {folder} {held}. Choose another folder, or remove this one"
    )


def claim(folder: Path) -> None:
    """Create the folder of a run; of several processes that claim the same one, exactly one succeeds.

    Raises:
        FolderTaken: if the folder exists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        refuse_existing(folder)
        raise  # removed in between


def lock(folder: Path) -> IO[str] | None:
    """Lock the folder of a run for this process, until the returned file is closed or the process ends in any way.

    The lock is on the run's configuration, which must exist and must not be opened by this process meanwhile. Processes
    of the same run that are not its first one do not lock.

    Returns:
        The file that holds the lock; None on file systems and operating systems without such locks.

    Raises:
        FolderTaken: if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = open(folder / CONFIG, "r+", encoding="utf-8")  # noqa: SIM115
    try:
        # of this process alone: worker processes, which may outlive a killed one for seconds, do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in _HELD_BY_ANOTHER:
            return None
        raise FolderTaken(
            f"Expected the run in {folder} to have ended, but another process still writes into it. Wait for that "
            "process or stop it, and then resume the run"
        ) from error
    return file
