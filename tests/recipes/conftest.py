"""Fixtures that tests of recipes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipes import write_colored_images


@pytest.fixture
def without_figures_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, because drawing takes longer than a tiny run."""
    monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
    monkeypatch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
    monkeypatch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)


@pytest.fixture
def without_figures_of_spike_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_snn.figures.spike_time_histograms", lambda spikes, windows: None)
    monkeypatch.setattr("lightning_snn.callbacks.spike_times.log_figure", lambda *arguments: None)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colored_images(tmp_path_factory.mktemp("cifar10") / "part.npz")
