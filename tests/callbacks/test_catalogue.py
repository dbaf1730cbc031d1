"""Every file of the drop-in catalogue runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CATALOGUE = Path(__file__).resolve().parents[2] / "callbacks"


def test_the_report_script_writes_its_report(tmp_path):
    folder = tmp_path / "report"
    subprocess.run(
        [sys.executable, CATALOGUE / "report.py", folder], check=True, cwd=tmp_path, capture_output=True, timeout=120
    )
    assert {file.name for file in folder.iterdir()} >= {
        "metrics.json",
        "confusion_matrix.png",
        "reliability.png",
        "training_curves.png",
        "raster.png",
    }
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.6


def test_every_script_has_its_row_in_the_table():
    table = (CATALOGUE / "README.md").read_text()
    assert all(f"({script.name})" in table for script in CATALOGUE.glob("*.py"))
