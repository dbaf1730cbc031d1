"""Python files outside the package, imported as modules or run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(path: Path) -> ModuleType:
    """Import a file that lies outside the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(name: str, folder: Path, *arguments: object) -> str:
    """Run a script of `callbacks` in a folder, and return what it prints.

    It runs in this process, because its imports take longer than the script.
    """
    printed = io.StringIO()
    command = [str(part) for part in (ROOT / "callbacks" / name, *arguments)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        patch.setenv("PL_GLOBAL_SEED", "0")  # which scripts set, and tests after this one should not find
        runpy.run_path(command[0], run_name="__main__")
    return printed.getvalue()
