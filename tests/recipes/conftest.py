"""What tests of recipes share."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_figures_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run."""
    monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
    monkeypatch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
    monkeypatch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)
