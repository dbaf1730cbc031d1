"""Time folded into the batch: outputs and refusals of `run`, and T per context and thread."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.nn import LIF, LeakyIntegrator, folded
from lightning_snn.nn.folding import unfold
from tests.support.processes import PATIENCE


class TimeStepsSeen(nn.Module):
    """A layer that records the unfolded shape of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(unfold(x, self).shape))
        return x


def test_a_stateless_network_gives_what_it_gives_at_each_step():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).double()
    x = torch.rand(4, 3, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(run(network, x), torch.stack([network(step) for step in x]), rtol=1e-12, atol=1e-12)


def test_a_spiking_network_gives_what_its_layers_give_one_after_the_other():
    linear, first, second = nn.Linear(4, 6).double(), LIF(0.8), LeakyIntegrator(0.5)
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    states, outputs = [None, None], []
    for step in x:
        spikes, states[0] = first.step(linear(step), states[0])
        output, states[1] = second.step(spikes, states[1])
        outputs.append(output)
    torch.testing.assert_close(
        run(nn.Sequential(linear, first, second), x), torch.stack(outputs), rtol=1e-12, atol=1e-12
    )


def test_samples_of_a_batch_do_not_see_each_other():
    network, x = (
        nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 2)).double(),
        torch.randn(7, 5, 4, dtype=torch.float64),
    )
    whole = run(network, x)
    for index in range(5):
        torch.testing.assert_close(run(network, x[:, index : index + 1])[:, 0], whole[:, index], rtol=1e-12, atol=1e-12)


def test_contexts_nest():
    layer, x = TimeStepsSeen(), torch.rand(12, 1)
    with folded(2):
        layer(x)
        with folded(6):
            layer(x)
        layer(x)
    assert layer.shapes == [(2, 6, 1), (6, 2, 1), (2, 6, 1)]
    with pytest.raises(RuntimeError, match="time steps is unknown"):
        layer(x)


def test_a_network_may_run_another_one_inside():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner, self.after = TimeStepsSeen(), TimeStepsSeen(), TimeStepsSeen()

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            run(self.inner, x.view(3, 4, 1))
            return self.after(x)

    network = Outer()
    run(network, torch.rand(2, 6, 1))
    assert (network.before.shapes, network.inner.shapes, network.after.shapes) == (
        [(2, 6, 1)],
        [(3, 4, 1)],
        [(2, 6, 1)],
    )


def test_the_number_of_time_steps_is_restored_after_an_exception():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("on purpose")

    layer = TimeStepsSeen()
    with folded(3):
        with pytest.raises(ArithmeticError):
            run(Fails(), torch.rand(2, 6, 1))
        layer(torch.rand(12, 1))
    assert layer.shapes == [(3, 4, 1)]
    with pytest.raises(ArithmeticError):
        run(Fails(), torch.rand(2, 6, 1))
    with pytest.raises(RuntimeError, match="time steps is unknown"):
        layer(torch.rand(12, 1))


def test_threads_do_not_share_the_number_of_time_steps():
    inside, layer, errors = Barrier(2, timeout=PATIENCE), TimeStepsSeen(), []

    class Meets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.wait()  # both threads are in `run` now
            return layer(x)

    def go(steps: int) -> None:
        try:
            run(Meets(), torch.rand(steps, 12 // steps, 1))
        except Exception as error:
            errors.append(error)

    def outside() -> None:
        with pytest.raises(RuntimeError, match="time steps is unknown"):
            layer(torch.rand(12, 1))

    threads = [Thread(target=go, args=(steps,)) for steps in (2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(layer.shapes) == [(2, 6, 1), (6, 2, 1)]
    with folded(4):
        thread = Thread(target=outside)
        thread.start()
        thread.join()


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda a, b: (a, b), tuple),
        (lambda a, b: [a, b], list),
        (lambda a, b: Pair(a, b), Pair),
        (lambda a, b: {"a": a, "b": (b, a)}, dict),
    ],
    ids=["tuple", "list", "namedtuple", "dict"],
)
def test_containers_of_outputs_are_unfolded(make, kind):
    class Several(nn.Module):
        def forward(self, x: Tensor):
            return make(x, x.sum(1))

    x = torch.rand(5, 2, 3)
    output = run(Several(), x)
    assert type(output) is kind
    first, second = (output["a"], output["b"][0]) if kind is dict else output
    assert torch.equal(first, x)
    assert torch.equal(second, x.sum(2))


def test_an_output_with_other_rows_is_refused():
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0, keepdim=True)

    with pytest.raises(ValueError, match=r"return 5 \* 2 = 10 rows.*but got the shape \(1, 3\)"):
        run(Pools(), torch.rand(5, 2, 3))


def test_rows_that_are_no_multiple_of_the_time_steps_are_refused():
    class DropsOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return LIF()(x[1:])

    with pytest.raises(ValueError, match=r"input of LIF to have a multiple of T = 5 rows.*got the shape \(9, 3\)"):
        run(DropsOne(), torch.rand(5, 2, 3))


@pytest.mark.parametrize("shape", [(3,), (0, 2, 3)], ids=str)
def test_an_input_without_time_or_batch_is_refused(shape):
    with pytest.raises(ValueError, match=r"argument `x` to be of shape \[T, B, \.\.\.\] with T of at least 1"):
        run(LIF(), torch.rand(shape))


def test_a_compiled_network_equals_the_eager_one_for_two_lengths():
    network = LIF()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager")
    for steps in (4, 6):
        x = torch.randn(steps, 2, 3)
        torch.testing.assert_close(run(compiled, x), run(network, x), rtol=1e-6, atol=1e-6)
