"""Arrays cached on disk: written whole or not at all, found by a key of all parameters, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lightning_snn.files import write_folder_atomically


def cache_root(directory: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds the caches of all data sets.

    Args:
        directory: the folder; None takes the environment variable ``LIGHTNING_SNN_CACHE``, else ``lightning_snn`` in
            ``XDG_CACHE_HOME``, else ``~/.cache/lightning_snn``.

    Returns:
        The folder, with ``~`` expanded; it need not exist.
    """
    if directory is not None:
        return Path(directory).expanduser()
    if os.environ.get("LIGHTNING_SNN_CACHE"):
        return Path(os.environ["LIGHTNING_SNN_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_snn"


def cache_key(parameters: Mapping[str, Any]) -> str:
    """Return a name of 20 hexadecimal digits that changes with any parameter.

    Args:
        parameters: everything that the cached arrays depend on: plain data (numbers, strings, lists, dicts).

    Returns:
        The first 80 bits of the SHA-256 of the parameters as JSON with sorted keys.

    Raises:
        TypeError: if a parameter is not plain data.
    """
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:20]


def file_signature(files: Sequence[Path], root: Path) -> list[tuple[str, int, int]]:
    """Return a signature that changes when a file changes, for a :func:`cache_key`; no file is read.

    Args:
        files: the files.
        root: the folder that their names are relative to, so that a moved data set keeps its cache.

    Returns:
        For each file its name relative to ``root``, its size in bytes and its modification time in ns.
    """
    status = [(file, file.stat()) for file in files]
    return [(file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in status]


def save_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write arrays row by row as ``path/<name>.npy``, uncompressed, without holding them in memory.

    The folder ``path`` appears complete or not at all.

    Args:
        path: the folder to create; its name usually ends in a :func:`cache_key`.
        rows: for each row its value in every array, by name; the values of an array share their shape and dtype.

    Returns:
        ``path``. The first axis of array ``name`` indexes the rows.

    Raises:
        ValueError: if there are no rows, or a row differs from the first in its names, shapes or dtypes.
    """
    with write_folder_atomically(path) as folder, ExitStack() as stack:
        layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        files: dict[str, BinaryIO] = {}
        count = 0
        for row in rows:
            values = {name: np.asarray(value) for name, value in row.items()}
            found = {name: (value.shape, value.dtype) for name, value in values.items()}
            if count == 0:
                layout = found
                files = {name: stack.enter_context(open(folder / f"{name}.rows", "wb")) for name in layout}
            elif found != layout:
                raise ValueError(f"Expected row {count} of {path} to hold {layout} like the first, but got {found}")
            for name, value in values.items():
                files[name].write(value.tobytes())
            count += 1
        if count == 0:
            raise ValueError(f"Expected at least one row to write to {path}, but got none")
        for name, (shape, dtype) in layout.items():
            files[name].close()
            # the header of a .npy file precedes the rows and holds their number, which is known only now
            rows_file = folder / f"{name}.rows"
            np.save(folder / f"{name}.npy", np.memmap(rows_file, dtype, "r", shape=(count, *shape)))
            rows_file.unlink()
    return Path(path)


def load_checked(
    path: str | os.PathLike[str], expected: Mapping[str, tuple[tuple[int | None, ...], Any]], mmap: bool = True
) -> dict[str, np.ndarray]:
    """Read arrays that :func:`save_rows` wrote, and check their shapes and dtypes.

    Args:
        path: the folder.
        expected: shape and dtype of each array, by name; None in a shape accepts any length.
        mmap: map the arrays read-only, so that only the accessed rows are read; otherwise read them whole.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError: if a file is missing; the message names it.
        ValueError: if a file is truncated, corrupt, or of another shape or dtype; the message names it.
    """
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file = Path(path) / f"{name}.npy"
        wanted = f"{np.dtype(dtype)} array of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
        remedy = "Delete its folder to have it created again."
        if not file.is_file():
            raise FileNotFoundError(f"Expected cached file {file} to hold a {wanted}, but it is missing. {remedy}")
        try:
            array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"Expected cached file {file} to hold a {wanted}, but it is truncated or corrupt: {error}. {remedy}"
            ) from error
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype != dtype:
            raise ValueError(
                f"Expected cached file {file} to hold a {wanted}, but got {array.dtype} of shape {array.shape}. "
                f"{remedy}"
            )
        arrays[name] = array
    return arrays


def cached_rows(
    path: Path,
    make_rows: Callable[[], Iterable[Mapping[str, Any]]],
    expected: Mapping[str, tuple[tuple[int | None, ...], Any]],
) -> dict[str, np.ndarray]:
    """Return the arrays cached at ``path``, mapped read-only, and create them first if the folder does not exist.

    Args:
        path: the folder.
        make_rows: returns the rows for :func:`save_rows`.
        expected: shape and dtype of each array, as in :func:`load_checked`.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_checked`.
    """
    if not path.is_dir():
        save_rows(path, make_rows())
    return load_checked(path, expected)
