"""Memory-mapped arrays that worker processes map again instead of receiving their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class MappedArray(NamedTuple):
    """Location of the content of a memory-mapped array in a file, which is pickled in place of the array.

    Attributes:
        file: the file.
        dtype: type of the elements.
        offset: position of the first element in bytes.
        shape: shape of the array, in C order.
    """

    file: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]

    def open(self) -> np.memmap[Any, Any]:
        """Map the array again, read-only."""
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def mapped_array(array: Any) -> MappedArray | None:
    """Return where an array lies in a file; None if it is not mapped, changed in memory only, or not contiguous.

    Args:
        array: any array or tensor; a slice along the first axis of a mapped array is mapped too.

    Example:
        >>> np.save("a.npy", np.arange(6.0))
        >>> mapped_array(np.load("a.npy", mmap_mode="r")[2:]).open()
        memmap([2., 3., 4., 5.])
        >>> mapped_array(np.arange(6.0)) is None
        True
    """
    whole = array
    while isinstance(whole, np.ndarray) and isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole, np.memmap) or whole.filename is None or whole.mode == "c" or not array.flags.c_contiguous:
        return None
    inside = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return MappedArray(Path(whole.filename), array.dtype, whole.offset + inside, array.shape)
