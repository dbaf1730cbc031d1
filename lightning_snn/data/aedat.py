"""Reader of AEDAT files, the formats of iniVation's cameras and of jAER, in versions 2.0, 3.1 and 4.0."""

from __future__ import annotations

import os

from lightning_snn.data.aedat2 import read_aedat2
from lightning_snn.data.aedat3 import read_aedat3
from lightning_snn.data.aedat4 import read_aedat4
from lightning_snn.data.events import Events, checked_events
from lightning_snn.reading import reading

VERSION = b"#!AER-DAT"


def read_aedat(
    path: str | os.PathLike[str], *, sensor_size: tuple[int, int] | None = None, stream: int | None = None
) -> Events:
    r"""Read the polarity events of an AEDAT file of version 2.0, 3.1 or 4.0, which its first line names.

    =======  ====================================================  =====================================================
    version  written by                                            data sets
    =======  ====================================================  =====================================================
    2.0      jAER, v2e                                             CIFAR10-DVS and other recordings of a DVS128 or DAVIS
    3.1      cAER                                                  DVS128 Gesture, the original recordings
    4.0      DV, dv-processing                                     recordings since 2019
    =======  ====================================================  =====================================================

    Args:
        path: the file.
        sensor_size: rows and columns of the sensor. None takes those that the file names, if any: files of version 4.0
            and those of jAER name it, files of v2e and of version 3.1 do not.
        stream: number of the event stream in a file of version 4.0 that holds several.

    Returns:
        The events, sorted by time: x from the left and y from the top (as iniVation's software displays them), p (1 is
        ON), and t in microseconds.

    Raises:
        OSError: if the file is missing or cannot be read; the message names it.
        ImportError: if a file of version 4.0 is compressed and the package that decompresses it is not installed.
        ValueError: if the file is of another format, truncated, corrupt or empty, an event lies outside of the sensor,
            or the clock was restarted; the message names the file.

    Source: iniVation, "AEDAT File Formats", https://docs.inivation.com/software/software-advanced-usage/file-formats/.

    Example:
        >>> with open("one.aedat", "wb") as file:
        ...     written = file.write(b"#!AER-DAT2.0\r\n" + bytes.fromhex("00007e06 0000000a"))
        >>> x, y, p, t = read_aedat("one.aedat", sensor_size=(128, 128))
        >>> x.tolist(), y.tolist(), p.tolist(), t.tolist()
        ([124], [1], [1], [10])
    """
    with reading(path, "an AEDAT file"), open(path, "rb") as file:
        start = file.read(len(VERSION) + 3)
    version = start.removeprefix(VERSION).decode("ascii", "replace") if start.startswith(VERSION) else None
    if stream is not None and version != "4.0":
        raise ValueError(
            f"Expected argument `stream` to be None for {path}, which is no AEDAT 4.0 file, but got {stream!r}"
        )
    if version == "2.0":
        events, sensor_size = read_aedat2(path, sensor_size)
        return checked_events(events, path, sensor_size)
    if version == "3.1":
        return checked_events(read_aedat3(path), path, sensor_size)
    if version == "4.0":
        events, size = read_aedat4(path, stream)
        if sensor_size is not None and size not in (None, tuple(sensor_size)):
            raise ValueError(
                f"Expected argument `sensor_size` to be {size} as given in {path}, but got {tuple(sensor_size)}"
            )
        return checked_events(events, path, size or sensor_size)
    raise ValueError(
        f"Expected {path} to be an AEDAT file, which starts with {VERSION.decode()} and its version, 2.0, 3.1 or 4.0, "
        f"but it starts with {start!r}"
    )
