"""The site builds without a warning, and every internal link of its pages has a target."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.blocks import ROOT

TOOLS = ("furo", "latex2mathml", "myst_parser", "sphinx", "spikingjelly")
MISSING = [name for name in TOOLS if importlib.util.find_spec(name) is None]


def broken_links(site: Path) -> list[str]:
    """Return the links of the pages of a site to files or anchors that do not exist."""
    texts = {page.resolve(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]*)"', text)) for page, text in texts.items()}
    broken = []
    for page, text in texts.items():
        for found in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            link = unquote(html.unescape(found))
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                broken.append(f"{page.relative_to(site.resolve())}: {link}")
    return broken


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"></p><a href="#x"></a><a href="#y"></a><a href="b.html"></a>')
    assert broken_links(tmp_path) == ["a.html: #y", "a.html: b.html"]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_site_builds_without_warnings_and_broken_links(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert len(list((tmp_path / "site").rglob("*.html"))) > 60
    assert broken_links(tmp_path / "site") == []
    text = (tmp_path / "site" / "methods" / "spiking_bayes.html").read_text(encoding="utf-8")
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
    assert "http" not in "".join(re.findall(r"<script[^>]*>", text))  # nothing is loaded from a network
