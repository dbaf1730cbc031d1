"""Promises that both online rules keep."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor, nn

from lightning_snn.checkpoint import check_like_checkpoint, describe_module
from lightning_snn.methods import Method


def assert_trained_or_refused(method: Method, net: nn.Sequential, x: Tensor, y: Tensor, refused: bool) -> None:
    """A method trains all parameters of a network, or refuses its second layer by name."""
    if refused:
        kind, layer = type(method).__name__, type(net[1]).__name__
        with pytest.raises(ValueError, match=f"{kind} can train, but got 1: {layer} "):
            method.prepare(net)
        return
    net.zero_grad()
    method.training_step(method.prepare(net), x, y).objective.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())


def assert_options_are_compared(methods: Sequence[Method], options: Sequence[str]) -> None:
    """A checkpoint of the first method names the option in which each of the others differs."""
    described = describe_module(nn.Linear(2, 2), methods[0])
    for method, option in zip(methods[1:], options, strict=True):
        with pytest.raises(ValueError, match=rf"{option} is .* in the checkpoint and .* here"):
            check_like_checkpoint(described, describe_module(nn.Linear(2, 2), method))
    check_like_checkpoint(described, describe_module(nn.Linear(2, 2), type(methods[0])()))
