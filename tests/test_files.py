"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.files import (
    copy_file,
    remove_stray,
    write_atomically,
    write_folder_atomically,
    write_json,
    write_text,
)
from tests.support.faults import bound_by_permissions, killed, largest_file


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


def test_a_folder_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with write_folder_atomically(tmp_path / "set", replace=True) as folder:
            (folder / content).touch()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["two"]
    with pytest.raises(ZeroDivisionError), write_folder_atomically(tmp_path / "set", replace=True):
        _ = 1 / 0
    assert names(tmp_path / "set") == ["two"]


def test_a_file_is_copied(tmp_path: Path) -> None:
    source = write_text(tmp_path / "one.txt", "one")
    assert copy_file(source, tmp_path / "new" / "two.txt").read_text() == "one"
    with pytest.raises(FileNotFoundError, match=r"absent.txt"):
        copy_file(tmp_path / "absent.txt", source)
    assert source.read_text() == "one"


def test_a_symbolic_link_is_replaced_and_not_its_target(tmp_path: Path) -> None:
    target = write_text(tmp_path / "target.txt", "target")
    (tmp_path / "link.txt").symlink_to(target)
    write_text(tmp_path / "link.txt", "new")
    assert (target.read_text(), (tmp_path / "link.txt").read_text()) == ("target", "new")


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    """The temporary name does not depend on it, nor does it hold what Lightning looks for in names."""
    write_text(tmp_path / ("a" * 255), "long")
    with write_atomically(tmp_path / "hpc_ckpt_1.ckpt") as temporary:
        assert "ckpt" not in temporary.name
        assert "last" not in temporary.name
        temporary.touch()


PARTS = ["part\n" * 5000] * 3


def in_parts(path: Path) -> None:
    with write_atomically(path) as temporary, open(temporary, "w") as file:
        for part in PARTS:
            file.write(part)
            file.flush()
            sys.audit("part")


def folder_in_parts(path: Path) -> None:
    with write_folder_atomically(path, replace=True) as folder:
        for index, part in enumerate(PARTS):
            (folder / str(index)).write_text(part)


def age(folder: Path) -> None:
    """Let everything in a folder be two days old."""
    now = (folder.stat().st_mtime - 2 * 24 * 3600,) * 2
    for each in (*folder.rglob("*"), folder):
        os.utime(each, now)


def test_a_process_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    left, moment = set(), 1
    while True:
        write_text(path, "before")
        if not killed(lambda: in_parts(path), moment):
            break
        left.add(path.read_text())
        stray = [name for name in names(tmp_path) if name != "text.txt"]
        assert all(name.endswith(".lightning-snn-tmp") for name in stray)
        remove_stray(tmp_path)
        assert [name for name in names(tmp_path) if name != "text.txt"] == stray  # perhaps of a process that writes
        age(tmp_path)
        remove_stray(tmp_path)
        assert names(tmp_path) == ["text.txt"]
        moment += 1
    assert left == {"before", "".join(PARTS)}
    assert moment > 8


def test_a_process_killed_at_any_moment_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    path = tmp_path / "set"
    left, moment = set(), 1
    while True:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / "before").touch()
        if not killed(lambda: folder_in_parts(path), moment):
            break
        left.add(tuple(names(path)) if path.exists() else None)
        age(tmp_path)
        remove_stray(tmp_path)
        assert names(tmp_path) == (["set"] if path.exists() else [])
        moment += 1
    # the folder is absent between two renames
    assert left == {("before",), None, ("0", "1", "2")}


def test_the_first_writer_in_a_folder_removes_what_was_killed_a_day_ago(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text.txt"
    path.parent.mkdir()
    assert killed(lambda: in_parts(path), 5)
    (path.parent / ".0123456789abcdef0123456789abcdef").touch()  # names of others
    (path.parent / "a.lightning-snn-tmp").touch()
    age(path.parent)
    assert len(names(path.parent)) == 3
    write_text(path, "after")
    assert names(path.parent) == [".0123456789abcdef0123456789abcdef", "a.lightning-snn-tmp", "text.txt"]


def check_failure(write: Callable[[], object], path: Path, kind: type[OSError], number: int, *parts: str) -> None:
    """Check that a failed write names file, cause and free space, and leaves the old file and nothing else."""
    before, stray = path.read_bytes(), names(path.parent)
    with pytest.raises(kind) as caught:
        write()
    assert caught.value.errno == number
    for part in (f"Expected to write {path}, but ", " are free in ", "What was there before is unchanged", *parts):
        assert part in str(caught.value)
    assert (path.read_bytes(), names(path.parent)) == (before, stray)


def test_a_file_that_the_system_refuses_to_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", "before")
    with largest_file(1000):
        check_failure(
            lambda: write_text(path, "after" * 1000), path, OSError, errno.EFBIG, "larger than the system allows"
        )
        write_text(path, "small")
    assert path.read_text() == "small"


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", "before")
    tmp_path.chmod(0o555)
    try:
        with bound_by_permissions(tmp_path):
            check_failure(
                lambda: write_text(path, "after"), path, PermissionError, errno.EACCES, "Permission denied", "another"
            )
            with pytest.raises(PermissionError, match=r"Expected to write .*new/text.txt.*Nothing was written. Choose"):
                write_text(tmp_path / "new" / "text.txt", "after")
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_or_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"Expected to write .*folder, but Is a directory"):
        write_text(tmp_path / "folder", "text")
    write_text(tmp_path / "file", "text")
    with pytest.raises((NotADirectoryError, FileExistsError), match=r"Expected to write .*file/text.txt, but "):
        write_text(tmp_path / "file" / "text.txt", "text")


def test_an_error_of_the_block_that_is_not_about_the_file_passes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such") as caught, write_atomically(tmp_path / "a"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
