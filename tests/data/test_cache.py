from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.data import checksums
from lightning_snn.data.cache import (
    cache_key,
    cache_root,
    cached_rows,
    file_signature,
    load_checked,
    save_rows,
)
from lightning_snn.files import remove_stray
from tests.support.faults import killed, largest_file

FRAMES = {"frames": ((None, 2), np.uint8)}


def save(path: Path, **arrays: np.ndarray) -> Path:
    rows = zip(*arrays.values(), strict=True)
    return save_rows(path, [dict(zip(arrays, values, strict=True)) for values in rows])


def test_the_root_is_the_argument_else_the_environment_else_the_home(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_root(tmp_path / "c") == tmp_path / "c"
    assert cache_root() == tmp_path / "a"
    monkeypatch.delenv("LIGHTNING_SNN_CACHE")
    assert cache_root() == tmp_path / "b" / "lightning_snn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "lightning_snn"


def test_a_key_changes_with_any_parameter_and_not_with_their_order() -> None:
    base = {"size": 32, "sources": [("a", 1, 2)]}
    assert cache_key(base) == cache_key({"sources": [("a", 1, 2)], "size": 32})
    others = [{**base, "size": 33}, {**base, "sources": [("a", 1, 3)]}, {**base, "more": None}]
    assert len({cache_key(parameters) for parameters in [base, *others]}) == 4
    with pytest.raises(TypeError):
        cache_key({"path": Path("a")})


def test_the_signature_of_a_file_follows_its_size_and_time_but_not_its_folder(tmp_path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(b"abc")
        os.utime(tmp_path / folder / "file", ns=(1, 1))
    one, two = ([tmp_path / folder / "file"] for folder in ("one", "two"))
    assert file_signature(one, tmp_path / "one") == file_signature(two, tmp_path / "two") == [("file", 3, 1)]
    os.utime(two[0], ns=(2, 2))
    assert file_signature(one, tmp_path / "one") != file_signature(two, tmp_path / "two")


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_arrays_are_read_back(mmap: bool, tmp_path) -> None:
    frames = np.arange(6, dtype=np.uint8).reshape(3, 2)
    path = save(tmp_path / "set", frames=frames, labels=np.array([1, 2, 3]))
    read = load_checked(path, {**FRAMES, "labels": ((3,), np.int64)}, mmap=mmap)
    assert np.array_equal(read["frames"], frames)
    assert read["labels"].tolist() == [1, 2, 3]


def test_rows_are_stacked_as_they_come(tmp_path) -> None:
    rows = [{"frames": np.full(2, i, np.uint8), "labels": np.int64(i)} for i in range(5)]
    path = save_rows(tmp_path / "set", iter(rows))
    read = load_checked(path, {**FRAMES, "labels": ((5,), np.int64)})
    assert read["frames"].tolist() == [[i, i] for i in range(5)]
    assert read["labels"].tolist() == list(range(5))
    assert sorted(file.name for file in path.iterdir()) == ["checksums.json", "frames.npy", "labels.npy"]


def test_rows_that_differ_or_are_missing_leave_nothing_behind(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected row 1 of .*set to hold"):
        save_rows(tmp_path / "set", [{"a": np.zeros(2)}, {"a": np.zeros(3)}])
    with pytest.raises(ValueError, match="at least one row"):
        save_rows(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path) -> None:
    def rows():
        yield {"a": np.zeros(2)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_rows(tmp_path / "set", rows())
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_first_to_finish_keeps_the_name(tmp_path) -> None:
    def slow():
        save(tmp_path / "set", fast=np.zeros(1))
        yield {"slow": np.zeros(1)}

    save_rows(tmp_path / "set", slow())
    assert not (tmp_path / "set" / "slow.npy").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_rows_are_made_only_when_they_are_not_cached(tmp_path) -> None:
    made = []

    def rows():
        made.append(1)
        yield {"frames": np.zeros(2, np.uint8)}

    for _ in range(2):
        assert cached_rows(tmp_path / "set", rows, FRAMES)["frames"].shape == (1, 2)
    assert made == [1]


def test_a_damaged_file_is_named_with_what_was_expected(tmp_path) -> None:
    path = save(tmp_path / "set", frames=np.zeros((1000, 2), np.uint8))
    file = path / "frames.npy"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:50], b"", b"junk" * 100):
        file.write_bytes(damaged)
        for mmap in (True, False):
            with pytest.raises(
                ValueError, match=rf"{file} to be a cached uint8 array of shape \(any, 2\), but it is trunc"
            ):
                load_checked(path, FRAMES, mmap)
    file.write_bytes(whole)
    assert load_checked(path, FRAMES)["frames"].shape == (1000, 2)
    with pytest.raises(ValueError, match=rf"{file} to be a cached uint8 array of shape \(any, 3\), but got uint8"):
        load_checked(path, {"frames": ((None, 3), np.uint8)})
    with pytest.raises(ValueError, match=f"{file} to be a cached int64 array"):
        load_checked(path, {"frames": ((None, 2), np.int64)})
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} .*does not exist. Delete"):
        load_checked(path, FRAMES)


def count_rows(path: Path, made: list[int]) -> np.ndarray:
    """Return cached frames, and note in a list when they are made."""

    def rows():
        made.append(1)
        for index in range(5000):
            yield {"frames": np.full(2, index % 251, np.uint8)}

    return cached_rows(path, rows, FRAMES)["frames"]


def rewrite(file: Path, content: bytes) -> None:
    """Change a file; the time of change of a file system may be too coarse to show it."""
    file.write_bytes(content)
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))


DAMAGES = {
    "cut": lambda whole: whole[:-1],
    "cut in the header": lambda whole: whole[:50],
    "empty": lambda whole: b"",
    "junk": lambda whole: b"junk" * 100,
    "zeroed": lambda whole: bytes(len(whole)),
    "zeroed from the middle on": lambda whole: whole[:5000] + bytes(len(whole) - 5000),
    "a flipped bit": lambda whole: whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:],
    "another shape": lambda whole: whole.replace(b"(5000, 2)", b"(2500, 4)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again_with_one_warning(damage: str, tmp_path) -> None:
    made: list[int] = []
    expected = np.array(count_rows(tmp_path / "set", made))
    file = tmp_path / "set" / "frames.npy"
    rewrite(file, DAMAGES[damage](file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"A cache is created again. Expected {file} to be a cached uint8 ") as warned:
        assert np.array_equal(count_rows(tmp_path / "set", made), expected)
    assert len(warned) == 1
    assert "Delete" not in str(warned[0].message)
    assert len(made) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(count_rows(tmp_path / "set", made), expected)
    assert len(made) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("damage", ["absent", "cut", "a list", "of other files", "a folder", "a file"])
def test_a_cache_without_check_sums_is_made_again(damage: str, tmp_path) -> None:
    made: list[int] = []
    count_rows(tmp_path / "set", made)
    file = tmp_path / "set" / "checksums.json"
    whole = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage == "a file":  # in the place of the folder
        for each in (tmp_path / "set").iterdir():
            each.unlink()
        (tmp_path / "set").rmdir()
        (tmp_path / "set").touch()
    elif damage != "absent":
        file.write_bytes({"cut": whole[:-9], "a list": b"[]", "of other files": b'{"labels.npy": "0"}'}[damage])
    with pytest.warns(UserWarning, match="A cache is created again. Expected .*set"):
        count_rows(tmp_path / "set", made)
    assert len(made) == 2
    assert sorted(json.loads(file.read_bytes())) == ["frames.npy"]


def test_the_content_is_compared_once_and_again_when_the_file_changes(tmp_path, monkeypatch) -> None:
    compared = []
    checksum = checksums.checksum
    monkeypatch.setattr(checksums, "checksum", lambda path: compared.append(path.name) or checksum(path))
    made: list[int] = []
    for _ in range(3):
        count_rows(tmp_path / "set", made)
    assert compared == ["frames.npy"]
    file = tmp_path / "set" / "frames.npy"
    rewrite(file, file.read_bytes())
    count_rows(tmp_path / "set", made)
    assert compared == ["frames.npy"] * 2
    assert len(made) == 1


def test_a_cache_that_cannot_be_made_again_is_an_error_of_the_disk(tmp_path) -> None:
    count_rows(tmp_path / "set", [])
    file = tmp_path / "set" / "frames.npy"
    rewrite(file, bytes(100))
    with (
        largest_file(1000),
        pytest.warns(UserWarning, match="A cache is created again"),
        pytest.raises(OSError, match=rf"Expected to write {tmp_path / 'set'}, but the file is larger than .*unchanged"),
    ):
        count_rows(tmp_path / "set", [])
    assert file.read_bytes() == bytes(100)
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path) -> None:
    count_rows(tmp_path / "set", [])
    for name in ("0" * 32, "1" * 32):
        folder = tmp_path / f".{name}.lightning-snn-tmp"
        folder.mkdir()
        (folder / "frames.npy").write_bytes(bytes(10))
        os.utime(folder, (0, 0))
    os.utime(folder / "frames.npy", (0, 0))  # the other one grew a moment ago
    count_rows(tmp_path / "set", [])
    assert sorted(each.name for each in tmp_path.iterdir()) == [f".{'0' * 32}.lightning-snn-tmp", "set"]


def test_a_killed_process_leaves_the_cache_whole_or_absent(tmp_path) -> None:
    moment = 1
    while killed(lambda: count_rows(tmp_path / "set", []), moment):
        if (tmp_path / "set").exists():
            assert len(load_checked(tmp_path / "set", FRAMES)["frames"]) == 5000
            break
        remove_stray(tmp_path, older_than=-3600)
        assert list(tmp_path.iterdir()) == []
        moment += 1
    assert moment > 5
    assert len(count_rows(tmp_path / "set", [])) == 5000


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (8 << 20) + 1, 20 << 20])
def test_the_check_sum_is_that_of_the_blocks(size: int, tmp_path) -> None:
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    blocks = [content[start : start + (8 << 20)] for start in range(0, size, 8 << 20)]
    digests = [hashlib.blake2b(block, digest_size=20).digest() for block in blocks]
    assert checksums.checksum(tmp_path / "file") == hashlib.blake2b(b"".join(digests), digest_size=20).hexdigest()
