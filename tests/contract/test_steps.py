"""Steps of the Trainer are those of a loop by hand, with accumulation, clipping, schedules and limits of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim.lr_scheduler import StepLR

from tests.contract.by_hand import (
    ByHand,
    X,
    assert_close,
    batches,
    build,
    differing,
    fit,
    loader,
    plain_sgd,
    running,
    state,
)
from tests.contract.table import RUNS, MethodRow

TABLE = RUNS


def test_a_fit_is_a_loop_by_hand(row):
    """After two epochs all weights are, bit for bit, those of a loop over `training_step`, `backward` and `step`."""
    module = build(row)
    fitting = fit(module, max_epochs=2)
    hand = ByHand(build(row)).train(batches(), epochs=2)
    assert differing(state(module), hand.state) == []
    assert fitting.global_step == 6


def test_accumulated_gradients_are_those_of_a_loop_by_hand(row):
    """With 3 batches and `accumulate_grad_batches=2` an epoch has two steps, each on the sum of halved gradients."""
    module = build(row)
    fitting = fit(module, max_epochs=2, accumulate_grad_batches=2)
    hand = ByHand(build(row)).train(batches(), epochs=2, accumulate=2)
    assert differing(state(module), hand.state) == []
    assert fitting.global_step == hand.steps == 4


def test_two_accumulated_halves_are_one_batch(row):
    """A step on two accumulated halves of a batch is the step on the batch, up to rounding in float64."""

    def step(indices: list[list[int]], accumulate: int) -> dict[str, Tensor]:
        module = build(row, **plain_sgd(row))
        module.method.warmup_epochs = 0  # of the KL term, whose weight grows within an epoch
        running(max_epochs=1, accumulate_grad_batches=accumulate, precision="64-true").fit(module, loader(indices))
        return dict(module.named_parameters())

    first, second = list(range(8)), list(range(8, 16))
    whole = step([first + second], 1)
    assert_close(step([first, second], 2), whole)
    with pytest.raises(AssertionError):
        assert_close(step([first], 1), whole)


def assert_clipped(row: MethodRow, change: Callable[[list[Tensor]], None], **options: Any) -> None:
    module, free = build(row, **plain_sgd(row)), ByHand(build(row, **plain_sgd(row)).double())
    fit(module, precision="64-true", **options)
    hand = ByHand(build(row, **plain_sgd(row)).double(), change=change)
    data = batches(x=X.double())
    assert_close(state(module), hand.train(data).state)
    assert differing(hand.state, free.train(data).state)


def first_gradients(row: MethodRow) -> list[Tensor]:
    found: list[Tensor] = []
    ByHand(build(row), change=found.extend).train(batches()[:1])
    return found


def test_clipping_by_norm_is_clipping_by_hand(row):
    """Gradients g become `g min(1, c / (|g| + 1e-6))`, with the norm over all parameters."""
    largest = 0.3 * float(sum(each.square().sum() for each in first_gradients(row)) ** 0.5)

    def clip(gradients: list[Tensor]) -> None:
        norm = sum(each.square().sum() for each in gradients) ** 0.5
        for each in gradients:
            each *= torch.clamp(largest / (norm + 1e-6), max=1.0)

    assert_clipped(row, clip, gradient_clip_val=largest)


def test_clipping_by_value_is_clipping_by_hand(row):
    """Each entry of a gradient is limited to [-c, c]."""
    largest = 0.3 * float(max(each.abs().max() for each in first_gradients(row)))

    def clip(gradients: list[Tensor]) -> None:
        for each in gradients:
            each.copy_(torch.where(each > largest, largest, torch.where(each < -largest, -largest, each)))

    assert_clipped(row, clip, gradient_clip_val=largest, gradient_clip_algorithm="value")


def test_max_steps_takes_that_many_steps(row):
    """`max_steps=3` ends within the second epoch after 3 optimizer steps, with the weights of 3 steps by hand."""
    module = build(row)
    fitting = fit(module, max_epochs=-1, max_steps=3, accumulate_grad_batches=2)
    hand = ByHand(build(row)).train(batches(), epochs=2, accumulate=2, max_steps=3)
    assert fitting.global_step == hand.steps == 3
    assert differing(state(module), hand.state) == []
    assert differing(state(module), hand.after_steps[1])


def test_the_accumulation_scheduler_changes_the_number_of_batches_by_epoch(row):
    """`{0: 1, 1: 2}` steps on each batch of the first epoch and on pairs of batches after it."""
    module = build(row)
    fitting = fit(module, GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=2)
    hand = ByHand(build(row)).train(batches()).train(batches(), accumulate=2)
    assert differing(state(module), hand.state) == []
    assert fitting.global_step == hand.steps == 5


def test_a_schedule_by_epoch_changes_the_rate_after_each_epoch(row):
    """`StepLR(1, 0.5)` gives the weights of a loop with the rate `lr / 2^epoch`."""
    module = build(row, lr_scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5))
    fit(module, max_epochs=3)
    hand = ByHand(build(row), rate=lambda epoch, step: 0.5**epoch).train(batches(), epochs=3)
    assert differing(state(module), hand.state) == []
    assert differing(state(module), ByHand(build(row)).train(batches(), epochs=3).state)


def test_a_schedule_by_step_changes_the_rate_after_each_step(row):
    """With `interval="step"` the rate is `lr / 2^step`, where accumulated batches are one step."""
    schedule = {"scheduler": lambda optimizer: StepLR(optimizer, 1, 0.5), "interval": "step"}
    module = build(row, lr_scheduler=schedule)
    fit(module, max_epochs=2, accumulate_grad_batches=2)
    hand = ByHand(build(row), rate=lambda epoch, step: 0.5**step).train(batches(), epochs=2, accumulate=2)
    assert differing(state(module), hand.state) == []
