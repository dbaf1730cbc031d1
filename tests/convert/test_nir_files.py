"""Files of NIR graphs: damaged and hostile ones give an error with their name, and are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from lightning_snn.convert import from_nir, read_nir, to_nir, write_nir
from lightning_snn.convert.nir import files as module
from lightning_snn.nn import LIF, RecurrentLIF

h5py = pytest.importorskip("h5py")
nir = pytest.importorskip("nir")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    network = nn.Sequential(nn.Linear(3, 4), RecurrentLIF(4, reset="zero"), nn.Linear(4, 2), LIF(reset="zero"))
    return write_nir(tmp_path / "network.nir", to_nir(network, (3,)))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the reading in another process, which takes longer than the test."""
    monkeypatch.setattr(module, "check_in_process", lambda *arguments: None)


def replace(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def external(path: Path) -> Any:
    """A file whose weights are read from another file, which is not HDF5."""
    secret = path.with_name("secret.bin")
    secret.write_bytes(np.ones(12, np.float32).tobytes())

    def damage(file: Any) -> None:
        del file["node/nodes/0/weight"]
        file.create_dataset("node/nodes/0/weight", (4, 3), np.float32, external=[(str(secret), 0, 48)])

    return damage


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.nir", "weight", (4, 3))
    del file["node/nodes/0/weight"]
    file.create_virtual_dataset("node/nodes/0/weight", layout)


def single(file: Any) -> None:
    file.move("node/nodes/0", "one")
    del file["node"]
    file.move("one", "node")


def within_itself(file: Any) -> None:
    file["node/nodes"]["9"] = file["node"]


def bomb(file: Any) -> None:
    del file["node/nodes/0/weight"]
    file.create_dataset("node/nodes/0/weight", (2**20, 2**20), np.float32, chunks=(1024, 1024), compression="gzip")


DAMAGE: dict[str, tuple[Any, str]] = {
    "no graph": (lambda file: file.pop("node"), "node"),
    "unknown node": (lambda file: replace(file, "node/nodes/0/type", "Evil"), "truncated or corrupt"),
    "missing field": (lambda file: file.pop("node/nodes/0/weight"), "weight"),
    "unknown field": (lambda file: file.__setitem__("node/nodes/0/command", "rm"), "command"),
    "missing edges": (lambda file: file.pop("node/edges"), "edges"),
    "edges of one end": (lambda file: replace(file, "node/edges", [[b"0"]]), "truncated or corrupt"),
    "a single node": (
        lambda file: (file.move("node/nodes/0", "one"), file.pop("node"), file.move("one", "node")),
        "single",
    ),
    "link to another file": (
        lambda file: replace(file, "node/nodes/0/weight", h5py.ExternalLink("other.nir", "/node")),
        "'weight' is a link, and not data of the file",
    ),
    "link within the file": (lambda file: replace(file, "node/nodes/0", h5py.SoftLink("/node")), "'0' is a link"),
    "a group within itself": (
        lambda file: file["node/nodes"].__setitem__("9", file["node"]),
        "nested more than 32 times",
    ),
    "virtual data": (virtual, "no array within the file"),
    "references": (
        lambda file: replace(file, "node/nodes/0/bias", file["node"].ref),
        "bias holds neither numbers nor texts",
    ),
    "bomb": (bomb, "its arrays take more than 4294967296 bytes"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_an_error_with_its_name(name: str, path: Path):
    damage, found = DAMAGE[name]
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(ValueError, match=rf"Expected .*network.nir to be a NIR graph \(HDF5\), but .*{found}"):
        read_nir(path)


@pytest.mark.usefixtures("here")
def test_data_of_other_files_are_not_read(path: Path):
    damage = external(path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with h5py.File(path) as file:
        assert (file["node/nodes/0/weight"][()] == 1).all()  # as h5py would
    with pytest.raises(ValueError, match=r"network.nir .*/node/nodes/0/weight is no array within the file"):
        read_nir(path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_an_error_with_its_name(cut: float, path: Path):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError, match=r"Expected .*network.nir to be a NIR graph \(HDF5\), but it is truncated"):
        read_nir(path)


@pytest.mark.usefixtures("here")
def test_damaged_bytes_give_an_error_with_the_name_or_a_graph(path: Path):
    whole, generator, errors = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(12):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 12):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            from_nir(path)
            continue
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            from_nir(path)
        errors.append(str(raised.value))
    assert len(errors) >= 3
    assert all("network.nir" in error for error in errors)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda path: None, FileNotFoundError, "but it does not exist"),
        (lambda path: path.mkdir(), IsADirectoryError, "but it is a folder"),
        (lambda path: path.write_text("not HDF5"), ValueError, "but it is truncated or corrupt"),
    ],
)
def test_what_is_no_file_of_a_graph_is_an_error_with_its_name(make: Any, kind: type[Exception], message: str, tmp_path):
    make(tmp_path / "absent.nir")
    with pytest.raises(kind, match=rf"Expected .*absent.nir to be a NIR graph \(HDF5\), {message}"):
        from_nir(tmp_path / "absent.nir")


@pytest.mark.parametrize(("status", "found"), [(-11, "ends with SIGSEGV"), (-24, "needs more than 30 s")])
def test_a_file_with_which_hdf5_crashes_or_loops_is_refused(status: int, found: str, path: Path, monkeypatch):
    ended = SimpleNamespace(returncode=status)
    monkeypatch.setattr("lightning_snn.subprocesses.subprocess.run", lambda *_, **__: ended)
    with pytest.raises(ValueError, match=rf"network.nir to be an HDF5 file, but it is corrupt: to read it {found}"):
        read_nir(path)


def test_another_process_reads_a_file_before_this_one(path: Path, monkeypatch):
    from lightning_snn import subprocesses

    seen = []
    real = subprocesses.subprocess.run
    monkeypatch.setattr(
        subprocesses.subprocess, "run", lambda *given, **rest: seen.append(real(*given, **rest)) or seen[-1]
    )
    assert isinstance(read_nir(path), nir.NIRGraph)
    assert [each.returncode for each in seen] == [0]
    assert seen[0].stderr == b""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "value"), [("dt", -1.0), ("dt", [1.0, 2.0]), ("dt", "soon"), ("dt", np.nan), (None, "no group")]
)
def test_metadata_of_a_graph_that_are_not_ours_are_an_error_with_the_name(name: Any, value: Any, path: Path):
    with h5py.File(path, "r+") as file:
        key = "node/metadata/lightning_snn" + (f"/{name}" if name else "")
        replace(file, key, value)
    if name is None:
        from_nir(path)  # as a graph of another program
        return
    with pytest.raises(ValueError, match=r"Expected .*network.nir to hold a graph that can be converted, but"):
        from_nir(path)


def test_a_failed_write_leaves_what_was_there(path: Path, monkeypatch):
    before = path.read_bytes()
    graph = read_nir(path)
    graph.nodes["0"].metadata = {"unwritable": object()}
    with pytest.raises(TypeError):
        write_nir(path, graph)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(ImportError, match=r"nir to be installed, .*pip install 'lightning-snn\[nir\]'"):
        to_nir(nn.Linear(3, 3), (3,))
    with pytest.raises(ImportError, match=r"pip install 'lightning-snn\[nir\]'"):
        from_nir("network.nir")
