"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.files import write_atomically, write_folder_atomically, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "after \ud800")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["text.txt"]


def test_an_interrupted_block_changes_nothing(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", "before")

    def interrupted() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("after")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["text.txt"]


def test_the_temporary_file_lies_in_the_folder_of_the_file_which_is_created(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "new" / "text.txt") as temporary:
        assert temporary.parent == tmp_path / "new"
        temporary.write_bytes(b"a\r\n")
    assert (tmp_path / "new" / "text.txt").read_bytes() == b"a\r\n"


def test_a_block_that_writes_nothing_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "text.txt"):
        pass
    assert names(tmp_path) == []


def test_text_has_the_same_bytes_on_every_system(tmp_path: Path) -> None:
    assert write_text(tmp_path / "text.txt", "é\n").read_bytes() == b"\xc3\xa9\n"


def test_json_is_whole_or_absent_and_has_no_nan(tmp_path: Path) -> None:
    path = write_json(tmp_path / "numbers.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": 2}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.0, None], "c": {"d": 2}}
    with pytest.raises(TypeError):
        write_json(path, {"a": np.zeros(2)})
    assert json.loads(path.read_text())["c"] == {"d": 2}
    assert names(tmp_path) == ["numbers.json"]


def test_of_two_writers_of_a_folder_the_first_to_finish_wins(tmp_path: Path) -> None:
    with write_folder_atomically(tmp_path / "set") as slow:
        (slow / "slow").touch()
        with write_folder_atomically(tmp_path / "set") as fast:
            (fast / "fast").touch()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["fast"]


def test_a_folder_that_failed_does_not_exist(tmp_path: Path) -> None:
    def failed() -> None:
        with write_folder_atomically(tmp_path / "set") as folder:
            (folder / "part").touch()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        failed()
    assert names(tmp_path) == []
