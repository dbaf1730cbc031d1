"""Surroundings of Python commands that this process starts."""

from __future__ import annotations

import os
import sys


def child_environment() -> dict[str, str]:
    """Return the variables with which ``python -m MODULE`` finds what this process imports, and uses one thread."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        # otherwise `-m` puts the working folder first, and a json.py in it would be imported instead of Python's
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
