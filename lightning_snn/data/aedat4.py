"""Reader of AEDAT 4.0 files: recordings of DV and dv-processing."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from lightning_snn.data.events import Events
from lightning_snn.reading import read_bytes

VERSION_LINE = b"#!AER-DAT4.0\r\n"
EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "u1"), ("padding", "V3")])
COMPRESSIONS = ("none", "lz4", "lz4", "zstd", "zstd")
PACKET_HEADER = struct.Struct("<ii")


class Stream(NamedTuple):
    """Stream of packets that the file describes.

    Attributes:
        kind: four letters: EVTS for polarity events.
        size: rows and columns of the sensor; None if the file does not give them.
    """

    kind: str | None
    size: tuple[int, int] | None


def read_aedat4(path: str | os.PathLike[str], stream: int | None = None) -> tuple[Events, tuple[int, int] | None]:
    """Read the polarity events of an AEDAT 4.0 file.

    A version line and a size-prefixed FlatBuffer precede the packets: ``compression`` (int32), ``dataTablePosition``
    (int64, the end of the packets, -1 if the file ends there) and ``infoNode``, an XML description of the streams. A
    packet is the number of its stream and its size in bytes (two int32) and that many bytes: a frame of LZ4 or
    Zstandard, or uncompressed, of a size-prefixed FlatBuffer. That of events has the identifier ``EVTS`` and one vector
    of structures of 16 bytes: time (int64, us), x and y (int16) and polarity (bool). All numbers are little-endian.

    Args:
        path: the file.
        stream: number of the event stream; None takes the only one.

    Returns:
        The events in the order of the file, ``x`` and ``y`` (int16), ``p`` (uint8, 1 is ON) and ``t`` (int64, us of
        Unix time), and the rows and columns of the sensor if the file gives them.

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ImportError: if the package that decompresses the file, lz4 or zstandard, is not installed.
        ValueError: if the file is of another format, truncated or corrupt, has no event stream or several and
            ``stream`` does not choose one; the message names it.

    Source: iniVation, "AEDAT 4.0", and the FlatBuffers schemas of dv-processing.
    """
    data = read_bytes(path, "an AEDAT file").data
    try:
        compression, end, streams, position = _read_header(data)
        end = len(data) if end == -1 else end
        if not position <= end <= len(data):
            raise ValueError(f"its packets would end at byte {end} of {len(data)}: it is truncated")
        chosen = _choose(streams, stream)
        decompress = _decompressor(compression, path)
        parts = [
            _read_events(decompress(packet)) for number, packet in _packets(data, position, end) if number == chosen
        ]
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"Expected {path} to be a whole AEDAT 4.0 file, but {error}") from error
    events = np.concatenate([np.zeros(0, EVENT), *parts])
    columns = (np.ascontiguousarray(events[name]) for name in ("x", "y", "on", "t"))
    return Events(*columns), streams[chosen].size


def _read_header(data: memoryview) -> tuple[str, int, dict[int, Stream], int]:
    """Return the compression, the end of the packets, the streams by number, and the position of the first packet."""
    if bytes(data[: len(VERSION_LINE)]) != VERSION_LINE:
        raise ValueError(f"it starts with {bytes(data[: len(VERSION_LINE)])!r}")
    table = _Table(data[len(VERSION_LINE) :], b"IOHE")
    code = table.number(0, "<i", 0)
    if not 0 <= code < len(COMPRESSIONS):
        raise ValueError(f"its compression {code} is unknown")
    streams = {}
    for node in ElementTree.fromstring(table.text(2) or "<dv/>").findall("./node[@name='outInfo']/node"):
        sides = [node.findtext(f"./node[@name='info']/attr[@key='{key}']") for key in ("sizeY", "sizeX")]
        size = (int(sides[0]), int(sides[1])) if sides[0] and sides[1] else None
        streams[int(node.get("name", ""))] = Stream(node.findtext("./attr[@key='typeIdentifier']"), size)
    return COMPRESSIONS[code], table.number(1, "<q", -1), streams, len(VERSION_LINE) + 4 + table.size


def _choose(streams: dict[int, Stream], chosen: int | None) -> int:
    """Return the number of the event stream to read."""
    found = [number for number, stream in streams.items() if stream.kind == "EVTS"]
    if chosen is None and len(found) == 1:
        return found[0]
    if chosen not in found:
        kinds = ", ".join(f"{number}: {stream.kind}" for number, stream in streams.items()) or "none"
        wanted = "one event stream; pass `stream`" if chosen is None else f"an event stream {chosen}"
        raise ValueError(f"it does not hold {wanted} (streams: {kinds})")
    return chosen


def _packets(data: memoryview, position: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the number of the stream and the content of each packet."""
    while position < end:
        if end - position < PACKET_HEADER.size:
            raise ValueError(f"the packet at byte {position} has no whole header: it is truncated")
        number, size = PACKET_HEADER.unpack_from(data, position)
        position += PACKET_HEADER.size
        if not 0 <= size <= end - position:
            raise ValueError(f"the packet at byte {position} would be {size} bytes long, of {end - position} left")
        yield number, data[position : position + size]
        position += size


def _decompressor(compression: str, path: str | os.PathLike[str]) -> Callable[[memoryview], memoryview]:
    """Return the function that decompresses a packet; damaged ones are ValueErrors."""
    if compression == "none":
        return lambda packet: packet
    package = {"lz4": "lz4", "zstd": "zstandard"}[compression]
    inflate: Callable[[memoryview], bytes]
    damage: type[Exception]
    try:
        if compression == "lz4":
            import lz4.frame

            inflate, damage = lz4.frame.decompress, RuntimeError
        else:
            import zstandard

            # a streaming decompressor, because the size of the content need not be given
            inflate = lambda packet: zstandard.ZstdDecompressor().decompressobj().decompress(packet)  # noqa: E731
            damage = zstandard.ZstdError
    except ImportError as error:
        raise ImportError(
            f"Expected {package} to be installed, which reading {path} needs: pip install 'lightning-snn[events]'"
        ) from error

    def decompress(packet: memoryview) -> memoryview:
        try:
            return memoryview(inflate(packet))
        except (damage, MemoryError, OverflowError, EOFError) as error:  # a header may ask for any size
            raise ValueError(f"a packet is corrupt: {error}") from error

    return decompress


def _read_events(packet: memoryview) -> np.ndarray:
    start, count = _Table(packet, b"EVTS").vector(0, EVENT.itemsize)
    return np.frombuffer(packet, EVENT, count, start)


class _Table:
    """Root table of a size-prefixed FlatBuffer; fields are found by the offsets of its vtable."""

    def __init__(self, data: memoryview, identifier: bytes) -> None:
        self.size = self._unpack("<I", data, 0)
        self.data = data[: 4 + self.size]
        if len(self.data) < 4 + self.size or bytes(self.data[8:12]) != identifier:
            raise ValueError(f"a FlatBuffer {identifier.decode()} of {self.size} bytes is truncated or of another kind")
        self.table = 4 + self._unpack("<I", self.data, 4)
        self.vtable = self.table - self._unpack("<i", self.data, self.table)

    def number(self, field: int, form: str, default: int) -> int:
        """Return a number, or its default if the table does not store it."""
        position = self._position(field)
        return default if position is None else self._unpack(form, self.data, position)

    def text(self, field: int) -> str:
        """Return a string, empty if the table has none."""
        start, count = self.vector(field, 1)
        return bytes(self.data[start : start + count]).decode("utf-8")

    def vector(self, field: int, item_size: int) -> tuple[int, int]:
        """Return the position of the first item of a vector and the number of items, 0 if the table has none."""
        position = self._position(field)
        if position is None:
            return 0, 0
        position += self._unpack("<I", self.data, position)
        count = self._unpack("<I", self.data, position)
        if position + 4 + count * item_size > len(self.data):
            raise ValueError(f"a vector of {count} items ends after its FlatBuffer: it is truncated or corrupt")
        return position + 4, count

    def _position(self, field: int) -> int | None:
        slot = 4 + 2 * field
        if slot >= self._unpack("<H", self.data, self.vtable):
            return None
        offset = self._unpack("<H", self.data, self.vtable + slot)
        return self.table + offset if offset else None

    @staticmethod
    def _unpack(form: str, data: memoryview, position: int) -> int:
        if not 0 <= position <= len(data) - struct.calcsize(form):
            raise ValueError(f"a FlatBuffer of {len(data)} bytes has no number at byte {position}: it is corrupt")
        value: Any = struct.unpack_from(form, data, position)[0]
        return int(value)
