"""Writers of AEDAT files, from the descriptions of the formats."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
AEDAT3_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-08-31 12:43:15 (TZ-0400)\r\n"
    b"#!END-HEADER\r\n"
)
AEDAT2_LINES = (
    b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)


def aedat3_packet(kind: int, body: bytes, size: int, capacity: int, number: int, overflow: int = 0) -> bytes:
    """A packet of AEDAT 3.1."""
    return struct.pack("<hhiiiiii", kind, 1, size, 4, overflow, capacity, number, number) + body


def aedat3_polarity(events: Columns, valid: bool = True, spare: int = 0) -> bytes:
    """A packet of polarity events of AEDAT 3.1, with room for ``spare`` unused ones."""
    x, y, p, t = events
    word = x.astype(np.uint32) << 17 | y.astype(np.uint32) << 2 | p.astype(np.uint32) << 1 | int(valid)
    body = np.stack([word, (t & 0x7FFFFFFF).astype(np.uint32)], 1).astype("<u4").tobytes()
    return aedat3_packet(1, body + b"\xff" * 8 * spare, 8, len(t) + spare, len(t), int(t[0]) >> 31)


def aedat2_records(records: Sequence[tuple[int, int]]) -> bytes:
    """Records (address, time) of AEDAT 2.0, one by one."""
    return b"".join(struct.pack(">II", address, time % 2**32) for address, time in records)


def dvs128_address(x: int, y: int, p: int) -> int:
    """Address of jAER's DVS128: it counts from the lower right, and a set bit 0 is OFF."""
    return (127 - y) << 8 | (127 - x) << 1 | (1 - p)


def davis_address(x: int, y: int, p: int, size: tuple[int, int]) -> int:
    """Address of jAER's DAVIS cameras, as v2e writes it: from the lower right, bit 11 is ON."""
    return (size[0] - 1 - y) << 22 | (size[1] - 1 - x) << 12 | p << 11


def dvs640_address(x: int, y: int, p: int) -> int:
    """Address of jAER's DVS640, as v2e writes it: from the lower right, a set bit 0 is ON."""
    return (479 - y) << 11 | (639 - x) << 1 | p


def flatbuffer(identifier: bytes, fields: Sequence[bytes | tuple[bytes, int] | None]) -> bytes:
    """A size-prefixed FlatBuffer of one table.

    A field is None if it is absent, the bytes of a number, or a pair: the items of a vector and their number. Numbers
    of 8 bytes and items of 16 are aligned to 8 bytes.
    """
    vtable_size = 4 + 2 * len(fields)
    vtable_at = 8
    table_at = -(-(vtable_at + vtable_size) // 8) * 8 + 4  # after its offset of 4 bytes numbers of 8 are aligned
    position, offsets, table, vectors = 4, [], b"", []
    for field in fields:
        if field is None:
            offsets.append(0)
            continue
        value = b"\0" * 4 if isinstance(field, tuple) else field
        padding = -(table_at + position) % len(value)
        table += b"\0" * padding
        position += padding
        offsets.append(position)
        if isinstance(field, tuple):
            vectors.append((position, field))
        table += value
        position += len(value)
    vtable = struct.pack("<HH", vtable_size, position) + b"".join(struct.pack("<H", offset) for offset in offsets)
    head = struct.pack("<I", table_at) + identifier + vtable
    data = bytearray(head + b"\0" * (table_at - len(head)) + struct.pack("<i", table_at - vtable_at) + table)
    for position, (items, number) in vectors:
        # the number of items precedes them, and the prefix of 4 bytes counts for the alignment
        data += b"\0" * (-(len(data) + 4) % 8)
        struct.pack_into("<I", data, table_at + position, len(data) - table_at - position)
        data += struct.pack("<I", number) + items
    return struct.pack("<I", len(data)) + bytes(data)


def aedat4_events(events: Columns) -> bytes:
    """The FlatBuffer of a packet of events, written one by one."""
    rows = zip(*(column.tolist() for column in events), strict=True)
    items = b"".join(struct.pack("<qhhB3x", t, x, y, p) for x, y, p, t in rows)
    return flatbuffer(b"EVTS", [(items, len(events[0]))])


def aedat4_stream(number: int, kind: str, size: tuple[int, int] | None = None) -> str:
    """The description of a stream."""
    sides = (("sizeX", size[1]), ("sizeY", size[0])) if size else ()
    info = "".join(f'<attr key="{key}" type="int">{value}</attr>' for key, value in sides)
    return (
        f'<node name="{number}" path="/mainloop/Recorder/outInfo/{number}/">'
        f'<attr key="compression" type="string">LZ4</attr><attr key="typeIdentifier" type="string">{kind}</attr>'
        f'<node name="info" path="/mainloop/Recorder/outInfo/{number}/info/">{info}</node></node>'
    )


def aedat4_file(
    packets: Sequence[tuple[int, bytes]],
    streams: Sequence[str],
    compression: int = 0,
    compress: Callable[[bytes], bytes] = bytes,
    table: bytes | None = b"the table of packets",
) -> bytes:
    """A file of AEDAT 4.0, of (stream, FlatBuffer) packets; without a table it ends with the packets."""
    text = f'<dv version="2.0"><node name="outInfo" path="/outInfo/">{"".join(streams)}</node></dv>'.encode()
    body = b"".join(struct.pack("<ii", number, len(compress(p))) + compress(p) for number, p in packets)

    def header(end: int) -> bytes:
        fields = [struct.pack("<i", compression) if compression else None, struct.pack("<q", end), (text, len(text))]
        return b"#!AER-DAT4.0\r\n" + flatbuffer(b"IOHE", fields)

    end = -1 if table is None else len(header(0)) + len(body)
    return header(end) + body + (table or b"")
