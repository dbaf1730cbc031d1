"""Identification of batches by their content, whatever the order in which a loader yields them."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# odd constants of a multiplicative hash; products wrap around
_POSITION, _MIX = -7046029254386353131, -4658895280553007687


def fingerprint(x: Tensor, y: Tensor) -> int:
    """Return a hash of a batch that does not depend on the order of its samples.

    Two different batches have the same hash with a probability of about 2^-60. The call synchronizes with the device.

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
    bits = values.detach().contiguous().flatten(1) if values.dim() > 1 else values.detach().contiguous()[:, None]
    bits = bits.view(_INTEGERS[bits.element_size()]).long()
    positions = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    return (_mix(positions * _POSITION) * (bits + 1)).sum(1)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ (values >> 31)) * _MIX
    return values ^ (values >> 29)
