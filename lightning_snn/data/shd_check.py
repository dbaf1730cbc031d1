"""Reading of a file of the Spiking Heidelberg Digits in another process: a damaged one can loop for ever or crash.

``python -m lightning_snn.data.shd_check FILE SECONDS`` reads a file with a limit of processor time.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from lightning_snn.data.shd_files import SHDFile
from lightning_snn.subprocesses import child_environment

SECONDS, BYTES_PER_SECOND = 30, 1_000_000


def check_readable(path: Path) -> None:
    """Raise an error if the HDF5 library does not come to an end with a file, or crashes: it trusts sizes in files.

    Other damage is left to :class:`SHDFile`. Systems without limits of processor time (Windows) check nothing.

    Args:
        path: the file.

    Raises:
        ValueError: names the file.
    """
    seconds = SECONDS + path.stat().st_size // BYTES_PER_SECOND
    command = [sys.executable, "-m", "lightning_snn.data.shd_check", str(path), str(seconds)]
    status = subprocess.run(command, env=child_environment(), capture_output=True, check=False).returncode
    if status < 0:
        name = signal.Signals(-status).name
        found = f"needs more than {seconds} s" if name in ("SIGXCPU", "SIGKILL") else f"ends with {name}"
        raise ValueError(
            f"Expected {path} to be an HDF5 file, but it is corrupt: to read it {found}. Copy or download it again"
        )


def main() -> None:
    """Read the recordings of FILE; the system ends this process after SECONDS of processor time."""
    try:
        import resource
    except ImportError:
        return
    used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
    limit = used + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with SHDFile(Path(sys.argv[1])) as recordings:
        for _ in recordings:
            pass


if __name__ == "__main__":
    main()
