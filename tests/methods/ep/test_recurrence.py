"""Recurrent networks of messages: their reference, memory tasks with controls, predictions, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import ExpectationPropagation, Progress
from lightning_snn.methods.ep import update_batch
from lightning_snn.methods.ep.recurrence import RecurrentMessageNetwork
from lightning_snn.methods.ep.sequence_update import update_sequences
from lightning_snn.nn import AdaptiveLIF, Recurrent, RecurrentLIF

STEPS, SAMPLES, NEURONS = 4, 400, 20


def network(inputs: int = 2, neurons: int = NEURONS, classes: int = 2) -> nn.Sequential:
    layers = (nn.Linear(inputs, neurons), RecurrentLIF(neurons), nn.Linear(neurons, classes))
    return nn.Sequential(*layers).double()


def prepared(method: ExpectationPropagation, **sizes: int) -> RecurrentMessageNetwork:
    torch.manual_seed(0)
    found = method.prepare(network(**sizes))
    assert isinstance(found, RecurrentMessageNetwork)
    return found


def bits(task: str, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences `[T, B, 2]` and classes: the first bit, whether two bits differ, or the first of two events."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(SAMPLES)
    first, second = torch.randint(2, (2, SAMPLES), generator=generator)
    if task == "order":
        x = torch.zeros(5, SAMPLES, 2, dtype=torch.double)
        times = torch.rand(SAMPLES, 5, generator=generator).argsort(1)[:, :2].sort(1).values
        x[times[:, 0], rows, first] = x[times[:, 1], rows, 1 - first] = 1
        return x, first
    x = torch.zeros(2 if task == "xor" else STEPS, SAMPLES, 2, dtype=torch.double)
    x[0, rows, first] = 1
    if task == "memory":
        return x, first
    x[-1, rows, second] = 1
    return x, first ^ second


def accuracy(task: str, seed: int, latch: float, permute: bool = False, passes: int = 4) -> float:
    """Accuracy on new sequences after training: 8 batches, 8 iterations of 0.3."""
    x, y = bits(task, 2 * seed)
    if permute:
        y = y[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))]
    method = ExpectationPropagation(iterations=8, damping=0.3, latch=latch)
    torch.manual_seed(seed)
    trained = method.prepare(network())
    optimizer = method.configure_optimizer(trained)
    for step, batch in enumerate(list(torch.arange(SAMPLES).chunk(8)) * passes):
        method.progress = Progress(step / 8, SAMPLES, step)
        optimizer.zero_grad()
        method.training_step(trained, x[:, batch], y[batch]).objective.backward()
        optimizer.step()
    test_x, test_y = bits(task, 2 * seed + 1)
    return (method.predict(trained, test_x).mean.argmax(1) == test_y).double().mean().item()


def test_one_step_is_a_network_without_recurrence():
    """With T = 1 no spikes come before, so the update is that of the same weights in a feed-forward network."""
    method = ExpectationPropagation(latch=3.0)
    recurrent = prepared(method, inputs=3, neurons=5)
    plain = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(3, 5), LIF(), nn.Linear(5, 2)).double())
    columns = [0, 1, 2, 8]  # inputs and bias
    layers = [block.layer for block in recurrent.chain.blocks]
    cavities = [layer.natural for layer in layers]
    narrow = [type(cavities[0])(*(values[:, columns] for values in cavities[0])), cavities[1]]
    x, y = torch.rand(12, 1, 3, dtype=torch.double), torch.arange(12) % 2
    found = update_sequences(recurrent.chain, cavities, x, y, 4, 0.3, 8)
    expected = update_batch(plain.chain, narrow, x[:, 0], y, 4, 0.3, 8)  # type: ignore[union-attr,arg-type]
    for values, reference, before in zip(found.natural[0], expected.natural[0], cavities[0], strict=True):
        torch.testing.assert_close(values[:, columns], reference, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(values[:, 3:8], before[:, 3:8], rtol=1e-9, atol=1e-9)
        assert (reference - before[:, columns]).abs().max() > 1e-3
    for values, reference in zip(found.natural[1], expected.natural[1], strict=True):
        torch.testing.assert_close(values, reference, rtol=1e-9, atol=1e-9)


def test_the_prior_of_the_latch_is_in_the_weights_of_neurons_to_themselves():
    weights = [
        prepared(ExpectationPropagation(latch=latch), inputs=3, neurons=4).chain.blocks[0].layer.moments()[0]
        for latch in (0.0, 4.0)
    ]
    expected = torch.zeros(4, 8, dtype=torch.double)
    expected[:, 3:7] = 4 * torch.eye(4)
    expected[:, 7] = -2
    torch.testing.assert_close(weights[1] - weights[0], expected, rtol=0, atol=1e-12)


def test_predictions_after_each_step_are_those_of_the_steps_so_far():
    method = ExpectationPropagation(latch=4.0)
    recurrent = prepared(method, inputs=3, neurons=6)
    x = torch.rand(4, 5, 3, dtype=torch.double)
    found = method.predict_anytime(recurrent, x)
    for step in range(4):
        expected = method.predict(recurrent, x[: step + 1])
        torch.testing.assert_close(found.mean[step], expected.mean, rtol=1e-12, atol=0)
        for name, part in expected.variance_parts.items():  # type: ignore[union-attr]
            torch.testing.assert_close(found.variance_parts[name][step], part)  # type: ignore[index]
    assert (found.mean[-1] - method.predict(recurrent, x.flip(0)).mean).abs().max() > 1e-3
    assert (found.variance_parts["spikes"] > 0).all()  # type: ignore[index]
    method.samples = 3
    assert method.predict_anytime(recurrent, x).mean.shape == (4, 5, 2)


def test_a_bit_is_remembered_with_a_latch():
    assert accuracy("memory", 0, latch=4.0, passes=2) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("order", 3), ("memory", 2), ("xor", 3)])
def test_tasks_of_memory_are_learned_from_most_seeds(task, least):
    """In float32, with other draws of the same seeds, memory is learned from three: see the page on recurrence."""
    assert sum(accuracy(task, seed, latch=4.0) == 1.0 for seed in range(4)) >= least


@pytest.mark.slow
def test_without_a_latch_or_with_permuted_labels_memory_stays_at_chance():
    assert all(abs(accuracy("memory", seed, latch=0.0) - 0.5) < 0.1 for seed in range(4))
    # two sequences and one bit: permuted labels leave nothing but a guess for each
    assert sum(accuracy("memory", seed, latch=4.0, permute=True) for seed in range(4)) / 4 < 0.8


def test_a_module_trains_calls_streams_and_restores_a_recurrent_network():
    module = SpikingModule(network(3, 5), ExpectationPropagation(latch=4.0), num_classes=2).double()
    x, y = torch.rand(4, 6, 3, dtype=torch.double), torch.arange(6) % 2
    step = module.method.training_step(module.network, x, y)
    step.objective.backward()
    assert step.metrics["skipped"] == 0
    assert all(parameter.grad is not None for parameter in module.network.parameters())
    other = SpikingModule(network(3, 5), ExpectationPropagation(latch=4.0), num_classes=2).double()
    assert (other.method.predict(other.network, x).mean - module.method.predict(module.network, x).mean).abs().max() > 0
    other.load_state_dict(module.state_dict())
    expected = module.method.predict(module.network, x).mean
    torch.testing.assert_close(other.method.predict(other.network, x).mean, expected, rtol=0, atol=0)
    assert run(module.network, x).shape == (4, 6, 2)
    assert "latch=4" in repr(module.method)


def layered(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("refused", "options", "match"),
    [
        (layered(nn.Linear(3, 4), LIF(), nn.Linear(4, 2)), {}, "no RecurrentLIF or Recurrent"),
        (
            layered(nn.Linear(3, 4), RecurrentLIF(4), nn.Linear(4, 4), RecurrentLIF(4), nn.Linear(4, 2)),
            {},
            "3: RecurrentLIF .it is a second recurrent layer",
        ),
        (layered(nn.Linear(3, 4), LIF(), nn.Linear(4, 4), RecurrentLIF(4), nn.Linear(4, 2)), {}, "without further"),
        (layered(nn.Linear(3, 4), RecurrentLIF(5), nn.Linear(5, 2)), {}, "5 neurons, but the Linear before it has 4"),
        (layered(nn.Linear(3, 4, bias=False), RecurrentLIF(4), nn.Linear(4, 2)), {}, "no bias"),
        (layered(nn.Linear(3, 4), RecurrentLIF(4)), {}, "no Linear after"),
        (layered(nn.Linear(3, 4), Recurrent(RecurrentLIF(4), 4), nn.Linear(4, 2)), {}, "receive each other's spikes"),
        (layered(nn.Linear(3, 4), RecurrentLIF(4), nn.Linear(4, 2)), {"weights": "sign"}, '`weights` to be "gaussian"'),
    ],
)
def test_what_has_no_recurrent_messages_is_refused_by_name(refused, options: dict[str, Any], match):
    with pytest.raises(ValueError, match=match):
        ExpectationPropagation(latch=4.0, **options).prepare(refused)


def test_recurrence_is_refused_without_a_latch_and_a_latch_below_zero():
    with pytest.raises(ValueError, match=r"receive each other's spikes; `latch=4.0` trains one such layer"):
        ExpectationPropagation().prepare(network())
    with pytest.raises(ValueError, match="`latch` to be a finite number of at least 0"):
        ExpectationPropagation(latch=-1.0)
    adaptive = layered(nn.Linear(3, 4), Recurrent(AdaptiveLIF(), 4), nn.Linear(4, 2))
    assert isinstance(ExpectationPropagation(latch=4.0).prepare(adaptive), RecurrentMessageNetwork)
