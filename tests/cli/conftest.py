"""Surroundings of the tests of recipes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
        monkeypatch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
        monkeypatch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)


@pytest.fixture
def drawn() -> None:
    """Asks for figures."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # recipes add the working folder
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, handler)  # the Trainer ignores it once it was interrupted
