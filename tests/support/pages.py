"""A reader of HTML pages, texts that must be escaped, and a small figure."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from html.parser import HTMLParser

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert('1')>",
    "</pre></style></title><svg onload=alert(1)>",
    "a & b &lt; $c$ {d} ü \N{ZERO WIDTH SPACE}",
    "undecodable \udcff name",
)
_VOID = ("img", "meta")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


# one gray pixel
PNG = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\x7f"))
    + _chunk(b"IEND", b"")
)


class Page(HTMLParser):
    """Elements of a page as a browser reads them.

    Attributes:
        attributes: attributes of the elements of each tag, in order.
        texts: texts of the elements of each tag, without those of elements within them.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: dict[str, list[dict[str, str | None]]] = defaultdict(list)
        self.texts: dict[str, list[str]] = defaultdict(list)
        self._open: list[tuple[str, int]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"{self._open} are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes[tag].append(dict(attributes))
        if tag not in _VOID:
            self._open.append((tag, len(self.texts[tag])))
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, index = self._open[-1]
            self.texts[tag][index] += data
