"""Check sums of large files, computed by several threads, and compared once per process."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_snn.cpu import usable_processors

_BLOCK = 8 << 20
# files whose content was compared: path, size, time of change in ns, and number of the file
_compared: set[tuple[str, int, int, int]] = set()


def checksum(path: str | os.PathLike[str]) -> str:
    """Return the check sum of a file: BLAKE2b, 160 bits, of the BLAKE2b digests of its blocks of 8 MiB in order.

    The blocks are read and digested by as many threads as there are processors, in any order. One
    processor digests about 0.5 GB per second. Each thread holds one block in memory.

    Args:
        path: the file.

    Returns:
        40 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.

    Example:
        >>> written = Path("abc").write_bytes(b"abc")
        >>> block = hashlib.blake2b(b"abc", digest_size=20).digest()
        >>> checksum("abc") == hashlib.blake2b(block, digest_size=20).hexdigest()
        True
    """

    def digest(start: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(_BLOCK), digest_size=20).digest()

    starts = range(0, os.path.getsize(path), _BLOCK)
    with ThreadPoolExecutor(max(1, min(usable_processors(), len(starts)))) as threads:
        return hashlib.blake2b(b"".join(threads.map(digest, starts)), digest_size=20).hexdigest()


def checked_once(path: Path, expected: str) -> None:
    """Compare a file with its check sum, unless this process did so and the file has not changed since.

    Args:
        path: the file.
        expected: the result of :func:`checksum` when it was whole.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the check sums differ.
    """
    status = path.stat()
    state = str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino
    if state in _compared:
        return
    if checksum(path) != expected:
        raise ValueError("its content differs from its check sum")
    _compared.add(state)
