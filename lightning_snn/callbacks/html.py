"""Elements of self-contained HTML pages.

Texts that are not `Markup` are escaped, so they are shown as they are whatever they contain. A page has no script and
loads nothing. Its policy forbids both, so browsers refuse them.
"""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterable, Sequence

_VOID = ("img", "meta")
_PNG = b"\x89PNG\r\n\x1a\n"
_CSS_PIXELS = 1.5  # pixels of a figure per pixel of the page
_SMALLEST = 0.7  # of the width of a figure, below which its text is too small to read
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --back: #ffffff; --card: #f6f8fa;
  --mark: #fff1c2; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #353c45; --back: #0f1419;
  --card: #1a2027; --mark: #4b3a0c; --link: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
nav a { margin-right: .9rem; white-space: nowrap; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td.text { min-width: 9rem; max-width: 30rem; overflow-wrap: anywhere; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.marked td { background: var(--mark); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; margin: .4rem 0;
  overflow-x: auto; font: .85rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: normal; }
summary { cursor: pointer; color: var(--link); }
figure { margin: 0 0 1.2rem; min-width: 0; }
figure img { display: block; height: auto; background: #ffffff; border-radius: 6px; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
.figures figure { max-width: 100%; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 0 1.2rem; }
@media (min-width: 701px) { .pair img { width: 100% !important; min-width: 0 !important; } }
@media (max-width: 700px) { .pair { grid-template-columns: minmax(0, 1fr); } body { padding: .8rem; }
  table { font-size: .84rem; } th, td { padding-right: .5rem; } td.text { min-width: 6.5rem; } }
"""


class Markup(str):
    """HTML text, which is not escaped again."""


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element whose children and attributes are escaped, except children that are `Markup`.

    Args:
        tag: name of the element.
        *children: texts, and elements.
        **attributes: attributes by name, without underscores at the end: ``class_="scroll"``; None leaves one out.

    Example:
        >>> element("p", "a < b ", element("b", "and"), class_='"x"')
        '<p class="&quot;x&quot;">a &lt; b <b>and</b></p>'
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(children)}</{tag}>")


def joined(parts: Iterable[object]) -> Markup:
    """Return parts one after the other, escaped as the children of an element."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Iterable[int] = (),
    marked: Iterable[int] = (),
) -> Markup:
    """Return a table in a box of its own, which scrolls if the page is narrow.

    Args:
        columns: headings.
        rows: cells; None is shown as a dash, and floats with four significant digits. Columns of numbers are aligned
            on the right.
        numbers: indices of further columns to align on the right.
        marked: indices of rows to highlight.

    Example:
        >>> ">0.3333<" in table(["name", "value"], [["a", 1 / 3]])
        True
    """
    listed = [list(row) for row in rows]
    highlighted, right = set(marked), set(numbers)
    right |= {
        index
        for index in range(len(columns))
        if all(_is_number(row[index]) for row in listed) and any(row[index] is not None for row in listed)
    }
    kinds = ["number" if index in right else "text" for index in range(len(columns))]
    head = element("tr", *(element("th", name, class_=kind) for name, kind in zip(columns, kinds, strict=True)))
    body = joined(
        element(
            "tr",
            *(element("td", shown(cell), class_=kind) for cell, kind in zip(row, kinds, strict=True)),
            class_="marked" if index in highlighted else None,
        )
        for index, row in enumerate(listed)
    )
    return element("div", element("table", element("thead", head), element("tbody", body)), class_="scroll")


def shown(value: object) -> object:
    """Return a cell of a table as it is shown."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value


def picture(name: str, png: bytes, caption: object) -> Markup:
    """Return a figure with its caption, whose image is part of the page.

    It is shown smaller on a narrow page, but not so small that its text cannot be read: then it scrolls in its box.

    Args:
        name: what the figure shows, for readers who do not see it.
        png: content of a PNG file.
        caption: text below it.

    Returns:
        The figure. A file that is damaged is named instead: it must not cost a run the rest of its page.
    """
    if not png.startswith(_PNG) or len(png) < 24:
        return element("p", f"The figure {name} cannot be shown, because its PNG file is damaged.", class_="soft")
    width = round(struct.unpack(">I", png[16:20])[0] / _CSS_PIXELS)
    style = f"width: {width}px; max-width: 100%; min-width: {round(_SMALLEST * width)}px"
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = element("img", src=source, alt=name, style=style)
    return element("figure", element("div", image, class_="scroll"), element("figcaption", caption))


def code(text: str) -> Markup:
    """Return a text in a monospaced font, line by line, in a box that scrolls."""
    return element("pre", text)


def folded(summary: str, *children: object) -> Markup:
    """Return a part of the page that opens when its summary is clicked."""
    return element("details", element("summary", summary), *children)


def page(title: str, sections: Sequence[tuple[str, Markup]], introduction: Markup | None = None) -> str:
    """Return a whole page.

    Args:
        title: its heading.
        sections: headings and contents of its sections, which are listed under its heading.
        introduction: what stands below the heading.
    """
    links = (element("a", heading, href=f"#{_anchor(heading)}") for heading, _ in sections)
    body = element(
        "body",
        element("h1", title),
        introduction or "",
        element("nav", joined(links)),
        *(element("section", element("h2", heading), content, id=_anchor(heading)) for heading, content in sections),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _escaped(value: object) -> str:
    # names of files may hold bytes that are no text
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))
