"""Replacements for figures that tests do not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


def save_nothing(figure: Any, path: Path) -> Path:
    """Write an empty file, because rendering a figure takes longer than a tiny run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def record_drawn(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Replace a function of `lightning_snn.figures` by one that draws nothing, and return the list of its arguments."""
    calls: list[Any] = []

    def draw(layers: Any) -> Figure:
        calls.append(layers)
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(f"lightning_snn.figures.{name}", draw)
    return calls
