"""Time on a device."""

from __future__ import annotations

import time

import torch


def finished_at(device: torch.device) -> float:
    """Return the time in seconds, from any start, at which all work that a device was given so far is done.

    Example:
        >>> start = finished_at(torch.device("cpu"))
        >>> finished_at(torch.device("cpu")) >= start
        True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
