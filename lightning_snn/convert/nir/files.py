"""Files of NIR graphs (HDF5): reading without trust in what they hold, and writing whole or not at all.

A file holds numbers, texts and groups of them. Links to other files, data that lie outside of the file, and Python
objects are refused, so that nothing else is read and nothing is executed. The HDF5 library itself may loop or crash on
a damaged file, so another process reads it first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lightning_snn.convert.nir.package import import_nir
from lightning_snn.files import write_atomically
from lightning_snn.reading import reading
from lightning_snn.subprocesses import check_in_process

LARGEST = 2**32
"""bytes that the arrays of a file may take in memory"""

_DEEPEST = 32
_EXPECTED = "a NIR graph (HDF5)"


def read_nir(path: str | os.PathLike[str]) -> Any:
    """Read a file of a NIR graph.

    Shapes of the nodes are not compared here, because nir 1.0.8 refuses grouped convolutions and kernels that are not
    square; `from_nir` compares them.

    Args:
        path: the file.

    Returns:
        The `nir.NIRGraph`.

    Raises:
        ImportError: if the package nir is not installed.
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if it is damaged, of another format, or refers to other files; the message names it.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(reset="zero"))
        >>> path = write_nir("network.nir", lightning_snn.convert.to_nir(network, (4,)))
        >>> sorted(read_nir(path).nodes)
        ['0', '1', 'input', 'output']
    """
    import_nir()
    file = Path(path)
    with reading(file, _EXPECTED), open(file, "rb"):
        pass
    check_in_process("lightning_snn.convert.nir.check", file, "an HDF5 file")
    return parse_nir(file)


def parse_nir(path: Path) -> Any:
    """Read a file of a NIR graph in this process; see `read_nir`."""
    import h5py

    nir = import_nir()
    with reading(path, _EXPECTED):
        with h5py.File(path, "r") as file:
            found = _Reader(h5py).group(file["node"], 0)
        graph = nir.dict2NIRNode(_without_type_checks(found))
        if not isinstance(graph, nir.NIRGraph):
            raise ValueError(f"it holds a single node {type(graph).__name__}")
    return graph


def write_nir(path: str | os.PathLike[str], graph: Any) -> Path:
    """Write a NIR graph to a file, whole or not at all.

    Args:
        path: the file to create or replace; missing folders are created.
        graph: the `nir.NIRGraph`.

    Returns:
        ``path``.

    Raises:
        ImportError: if the package nir is not installed.
        OSError: if the file cannot be written; the message names it, and what was there before stands.
    """
    nir = import_nir()
    with write_atomically(path) as temporary:
        nir.write(temporary, graph)
    return Path(path)


class _Reader:
    """Reader of nested groups as dictionaries; it follows no link, and reads data within the file alone."""

    def __init__(self, h5py: Any) -> None:
        self.h5py, self.size = h5py, 0

    def group(self, group: Any, depth: int) -> dict[str, Any]:
        if depth > _DEEPEST:
            raise ValueError(f"its groups are nested more than {_DEEPEST} times")
        found = {}
        for name in group:
            if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
                raise ValueError(f"{name!r} is a link, and not data of the file")
            item = group[name]
            found[name] = self.group(item, depth + 1) if isinstance(item, self.h5py.Group) else self.data(item)
        return found

    def data(self, item: Any) -> Any:
        if not isinstance(item, self.h5py.Dataset) or item.external is not None or item.is_virtual:
            raise ValueError(f"{item.name} is no array within the file")
        if item.dtype.kind == "O" and self.h5py.check_string_dtype(item.dtype) is None:
            raise ValueError(f"{item.name} holds neither numbers nor texts")
        self.size += item.nbytes
        if self.size > LARGEST:
            raise ValueError(f"its arrays take more than {LARGEST} bytes")
        value = item[()]
        if isinstance(value, bytes):
            return value.decode("utf8")
        if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
            return _decoded(value.tolist())
        return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def _without_type_checks(found: Any) -> Any:
    """Return nested groups whose graphs are built without comparing the shapes of nodes."""
    if not isinstance(found, dict):
        return found
    found = {name: each if name == "metadata" else _without_type_checks(each) for name, each in found.items()}
    if found.get("type") == "NIRGraph":
        found["type_check"] = False
    return found
