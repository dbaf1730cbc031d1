"""Identification of batches by their content, whatever the order in which a loader yields them."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# odd constants of a multiplicative hash; products wrap around
_POSITION, _MIX = -7046029254386353131, -4658895280553007687


def fingerprint(x: Tensor, y: Tensor) -> int:
    """Return a hash of a batch that does not depend on the order of its samples.

    Two different batches have the same hash with a probability of about 2^-40 or less. The call synchronizes with the
    device.

    Args:
        x: inputs `[B, ...]`.
        y: targets `[B, ...]`.

    Example:
        >>> x, y = torch.rand(4, 3), torch.arange(4)
        >>> fingerprint(x, y) == fingerprint(x.flip(0), y.flip(0))
        True
        >>> fingerprint(x, y) == fingerprint(x.flip(0), y)
        False
    """
    samples = _hash_samples(x) ^ _mix(_hash_samples(y) + 1)
    return int(_mix(samples).sum())


def _hash_samples(values: Tensor) -> Tensor:
    """Return a hash of each sample that depends on the positions of its values, shape `[B]`."""
    values = values.detach().contiguous()
    rows = values.flatten(1) if values.dim() > 1 else values[:, None]
    size, count = rows.element_size(), rows.shape[1]
    if size * count % 8 == 0:  # eight bytes at a time
        aligned = rows.storage_offset() * size % 8 == 0
        words = (rows if aligned else rows.clone()).view(torch.int64)
    else:
        words = rows.view(_INTEGERS[size]).long()
    keys = _mix(torch.arange(1, 2 * words.shape[1] + 1, device=words.device) * _POSITION).view(2, -1)
    # low bits of common values such as 1.0 are 0, and products keep them: the high half has keys of its own
    hashes = _weighted_sum(words, keys[0]) + _weighted_sum(words >> 32, keys[1])
    return hashes + _mix(hashes.new_full((), 8 * count + size) * _POSITION)


def _weighted_sum(words: Tensor, keys: Tensor) -> Tensor:
    # devices other than CPUs have no product of integer matrices
    return words @ keys if words.device.type == "cpu" else (words * keys).sum(1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ (values >> 31)) * _MIX
    return values ^ (values >> 29)
