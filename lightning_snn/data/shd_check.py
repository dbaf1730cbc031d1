"""Reading of a file of the Spiking Heidelberg Digits in another process: a damaged one can loop for ever or crash.

``python -m lightning_snn.data.shd_check FILE SECONDS`` reads a file with a limit of processor time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_snn.data.shd_files import SHDFile
from lightning_snn.subprocesses import check_in_process, limit_processor_time

SECONDS = 30


def check_readable(path: Path) -> None:
    """Raise an error if the HDF5 library does not come to an end with a file, or crashes: it trusts sizes in files.

    Other damage is left to :class:`SHDFile`. Systems without limits of processor time (Windows) check nothing.

    Args:
        path: the file.

    Raises:
        ValueError: names the file.
    """
    check_in_process("lightning_snn.data.shd_check", path, "an HDF5 file", SECONDS)


def main() -> None:
    """Read the recordings of FILE; the system ends this process after SECONDS of processor time."""
    if limit_processor_time(int(sys.argv[2])):
        with SHDFile(Path(sys.argv[1])) as recordings:
            for _ in recordings:
                pass


if __name__ == "__main__":
    main()
