from __future__ import annotations

import numpy as np
import pytest

from lightning_snn.data import split_by_group, split_stratified


def test_a_stratified_split_is_disjoint_and_keeps_the_class_balance() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 50, 10]))
    kept, held_out = split_stratified(labels, 0.2, seed=1)
    assert sorted([*kept, *held_out]) == list(range(160))
    assert np.bincount(labels[held_out]).tolist() == [20, 10, 2]
    again, other = split_stratified(labels, 0.2, seed=1)[1], split_stratified(labels, 0.2, seed=2)[1]
    assert np.array_equal(held_out, again)
    assert not np.array_equal(held_out, other)


def test_a_split_leaves_every_class_and_group_on_a_side() -> None:
    kept, held_out = split_stratified(np.array([0, 0, 1, 1]), 0.01, seed=0)
    assert len(held_out) == len(kept) == 2
    with pytest.raises(ValueError, match="at least 2 samples of class 1 to split, but got 1"):
        split_stratified(np.array([0, 0, 1]), 0.5, seed=0)
    with pytest.raises(ValueError, match="at least 2 groups to split, but got 1"):
        split_by_group(np.array(["a", "a"]), 0.5, seed=0)
    with pytest.raises(ValueError, match="`fraction`"):
        split_by_group(np.array(["a", "b"]), 1.0, seed=0)


def test_a_split_by_group_has_no_group_on_both_sides() -> None:
    groups = np.random.default_rng(0).integers(0, 20, 300)
    kept, held_out = split_by_group(groups, 0.15, seed=3)
    assert sorted([*kept, *held_out]) == list(range(300))
    assert not set(groups[kept]) & set(groups[held_out])
    assert len(set(groups[held_out])) == 3
    assert set(groups[split_by_group(groups, 0.15, seed=4)[1]]) != set(groups[held_out])


def test_a_split_of_strings_and_of_lists_is_one_of_their_values() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 50, 10]))
    kept, held_out = split_stratified([f"class {label}" for label in labels], 0.2, seed=1)
    assert sorted([*kept, *held_out]) == list(range(160))
    assert np.bincount(labels[held_out]).tolist() == [20, 10, 2]
    for one, two in zip(split_stratified(labels.tolist(), 0.2, 1), split_stratified(labels, 0.2, 1), strict=True):
        assert np.array_equal(one, two)


def test_the_members_of_a_class_are_drawn_alike_whatever_other_classes_there_are() -> None:
    labels = np.repeat([0, 1, 2], 20)
    without = np.where(labels == 1, 0, labels)
    held = [set(split_stratified(each, 0.25, seed=0)[1]) & set(range(40, 60)) for each in (labels, without)]
    assert held[0] == held[1]
    assert len(held[0]) == 5


@pytest.mark.parametrize("split", [split_stratified, split_by_group])
@pytest.mark.parametrize("values", [[], [[0, 1], [0, 1]], [0.0, 1.0], 3])
def test_what_is_not_one_value_per_sample_is_refused(split, values) -> None:
    with pytest.raises(ValueError, match=r"to hold one integer or string per sample, shape \(N,\)"):
        split(values, 0.5, seed=0)
