"""The import of the package: its time, the libraries it loads, and the public names."""

from __future__ import annotations

import ast
import importlib
import json
import os
from pathlib import Path

import pytest

import lightning_snn
from tests.support.processes import run_python

ROOT = Path(__file__).resolve().parents[1]

# a child process each time, so that every import starts from the same state: Lightning loaded, nothing of ours
MEASURE = """
import json, os, sys, time
start = time.process_time()  # of the processor, so that waiting for other work does not count
import lightning.pytorch
lightning = time.process_time() - start
before = set(sys.modules)

def in_child(action):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, json.dumps(action()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        result = json.loads(stream.read())
    os.waitpid(child, 0)
    return result

def seconds():
    start = time.process_time()
    import lightning_snn
    lightning_snn.SpikingModule, lightning_snn.LIF, lightning_snn.run, lightning_snn.methods
    return time.process_time() - start

def modules():
    import lightning_snn
    for name in lightning_snn.__all__:
        getattr(lightning_snn, name)
    from torch import nn
    lightning_snn.nn.is_spiking_layer(nn.ReLU())
    return sorted(set(sys.modules) - before)

ours = min(in_child(seconds) for _ in range(3))
print(json.dumps({"share": ours / lightning, "modules": in_child(modules)}))
"""


@pytest.fixture(scope="module")
def measured() -> dict:
    if not hasattr(os, "fork"):
        pytest.skip("measured in forked processes, which this system has not")
    finished = run_python("-c", MEASURE, cwd=ROOT, OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_the_import_adds_at_most_7_percent_to_that_of_lightning(measured):
    """Allow 0.3 s where Lightning takes 4.2 s: a share, since a busy machine slows both."""
    assert measured["share"] <= 0.07


@pytest.mark.parametrize(
    "library", ["torchvision", "tonic", "snntorch", "spikingjelly", "wandb", "h5py", "lz4", "kornia"]
)
def test_the_import_brings_no_library_along_that_only_some_need(measured, library):
    assert "lightning_snn.module" in measured["modules"]
    assert [name for name in measured["modules"] if name.split(".")[0] == library] == []


def test_public_names_are_present_and_listed():
    expected = {
        *("SpikingModule", "LIF", "run"),
        *("methods", "functional", "nn", "networks", "convert", "data", "metrics", "callbacks"),
    }
    assert expected <= set(lightning_snn.__all__)
    assert expected <= set(dir(lightning_snn))
    for name in lightning_snn.__all__:
        assert getattr(lightning_snn, name) is not None


@pytest.mark.parametrize(
    "package", ["methods", "functional", "nn", "networks", "convert", "data", "metrics", "callbacks"]
)
def test_every_listed_name_of_a_subpackage_is_there_and_documented(package):
    module = getattr(lightning_snn, package)
    assert module.__all__
    assert [name for name in module.__all__ if not getattr(module, name).__doc__] == []


def names_of(init: Path, package: str) -> tuple[set[str], set[str]]:
    """Return the public names of an `__init__.py`: those that it defines or imports from its own modules, and others.

    The others are imported from elsewhere in `lightning_snn`; a package may offer them or only use them.
    """
    own: set[str] = set()
    others: set[str] = set()
    tree = ast.parse(init.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "lightning_snn"):
            inside = node.level == 1 or f"{node.module}.".startswith(f"{package}.")
            names = own if inside and node.module != "lightning_snn._lazy" else others
            names |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Assign):
            own |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in own if not name.startswith("_") or name == "__version__"}, others


PACKAGES = sorted((ROOT / "lightning_snn").rglob("__init__.py"))


@pytest.mark.parametrize("init", PACKAGES, ids=lambda init: init.parent.name)
def test_a_package_lists_its_names(init: Path):
    package = ".".join(init.parent.relative_to(ROOT).parts)
    module = importlib.import_module(package)
    listed = getattr(module, "__all__", [])
    own, others = names_of(init, package)
    # modules may be imported for what they register
    modules = {path.stem for path in init.parent.iterdir()}
    assert sorted(own - modules - {*listed}) == []
    assert sorted({*listed} - own - others) == []
    assert len({*listed}) == len(listed)
    assert [each for each in listed if not hasattr(module, each)] == []
    assert sorted({*listed} - {*dir(module)} - {"__version__"}) == []


def test_a_name_that_is_imported_and_not_listed_is_found(tmp_path: Path):
    init = tmp_path / "__init__.py"
    init.write_text(
        "from typing import Any\nfrom .a import b, _c\nfrom lightning_snn.nn.lif import LIF as d\n"
        "from lightning_snn.files import e\ndef f(): ...\n"
    )
    assert names_of(init, "lightning_snn.nn") == ({"b", "d", "f"}, {"e"})


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Spiking'"):
        lightning_snn.Spiking  # noqa: B018


def test_the_package_is_marked_as_typed():
    assert (ROOT / "lightning_snn" / "py.typed").is_file()
