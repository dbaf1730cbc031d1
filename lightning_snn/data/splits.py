"""Seeded splits of samples in two: by class, or by person, recording or any other group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_snn.checks import check_fraction, check_integer


def split_stratified(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices in two, holding out a fraction of the samples of each class.

    If samples come in groups, for example several of a person, use :func:`split_by_group`: otherwise the part held out
    measures how well persons are recognized that the network was trained with.

    Args:
        labels: class of each sample, shape ``(N,)``: integers or strings.
        fraction: share held out, in (0, 1); of each class at least one sample is held out and one kept.
        seed: of the random choice.

    Returns:
        Sorted indices kept and sorted indices held out.

    Raises:
        ValueError: if an argument is out of range or a class has fewer than two samples.

    Example:
        >>> train, val = split_stratified([0, 0, 0, 0, 1, 1, 1, 1], fraction=0.25, seed=0)
        >>> len(train), len(val)
        (6, 2)
    """
    labels = _one_each("labels", labels)
    check_fraction("fraction", fraction)
    check_integer("seed", seed, minimum=0)
    held_out = []
    for index, (label, count) in enumerate(zip(*np.unique(labels, return_counts=True), strict=True)):
        if count < 2:
            raise ValueError(f"Expected at least 2 samples of class {label} to split, but got {count}")
        # a class has the same key in every set of integer labels, whichever other classes the set holds
        key = int(label) if labels.dtype.kind in "iu" and label >= 0 else index
        members = np.random.default_rng([seed, key]).permutation(np.flatnonzero(labels == label))
        held_out.append(members[: min(max(round(fraction * count), 1), count - 1)])
    held = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def split_by_group(groups: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices in two so that no group, for example a person or a recording, is on both sides.

    Args:
        groups: group of each sample, shape ``(N,)``: integers or strings.
        fraction: share of the groups held out, in (0, 1); at least one group is held out and one kept.
        seed: of the random choice.

    Returns:
        Sorted indices kept and sorted indices held out.

    Raises:
        ValueError: if an argument is out of range or there are fewer than two groups.

    Example:
        >>> people = ["ann", "ann", "bob", "bob", "cem"]
        >>> train, val = split_by_group(people, fraction=0.3, seed=0)
        >>> {people[i] for i in train} & {people[i] for i in val}
        set()
    """
    groups = _one_each("groups", groups)
    check_fraction("fraction", fraction)
    check_integer("seed", seed, minimum=0)
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(f"Expected at least 2 groups to split, but got {len(names)}")
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    held = np.isin(groups, np.random.default_rng(seed).permutation(names)[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _one_each(name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "biuUS":
        raise ValueError(
            f"Expected argument `{name}` to hold one integer or string per sample, shape (N,), but got {array.dtype} "
            f"of shape {array.shape}"
        )
    return array
