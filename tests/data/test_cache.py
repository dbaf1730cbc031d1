from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lightning_snn.data.cache import (
    cache_key,
    cache_root,
    cached_rows,
    file_signature,
    load_checked,
    save_rows,
)

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
    assert sorted(file.name for file in path.iterdir()) == ["frames.npy", "labels.npy"]


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
    assert [file.name for file in (tmp_path / "set").iterdir()] == ["fast.npy"]
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
            with pytest.raises(ValueError, match=rf"{file} to hold a uint8 array of shape \(any, 2\), but it is trunc"):
                load_checked(path, FRAMES, mmap)
    file.write_bytes(whole)
    assert load_checked(path, FRAMES)["frames"].shape == (1000, 2)
    with pytest.raises(ValueError, match=rf"{file} to hold a uint8 array of shape \(any, 3\), but got uint8"):
        load_checked(path, {"frames": ((None, 3), np.uint8)})
    with pytest.raises(ValueError, match=f"{file} to hold a int64 array"):
        load_checked(path, {"frames": ((None, 2), np.int64)})
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} .*is missing. Delete"):
        load_checked(path, FRAMES)
