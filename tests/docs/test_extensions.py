"""Equations become MathML, and inline code becomes links."""

from __future__ import annotations

import html
import re

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT

pytest.importorskip("sphinx")
pytest.importorskip("latex2mathml")


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")


def test_an_equation_is_mathml_with_its_symbols():
    from mathml import mathml

    found = mathml(r"v_t = \beta u_{t-1} + x_t", display=True)
    assert found.startswith("<math")
    assert 'display="block"' in found
    assert html.unescape(re.sub(r"<[^>]*>", "", found)) == "vt=βut−1+xt"


def test_lines_are_aligned():
    from mathml import mathml

    for equation in (r"a &= b \\ c &= d", r"\begin{aligned} a &= b \\ c &= d \end{aligned}"):
        assert mathml(equation, display=True).count("<mtr>") == 2


def test_a_command_that_the_converter_does_not_know_is_an_error():
    from mathml import mathml

    with pytest.raises(ValueError, match="latex2mathml"):
        mathml(r"\nosuchcommand{x}", display=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_equation_of_the_pages_is_converted(document):
    from mathml import mathml

    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for equation in re.findall(r"^\$\$\n(.*?)^\$\$$", text, re.DOTALL | re.MULTILINE):
        assert "<math" in mathml(equation, display=True)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("LIF(beta=0.5)", "LIF"),
        ("lightning_snn.nn.unfold", "nn.unfold"),
        ("run(network, x)", "run"),
        ("methods.Step.loss", "methods.Step.loss"),
        ("samples", None),
        ("K = 4", None),
        ("[T, B, ...]", None),
    ],
)
def test_names_are_found_in_inline_code(code, name):
    from code_links import name_in

    assert name_in(code) == name


def test_links_to_pages_outside_of_the_folder_lead_to_those_of_the_site():
    from repository_links import PAGES, with_pages_of_the_site

    assert with_pages_of_the_site("[a](../callbacks/README.md#x), [b](../README.md)") == (
        "[a](/callbacks/index.md), [b](/index.md)"
    )
    assert with_pages_of_the_site("[a](data.md), [b](callbacks/README.md)") == "[a](data.md), [b](callbacks/README.md)"
    for outside, inside in PAGES.items():
        assert (ROOT / outside).is_file()
        assert (ROOT / "docs" / inside.removeprefix("/")).is_file()


def test_code_of_short_words_is_kept_whole():
    from code_links import has_short_words

    assert has_short_words("--learning_rates 0.1")
    assert not has_short_words("a " + 33 * "x")
