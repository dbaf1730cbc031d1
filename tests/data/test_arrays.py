"""A user's own arrays as a data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.data import FrameDataModule
from tests.support.training import trainer

CLASSES = 4
LABELS = np.arange(60) % CLASSES


def made(x: Any, y: Any = LABELS, **options: Any) -> FrameDataModule:
    data = FrameDataModule.from_arrays(x, y, **options)
    data.prepare_data()
    data.setup()
    return data


def numbered(shape: tuple[int, ...] = (5, 3), count: int = 60) -> np.ndarray:
    """Samples that hold their own number."""
    return np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)), (count, *shape)).copy()


def numbers(dataset: Any) -> list[int]:
    return [int(x.flatten()[0]) for x, _ in dataset]


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 8), (5, 2, 8, 6), (5, 2, 3, 4, 4)])
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.uint8),
        lambda x: x > 0,
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).to(torch.uint8),
        lambda x: torch.from_numpy(x).bool(),
        lambda x: torch.from_numpy(x).double().requires_grad_(),
    ],
)
def test_arrays_of_any_rank_and_type_become_batches(shape: tuple[int, ...], convert) -> None:
    source = np.random.default_rng(0).integers(0, 4, (60, *shape)).astype(np.float32)
    x = convert(source)
    data = made(x, batch_size=7)
    assert (data.time_steps, data.frame_shape, data.num_classes) == (5, shape[1:], CLASSES)
    assert data.class_names == ("0", "1", "2", "3")
    loaded = next(iter(data.test_dataloader()))
    compact = x.dtype in (np.uint8, np.bool_, torch.uint8, torch.bool)
    assert loaded.frames.dtype == (torch.uint8 if compact else torch.float32)
    batch, labels = data.on_after_batch_transfer(loaded, 0)
    assert (batch.dtype, labels.dtype) == (torch.float32, torch.int64)
    chosen = data.test_set.indices[:7]
    expected = x.detach().numpy() if isinstance(x, Tensor) else x
    assert np.array_equal(batch.numpy(), np.swapaxes(expected[chosen], 0, 1).astype(np.float32))
    assert labels.tolist() == LABELS[chosen].tolist()


def test_sets_are_disjoint_complete_and_balanced_and_depend_on_the_seed_alone() -> None:
    data, again, other = (made(numbered(), val_fraction=0.2, test_fraction=0.4, seed=seed) for seed in (1, 1, 2))
    parts = [numbers(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in parts] == [24, 12, 24]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(60))
    for part in parts:
        assert len(set(np.bincount(LABELS[part]))) == 1
    assert numbers(again.test_set) == parts[2] != numbers(other.test_set)


def test_no_group_is_in_two_sets() -> None:
    people = np.array([f"person {number // 6}" for number in range(60)])
    data = made(numbered(), groups=people, val_fraction=0.2, test_fraction=0.3)
    parts = [set(people[numbers(part)]) for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in parts] == [5, 2, 3]
    assert len(set.union(*parts)) == 10


def test_given_sets_are_taken_as_they_are() -> None:
    val, test = (numbered(count=8) + 100, np.arange(8) % 4), (numbered(count=5) + 200, np.arange(5) % 4)
    data = made(numbered(), val=val, test=test)
    assert numbers(data.train_set) == list(range(60))
    assert numbers(data.val_set) == [100 + number for number in range(8)]
    assert numbers(data.test_set) == [200 + number for number in range(5)]
    drawn = made(numbered(), test=test, val_fraction=0.25)
    assert (len(drawn.train_set), len(drawn.val_set), len(drawn.test_set)) == (45 - 1, 15 + 1, 5)
    assert not set(numbers(drawn.train_set)) & set(numbers(drawn.val_set))


def test_a_memory_mapped_array_stays_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered().astype(np.uint8))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = made(x)
    assert data.train_set.dataset.frames is x
    assert numbers(data.test_set) == sorted(data.test_set.indices)


def test_options_of_every_data_module_are_passed_on() -> None:
    data = made(numbered() % 5, max_count=2, fixed_batches=True, batch_size=10, pairs=[(0, 1)], num_classes=6)
    x, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert set(x.unique().tolist()) <= {0, 0.5, 1}
    assert (data.pairs, data.num_classes, len(data.class_names)) == (((0, 1),), 6, 6)
    assert made(numbered(), class_names=list("abcd")).class_names == ("a", "b", "c", "d")


def test_a_network_learns_from_arrays() -> None:
    generator = np.random.default_rng(0)
    x = (generator.random((200, 8, 12)) < 0.1).astype(np.float32)
    y = np.arange(200) % 3
    for label in range(3):
        x[y == label, :, 4 * label : 4 * label + 4] += generator.random((int((y == label).sum()), 8, 4)) < 0.5
    data = FrameDataModule.from_arrays(x, y, batch_size=16)
    network = nn.Sequential(nn.Linear(12, 32), LIF(), nn.Linear(32, 3))
    module = SpikingModule(network, num_classes=data.num_classes, learning_rate=1e-2)
    fitting = trainer(max_epochs=12)
    fitting.fit(module, data)
    assert fitting.test(module, data, verbose=False)[0]["test/accuracy"] > 0.9


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_targets_of_a_regression_are_floats(shape: tuple[int, ...]) -> None:
    y = np.random.default_rng(0).random((60, *shape))
    data = made(numbered(), y, task="regression", val_fraction=0.2, test_fraction=0.2)
    assert (data.num_classes, data.class_names) == (shape[0] if shape else 1, ())
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [36, 12, 12]
    _, targets = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert targets.dtype == torch.float32
    assert np.allclose(targets.numpy(), y[data.test_set.indices].reshape(12, -1))


X = numbered()
NAN = numbered()
NAN[41, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X.tolist(), LABELS, {}, "`x` to be an array or a dense tensor, but got list.*`collate_fn=pad_sequences`"),
        (torch.from_numpy(X).to_sparse(), LABELS, {}, "`x` to be .*dense tensor, but got a tensor of layout"),
        (
            X[..., 0],
            LABELS,
            {},
            r"`x` to be of .*, but got \(60, 5\). .*`x\[..., None\]`; .*`np.repeat",
        ),
        (X.astype(str), LABELS, {}, r"`x` to hold real numbers of shape \(N, T, ...\)"),
        (X.astype(complex), LABELS, {}, "`x` to hold real numbers"),
        (X.swapaxes(0, 1), LABELS, {}, r"which looks time first. Pass `x.swapaxes\(0, 1\)`"),
        (X[:0], LABELS[:0], {}, "`x` to hold samples"),
        (NAN, LABELS, {}, "`x` to be finite, but sample 41 holds NaN or infinity"),
        (torch.from_numpy(NAN) / 0, LABELS, {}, "`x` to be finite, but sample 0 holds"),
        (X, LABELS[:-1], {}, r"`y` to be of shape \(60,\), one label per recording, but got \(59,\)"),
        (
            X,
            np.eye(4)[LABELS].astype(int),
            {},
            r"`y` to be of shape \(60,\).*\(60, 4\). Of one-hot .*argmax",
        ),
        (
            X,
            LABELS * 1.0,
            {},
            r"`y` to hold the class of each .* float64 of shape \(60,\). .*`task='regression'`",
        ),
        (X, np.eye(4)[LABELS], {}, "of one-hot labels take the argmax"),
        (X, LABELS, {"task": "regression"}, "`y` to hold floats for a regression, but got int64"),
        (X, np.full(60, np.inf), {"task": "regression"}, "`y` to hold integers or finite floats"),
        (X, LABELS.astype(str), {}, "`y` to hold integers or finite floats, but got <U.*np.unique"),
        (X, LABELS - 1, {}, "`y` to hold classes from 0, but got -1. Leave unlabeled"),
        (X, LABELS + 1, {}, r"`y` to hold every class from 0 to 4, but classes \[0\] have no sample. Count classes"),
        (X, LABELS, {"num_classes": 3}, "below argument `num_classes` 3, but got labels up to 3"),
        (X, LABELS, {"num_classes": 1}, "`num_classes`"),
        (X, LABELS, {"class_names": ["a"]}, "`class_names` to hold 4 names, but got 1"),
        (X, LABELS, {"pairs": [(0, 4)]}, "`pairs` to hold classes below 4"),
        (X, LABELS, {"groups": np.arange(59)}, r"`groups` to be of shape \(60,\)"),
        (X, LABELS, {"val": X}, r"`val` to be a pair \(x, y\), but got ndarray"),
        (X, LABELS, {"test": (X[:, :4], LABELS)}, r"`test\[0\]` to be of shape \(N, 5, 3\) like .*\(60, 4, 3\)"),
        (X, LABELS, {"val": (X, LABELS[:3])}, r"`val\[1\]` to be of shape \(60,\)"),
        (X, LABELS, {"val": (NAN, LABELS)}, r"`val\[0\]` to be finite, but sample 41"),
        (X, LABELS, {"val_fraction": 0.5, "test_fraction": 0.5}, "fractions that leave training samples"),
        (X, LABELS, {"val_fraction": 1.0}, r"`val_fraction` .* but got 1.0. .*`val=\(x, y\)`"),
        (X[:5], np.array([0, 0, 0, 1, 1]), {}, "at least 2 samples of class 1 to split, but got 1"),
        (X, LABELS, {"task": "ranking"}, "`task` to be one of"),
        (X, LABELS, {"batch_size": 0}, "`batch_size`"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_at_once(x: Any, y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameDataModule.from_arrays(x, y, **options)
