"""Training and prediction on a pretended accelerator: no mixed devices, no waiting, and the results of the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import Stream
from lightning_snn.methods import Progress, SurrogateGradient
from lightning_snn.module import SpikingModule
from lightning_snn.networks import VGG
from tests.contract.by_hand import build
from tests.contract.table import METHODS, RUNS
from tests.contract.test_neurons import METHODS as METHODS_OF_NEURONS
from tests.contract.test_neurons import TABLE as NEURONS
from tests.contract.test_neurons import batch, built
from tests.support.accelerator import Accelerator, move, on_accelerator, values
from tests.support.event_order import order_of_events

X, Y = order_of_events(8)
IN_TEST_COMMAND = {row.name for row in RUNS if not row.slow}
# where the CPU waits, and how often at most in the two steps and the prediction of `results`
WAITS = {
    "spiking_bayes": {"methods/bayes/method.py": 4},  # a warning, once in 50 steps and layer
    "time_to_first_spike": {"methods/ttfs/encoder.py": 2},  # a warning, after 1, 2, 4, ... calls
    "rate_backprop": {"methods/rate/drift.py": 10},  # a warning, in the first step
    # batches are known by their content, and updates by the change that the optimizer made
    "expectation_propagation": {"methods/ep/fingerprint.py": 2, "methods/ep/sites.py": 4},
}


def results(module: SpikingModule, x: Tensor, y: Tensor, steps: int = 2) -> list[Tensor]:
    """Return objectives and gradients of some training steps, and two predictions."""
    method, network = module.train().method, module.network
    method.progress = Progress(0.5, 64)
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    found = []
    for seed in range(steps):
        torch.manual_seed(seed)
        step = method.training_step(network, x, y)
        step.objective.backward()
        found += [values(step.objective), values(step.loss), values(step.output)]
        found += [values(each.grad).clone() for each in module.parameters() if each.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    module.eval()
    found.append(values(method.predict(network, x).mean))
    return found


def assert_equal_to_the_cpu(
    make: Callable[[], SpikingModule], x: Tensor, y: Tensor, run: Callable[..., list[Tensor]] = results
) -> Counter[str]:
    """Compare results, and return the files of the package in which the CPU waited."""
    expected = run(make(), x, y)
    module = make()
    with Accelerator() as accelerator:
        moved = move(module), on_accelerator(x), on_accelerator(y)
        accelerator.waits.clear()
        found = run(*moved)
    # special functions of Gaussians have a faster approximation on CPUs
    tolerance = 1e-5 if "ExpectationPropagation" in repr(module.method) else 0.0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    return Counter(line.split(":")[0] for line in accelerator.waits)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=[] if row.name in IN_TEST_COMMAND else pytest.mark.slow) for row in METHODS],
)
def test_a_method_trains_and_predicts_as_on_the_cpu(row):
    waits = assert_equal_to_the_cpu(lambda: build(row), X, Y)
    allowed: dict[str, int] = {}
    for name, places in WAITS.items():
        allowed |= places if row.name.startswith(name) else {}
    assert waits.keys() <= allowed.keys()
    assert all(count <= allowed[place] for place, count in waits.items())


def streamed(module: SpikingModule, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return a training step, a prediction after every step, and the outputs of a stream with a partial reset."""
    found = results(module, x, y, steps=1)
    found.append(values(module.method.predict_anytime(module.network, x).mean))
    stream = Stream(module.network)
    found += [values(stream(step)) for step in x]
    stream.reset([0, 2])
    return [*found, values(stream(x[0]))]


def of_neuron(row: object, method: str) -> Callable[[], SpikingModule]:
    def make() -> SpikingModule:
        torch.manual_seed(5)
        return built(row.make(), method)  # type: ignore[attr-defined]

    return make


FEW = {
    "lif_learned": ("surrogate_gradient", "rate_backprop_step"),
    "adaptive_lif_learned": ("surrogate_gradient", "rate_backprop_step", "noisy_spikes_step"),
    "recurrent_around_lif": ("surrogate_gradient", "spiking_bayes_step"),
}


@pytest.mark.parametrize(
    ("row", "method"),
    [
        pytest.param(
            row,
            method,
            id=f"{row.name}-{method}",
            marks=[] if method in FEW.get(row.name, ()) else pytest.mark.slow,
        )
        for row, method in product(NEURONS, METHODS_OF_NEURONS)
        if method not in row.refused_by
    ],
)
def test_a_neuron_runs_as_on_the_cpu_under_every_method(row, method):
    run = streamed if method == "surrogate_gradient" else results
    assert_equal_to_the_cpu(of_neuron(row, method), *batch(), run)


@pytest.mark.parametrize("method", [SurrogateGradient(), SurrogateGradient(checkpoint=3)], ids=repr)
def test_backpropagation_through_time_never_waits(method):
    row = next(row for row in METHODS if row.name == "surrogate_gradient")
    network = row.network()
    assert not assert_equal_to_the_cpu(lambda: SpikingModule(network, method, num_classes=2), X, Y)


def test_a_normalized_network_never_waits():
    torch.manual_seed(0)
    network = VGG((2, 8, 8), 2, (4, "A", 4))
    x, y = torch.rand(3, 4, 2, 8, 8), torch.arange(4) % 2
    assert not assert_equal_to_the_cpu(lambda: SpikingModule(network, num_classes=2), x, y)


def test_the_steps_of_a_module_wait_for_the_scores_only():
    """Each score reads once whether its arguments are probabilities and classes."""
    row = next(row for row in METHODS if row.name == "surrogate_gradient")
    module = build(row)
    with Accelerator() as accelerator:
        move(module)
        one = on_accelerator(X), on_accelerator(Y)
        waits = {}
        for name in ("training_step", "validation_step", "test_step", "predict_step"):
            accelerator.waits.clear()
            getattr(module, name)(one, 0)
            waits[name] = Counter(line.split(":")[0] for line in accelerator.waits)
    of_scores = {"metrics/functional/_inputs.py": 3}
    assert waits == {"training_step": {}, "validation_step": of_scores, "test_step": of_scores, "predict_step": {}}


class Careless(nn.Module):
    """Layer that is right on a CPU only."""

    def __init__(self, mistake: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        return self.mistake(x)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.zeros(x.shape),
        lambda x: torch.cat([x, torch.zeros(1, *x.shape[1:])])[:-1],
        lambda x: torch.where(torch.ones(x.shape, dtype=torch.bool), x, 0),
        lambda x: x + 0 * torch.rand(x.shape, device=x.device, generator=torch.Generator()),
    ],
    ids=["sum", "concatenation", "mask", "generator"],
)
def test_tensors_and_generators_of_the_cpu_raise(mistake):
    network = nn.Sequential(nn.Linear(2, 2), Careless(mistake))
    x, y = torch.rand(3, 4, 2), torch.arange(4) % 2
    with pytest.raises(RuntimeError, match="Expected all tensors on one device|Expected a generator"):
        assert_equal_to_the_cpu(lambda: SpikingModule(network, num_classes=2), x, y)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + 0 * x.sum().item(),
        lambda x: x if (x > 1e9).any() else x + 0,
        lambda x: x * torch.tensor(1.0, device=x.device),
        lambda x: x * x.new_tensor([1.0]),
        lambda x: x + 0 * x[x > 0].sum(),
        lambda x: x + x.detach().cpu().mul(0).to(x.device),
    ],
    ids=["item", "condition", "constant", "constants", "mask", "copy"],
)
def test_values_that_the_cpu_waits_for_are_found(mistake):
    network = nn.Sequential(nn.Linear(2, 2), Careless(mistake))
    x, y = torch.rand(3, 4, 2), torch.arange(4) % 2
    waits = assert_equal_to_the_cpu(lambda: SpikingModule(network, num_classes=2), x, y)
    # in two training steps and a prediction
    assert sum(waits.values()) >= 3
