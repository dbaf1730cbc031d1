"""Every task under every method: the gradient by its definition, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import (
    EProp,
    ExpectationPropagation,
    Method,
    NoisySpikes,
    OnlineThroughTime,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.methods.rate import rate_run
from lightning_snn.methods.tasks import (
    CrossEntropy,
    CustomLoss,
    Distillation,
    MultiLabel,
    Regression,
    TemporalEfficient,
)
from lightning_snn.methods.tasks.choice import TaskChoice

STEPS, SAMPLES, CHANNELS, CLASSES = 5, 6, 3, 4
_GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(STEPS, SAMPLES, CHANNELS, generator=_GENERATOR, dtype=torch.float64)
CLASS = torch.tensor([0, 3, 1, 1, 2, 0])
LABELS = (torch.rand(SAMPLES, CLASSES, generator=_GENERATOR) < 0.4).long()
VALUES = torch.randn(SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)
CURVES = torch.randn(STEPS, SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
_TAUGHT = torch.randn(SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Constant(nn.Module):
    """A teacher that returns the same logits at each step, so its readout is known."""

    def forward(self, x: Tensor) -> Tensor:
        return _TAUGHT.repeat(len(x) // SAMPLES, 1)


# losses written out by hand, of outputs [B, C] and the targets of a step or a sample


def cross_entropy(o: Tensor, y: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones_like(WEIGHTS) if weights is None else weights
    soft = smoothing / CLASSES + (1 - smoothing) * F.one_hot(y, CLASSES).double()
    return -(soft * weights * o.log_softmax(1)).sum() / weights[y].sum()


def labels(o: Tensor, y: Tensor) -> Tensor:
    return -(WEIGHTS * y * o.sigmoid().log() + (1 - y) * (1 - o.sigmoid()).log()).mean()


def squares(o: Tensor, y: Tensor) -> Tensor:
    return (o - y).pow(2).mean()


def temporal(o: Tensor, y: Tensor) -> Tensor:
    return 0.7 * cross_entropy(o, y) + 0.3 * (o - 0.7).pow(2).mean()


def divergence(o: Tensor) -> Tensor:
    taught = (_TAUGHT / 2).softmax(1)
    return 4 * (taught * (taught.log() - (o / 2).log_softmax(1))).sum(1).mean()


def fourth_powers(o: Tensor, y: Tensor) -> Tensor:
    return (o - y).pow(4).mean()


class TaskRow(NamedTuple):
    """A task as it is put to the test.

    Attributes:
        name: what the tests call it.
        task: the task.
        y: targets.
        loss: the loss of outputs `[B, C]`.
        per_step: whether the loss of a sequence is the mean of those of its steps.
    """

    name: str
    task: TaskChoice
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    per_step: bool = False

    def target(self, step: int) -> Tensor:
        return self.y[step] if self.y is CURVES else self.y

    def of_sequence(self, outputs: Tensor) -> Tensor:
        return self.of_steps(outputs) if self.per_step else self.loss(outputs.mean(0), self.y)

    def of_steps(self, outputs: Tensor) -> Tensor:
        return torch.stack([self.loss(output, self.target(step)) for step, output in enumerate(outputs)]).mean()


TASKS = (
    TaskRow("classification", "classification", CLASS, cross_entropy),
    TaskRow(
        "cross_entropy", CrossEntropy(0.1, WEIGHTS.tolist()), CLASS, lambda o, y: cross_entropy(o, y, 0.1, WEIGHTS)
    ),
    TaskRow("multi_label", MultiLabel(WEIGHTS.tolist()), LABELS, labels),
    TaskRow("regression", "regression", VALUES, squares),
    TaskRow("regression_per_step", Regression(per_step=True), CURVES, squares, True),
    TaskRow("temporal_efficient", TemporalEfficient(0.3, 0.7), CLASS, temporal, True),
    TaskRow(
        "distillation",
        Distillation(Constant(), 0.4, 2.0),
        CLASS,
        lambda o, y: 0.6 * cross_entropy(o, y) + 0.4 * divergence(o),
    ),
    TaskRow(
        "distilled_steps",
        Distillation(Constant(), 0.4, 2.0, TemporalEfficient(0.3, 0.7)),
        CLASS,
        lambda o, y: 0.6 * temporal(o, y) + 0.4 * divergence(o),
        True,
    ),
    TaskRow("function", fourth_powers, VALUES, fourth_powers),
    TaskRow("function_per_step", CustomLoss(fourth_powers, Regression(per_step=True)), CURVES, fourth_powers, True),
)
PER_STEP = [row.name for row in TASKS if row.per_step]


def spiking() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(CHANNELS, 8), LIF(0.8, detach_reset=True), nn.Linear(8, CLASSES)).double()
    nn.init.uniform_(network[0].bias, 0.2, 0.6)
    return network


def rectified() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(CHANNELS, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double()


def cut_in_time(network: nn.Module, x: Tensor) -> Tensor:
    """Run step by step with states as constants."""
    first, neuron, last = network
    state, outputs = None, []
    for current in x:
        spikes, state = neuron.step(first(current), state)
        state = tree_map(Tensor.detach, state)
        outputs.append(last(spikes))
    return torch.stack(outputs)


def noisy(module: SpikingModule, x: Tensor) -> Tensor:
    return module.method.noisy_output(module.network, x)


def plain(module: SpikingModule, x: Tensor) -> Tensor:
    return run(module.network, x)


class MethodRow(NamedTuple):
    """A method as it is put to the test.

    Attributes:
        name: what the tests call it.
        make: builds the method.
        outputs: the outputs of all steps with the gradient by which the method is defined.
        by_steps: whether the objective is the mean of the losses of single steps for every task.
        refused: names of the tasks that are refused.
        network: builds the network.
    """

    name: str
    make: Callable[[], Method]
    outputs: Callable[[SpikingModule, Tensor], Tensor]
    by_steps: bool = False
    refused: Sequence[str] = ()
    network: Callable[[], nn.Module] = spiking


METHODS = (
    MethodRow("surrogate", SurrogateGradient, plain),
    MethodRow("surrogate_checkpoint", lambda: SurrogateGradient(checkpoint=2), plain),
    MethodRow("rate", RateBackprop, lambda module, x: rate_run(module.network, x), refused=PER_STEP),
    MethodRow("rate_step", lambda: RateBackprop("step"), lambda module, x: cut_in_time(module.network, x)),
    # exact with one hidden layer and a detached reset
    MethodRow("ottt", OnlineThroughTime, plain, by_steps=True),
    MethodRow("ottt_streaming", lambda: OnlineThroughTime(streaming=True), plain, by_steps=True),
    MethodRow(
        "sltt", lambda: OnlineThroughTime(trace=False), lambda module, x: cut_in_time(module.network, x), by_steps=True
    ),
    MethodRow("eprop", EProp, plain, by_steps=True),
    MethodRow("eprop_streaming", lambda: EProp(streaming=True), plain, by_steps=True),
    MethodRow("noisy", NoisySpikes, noisy),
    MethodRow("bayes", lambda: SpikingBayes(kl_weight=0.0, keep_weights=True), noisy),
    MethodRow("ttfs", lambda: TimeToFirstSpike((0.0, 1.0)), plain, refused=PER_STEP, network=rectified),
)


def made(method: MethodRow, task: TaskRow) -> SpikingModule:
    classes = None if task.name.startswith(("regression", "function")) else CLASSES
    return SpikingModule(method.network(), method.make(), classes, task.task).double()


def gradients(objective: Tensor, module: SpikingModule) -> list[Tensor]:
    parameters = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(objective, parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


@pytest.mark.parametrize("task", TASKS, ids=lambda row: row.name)
@pytest.mark.parametrize("method", METHODS, ids=lambda row: row.name)
def test_the_gradient_is_that_of_the_loss_by_hand_or_the_task_is_refused(method, task):
    if task.name in method.refused:
        with pytest.raises(ValueError, match=r"`task` to be one that \w+ can learn, but got .*: its loss .* Use "):
            made(method, task)
        return
    module = made(method, task)
    torch.manual_seed(1)
    step = module.method.training_step(module.network, X, module.method.task.targets(X, task.y))
    torch.manual_seed(1)
    outputs = method.outputs(module, X)
    expected = task.of_steps(outputs) if method.by_steps else task.of_sequence(outputs)
    torch.testing.assert_close(step.objective, expected, **EXACT)
    torch.testing.assert_close(step.loss, task.of_sequence(outputs.detach()), **EXACT)
    found, wanted = gradients(step.objective, module), gradients(expected, module)
    assert all(gradient.abs().max() > 1e-4 for gradient in wanted[:2])
    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, **EXACT)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda row: row.name)
def test_the_gradients_of_two_tasks_differ(method):
    """So the equalities above do not hold by accident."""
    found = []
    for task in TASKS[:2]:
        module = made(method, task)
        found.append(gradients(module.method.training_step(module.network, X, task.y).objective, module))
    assert (found[0][0] - found[1][0]).abs().max() > 1e-3


@pytest.mark.parametrize("task", TASKS, ids=lambda row: row.name)
def test_expectation_propagation_learns_classes_and_values_and_refuses_any_other_loss(task):
    method = MethodRow("ep", lambda: ExpectationPropagation(iterations=2), plain)
    if task.name not in ("classification", "regression"):
        with pytest.raises(ValueError, match=r"ExpectationPropagation can learn.*messages.*a method with a gradient"):
            made(method, task)
        return
    module = made(method, task)
    step = module.method.training_step(module.network, X, task.y)
    torch.testing.assert_close(step.loss, task.loss(step.output, task.y), **EXACT)


def test_a_loss_with_parameters_trains_them_unless_gradients_are_summed_step_by_step():
    class Scaled(nn.Module):
        """Squares of values times a factor that is learned."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, output: Tensor, y: Tensor) -> Tensor:
            return (self.scale * output - y).square().mean(1)

    for method in (SurrogateGradient(), OnlineThroughTime(), EProp("random")):
        module = SpikingModule(spiking(), method, task=Scaled())
        step = module.method.training_step(module.network, X, VALUES)
        step.objective.backward()
        assert module.method.task.function.scale.grad.abs() > 1e-3
        assert any(parameter is module.method.task.function.scale for parameter in module.parameters())
        module.configure_optimizers().step()
        assert module.method.task.function.scale != 2
    for method in (OnlineThroughTime(streaming=True), EProp(streaming=True)):
        with pytest.raises(ValueError, match=r"its loss has parameters.* Use streaming=False"):
            SpikingModule(spiking(), method, task=Scaled())


def test_samples_of_a_prediction_for_each_step_keep_their_axes():
    method = NoisySpikes(samples=3)
    module = SpikingModule(spiking(), method, task=Regression(per_step=True))
    prediction = module.method.predict(module.network, X)
    assert prediction.samples.shape == (3, STEPS, SAMPLES, CLASSES)
    torch.testing.assert_close(prediction.mean, prediction.samples.mean(0))
    torch.testing.assert_close(prediction.variance, prediction.samples.var(0, correction=0))
    anytime = module.method.predict_anytime(module.network, X)
    assert anytime.mean.shape == prediction.mean.shape
