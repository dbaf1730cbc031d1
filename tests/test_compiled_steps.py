"""Training steps, networks and predictions that are compiled as a whole, for all numbers of time steps at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch._guards import CompileContext

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.batches import Batch
from lightning_snn.callbacks import FiringRateMonitor
from lightning_snn.methods import (
    ActivityPenalty,
    ExpectationPropagation,
    Method,
    NoisySpikes,
    Progress,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from tests.support.event_order import CHANNELS, CLASSES, loader, order_of_events, small_network
from tests.support.networks import layers
from tests.support.processes import as_launched, on_two_processes
from tests.support.training import trainer
from tests.test_threads import switching, together

__all__ = ["switching"]
STEPS = (4, 5, 7, 16)


def normalized_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(CHANNELS, 8), nn.BatchNorm1d(8), LIF(learn_beta=True), nn.Dropout(0.2), nn.Linear(8, CLASSES)
    )


@dataclass(frozen=True)
class Row:
    """A method whose steps are compiled.

    Attributes:
        name: of the row.
        make: builds the method.
        network: builds the network.
        penalized: whether the module has a penalty on activity.
        steps: numbers of time steps.
        slow: whether its tests are marked as slow.
    """

    name: str
    make: Callable[[], Method]
    network: Callable[[], nn.Module] = small_network
    penalized: bool = False
    steps: tuple[int, ...] = STEPS
    slow: bool = True


ROWS = (
    Row("surrogate_gradient", SurrogateGradient, normalized_network, penalized=True, slow=False),
    Row("time_to_first_spike", lambda: TimeToFirstSpike((0.0, 1.1), activity_penalty=0.1), slow=False),
    Row("rate_backprop", RateBackprop, normalized_network),
    Row("rate_backprop_windows", lambda: RateBackprop(window=2), normalized_network, True, (4, 6, 8, 16)),
    Row("spiking_bayes", SpikingBayes),
    Row("spiking_bayes_synapses", lambda: SpikingBayes(bias_weight=0.1, bias_form="synapse")),
    Row("spiking_bayes_mean", lambda: SpikingBayes(mean_epochs=3)),
    Row("noisy_spikes", NoisySpikes, penalized=True),
    Row("rate_backprop_linked", lambda: RateBackprop(window=2, link=True), normalized_network, True, (4, 6, 8, 16)),
)


def rows_of(*rows: Row) -> list[Any]:
    return [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in rows]


class Compilations:
    """A backend that counts the compilations of frames: a frame may call it several times until its code is complete.

    Args:
        backend: the backend that compiles.
    """

    def __init__(self, backend: str = "aot_eager") -> None:
        self.compile = torch._dynamo.lookup_backend(backend)
        self.found: set[str] = set()

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        self.found.add(str(CompileContext.current_compile_id()))
        return self.compile(graph, inputs, **options)

    @property
    def count(self) -> int:
        return len(self.found)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(row: Row) -> SpikingModule:
    torch.manual_seed(0)
    penalties = {"rate": ActivityPenalty(0.1)} if row.penalized else None
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, penalties=penalties)
    module.method.progress = Progress(1.5, 100, step=1)
    return module


def compiled_pair(row: Row, backend: Any) -> tuple[SpikingModule, SpikingModule]:
    """Return a module and its compiled copy."""
    module = build(row)
    compiled = copy.deepcopy(module)
    compiled.compile(fullgraph=True, backend=backend)
    return module, compiled


def batch(steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    return torch.rand(steps, 6, CHANNELS, generator=generator), torch.arange(6) % CLASSES


def trained(module: SpikingModule, steps: int) -> list[Tensor]:
    """Return objective, logged values, gradients and buffers of a seeded step."""
    torch.manual_seed(steps)
    module.zero_grad()
    step = module._step(Batch(*batch(steps)))
    step.objective.backward()
    gradients = [each.grad.clone() for each in module.network.parameters() if each.grad is not None]
    assert gradients
    buffers = [buffer.clone() for buffer in module.network.buffers()]
    return [step.objective.detach(), step.loss, step.output, *step.metrics.values(), *gradients, *buffers]


def predicted(module: SpikingModule, steps: int) -> list[Tensor]:
    module.eval()
    with torch.inference_mode():
        found = module.predict_step(batch(steps)[0], 0).mean
    module.train()
    return [found]


def equal(one: list[Tensor], other: list[Tensor], tolerance: float = 0.0) -> bool:
    if tolerance == 0:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return all(torch.allclose(a, b, tolerance, tolerance) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("row", rows_of(*ROWS))
def test_one_compiled_graph_for_all_numbers_of_steps_equals_plain_steps_to_the_last_bit(row):
    backend = Compilations()
    module, compiled = compiled_pair(row, backend)
    for steps in row.steps:
        assert equal(trained(compiled, steps), trained(module, steps))
        assert backend.count == 1
    for steps in row.steps:
        assert equal(predicted(compiled, steps), predicted(module, steps))
        assert backend.count == 2


def test_a_smaller_batch_is_a_second_compilation_and_the_last():
    backend = Compilations("eager")
    _, compiled = compiled_pair(Row("small", SurrogateGradient), backend)
    x, y = batch(4)
    for samples in (6, 3, 4, 5):
        compiled._step(Batch(x[:, :samples], y[:samples]))
    assert backend.count == 2


@pytest.mark.slow
@pytest.mark.parametrize("row", rows_of(*ROWS))
@torch._inductor.config.patch(fallback_random=True)  # the random numbers of plain steps
def test_steps_compiled_by_inductor_equal_those_without_the_compiler(row):
    module, compiled = compiled_pair(row, "inductor")
    for steps in row.steps:
        assert equal(trained(compiled, steps), trained(module, steps), 1e-6)
        assert equal(predicted(compiled, steps), predicted(module, steps), 1e-6)


def test_a_compiled_network_is_one_graph_for_all_numbers_of_time_steps():
    backend = Compilations()
    torch.manual_seed(0)
    network = small_network()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for steps in STEPS:
        x, _ = batch(steps)
        one, other = run(compiled, x), run(network, x)
        assert torch.equal(one, other)
        gradients = [torch.autograd.grad(each.square().sum(), list(network.parameters())) for each in (one, other)]
        assert equal(*map(list, gradients))
    assert backend.count == 1


@pytest.mark.parametrize("make", [SurrogateGradient, pytest.param(RateBackprop, marks=pytest.mark.slow)])
def test_a_step_compiled_by_hand_is_one_graph(make):
    module = build(Row("by_hand", make))
    plain = copy.deepcopy(module)
    backend = Compilations("eager")

    @torch.compile(fullgraph=True, backend=backend)
    def objective(x: Tensor, y: Tensor) -> Tensor:
        return module.method.training_step(module.network, x, y).objective

    x, y = batch(4)
    assert torch.equal(objective(x, y), plain.method.training_step(plain.network, x, y).objective)
    count = backend.count
    assert count == 1
    objective(x, y)
    # modules that did not go through `SpikingModule.compile` are prepared by the first call
    assert backend.count == count + (make is RateBackprop)
    objective(x, y)
    assert backend.count == count + (make is RateBackprop)


def fitted(row: Row, backend: Any, *callbacks: pl.Callback, steps: int = 3, **options: Any) -> SpikingModule:
    module = build(row)
    if backend is not None:
        module.compile(backend=backend, fullgraph=True)
    x, y = order_of_events(16)
    torch.manual_seed(1)
    trainer(*callbacks, max_epochs=2, **options).fit(module, loader(x[:steps], y, 8), loader(x[:steps], y, 8))
    return module


@pytest.mark.parametrize("row", rows_of(*(ROWS[0], ROWS[4])))
def test_a_compiled_fit_equals_one_without_the_compiler_and_compiles_no_step_again(row):
    backend = Compilations("eager")
    one, other = (fitted(row, each) for each in (backend, None))
    assert equal(list(one.parameters()), list(other.parameters()))
    assert backend.count == 2  # one of steps, one of predictions


def test_batches_that_a_callback_observes_run_without_the_compiler(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the figures
    backend = Compilations("eager")
    row = Row("small", SurrogateGradient)
    monitors = [FiringRateMonitor(), FiringRateMonitor()]
    with pytest.warns(UserWarning, match="Forward hooks observe 1, so this batch runs without the compiler"):
        one = fitted(row, backend, monitors[0])
    other = fitted(row, None, monitors[1])
    assert equal(list(one.parameters()), list(other.parameters()))


def test_hooks_that_compute_weights_are_compiled():
    backend = Compilations("eager")
    module = build(Row("small", SurrogateGradient))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(module.network[2])
    module.compile(fullgraph=True, backend=backend)
    module._step(Batch(*batch(4)))
    assert backend.count == 1


def test_a_method_that_cannot_be_compiled_says_why():
    module = SpikingModule(small_network(), ExpectationPropagation(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="ExpectationPropagation: it looks up batches by their content"):
        module.compile()
    with pytest.raises(TypeError, match="by name"):
        build(ROWS[0]).compile("inductor")


def test_samples_are_predicted_without_the_compiler():
    module = build(Row("samples", lambda: SpikingBayes(samples=2)))
    backend = Compilations()
    module.compile(backend=backend)
    predicted(module, 4)
    assert backend.count == 0


def test_copies_of_a_compiled_module_compile_anew():
    _, compiled = compiled_pair(Row("small", SurrogateGradient), "eager")
    trained(compiled, 4)
    other = copy.deepcopy(compiled)
    assert equal(trained(other, 5), trained(compiled, 5))
    assert all(a is not b for a, b in zip(other.parameters(), compiled.parameters(), strict=True))


def test_checkpoints_of_compiled_modules_load_into_others_and_the_other_way_round(tmp_path: Path):
    row = ROWS[0]

    def in_place() -> SpikingModule:
        module = build(row)
        module.compile(backend="eager")
        return module

    def wrapped() -> SpikingModule:
        module = build(row)
        module.network = torch.compile(module.network, backend="eager")
        return module

    def of_compiled_network() -> SpikingModule:
        torch.manual_seed(0)
        network = torch.compile(row.network(), backend="eager")
        return SpikingModule(network, row.make(), num_classes=CLASSES, penalties={"rate": ActivityPenalty(0.1)})

    kinds = (lambda: build(row), in_place, wrapped, of_compiled_network)
    for index, make in enumerate(kinds):
        module = make()
        with torch.no_grad():
            next(module.network.parameters()).fill_(index)
        run_trainer = trainer(limit_train_batches=0, limit_val_batches=0, max_epochs=0)
        x, y = order_of_events(2)
        run_trainer.fit(module, loader(x, y))
        run_trainer.save_checkpoint(tmp_path / f"{index}.ckpt")
        saved = torch.load(tmp_path / f"{index}.ckpt", weights_only=True)["state_dict"]
        assert list(saved) == list(build(row).state_dict())
        for other in kinds:
            loaded = other()
            loaded.load_state_dict(saved)
            assert equal(list(loaded.parameters()), list(module.parameters()))
            (neurons,) = layers(loaded.network, LIF)
            neurons._numbers["threshold"] = 2.0
            with pytest.raises(RuntimeError, match=r"threshold is 1\.0 in the checkpoint and 2\.0 here"):
                loaded.load_state_dict(saved)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("compiles", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("row", rows_of(Row("surrogate_gradient", SurrogateGradient, slow=False), ROWS[2]))
def test_threads_with_other_numbers_of_time_steps_share_a_network(row, compiles):
    module, compiled = compiled_pair(row, "eager")
    module.eval()
    compiled.eval()
    parameters = [list(each.network.parameters()) for each in (module, compiled)]

    def gradients(of: SpikingModule, index: int, steps: int) -> list[Tensor]:
        objective = of._step(Batch(*batch(steps))).objective
        return list(torch.autograd.grad(objective, parameters[index]))

    expected = {steps: gradients(module, 0, steps) for steps in STEPS}
    found: dict[int, list[list[Tensor]]] = {steps: [] for steps in STEPS}

    def train(steps: int) -> None:
        for _ in range(4):
            found[steps].append(gradients(compiled if compiles else module, int(compiles), steps))

    together(*(lambda steps=steps: train(steps) for steps in STEPS))
    for steps, results in found.items():
        assert all(equal(each, expected[steps]) for each in results)


def train_on_rank(name: str, backend: str | None, rank: int) -> list[Tensor]:
    (row,) = (row for row in ROWS if row.name == name)
    module = build(row)
    if backend is not None:
        module.compile(backend=backend)
    x, y = order_of_events(16)
    torch.manual_seed(1)
    with as_launched(rank):
        fitting = trainer(
            strategy=DDPStrategy(process_group_backend="gloo"), devices=2, max_epochs=2, use_distributed_sampler=False
        )
        fitting.fit(module, loader(x[:3, rank::2], y[rank::2], 8))
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surrogate_gradient", "rate_backprop", "time_to_first_spike"])
def test_two_processes_train_a_compiled_module_as_one_that_is_not(name, tmp_path):
    found = []
    for index, backend in enumerate(("aot_eager", None)):
        folder = tmp_path / str(index)
        folder.mkdir()
        found.append(on_two_processes(partial(train_on_rank, name, backend), folder))
    (one, other), (plain, _) = found
    assert equal(one, other)
    assert equal(one, plain, 1e-6)


@pytest.mark.slow
def test_mixed_precision_trains_compiled_modules_alike():
    one, other = (fitted(ROWS[0], backend, precision="bf16-mixed") for backend in (Compilations(), None))
    assert equal(list(one.parameters()), list(other.parameters()))
    assert one.network[0].weight.dtype == torch.float32


@pytest.mark.slow
def test_double_precision_trains_compiled_modules_alike():
    one, other = (fitted(ROWS[0], backend, precision="64-true") for backend in ("eager", None))
    assert equal(list(one.parameters()), list(other.parameters()))
