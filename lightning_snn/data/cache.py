"""Arrays cached on disk: written whole or not at all, found by a key of all parameters, verified when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_snn.data.checksums import checked_once, checksum
from lightning_snn.files import remove_stray, write_folder_atomically
from lightning_snn.reading import reading

CHECKSUMS = "checksums.json"
Layout = Mapping[str, tuple[tuple[int | None, ...], Any]]
_REMEDY = "Delete its folder to have it created again"


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


def save_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], replace: bool = False) -> Path:
    """Write arrays row by row as ``path/<name>.npy``, uncompressed, without holding them in memory.

    The folder ``path`` appears complete or not at all. It also holds ``checksums.json``, with the check sum of each
    file.

    Args:
        path: the folder to create; its name usually ends in a :func:`cache_key`.
        rows: for each row its value in every array, by name; the values of an array share their shape and dtype.
        replace: whether an existing folder is replaced; otherwise the new one is discarded.

    Returns:
        ``path``. The first axis of array ``name`` indexes the rows.

    Raises:
        ValueError: if there are no rows, or a row differs from the first in its names, shapes or dtypes.
        OSError: if the disk is full or may not be written to; the message names it.
    """
    with write_folder_atomically(path, replace) as folder:
        files = _write_arrays(folder, rows, path)
        sums = {file.name: checksum(file) for file in files}
        (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    return Path(path)


def load_checked(path: str | os.PathLike[str], expected: Layout, mmap: bool = True) -> dict[str, np.ndarray]:
    """Read arrays that :func:`save_rows` wrote, and check their content, shapes and dtypes.

    The content of a file is compared with its check sum once per process, and again if the file changes.

    Args:
        path: the folder.
        expected: shape and dtype of each array, by name; None in a shape accepts any length.
        mmap: map the arrays read-only, so that only the accessed rows are read; otherwise read them whole.

    Returns:
        The arrays by name.

    Raises:
        FileNotFoundError: if a file is missing; the message names it.
        OSError: if a file cannot be read.
        ValueError: if a file is truncated, corrupt, without a check sum, or of another shape or dtype; the message
            names it.
    """
    sums = _read_checksums(Path(path) / CHECKSUMS)
    arrays = {}
    for name, (shape, dtype) in expected.items():
        file = Path(path) / f"{name}.npy"
        wanted = f"{np.dtype(dtype)} array of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
        with reading(file, f"a cached {wanted}", _REMEDY):
            array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
            if file.name not in sums:
                raise ValueError(f"it has no check sum in {CHECKSUMS}")
            checked_once(file, sums[file.name])
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype != dtype:
            raise ValueError(
                f"Expected {file} to be a cached {wanted}, but got {array.dtype} of shape {array.shape}. {_REMEDY}"
            )
        arrays[name] = array
    return arrays


def cached_rows(
    path: Path, make_rows: Callable[[], Iterable[Mapping[str, Any]]], expected: Layout
) -> dict[str, np.ndarray]:
    """Return the arrays cached at ``path``, mapped read-only, and create them first if the folder does not exist.

    A cache that is damaged, or was written by an earlier version of this library, is created again, with a warning.

    Args:
        path: the folder.
        make_rows: returns the rows for :func:`save_rows`.
        expected: shape and dtype of each array, as in :func:`load_checked`.

    Returns:
        The arrays by name.

    Raises:
        OSError: as :func:`save_rows`, or if the cache cannot be read.
    """
    remove_stray(path.parent)
    damaged = False
    if path.exists():
        try:
            return load_checked(path, expected)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
            rank_zero_warn(f"A cache is created again. {str(error).removesuffix(f'. {_REMEDY}')}")
            damaged = True
    save_rows(path, make_rows(), replace=damaged)
    return load_checked(path, expected)


def _write_arrays(folder: Path, rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> list[Path]:
    """Write rows into ``folder`` and return the files; ``path`` is the name of the folder in errors."""
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    files: dict[str, BinaryIO] = {}
    starts: dict[str, int] = {}
    count = 0
    with ExitStack() as stack:
        for row in rows:
            values = {name: np.asarray(value) for name, value in row.items()}
            found = {name: (value.shape, value.dtype) for name, value in values.items()}
            if count == 0:
                layout = found
                for name in layout:
                    files[name] = stack.enter_context(open(folder / f"{name}.npy", "wb"))
                    starts[name] = _write_header(files[name], 0, *layout[name])
            elif found != layout:
                raise ValueError(f"Expected row {count} of {path} to hold {layout} like the first, but got {found}")
            for name, value in values.items():
                files[name].write(value.tobytes())
            count += 1
        if count == 0:
            raise ValueError(f"Expected at least one row to write to {path}, but got none")
        for name, file in files.items():
            # the header precedes the rows and holds their number, which is known only now
            file.seek(0)
            start = _write_header(file, count, *layout[name])
            assert start == starts[name], "NumPy left no room in the header"
    return [folder / f"{name}.npy" for name in layout]


def _write_header(file: BinaryIO, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Write the header of a ``.npy`` file, in which NumPy leaves room for any length of the first axis.

    Returns:
        The position of the first row.
    """
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (count, *shape)})
    return file.tell()


def _read_checksums(file: Path) -> dict[str, str]:
    with reading(file, "the check sums of a cache", _REMEDY):
        sums: dict[str, str] = json.loads(file.read_bytes())
        if not isinstance(sums, dict):
            raise ValueError("it holds no table of them")
    return sums
