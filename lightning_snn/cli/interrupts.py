"""Ctrl-C: how it is recognized, and the exit status after it."""

from __future__ import annotations

import signal

CTRL_C = 128 + signal.SIGINT
"""exit status after Ctrl-C"""


def is_ctrl_c(stop: BaseException) -> bool:
    """Return whether an exception ends the program because of Ctrl-C: also the exit of a Trainer that caught it."""
    return isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
