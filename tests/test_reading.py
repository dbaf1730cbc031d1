"""Errors of reading: whatever is wrong with a file, they name it, what it should hold, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.reading import read_bytes, reading


def failed(path: Path, error: Exception) -> str:
    with pytest.raises(Exception, match="Expected") as caught, reading(path, "a list", "Write it again"):
        raise error
    assert caught.value.__cause__ is error
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_missing_file_a_folder_and_a_file_of_another_user_are_errors_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "list"
    assert failed(path, FileNotFoundError(errno.ENOENT, "No such file")) == (
        f"FileNotFoundError: Expected {path} to be a list, but it does not exist. Write it again"
    )
    path.touch()
    assert "PermissionError: " in failed(path, PermissionError(errno.EACCES, "Permission denied"))
    assert "OSError: Expected " in failed(path, OSError(errno.EIO, os.strerror(errno.EIO)))
    path.unlink()
    path.mkdir()
    assert failed(path, ValueError("decoders call it anything")) == (
        f"IsADirectoryError: Expected {path} to be a list, but it is a folder. Remove it, and put the file there"
    )


@pytest.mark.parametrize("error", [ValueError("odd"), EOFError("odd"), KeyError("odd"), OSError("odd"), MemoryError()])
def test_content_that_cannot_be_decoded_is_a_value_error(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "list").touch()
    message = failed(tmp_path / "list", error)
    assert message.startswith(
        f"ValueError: Expected {tmp_path / 'list'} to be a list, but it is truncated or corrupt: "
    )
    assert message.endswith(". Write it again")


def test_interruptions_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), reading(tmp_path, "a list"):
        raise KeyboardInterrupt


def test_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "three").write_bytes(b"abc")
    assert read_bytes(tmp_path / "three", "three bytes").tolist() == [97, 98, 99]
    assert read_bytes(tmp_path / "three", "three bytes").dtype == np.uint8
    for path, kind in ((tmp_path / "absent", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind, match=f"Expected {path} to be three bytes, but it"):
            read_bytes(path, "three bytes")
