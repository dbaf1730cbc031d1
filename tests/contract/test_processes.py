"""Two processes with gloo: training, metrics and predictions compared with one process and with loops by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_snn.data import FrameDataModule
from tests.contract.by_hand import (
    Batch,
    ByHand,
    State,
    X,
    Y,
    assert_close,
    batches,
    build,
    loader,
    logged,
    plain_sgd,
    predictions,
    running,
    state,
)
from tests.contract.table import RUNS, MethodRow
from tests.support.processes import as_launched, on_two_processes

TABLE = RUNS
EPOCHS = 2
# the samples of each batch, by process
EQUAL = [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 13, 14, 15]]]
UNEQUAL = [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 13]]]
# an odd number, so that one process has more samples
ODD = 19


def named(name: str) -> MethodRow:
    (row,) = (row for row in TABLE if row.name == name)
    return row


def samples(indices: Sequence[Sequence[Sequence[int]]]) -> int:
    return sum(len(batch) for process in indices for batch in process)


def train(name: str, indices: list[list[list[int]]], accumulate: int, rank: int) -> State:
    """Train on the batches of this process, in float64, and return the weights."""
    module = build(named(name), **plain_sgd(named(name)))
    count = samples(indices)
    with as_launched(rank):
        running(
            max_epochs=EPOCHS,
            accumulate_grad_batches=accumulate,
            precision="64-true",
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo"),
            use_distributed_sampler=False,
        ).fit(module, loader(indices[rank], X[:, :count], Y[:count]))
    return state(module)


def both(work: Callable[..., Any], row: MethodRow, folder: Path, *arguments: Any) -> list[Any]:
    return on_two_processes(partial(work, row.name, *arguments), folder)


def by_hand(row: MethodRow, indices: list[list[list[int]]]) -> ByHand:
    return ByHand(build(row, **plain_sgd(row)).double(), train_size=samples(indices))


def joint(indices: list[list[list[int]]]) -> list[list[int]]:
    return [[*one, *other] for one, other in zip(*indices, strict=True)]


def test_two_processes_are_one_with_the_joint_batch(row, tmp_path):
    """Both processes end with the weights of a loop by hand over the joint batches, up to rounding in float64."""
    hand = by_hand(row, EQUAL).train(batches(joint(EQUAL), X.double()), EPOCHS)
    for found in both(train, row, tmp_path, EQUAL, 1):
        assert_close(found, hand.state)


@pytest.mark.slow
def test_two_processes_accumulate_as_one_with_the_joint_batches(row, tmp_path):
    """With `accumulate_grad_batches=2`, too, both end with the weights by hand over the joint batches."""
    hand = by_hand(row, EQUAL).train(batches(joint(EQUAL), X.double()), EPOCHS, accumulate=2)
    for found in both(train, row, tmp_path, EQUAL, 2):
        assert_close(found, hand.state)


@pytest.mark.slow
def test_unequal_last_batches_count_by_process(row, tmp_path):
    """Each process has the same weight, whatever the size of its batch: gradients are the mean of those by hand."""
    hand = by_hand(row, UNEQUAL)
    for epoch in range(EPOCHS):
        for index in range(2):
            for rank in range(2):
                hand.seen = 2 * epoch + index  # both processes draw the noise of this batch
                (batch,) = batches([UNEQUAL[rank][index]], X.double())
                hand.backward(batch, index / 2, count=2)
            hand.step()
        hand.epochs += 1
    for found in both(train, row, tmp_path, UNEQUAL, 1):
        assert_close(found, hand.state)


def test_two_processes_hold_the_same_weights(row, tmp_path):
    """After unequal last batches and accumulation the weights of both processes are equal, bit for bit, and finite."""
    one, other = both(train, row, tmp_path, UNEQUAL, 2)
    names = [name for name, _ in build(row).named_parameters()]
    assert names
    for name in names:
        assert torch.equal(one[name], other[name]), name
        assert one[name].isfinite().all()


def data() -> FrameDataModule:
    """Return a data module whose sets are an odd number of samples each."""
    x, y = X[:, :ODD].transpose(0, 1).numpy(), Y[:ODD].numpy()
    return FrameDataModule.from_arrays(x, y, val=(x, y), test=(x, y), batch_size=4)


def evaluate(name: str, own_batches: bool, rank: int) -> dict[str, Any]:
    """Validate and predict with a new module on an odd number of samples."""
    module = build(named(name)).eval()
    with as_launched(rank):
        fitting = running(
            devices=2,
            strategy=DDPStrategy(process_group_backend="gloo"),
            use_distributed_sampler=not own_batches,
        )
        if own_batches:
            own = [[range(0, 8), range(8, 11)], [range(11, 19)]][rank]
            (found,) = fitting.validate(module, loader(own, X[:, :ODD], Y[:ODD]), verbose=False)
            return {"scores": logged(found, "val")}
        (found,) = fitting.validate(module, data(), verbose=False)
        predicted = [each.mean for each in fitting.predict(module, data())]
    return {"scores": logged(found, "val"), "predictions": torch.cat(predicted)}


def assert_scores(of_ranks: list[dict[str, Any]], row: MethodRow, own: list[list[Batch]]) -> None:
    """Both processes logged the scores by hand over all samples of both."""
    module = build(row)
    means = torch.cat([each.mean for part in own for each in predictions(module, part)]).double()
    y = torch.cat([y for part in own for _, y in part])
    expected = -means[torch.arange(ODD), y].log().mean().item()
    for found in of_ranks:
        assert found["scores"]["nll"] == pytest.approx(expected, rel=1e-5)
        assert found["scores"]["accuracy"] == pytest.approx((means.argmax(1) == y).double().mean().item())


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_all_samples(row, tmp_path):
    """Both processes log the scores by hand over 19 samples, of which one has 11 in two batches, the other 8."""
    own = [batches([range(0, 8), range(8, 11)]), batches([range(11, 19)])]
    assert_scores(both(evaluate, row, tmp_path, True), row, own)


def shares() -> list[list[Batch]]:
    """Return the batches of each process, which have every second sample."""
    numbers = [range(rank, ODD, 2) for rank in range(2)]
    return [batches([own[start : start + 4] for start in range(0, len(own), 4)]) for own in numbers]


def test_a_sample_counts_once_in_the_metrics_of_two_processes(row, tmp_path):
    """Where a sampler would repeat one of 19 samples for the second process, the logged scores are those of 19."""
    assert_scores(both(evaluate, row, tmp_path, False), row, shares())


@pytest.mark.slow
def test_predictions_of_two_processes_are_those_of_one(row, tmp_path):
    """Each of 19 samples is predicted once, by one of two processes, with the value by hand."""
    module = build(row)
    for found, own in zip(both(evaluate, row, tmp_path, False), shares(), strict=True):
        expected = torch.cat([each.mean for each in predictions(module, own)])
        torch.testing.assert_close(found["predictions"], expected)
    assert sum(len(y) for part in shares() for _, y in part) == ODD
