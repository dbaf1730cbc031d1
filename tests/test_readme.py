"""The example of the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.processes import run_python

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
    finished = run_python(script.name, cwd=tmp_path, LIGHTNING_SNN_CACHE=str(tmp_path / "cache"))
    assert finished.returncode == 0, finished.stderr[-3000:]
