"""Files and folders that are written whole or not at all.

Content goes to a temporary file in the same folder, is flushed to the disk, and takes its name by a rename, which is
atomic within one file system. A process that is killed leaves at most a temporary file, which a later writer removes
after a day.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STRAY_AFTER = 24 * 3600.0
"""age in seconds at which a temporary file belongs to a process that was killed"""

# without the name of the file, because Lightning searches folders for names that contain "last" or "hpc_ckpt_"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.lightning-snn-tmp")
_QUOTA = getattr(errno, "EDQUOT", -1)  # absent on some systems
_CAUSES = {
    errno.ENOSPC: "the disk has too little space",
    _QUOTA: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk reports an error",
}
_NEEDS_SPACE = (errno.ENOSPC, _QUOTA)
# reading has no such errors
_ONLY_OF_WRITING = (*_NEEDS_SPACE, errno.EFBIG, errno.EROFS)
# file systems that cannot flush folders, and folders that may be written to but not read
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
_visited: set[Path] = set()


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename that file to ``path`` when the block succeeds.

    If the block raises, or the process is killed, ``path`` keeps its previous content. Missing folders are created.
    ``path`` itself is replaced if it is a symbolic link, and not the file that it points to.

    Args:
        path: the file to create or replace.

    Yields:
        The path at which the block must write the file.

    Raises:
        OSError: if the file cannot be written; its message names the file and the free space of the disk, and its
            `errno` is that of the system.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with write_atomically(f"{folder}/greeting.txt") as temporary:
        ...     _ = temporary.write_text("hello")
        >>> os.listdir(folder)
        ['greeting.txt']
    """
    path = Path(path)
    with _failures_explained(path):
        temporary = _temporary_path(path)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
    _flush_folder(path.parent)


@contextmanager
def write_folder_atomically(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to ``path`` when the block succeeds.

    If the block raises, or the process is killed, ``path`` stays as it was. If two processes write the same folder, the
    first to finish wins and the result of the other is discarded; with ``replace`` the last.

    Args:
        path: the folder to create.
        replace: remove what is at ``path``, after the block succeeded. Folders cannot be exchanged in one step: a
            process that is killed between the two leaves neither.

    Yields:
        The folder into which the block must write.

    Raises:
        OSError: as :func:`write_atomically`.
    """
    path = Path(path)
    with _failures_explained(path):
        temporary, old = _temporary_path(path), _temporary_path(path)
        try:
            temporary.mkdir()
            yield temporary
            for each in (*temporary.rglob("*"), temporary):
                (_flush_folder if each.is_dir() else _flush)(each)
            if replace:
                with suppress(FileNotFoundError):  # there is none, or another process has just moved it
                    os.rename(path, old)
            try:
                os.rename(temporary, path)
            except OSError:
                # a folder that holds files cannot be renamed onto: another process has finished first
                if not path.is_dir():
                    raise
        finally:
            _remove(temporary)
            _remove(old)
    _flush_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file atomically, in UTF-8 with Unix line ends.

    Args:
        path: the file to create or replace; missing folders are created.
        text: its content.

    Returns:
        ``path``.

    Raises:
        OSError: as :func:`write_atomically`.
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
        OSError: as :func:`write_atomically`.
    """
    return write_text(path, json.dumps(_finite(values), indent=2) + "\n")


def copy_file(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Copy the content of a file atomically.

    Args:
        source: the file to copy.
        path: the file to create or replace; missing folders are created.

    Returns:
        ``path``.

    Raises:
        OSError: as :func:`write_atomically`; one about ``source`` if it cannot be read.
    """
    with write_atomically(path) as temporary:
        shutil.copyfile(source, temporary)
    return Path(path)


def remove_stray(folder: str | os.PathLike[str], older_than: float = STRAY_AFTER) -> None:
    """Delete the temporary files and folders that processes left when they were killed while writing.

    Every function of this module calls this once per folder and process. Only names that this module gives are deleted,
    and only if nothing in them changed for ``older_than`` seconds, so another process that is writing is not disturbed.
    What another user owns stays.

    Args:
        folder: the folder; its subfolders are not searched. It need not exist.
        older_than: age in seconds.
    """
    before = time.time() - older_than
    with suppress(OSError):
        for each in Path(folder).iterdir():
            if _TEMPORARY.fullmatch(each.name) and _last_change(each) < before:
                _remove(each)


def _temporary_path(path: Path) -> Path:
    """Return an unused name in the folder of ``path``, which is created: a rename is atomic in one file system only."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _flush_folder(folder.parent)
    folder = path.parent.absolute()
    if folder not in _visited:
        _visited.add(folder)
        remove_stray(folder)
    return path.with_name(f".{uuid.uuid4().hex}.lightning-snn-tmp")


def _flush(path: Path) -> None:
    """Wait until the content of a file is on disk, so that a rename cannot survive a power failure without it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _remove(path: Path) -> None:
    """Delete a temporary file or folder, if it can be deleted: a disk may have become read-only."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _last_change(path: Path) -> float:
    """Return the time of the last change of a file, or of anything in a folder."""
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


@contextmanager
def _failures_explained(path: Path) -> Iterator[None]:
    """Replace errors of the system about writing ``path`` by errors that explain them; others pass unchanged."""
    try:
        yield
    except OSError as error:
        names = [
            Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
        ]
        own = any(name in (path, *path.parents) or any(map(_TEMPORARY.fullmatch, name.parts)) for name in names) or (
            error.errno == errno.EIO and not names
        )
        if not own and error.errno not in _ONLY_OF_WRITING:
            raise
        raise OSError(error.errno, _explanation(error, path)) from error


def _explanation(error: OSError, path: Path) -> str:
    cause = _CAUSES.get(error.errno, error.strerror)
    stands = os.path.lexists(path)
    folder = next(each for each in path.absolute().parents if os.path.isdir(each))
    usage = shutil.disk_usage(folder)
    remedy = "Free space, or choose another folder" if error.errno in _NEEDS_SPACE else "Choose another folder"
    return (
        f"Expected to write {path}, but {cause} ({_size(usage.free)} of {_size(usage.total)} are free in {folder}). "
        f"{'What was there before is unchanged' if stands else 'Nothing was written'}. {remedy}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
