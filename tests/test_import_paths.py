"""Import paths in files: nothing of a module that is not allowed is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_snn.import_paths import check_import_paths


def check(options: Any, *allow: str) -> None:
    check_import_paths(options, allow, "one.ckpt")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a mark when it is imported."""
    (tmp_path / "nets_of_somebody.py").write_text(
        f"import os\nfrom torch import nn\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n"
        "class Net(nn.Module):\n    pass\ndef make() -> nn.Module:\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "nets_of_somebody"
    sys.modules.pop("nets_of_somebody", None)


@pytest.mark.parametrize(
    "options",
    [
        {"network": {"class_path": "lightning_snn.networks.MLP", "init_args": {"hidden": [3], "activation": "relu"}}},
        {"network": {"class_path": "torch.nn.Sequential"}, "optimizer": {"class_path": "torch.optim.AdamW"}},
        {"readout": "mean", "learning_rate": 1e-3, "penalties": None, "pairs": [[0, 1]]},
        {"readout": "torch.nn.functional.relu", "neuron": "lightning_snn.nn.LIF"},
        {"root": "/data/test.v1/os.system", "file": "digits.npz", "other": "../x.y", "version": "1.5", "on": "a: b.c"},
        "",
        None,
    ],
)
def test_what_the_library_and_torch_hold_passes(options: Any) -> None:
    check(options)


@pytest.mark.parametrize(
    "options",
    [
        {"network": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}},
        {"network": {"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "os.system"}]}}},
        {"network": {"class_path": "lightning_snn.networks.MLP", "dict_kwargs": {"neuron": "snntorch.Leaky"}}},
        {"readout": "os.system"},
        {"readout": "torch.load"},
        {"readout": "__main__.run"},
        {"readout": "lightning_snn_of_somebody.run", "network": {"class_path": "lightning_snn_of_somebody.Net"}},
        # re-exported, or just imported there
        {"readout": "lightning_snn.files.os.system"},
        {"readout": "lightning_snn.files.shutil.rmtree"},
        {"readout": "lightning_snn.files.shutil"},
        {"readout": "torch.nn.modules.module.torch.load"},
        # functions are not called with arguments of a file
        {"network": {"class_path": "lightning_snn.files.write_text"}},
        {"network": {"class_path": "lightning_snn.load_run"}},
        # texts that are parsed again
        {"network": "{class_path: subprocess.Popen}"},
        {"network": json.dumps({"class_path": "subprocess.Popen"}).replace("s", "\\u0073")},
        {"network": json.dumps({"class_path": json.dumps({"class_path": "subprocess.Popen"})})},
        {"network": ["- subprocess.Popen"]},
        {"network": "list[subprocess.Popen]"},
        {"subprocess.Popen": 1},
        {"network": {"class_path": "Popen"}},
    ],
    ids=str,
)
def test_anything_else_is_refused_with_what_it_is(options: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected one\.ckpt to name "):
        check(options)


def test_nothing_is_imported_unless_it_is_allowed(module: str, tmp_path: Path) -> None:
    options = {"network": {"class_path": f"{module}.Net"}}
    with pytest.raises(
        ValueError, match=rf"but it names {module}.Net. If you trust the file, pass `allow=\['{module}'\]"
    ):
        check(options)
    assert not (tmp_path / "imported").exists()
    assert module not in sys.modules
    check(options, module)
    assert (tmp_path / "imported").exists()
    check(options, "other", f"{module}.Net")


def test_what_an_allowed_module_only_imported_is_refused(module: str) -> None:
    with pytest.raises(ValueError, match=rf"names {module}.os.system, which is posix.system"):
        check({"readout": f"{module}.os.system"}, module)
    with pytest.raises(ValueError, match=r"to name a class as `class_path`, but it names nets_of_somebody.make"):
        check({"network": {"class_path": f"{module}.make"}}, module)
    check({"readout": f"{module}.make"}, module)


def test_options_nested_without_end_are_refused() -> None:
    options: list[Any] = []
    options.append(options)
    with pytest.raises(ValueError, match="nested without end"):
        check(options)


def test_allow_is_a_list() -> None:
    with pytest.raises(ValueError, match="Expected argument `allow` to be a list of names of modules, but"):
        check_import_paths({}, "my_nets", "one.ckpt")
