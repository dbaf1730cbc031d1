"""Surroundings of Python commands that this process starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_BYTES_PER_SECOND = 1_000_000


def child_environment() -> dict[str, str]:
    """Return the variables with which ``python -m MODULE`` finds what this process imports, and uses one thread."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        # otherwise `-m` puts the working folder first, and a json.py in it would be imported instead of Python's
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }


def check_in_process(module: str, path: Path, expected: str, seconds: int = 30) -> None:
    """Raise an error if reading a file takes no end, or crashes, in another process: decoders trust sizes in files.

    Other damage is left to the reading that follows. Systems without limits of processor time (Windows) check nothing.

    Args:
        module: module that reads, by ``python -m MODULE PATH SECONDS``; it calls `limit_processor_time`.
        path: the file.
        expected: what it should be, as in "Expected PATH to be an HDF5 file".
        seconds: limit of processor time, to which one is added per million bytes.

    Raises:
        ValueError: names the file.
    """
    limit = seconds + path.stat().st_size // _BYTES_PER_SECOND
    command = [sys.executable, "-m", module, str(path), str(limit)]
    status = subprocess.run(command, env=child_environment(), capture_output=True, check=False).returncode
    if status < 0:
        name = signal.Signals(-status).name
        found = f"needs more than {limit} s" if name in ("SIGXCPU", "SIGKILL") else f"ends with {name}"
        raise ValueError(
            f"Expected {path} to be {expected}, but it is corrupt: to read it {found}. Copy or download it again"
        )


def limit_processor_time(seconds: int) -> bool:
    """Have the system end this process after some seconds of processor time, counted from here.

    Returns:
        whether the system can do this.
    """
    try:
        import resource
    except ImportError:
        return False
    limit = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return True
