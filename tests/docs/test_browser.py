"""The built pages as a browser shows them, in a window and on a phone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.support.browser import CHROMIUM, DESKTOP, PHONE, chromium
from tests.support.pages import PNG

SITE = Path(os.environ.get("LIGHTNING_SNN_SITE", ROOT / "docs" / "_build"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


def problems(pages: list[Path], folder: Path) -> dict[str, list[str]]:
    """Return what is wrong with pages of a folder at both widths."""

    async def look() -> dict[str, list[str]]:
        found = {}
        async with chromium() as tab:
            for page in pages:
                for width in (DESKTOP, PHONE):
                    await tab.show(page.as_uri(), width)
                    found[f"{page.relative_to(folder)} at {width}"] = await tab.problems()
        return {name: wrong for name, wrong in found.items() if wrong}

    return asyncio.run(look())


@pytest.mark.skipif(not (SITE / "index.html").exists(), reason="build the site first: sphinx-build docs docs/_build")
def test_every_page_fits_its_window_and_shows_its_pictures_and_equations():
    pages = sorted(SITE.resolve().rglob("*.html"))
    assert len(pages) > 60
    assert problems(pages, SITE.resolve()) == {}


def test_what_is_too_wide_or_not_shown_is_found(tmp_path):
    head = '<!doctype html><meta name="viewport" content="width=device-width">'
    wide = '<p style="width: 500px">long</p>'
    (tmp_path / "picture.png").write_bytes(PNG)
    for name, body in {
        "fits": f'<div style="overflow-x: auto">{wide}</div><img src="picture.png"><math><mi>x</mi></math>',
        "wide": wide,
        "gone": '<img src="gone.png"><math></math>',
    }.items():
        (tmp_path / f"{name}.html").write_text(f"{head}<body>{body}</body>")
    found = problems(sorted(tmp_path.glob("*.html")), tmp_path)
    assert found == {
        "gone.html at 1280": ["not shown: gone.png", 'not shown: math ""'],
        "gone.html at 390": ["not shown: gone.png", 'not shown: math ""'],
        "wide.html at 390": ["the page is wider than its window", 'beyond the edge: p "long"'],
    }
