"""Reader of ``.npz`` files whose errors name the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from lightning_snn.reading import reading


def read_npz(path: Path, *layouts: tuple[str, ...]) -> list[np.ndarray]:
    """Read the arrays of the first layout whose names are all in the file.

    Args:
        path: the file.
        layouts: names of the arrays, in the order in which they are returned.

    Returns:
        The arrays.

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is truncated, corrupt, or matches no layout; the message names it.
    """
    wanted = " or ".join(", ".join(names) for names in layouts)
    with reading(path, f"a file with the arrays {wanted}"):
        with zipfile.ZipFile(path):  # NumPy would take anything else for a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            for names in layouts:
                if set(names) <= set(file.files):
                    return [file[name] for name in names]
            found = ", ".join(file.files)
    raise ValueError(f"Expected {path} to be a file with the arrays {wanted}, but it holds {found or 'none'}")
