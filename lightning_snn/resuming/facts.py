"""Facts about loaders of any kind."""

from __future__ import annotations

from typing import Any

_PARTS = ("sampler", "batch_sampler", "dataset")


def keeps_workers(loader: Any) -> bool:
    """Return whether a loader has worker processes that persist, so that another iteration draws no seed for them."""
    return persists(loader) and getattr(loader, "_iterator", None) is not None


def persists(loader: Any) -> bool:
    """Return whether a loader keeps its worker processes from epoch to epoch."""
    return bool(getattr(loader, "persistent_workers", False)) and getattr(loader, "num_workers", 0) > 0


def length(loader: Any) -> int | None:
    """Return the number of batches; None if it is not known."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def parts(loader: Any) -> list[object]:
    """Return a loader, its samplers and its data sets, also those within others."""
    found: list[object] = [loader]
    for part in found:
        inner = (getattr(part, name, None) for name in _PARTS)
        found += [each for each in inner if each is not None and not any(each is known for known in found)]
    return found
