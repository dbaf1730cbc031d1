"""Read a NIR file in another process: a damaged HDF5 file can loop for ever or crash.

``python -m lightning_snn.convert.nir.check FILE SECONDS`` reads a file with a limit of processor time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_snn.convert.nir.files import parse_nir
from lightning_snn.subprocesses import limit_processor_time


def main() -> None:
    """Read FILE; the system ends this process after SECONDS of processor time."""
    if limit_processor_time(int(sys.argv[2])):
        parse_nir(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
