"""Recipes as modules, so that a test can run them inside its own process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_snn.cli import RecipeCLI, main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """A recipe, imported and not run."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    """A recipe run with these arguments."""
    return main(*_prepared(name, monkeypatch, arguments))


def parse_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    """What a recipe would run with these arguments."""
    return RecipeCLI(*_prepared(name, monkeypatch, arguments))


def _prepared(name: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> tuple[str, dict, dict, dict]:
    path = str(RECIPES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    script = load_recipe(name)
    return path, script.DEFAULTS, getattr(script, "PRESETS", {}), getattr(script, "VARIANTS", {})
