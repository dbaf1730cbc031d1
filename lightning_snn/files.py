"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename that file to ``path`` when the block succeeds.

    If the block raises, or the process is killed, ``path`` keeps its previous content. Missing folders are created.

    Args:
        path: the file to create or replace.

    Yields:
        The path at which the block must write the file.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with write_atomically(f"{folder}/greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
        >>> os.listdir(folder)
        ['greeting.txt']
    """
    path = Path(path)
    temporary = _temporary_path(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to ``path`` when the block succeeds.

    If the block raises, or the process is killed, there is no folder ``path``. If two processes write the same folder,
    the first to finish wins and the result of the other is discarded.

    Args:
        path: the folder to create.

    Yields:
        The folder into which the block must write.
    """
    path = Path(path)
    temporary = _temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _flush(file)
        try:
            os.rename(temporary, path)
        except OSError:
            # a folder that holds files cannot be renamed onto: another process has finished first
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file atomically, in UTF-8 with Unix line ends.

    Args:
        path: the file to create or replace; missing folders are created.
        text: its content.

    Returns:
        ``path``.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Path:
    """Write values as a JSON file atomically; numbers that are not finite become null.

    Args:
        path: the file to create or replace; missing folders are created.
        values: plain data (numbers, strings, lists, dicts).

    Returns:
        ``path``.

    Raises:
        TypeError: if a value is not plain data.
    """
    return write_text(path, json.dumps(_finite(values), indent=2) + "\n")


def _temporary_path(path: Path) -> Path:
    """Return an unused name in the folder of ``path``, which is created: a rename is atomic in one file system only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _flush(path: Path) -> None:
    """Wait until the content of a file is on disk, so that a rename cannot survive a power failure without it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
