"""Links to pages that are outside of `docs/` in the repository, where readers of the files follow them."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

PAGES = {
    "callbacks/README.md": "/callbacks/index.md",
    "CHANGELOG.md": "/project/changelog.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "README.md": "/index.md",
}
_LINK = re.compile(r"\]\((?:\.\./)+(" + "|".join(map(re.escape, PAGES)) + r")(?:#[^)]*)?\)")


def with_pages_of_the_site(text: str) -> str:
    """Return Markdown in which such links lead to the pages of the site that take their place.

    Example:
        >>> with_pages_of_the_site("see [the catalog](../callbacks/README.md)")
        'see [the catalog](/callbacks/index.md)'
    """
    return _LINK.sub(lambda found: f"]({PAGES[found[1]]})", text)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the links of a page that has been read."""
    source[0] = with_pages_of_the_site(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the replacement."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
