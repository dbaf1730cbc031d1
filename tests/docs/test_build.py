"""The site builds without a warning, one of which is an internal link or a picture without a target."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT

TOOLS = ("furo", "latex2mathml", "myst_parser", "sphinx", "spikingjelly")
MISSING = [name for name in TOOLS if importlib.util.find_spec(name) is None]


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    from page_links import broken_links

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<p id="x&amp;y"></p><a href="#x&amp;y"></a><a href="#y"></a><a href="b.html"></a><a href="sub/c.html?q#z"></a>'
        '<a href="https://elsewhere.example/"></a><img src="gone.png">'
    )
    (tmp_path / "sub" / "c.html").write_text('<a href="../a.html#x%26y"></a><a href="../a.html#z"></a>')
    assert broken_links(tmp_path) == [
        "a.html: #y",
        "a.html: b.html",
        "a.html: sub/c.html?q#z",
        "a.html: gone.png",
        "sub/c.html: ../a.html#z",
    ]
    assert broken_links(tmp_path, [tmp_path / "sub" / "c.html"]) == ["sub/c.html: ../a.html#z"]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_site_builds_without_warnings(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert len(list((tmp_path / "site").rglob("*.html"))) > 60
    text = (tmp_path / "site" / "methods" / "spiking_bayes.html").read_text(encoding="utf-8")
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in text
    assert "http" not in "".join(re.findall(r"<script[^>]*>", text))  # nothing is loaded from a network
