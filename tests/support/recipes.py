"""Recipes as modules, so that a test can run them inside its own process, and images for them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_snn.cli import RecipeCLI, main
from tests.support.scripts import load_script

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = RECIPES / "configs"


def load_recipe(name: str) -> ModuleType:
    """Return a recipe, imported and not run."""
    return load_script(RECIPES / f"{name}.py")


def run_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    """Run a recipe with these arguments."""
    return main(*_prepared(name, monkeypatch, arguments))


def parse_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    """Return the command line of a recipe with these arguments, parsed and not run."""
    return RecipeCLI(*_prepared(name, monkeypatch, arguments))


def _prepared(name: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> tuple[str, dict, dict, dict]:
    path = str(RECIPES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    script = load_recipe(name)
    return path, script.DEFAULTS, getattr(script, "PRESETS", {}), getattr(script, "VARIANTS", {})


def write_colored_images(path: Path) -> Path:
    """Write a small part of CIFAR-10: four classes, each the color of a whole image, in noise."""
    rng = np.random.default_rng(0)
    colors = np.array([(0, 0, 0), (150, 0, 0), (0, 150, 0), (0, 0, 150)], np.uint8)
    arrays = {}
    for split, count in (("train", 160), ("test", 40)):
        labels = np.arange(count) % 4
        noise = rng.integers(0, 80, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_x"] = noise + colors[labels][:, None, None]
        arrays[f"{split}_y"] = labels.astype(np.int64)
    np.savez(path, **arrays)
    return path


def write_digits(path: Path, noise: int, brightness: int) -> Path:
    """Write a small part of MNIST: ten classes, each a row brighter than the noise below `noise`."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 400), ("test", 100)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, noise, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels + 4] += brightness
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images, labels
    np.savez(path, **arrays)
    return path


def options_of_recipe(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Return all options of a recipe with these arguments, and build nothing of them."""
    with monkeypatch.context() as patch:
        patch.setattr(RecipeCLI, "instantiate_classes", lambda self: None)
        cli = parse_recipe(name, patch, *arguments)
    return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
