"""The example of the README runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def first_example() -> str:
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found, "README.md has no python block"
    return found.group(1)


def test_the_example_is_short():
    assert 5 <= len([line for line in first_example().splitlines() if line.strip()]) <= 25


def test_the_example_runs_in_an_empty_folder(tmp_path):
    script = tmp_path / "example.py"
    script.write_text(first_example())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LIGHTNING_SNN_CACHE": str(tmp_path / "cache")}
    finished = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
