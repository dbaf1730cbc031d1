"""Files that a command reads: options and checkpoints, with errors that name a damaged file before anything runs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import yaml

from lightning_snn.reading import reading

_LIGHTNING = b"pytorch-lightning_version"


def read_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the options in a configuration file, in YAML or JSON.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not such a file, or does not hold options by name.
    """
    with reading(path, "a configuration file in YAML or JSON", "Check the path, or write the file again"):
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(
            f"Expected {path} to hold options by name, such as `trainer:` and below it `max_epochs: 3`, but got "
            f"{'an empty file' if found is None else type(found).__name__}"
        )
    return found


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise an error unless a file is a checkpoint of a Trainer, as far as that is known without reading its tensors.

    Nothing in the file is executed.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, damaged, or something else.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"Expected {path} to be a checkpoint, but it does not exist. Runs of recipes have theirs in the folder "
            "`checkpoints`"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
            content = archive.read(name)
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Expected {path} to be a checkpoint, but it is truncated, damaged or something else ({_cause(error)}). "
            "Use another checkpoint, such as best.ckpt in the same folder"
        ) from error
    if _LIGHTNING not in content:
        raise ValueError(
            f"Expected {path} to be a checkpoint of a Trainer, but it holds something else. Use a file that a run "
            "wrote into its folder `checkpoints`"
        )


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
