"""Arrays cached on disk: written whole or not at all, found by a key of all parameters, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def cache_root(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder under which data sets keep their caches.

    Args:
        directory: the folder; None takes the environment's ``LIGHTNING_SNN_CACHE``, else ``lightning_snn`` under
            ``XDG_CACHE_HOME``, else ``~/.cache/lightning_snn``.

    Returns:
        the folder, with ``~`` expanded; it need not exist.
    """
    if directory is not None:
        return Path(directory).expanduser()
    if os.environ.get("LIGHTNING_SNN_CACHE"):
        return Path(os.environ["LIGHTNING_SNN_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_snn"


def cache_key(parameters: Mapping[str, Any]) -> str:
    """A name of 20 hexadecimal digits that changes with any parameter.

    Args:
        parameters: everything that the cached arrays depend on: plain data (numbers, strings, lists, dicts).

    Returns:
        the first 80 bits of the SHA-256 of the parameters as JSON with sorted keys.

    Raises:
        TypeError: if a parameter is not plain data.
    """
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:20]


def file_signature(files: Sequence[Path], root: Path) -> list[tuple[str, int, int]]:
    """What tells a file from a changed one without reading it, for a :func:`cache_key`.

    Args:
        files: the files.
        root: the folder that they are named from, so that a moved data set keeps its cache.

    Returns:
        for each file its name relative to ``root``, its size in bytes and its time of modification in ns.
    """
    status = [(file, file.stat()) for file in files]
    return [(file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in status]


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that takes the name ``path`` when the block ends well, and otherwise is removed.

    A run that is killed while it writes leaves no folder of that name. Of two runs that write the same one, the first
    to finish keeps it, and the other's work is dropped.

    Args:
        path: the folder to make.

    Returns:
        a context that gives the folder to write into.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        try:
            os.rename(partial, path)
        except OSError:
            # Renaming onto a folder that holds files fails: another run has finished the same arrays first.
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_atomic(path: str | os.PathLike[str], **arrays: np.ndarray) -> Path:
    """Write arrays as ``path/<name>.npy``, uncompressed; the folder ``path`` appears complete or not at all.

    Args:
        path: the folder to make; its name usually ends in a :func:`cache_key`.
        arrays: the arrays to keep, by name.

    Returns:
        ``path``.
    """
    with atomic_folder(path) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return Path(path)


def save_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write arrays row by row as they come, never holding them whole in memory; otherwise as :func:`save_atomic`.

    Args:
        path: the folder to make.
        rows: for each row its value in every array, by name; the values of an array share their shape and dtype.

    Returns:
        ``path``. Along the first axis of array ``name`` lie the rows' values of that name.

    Raises:
        ValueError: if there are no rows, or a row differs from the first in its names, shapes or dtypes.
    """
    with atomic_folder(path) as folder, ExitStack() as stack:
        layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
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
            # The length stands in the header of a .npy file, before the rows, so only now can that file be written.
            rows_file = folder / f"{name}.rows"
            np.save(folder / f"{name}.npy", np.memmap(rows_file, dtype, "r", shape=(count, *shape)))
            rows_file.unlink()
    return Path(path)


def load_checked(
    path: str | os.PathLike[str], expected: Mapping[str, tuple[tuple[int | None, ...], Any]], mmap: bool = True
) -> dict[str, np.ndarray]:
    """Read what :func:`save_atomic` wrote, and refuse what it cannot have written.

    Args:
        path: the folder.
        expected: for each array's name its shape, None where any length will do, and its dtype.
        mmap: map the arrays read-only, so that only what is used is read; otherwise read them whole.

    Returns:
        the arrays by name.

    Raises:
        FileNotFoundError: if a file is missing; names it.
        ValueError: if a file is truncated, corrupt, or of another shape or dtype; names it and what was expected.
    """
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file = Path(path) / f"{name}.npy"
        wanted = f"{np.dtype(dtype)} array of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
        remedy = "Delete its folder to have it made again."
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
    """The arrays kept at ``path``, mapped read-only; made first where there are none.

    Args:
        path: the folder.
        make_rows: gives the rows for :func:`save_rows`.
        expected: shape and dtype of each array, as in :func:`load_checked`.

    Returns:
        the arrays by name.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_checked`.
    """
    if not path.is_dir():
        save_rows(path, make_rows())
    return load_checked(path, expected)
