"""Reader of ``.npz`` files whose errors name the file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_npz(path: Path, *layouts: tuple[str, ...]) -> list[np.ndarray]:
    """Read the arrays of the first layout whose names are all in the file.

    Args:
        path: the file.
        layouts: names of the arrays, in the order in which they are returned.

    Returns:
        The arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, corrupt, or matches no layout; the message names it.
    """
    wanted = " or ".join(", ".join(names) for names in layouts)
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path} to be a file with the arrays {wanted}, but it does not exist")
    try:
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as file:
            for names in layouts:
                if set(names) <= set(file.files):
                    return [file[name] for name in names]
            found = ", ".join(file.files)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"Expected {path} to hold the arrays {wanted}, but it is truncated or corrupt: {error}"
        ) from error
    raise ValueError(f"Expected {path} to hold the arrays {wanted}, but it holds {found}")
