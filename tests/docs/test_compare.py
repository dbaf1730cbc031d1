"""The tables of the page on the comparison are those of its measured results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_snn.cli.comparison import figures_of, markdown_of
from tests.docs.blocks import ROOT

MEASURED = sorted((ROOT / "docs" / "measured").glob("compare_*.json"))


def test_there_are_results_of_simulated_and_of_real_recordings():
    assert [path.stem for path in MEASURED] == ["compare_gestures", "compare_nmnist"]


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_page_has_the_tables_and_pictures_of_its_results(path: Path):
    results, page = json.loads(path.read_text()), (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert markdown_of(results) in page
    for name in figures_of(results):
        assert f"_pictures/{path.stem}_{name}.png" in page
    # what the page says of the runs
    seeds = results["settings"]["seeds"]
    assert {row["runs"] for row in results["rows"]} == {len(seeds)}
    assert f'--seeds "{json.dumps(seeds, separators=(",", ":"))}"' in page
    assert results["refused"] == {}
