"""Links within the finished site: those to a file or an anchor that does not exist are warnings of the build."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_LINK = re.compile(r'\b(?:href|src)="([^"]*)"')
_ANCHOR = re.compile(r'\bid="([^"]*)"')


def broken_links(site: Path, pages: Iterable[Path] | None = None) -> list[str]:
    """Return the links of pages to files of a site, pictures too, or to anchors that do not exist.

    Args:
        site: folder of the site.
        pages: those to read; None reads all of the site.

    Returns:
        "page: link" for each, in the order of the pages.
    """
    anchors: dict[Path, set[str]] = {}

    def has_anchor(page: Path, anchor: str) -> bool:
        if page not in anchors:
            anchors[page] = set(map(html.unescape, _ANCHOR.findall(page.read_text(encoding="utf-8"))))
        return anchor in anchors[page]

    site = site.resolve()
    broken = []
    for page in sorted(site.rglob("*.html") if pages is None else pages):
        page = page.resolve()
        for found in _LINK.findall(page.read_text(encoding="utf-8")):
            link = unquote(html.unescape(found))
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".html" and not has_anchor(target, anchor)):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def warn(app: Sphinx, error: Exception | None) -> None:
    """Warn of the broken links of a site that has been built."""
    from sphinx.util.logging import getLogger

    if error is not None or app.builder.format != "html":
        return
    # a folder that was built before may hold pages of documents that are gone
    pages = [Path(app.builder.get_outfilename(name)) for name in (*app.env.found_docs, "genindex", "py-modindex")]
    for link in broken_links(Path(app.outdir), [page for page in pages if page.exists()]):
        getLogger(__name__).warning("a link leads nowhere: %s", link)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check."""
    app.connect("build-finished", warn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
