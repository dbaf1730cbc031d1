"""Reader of AEDAT 2.0 files: recordings of jAER and simulations of v2e."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import numpy as np

from lightning_snn.data.events import Events
from lightning_snn.reading import read_bytes

END_OF_HEADER = re.compile(rb"#\s*End Of ASCII Header\s*", re.IGNORECASE)
LONGEST_LINE = 1 << 20


class Layout(NamedTuple):
    """Bits of an address of a family of cameras.

    Attributes:
        name: the family.
        x: lowest bit and number of bits of the column.
        y: the same of the row.
        polarity: bit of the polarity.
        on: value of that bit for an increase of light.
        other: bits of which one is set if a record is no event.
        width: bits that addresses take, which tells the families apart.
    """

    name: str
    x: tuple[int, int]
    y: tuple[int, int]
    polarity: int
    on: int
    other: int
    width: int


DVS128 = Layout("DVS128", (1, 7), (8, 7), polarity=0, on=0, other=0xFFFF8000, width=16)
DVS640 = Layout("DVS640", (1, 10), (11, 10), polarity=0, on=1, other=0xFFE00000, width=21)
# bit 31 marks samples of the frame sensor and of the motion sensor, bit 10 those of an external input
DAVIS = Layout("DAVIS", (12, 10), (22, 9), polarity=11, on=1, other=0x80000400, width=32)
CAMERAS = {
    "dvs128": (DVS128, (128, 128)),
    "dvs640": (DVS640, (480, 640)),
    "davis128": (DAVIS, (128, 128)),
    "davis208": (DAVIS, (192, 208)),
    "davis240": (DAVIS, (180, 240)),
    "davis346": (DAVIS, (260, 346)),
    "davis640": (DAVIS, (480, 640)),
}
BY_SIZE = {(128, 128): DVS128, (480, 640): DVS640}
"""layouts of files whose header names no camera; other sizes are those of a DAVIS"""


def read_aedat2(
    path: str | os.PathLike[str], sensor_size: tuple[int, int] | None = None
) -> tuple[Events, tuple[int, int]]:
    """Read the polarity events of an AEDAT 2.0 file of a DVS128, DVS640 or DAVIS camera.

    Lines that start with ``#`` precede pairs of big-endian 32-bit words, an address and a time in microseconds:

    ======  =============  =============  ================  =====================================
    camera  x              y              polarity          not an event if one is set
    ======  =============  =============  ================  =====================================
    DVS128  bits 1 to 7    bits 8 to 14   bit 0, 0 is ON    bits 15 to 31
    DVS640  bits 1 to 10   bits 11 to 20  bit 0, 1 is ON    bits 21 to 31
    DAVIS   bits 12 to 21  bits 22 to 30  bit 11, 1 is ON   31 (frames, motion), 10 (external input)
    ======  =============  =============  ================  =====================================

    Addresses count from the lower right corner; the events count from the upper left. A header line ``AEChip`` names
    the camera. Without one, as in files of v2e, the size of the sensor does: 128 x 128 is a DVS128, 640 x 480 a DVS640,
    other sizes a DAVIS. Times wrap at 2**32 us, about 72 minutes, and are unwrapped.

    SpikingJelly exchanges the rows and columns of CIFAR10-DVS; swap ``x`` and ``y`` for the same events.

    Args:
        path: the file.
        sensor_size: rows and columns of the sensor; None takes those of the camera that the header names.

    Returns:
        The events in the order of the file, ``x`` and ``y`` (int16), ``p`` (uint8, 1 is ON) and ``t`` (int64, us), and
        the rows and columns of the sensor.

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ValueError: if the file is truncated or holds no event, its camera is unknown, or its addresses are those of
            another camera; the message names the file.

    Source: iniVation, "AEDAT 2.0", and the classes ``DVS128``, ``DVS640`` and ``DavisBaseCamera`` of jAER. The
    polarity of the DVS128 is that of jAER, which recorded the files; the table of the format's page has the opposite.
    """
    data = read_bytes(path, "an AEDAT file")
    position, lines = _read_header(data.data, path)
    layout, sensor_size = _camera(lines, sensor_size, path)
    if (len(data) - position) % 8:
        raise ValueError(
            f"Expected {path} to hold events of 8 bytes from byte {position} on, but it ends at byte {len(data)}: it "
            "is truncated"
        )
    address, ticks = np.frombuffer(data.data, ">u4", offset=position).astype(np.uint32).reshape(-1, 2).T
    _check_addresses(address, layout, path)
    kept = address & np.uint32(layout.other) == 0
    if not kept.any():
        raise ValueError(f"Expected {path} to hold polarity events, but got none in {len(kept)} records")
    address, ticks = address[kept], ticks[kept]
    # differences as signed numbers: a wrapped clock goes on, and a time slightly out of order goes back
    t = np.concatenate([ticks[:1].astype(np.int64), np.diff(ticks).view(np.int32).astype(np.int64)]).cumsum()
    rows, columns = sensor_size
    polarity = address >> np.uint32(layout.polarity) & np.uint32(1)
    return Events(
        (columns - 1 - _bits(address, *layout.x)).astype(np.int16),
        (rows - 1 - _bits(address, *layout.y)).astype(np.int16),
        (polarity == layout.on).astype(np.uint8),
        t,
    ), sensor_size


def _bits(address: np.ndarray, shift: int, bits: int) -> np.ndarray:
    field: np.ndarray = (address >> np.uint32(shift) & np.uint32((1 << bits) - 1)).astype(np.int64)
    return field


def _check_addresses(address: np.ndarray, layout: Layout, path: str | os.PathLike[str]) -> None:
    """Raise a ValueError if addresses cannot be those of the camera; read as such they would be other positions."""
    if len(address) == 0:
        return
    # bit 31 alone may mark special events of each camera
    largest = int((address & np.uint32(0x7FFFFFFF)).max()) if layout is not DAVIS else int(address.max())
    found = next(each for each in (DVS128, DVS640, DAVIS) if largest < 1 << each.width)
    if found is not layout:
        size = next((f"{size}" for size, each in BY_SIZE.items() if each is found), "(rows, columns)")
        raise ValueError(
            f"Expected {path} to hold addresses of a {layout.name}, but got addresses of a {found.name}. Pass the "
            f"`sensor_size` of the camera, {size}"
        )


def _read_header(data: memoryview, path: str | os.PathLike[str]) -> tuple[int, list[str]]:
    """Return the position of the first record, and the lines before it.

    A record may start with the byte of ``#``. Unlike a line it holds zeros: the times of the first seconds do.
    """
    position, lines = 0, []
    while position < len(data) and data[position] == ord("#"):
        end = bytes(data[position : position + LONGEST_LINE]).find(b"\n")
        line = bytes(data[position : position + end])
        if end < 0 or b"\0" in line:
            break
        position += end + 1
        lines.append(line.decode("utf-8", "replace").strip())
        if END_OF_HEADER.fullmatch(line):
            break
    if not lines:
        raise ValueError(f"Expected the first line of {path} to end, but it does not")
    return position, lines


def _camera(
    lines: list[str], sensor_size: tuple[int, int] | None, path: str | os.PathLike[str]
) -> tuple[Layout, tuple[int, int]]:
    """Return the layout of addresses and the rows and columns of the camera."""
    named = next((line.split(":", 1)[1].strip() for line in lines if re.match(r"#\s*AEChip\s*:", line)), None)
    if named is not None:
        chip = named.rsplit(".", 1)[-1].lower()
        known = next((name for name in CAMERAS if chip.startswith(name)), None)
        if known is None and sensor_size is None:
            raise ValueError(
                f"Expected {path} to be of a camera of {', '.join(CAMERAS)}, but its header names {named}. Pass "
                "`sensor_size` if its addresses are those of one of them"
            )
        if known is not None:
            layout, size = CAMERAS[known]
            if sensor_size is not None and tuple(sensor_size) != size:
                raise ValueError(
                    f"Expected argument `sensor_size` to be {size}, because the header of {path} names {named}, but "
                    f"got {tuple(sensor_size)}"
                )
            return layout, size
    if sensor_size is None:
        raise ValueError(
            f"Expected argument `sensor_size`, because the header of {path} names no camera, but got None. Pass its "
            "rows and columns: (128, 128) for a DVS128 as in CIFAR10-DVS, (260, 346) for a DAVIS346 and v2e"
        )
    rows, columns = sensor_size
    return BY_SIZE.get((rows, columns), DAVIS), (rows, columns)
