"""Elements of pages: every text is escaped, and a page needs nothing but itself."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from lightning_snn.callbacks.html import Markup, code, element, folded, joined, page, picture, table
from tests.support.pages import HOSTILE, PNG, Page


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_as_it_is_wherever_it_stands(text: str) -> None:
    content = joined(
        [
            element("p", text, title=text),
            table([text], [[text]]),
            code(text),
            folded(text, element("b", text)),
            picture(text, PNG, text),
        ]
    )
    shown = Page(page(text, [(text, content)], element("i", text)))
    expected = text.encode("utf-8", "backslashreplace").decode()
    for tag in ("h1", "title", "i", "h2", "a", "p", "th", "td", "pre", "summary", "b", "figcaption"):
        assert shown.texts[tag] == [expected], tag
    assert shown.attributes["p"] == [{"title": expected}]
    assert shown.attributes["img"][0]["alt"] == expected
    assert not {"script", "iframe", "link", "object", "svg"} & set(shown.attributes)
    assert not [name for tag in shown.attributes.values() for each in tag for name in each if name.startswith("on")]


def test_markup_is_not_escaped_again() -> None:
    inner = element("b", "1 < 2")
    assert element("p", inner, " & ", inner) == "<p><b>1 &lt; 2</b> &amp; <b>1 &lt; 2</b></p>"
    assert isinstance(joined([inner]), Markup)


def test_a_page_loads_nothing_and_forbids_to_load() -> None:
    shown = Page(page("title", [("Figures", picture("one", PNG, "caption"))]))
    (policy,) = [meta["content"] for meta in shown.attributes["meta"] if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in shown.attributes["meta"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in shown.attributes["img"])
    assert "prefers-color-scheme: dark" in shown.texts["style"][0]
    assert "url(" not in shown.texts["style"][0]


def test_headings_are_linked() -> None:
    shown = Page(page("title", [("Repeat and resume", element("p", "text")), ("Cite", element("p", "text"))]))
    links = [link["href"] for link in shown.attributes["a"]]
    assert links == ["#repeat-and-resume", "#cite"]
    assert [f"#{section['id']}" for section in shown.attributes["section"]] == links


def test_tables_scroll_in_their_own_box_and_align_numbers() -> None:
    shown = Page(table(["name", "count", "text"], [["a", 3, "x"], ["b", None, "1.5"]], numbers=(2,), marked=(1,)))
    assert shown.attributes["div"] == [{"class": "scroll"}]
    assert [cell["class"] for cell in shown.attributes["td"]] == ["text", "number", "number"] * 2
    assert shown.texts["td"] == ["a", "3", "x", "b", "–", "1.5"]
    assert shown.attributes["tr"] == [{}, {}, {"class": "marked"}]


@pytest.mark.parametrize("content", [b"", b"<script>alert(1)</script>", PNG[:20]])
def test_a_file_that_is_no_figure_is_named(content: bytes) -> None:
    shown = Page(picture("a < b", content, "caption"))
    assert shown.texts["p"] == ["The figure a < b cannot be shown, because its PNG file is damaged."]
    assert not shown.attributes["img"]


def test_the_reader_of_the_tests_finds_what_is_not_escaped() -> None:
    assert issubclass(Page, HTMLParser)
    assert "script" in Page("<p><script>alert(1)</script></p>").attributes
