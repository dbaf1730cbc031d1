"""Errors of torch about shapes name the layer, and what the axes of the input were taken for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import (
    EProp,
    ExpectationPropagation,
    Method,
    OnlineThroughTime,
    RateBackprop,
    SpikingBayes,
    TimeToFirstSpike,
)
from lightning_snn.nn.shape_errors import explained_shapes
from lightning_snn.nn.streaming import advance


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), LIF(), nn.Linear(8, 3))


class Branch(nn.Module):
    """A network whose second layer takes another width than the first returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Sequential(LIF(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "time last": (mlp, (16, 4, 10), r"16 time steps, 4 samples, each of shape \(10,\).*Layer 0, a Linear"),
    "no features": (mlp, (8, 16), r"8 time steps, 16 samples, each a single number.*Layer 0, a Linear"),
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), LIF()), (5, 3, 8, 8), r"3 samples, .*Layer 0, a Conv2d"),
    "channels last": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3)), (5, 3, 8, 8, 2), r"\(8, 8, 2\).*Layer 0, a Conv2d"),
    "normalized": (lambda: nn.Sequential(nn.BatchNorm1d(5)), (5, 3, 16), r"\(16,\).*Layer 0, a BatchNorm1d"),
    "within": (Branch, (5, 3, 16), r"Layer second\.1, a Linear"),
    "alone": (lambda: nn.Linear(16, 8), (5, 3, 17), r"The network, a Linear"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_and_the_axes_are_named(case: str):
    network, shape, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        run(network(), torch.rand(shape))
    with pytest.raises(ValueError, match=message):
        advance(network().eval(), torch.rand(shape))


@pytest.mark.parametrize(
    "method",
    [RateBackprop(), SpikingBayes(), EProp(), OnlineThroughTime(), TimeToFirstSpike(), ExpectationPropagation()],
    ids=lambda method: type(method).__name__,
)
def test_predictions_of_every_method_name_the_axes(method: Method):
    module = SpikingModule(mlp(), method, num_classes=3)
    with pytest.raises(ValueError, match=r"10 time steps, 4 samples, each of shape \(17,\) in a step.*failed: mat1"):
        module.predict_step(torch.rand(10, 4, 17), 0)


def test_other_errors_pass():
    error = RuntimeError("out of luck")
    with pytest.raises(RuntimeError, match="out of luck") as raised, explained_shapes(mlp(), torch.rand(5, 2, 16)):
        raise error
    assert raised.value is error
    with pytest.raises(RuntimeError, match="number of time steps is unknown"), explained_shapes(mlp(), torch.rand(5)):
        LIF()(torch.rand(5, 2))


def test_several_inputs_are_described_by_name():
    inputs = {"audio": torch.rand(5, 2, 3), "video": torch.rand(5, 2, 4)}
    with (
        pytest.raises(ValueError, match=r"x\['audio'\] of \(5, 2, 3\): 5 time steps.*x\['video'\] of \(5, 2, 4\)"),
        explained_shapes(mlp(), inputs),
    ):
        torch.rand(2, 3) @ torch.rand(4, 3)
