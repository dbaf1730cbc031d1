"""Reader of AEDAT 3.1 files, the format of the original DVS128 Gesture recordings."""

from __future__ import annotations

import os

import numpy as np

from lightning_snn.data.events import Events
from lightning_snn.reading import read_bytes

VERSION_LINE = b"#!AER-DAT3.1"
PACKET_HEADER = np.dtype(
    [
        ("type", "<i2"),
        ("source", "<i2"),
        ("size", "<i4"),
        ("time_offset", "<i4"),
        ("time_overflow", "<i4"),
        ("capacity", "<i4"),
        ("number", "<i4"),
        ("valid", "<i4"),
    ]
)
POLARITY_EVENT = 1
POLARITY_EVENT_SIZE = 8


def read_aedat3(path: str | os.PathLike[str]) -> Events:
    """Read the valid polarity events of an AEDAT 3.1 file.

    Header lines that start with ``#`` precede packets. A packet is a 28-byte header and ``capacity`` events of
    ``size`` bytes, of which the first ``number`` are used. A polarity event is two little-endian 32-bit words: valid
    (bit 0), polarity (bit 1), y (bits 2 to 16), x (bits 17 to 31); and the low 31 bits of the time in microseconds,
    whose high bits are in the header of the packet. Packets of other types are skipped.

    Args:
        path: the file.

    Returns:
        The events in the order of the file: ``x``, ``y`` (int16), ``p`` (uint8, 1 is ON) and ``t`` (int64, us).

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is of another format, truncated, or holds no polarity event; the message names it.

    Source: iniVation, "AEDAT 3.1", https://docs.inivation.com/software/software-advanced-usage/file-formats/.
    """
    data = read_bytes(path, "an AEDAT file").data
    position = _skip_header_lines(data, path)
    words, times = [], []
    while position < len(data):
        if len(data) - position < PACKET_HEADER.itemsize:
            raise _truncated(path, position, PACKET_HEADER.itemsize, len(data))
        header = np.frombuffer(data, PACKET_HEADER, 1, position)[0]
        kind, size, capacity, number = (int(header[name]) for name in ("type", "size", "capacity", "number"))
        overflow = int(header["time_overflow"])
        whole = size == POLARITY_EVENT_SIZE if kind == POLARITY_EVENT else size > 0
        if not whole or not 0 <= number <= capacity or overflow < 0:
            raise ValueError(
                f"Expected {path} to hold a packet header at byte {position}, but got event type {kind}, event size "
                f"{size}, capacity {capacity}, number of events {number} and time overflow {overflow}"
            )
        position += PACKET_HEADER.itemsize
        if len(data) - position < capacity * size:
            raise _truncated(path, position, capacity * size, len(data))
        if kind == POLARITY_EVENT:
            events = np.frombuffer(data, "<u4", 2 * number, position).reshape(number, 2)
            events = events[events[:, 0] & 1 == 1]
            words.append(events[:, 0])
            times.append(events[:, 1].astype(np.int64) | overflow << 31)
        position += capacity * size
    if not any(map(len, words)):
        raise ValueError(f"Expected {path} to hold valid polarity events, but got none")
    word = np.concatenate(words)
    x, y = (word >> 17).astype(np.int16), (word >> 2 & 0x7FFF).astype(np.int16)
    return Events(x, y, (word >> 1 & 1).astype(np.uint8), np.concatenate(times))


def _skip_header_lines(data: memoryview, path: str | os.PathLike[str]) -> int:
    """Return the position of the first packet."""
    if bytes(data[: len(VERSION_LINE)]) != VERSION_LINE:
        raise ValueError(
            f"Expected {path} to be an AEDAT 3.1 file, which starts with {VERSION_LINE.decode()}, but it starts with "
            f"{bytes(data[: len(VERSION_LINE)])!r}"
        )
    position = 0
    while position < len(data) and data[position] == ord("#"):
        # header lines are short; without the bound a file without line ends would be copied whole
        end = bytes(data[position : position + 65536]).find(b"\n")
        if end < 0:
            raise ValueError(f"Expected the header line at byte {position} of {path} to end, but it does not")
        line = bytes(data[position : position + end])
        position += end + 1
        if line.rstrip() == b"#!END-HEADER":
            break
    return position


def _truncated(path: str | os.PathLike[str], position: int, wanted: int, size: int) -> ValueError:
    return ValueError(
        f"Expected {path} to hold {wanted} bytes from byte {position} on, but it ends at byte {size}: it is truncated"
    )
