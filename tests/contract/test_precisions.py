"""Precisions and compilation: the weights are those of a loop by hand in the same number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.contract.by_hand import (
    ByHand,
    X,
    Y,
    assert_close,
    batches,
    build,
    differing,
    fit,
    has_own_optimizer,
    loader,
    parts,
    plain_sgd,
    running,
    state,
)
from tests.contract.table import RUNS, MethodRow

TABLE = RUNS


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_trains_in(row: MethodRow, precision: str, dtype: torch.dtype, **options: object) -> None:
    """Training in a precision is a loop by hand with parameters, inputs and new tensors of its type."""
    module = build(row, **options)
    fitting = fit(module, precision=precision)
    hand = ByHand(build(row, **options).to(dtype), within=lambda: default(dtype))
    hand.train(batches(x=X.to(dtype)))
    # a method with an optimizer of its own may keep sums over batches in a wider type
    assert has_own_optimizer(row) or {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert all(value.isfinite().all() for value in state(module).values())
    assert differing(state(module), hand.state) == []
    assert fitting.callback_metrics["val/nll"].isfinite()
    widened = torch.promote_types(dtype, torch.float32)
    assert {each.mean.dtype for each in fitting.predict(module, loader())} == {widened}


def assert_trains_under_autocast(row: MethodRow, precision: str) -> None:
    module = build(row)
    fitting = fit(module, precision=precision)
    hand = ByHand(build(row), within=lambda: torch.autocast("cpu", torch.bfloat16)).train(batches())
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert differing(state(module), hand.state) == []
    assert fitting.callback_metrics["val/nll"].isfinite()
    assert {each.mean.dtype for each in fitting.predict(module, loader())} == {torch.float32}


def test_64_true_is_a_loop_by_hand_in_float64(row):
    """`precision="64-true"`: parameters, inputs and steps are float64, with the bits of a loop by hand."""
    assert_trains_in(row, "64-true", torch.float64)


def test_bf16_mixed_is_a_loop_by_hand_under_autocast(row):
    """`precision="bf16-mixed"`: float32 parameters with the bits of a loop under autocast to bfloat16."""
    assert_trains_under_autocast(row, "bf16-mixed")


@pytest.mark.slow
def test_16_mixed_on_cpus_is_a_loop_by_hand_under_autocast(row):
    """`precision="16-mixed"` on the CPU is bfloat16 there, as Lightning warns, with the bits of a loop by hand."""
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        assert_trains_under_autocast(row, "16-mixed")


def test_bf16_true_is_a_loop_by_hand_in_bfloat16(row):
    """`precision="bf16-true"`: parameters, inputs and steps are bfloat16, with the bits of a loop by hand."""
    assert_trains_in(row, "bf16-true", torch.bfloat16)


def test_16_true_with_sgd_is_a_loop_by_hand_in_float16(row):
    """`precision="16-true"` with SGD: parameters, inputs and steps are float16, with the bits of a loop by hand."""
    assert_trains_in(row, "16-true", torch.float16, **plain_sgd(row))


def test_16_true_with_the_default_optimizer_is_finite_or_refused(row):
    """`precision="16-true"` with Adam, whose epsilon is 0 in float16, never ends in NaN without a word."""
    module, refusal = build(row), None
    try:
        fit(module, precision="16-true", max_epochs=2)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert all(value.isfinite().all() for value in state(module).values())
    else:
        assert "16-true" in refusal


@pytest.mark.slow
def test_a_compiled_network_trains_as_it_is(row):
    """`module.network.compile()` traces the network without a change of weights beyond rounding."""
    module = build(row, **plain_sgd(row)).double()
    torch._dynamo.reset()
    module.network.compile(backend="aot_eager")
    equal = parts((8, 8))  # so that the network is traced for one shape
    running(precision="64-true", max_epochs=2).fit(module, loader(equal, X[:, :16], Y[:16]))
    hand = ByHand(build(row, **plain_sgd(row)).double(), train_size=16).train(batches(equal, X.double()), epochs=2)
    assert_close(state(module), hand.state, 1e-8)
