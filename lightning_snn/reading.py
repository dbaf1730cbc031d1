"""Errors of reading files that name the file, what it should hold, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def reading(path: str | os.PathLike[str], expected: str, remedy: str = "Copy or download it again") -> Iterator[None]:
    """Run a block that reads and decodes a file, and raise one kind of error whatever is wrong with the file.

    Decoders of damaged files raise any exception, mostly without the name of the file. The block should hold nothing
    but the call of such a decoder; checks of what it returns belong after the block.

    Args:
        path: the file.
        expected: what it should be, as in "Expected PATH to be an HDF5 file".
        remedy: what to do with a file that is damaged, an imperative without a full stop.

    Raises:
        OSError: if the file cannot be read; FileNotFoundError, IsADirectoryError or PermissionError where that is why.
        ValueError: if the content cannot be decoded.

    Example:
        >>> with reading("labels.csv", "a table of labels"):
        ...     open("labels.csv")
        Traceback (most recent call last):
        FileNotFoundError: Expected labels.csv to be a table of labels, but it does not exist. Copy or download it again
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"Expected {path} to be {expected}, but it does not exist. {remedy}") from error
    except Exception as error:
        if os.path.isdir(path):
            raise IsADirectoryError(
                f"Expected {path} to be {expected}, but it is a folder. Remove it, and put the file there"
            ) from error
        if isinstance(error, PermissionError):
            raise PermissionError(
                f"Expected {path} to be {expected}, but you may not read it. Ask its owner for permission"
            ) from error
        # decoders raise OSErrors without a number, and look for content before the start of the file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(
                f"Expected {path} to be {expected}, but it cannot be read: {error.strerror}. Check the disk"
            ) from error
        found = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"Expected {path} to be {expected}, but it is truncated or corrupt: {found}. {remedy}"
        ) from error


def read_bytes(path: str | os.PathLike[str], expected: str) -> np.ndarray:
    """Read a whole file as uint8.

    Args:
        path: the file.
        expected: as in :func:`reading`.

    Returns:
        Its bytes, shape ``(N,)``.

    Raises:
        OSError: as :func:`reading`.
    """
    with reading(path, expected):
        return np.fromfile(path, np.uint8)
