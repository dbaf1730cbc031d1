"""Losses of tasks against formulas written out by hand, in float64, and over padded sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.methods.tasks import (
    Classification,
    CrossEntropy,
    CustomLoss,
    Distillation,
    MultiLabel,
    Prediction,
    Regression,
    Task,
    TemporalEfficient,
    chosen_task,
)
from lightning_snn.nn import sequence_lengths
from tests.methods.tasks import references

EXACT = {"rtol": 1e-12, "atol": 1e-13}
STEPS, SAMPLES, CLASSES = 5, 6, 4
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
_GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(STEPS, SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)
X = torch.rand(STEPS, SAMPLES, 3, generator=_GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 3, 1, 1, 2, 0])
LABELS = (torch.rand(SAMPLES, CLASSES, generator=_GENERATOR) < 0.4).long()
VALUES = torch.randn(SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)
CURVES = torch.randn(STEPS, SAMPLES, CLASSES, generator=_GENERATOR, dtype=torch.float64)


def teacher() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(3, CLASSES).double()


def absolute(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).abs()


def teacher_logits() -> np.ndarray:
    weight, bias = (parameter.detach().numpy() for parameter in teacher().parameters())
    return (X.numpy() @ weight.T + bias).mean(0)


def test_cross_entropy_with_smoothed_labels_and_weighted_classes_is_that_by_hand():
    for smoothing, weights in ((0.0, None), (0.2, None), (0.0, WEIGHTS), (0.2, WEIGHTS)):
        task = CrossEntropy(smoothing, weights)
        expected = references.cross_entropy(OUTPUTS.numpy().mean(0), Y.numpy(), smoothing, weights)
        assert task.sequence_loss(OUTPUTS, Y).item() == pytest.approx(expected, rel=1e-12)
        if smoothing or weights:
            assert abs(expected - Classification().sequence_loss(OUTPUTS, Y).item()) > 1e-3


def test_cross_entropy_takes_class_probabilities_and_further_axes_as_torch_does():
    soft = OUTPUTS[1].softmax(-1)
    module = nn.CrossEntropyLoss(torch.tensor(WEIGHTS, dtype=torch.float64), label_smoothing=0.1)
    task = CrossEntropy(0.1, WEIGHTS)
    torch.testing.assert_close(task.loss(OUTPUTS[0], soft), module(OUTPUTS[0], soft), **EXACT)
    dense = OUTPUTS.permute(1, 2, 0)  # B, C and a further axis
    classes = CURVES.argmax(-1).T
    torch.testing.assert_close(Classification().loss(dense, classes), F.cross_entropy(dense, classes), **EXACT)


def test_the_loss_of_several_labels_is_that_by_hand():
    for weights in (None, WEIGHTS):
        expected = references.binary_cross_entropy(OUTPUTS.numpy().mean(0), LABELS.numpy(), weights)
        for labels in (LABELS, LABELS.bool(), LABELS.double()):
            assert MultiLabel(weights).sequence_loss(OUTPUTS, labels).item() == pytest.approx(expected, rel=1e-12)
    prediction = MultiLabel().predict(MultiLabel().read(OUTPUTS))
    assert prediction.mean.numpy() == pytest.approx(1 / (1 + np.exp(-OUTPUTS.numpy().mean(0))), rel=1e-12)
    assert not prediction.categorical


def test_a_regression_has_one_target_per_sample_or_per_step():
    expected = references.squared_error(OUTPUTS.numpy().mean(0), VALUES.numpy())
    assert Regression().sequence_loss(OUTPUTS, VALUES).item() == pytest.approx(expected, rel=1e-12)
    task = Regression(per_step=True)
    expected = references.squared_error(OUTPUTS.numpy(), CURVES.numpy())
    assert task.sequence_loss(OUTPUTS, CURVES).item() == pytest.approx(expected, rel=1e-12)
    prediction = task.combine([task.predict(task.read(OUTPUTS)), task.predict(task.read(CURVES))])
    torch.testing.assert_close(prediction.mean, (OUTPUTS + CURVES) / 2)
    torch.testing.assert_close(prediction.variance, (OUTPUTS - CURVES).square() / 4)
    assert prediction.per_step


def test_the_temporal_efficient_loss_is_that_by_hand_and_not_that_of_the_mean():
    task = TemporalEfficient(0.3, 0.7)
    expected = references.temporal_efficient(OUTPUTS.numpy(), Y.numpy(), 0.3, 0.7)
    assert task.sequence_loss(OUTPUTS, Y).item() == pytest.approx(expected, rel=1e-12)
    plain = Classification()
    one = OUTPUTS[:1]
    torch.testing.assert_close(TemporalEfficient(0.0).sequence_loss(one, Y), plain.sequence_loss(one, Y), **EXACT)
    assert abs(TemporalEfficient(0.0).sequence_loss(OUTPUTS, Y) - plain.sequence_loss(OUTPUTS, Y)) > 1e-2
    torch.testing.assert_close(task.predict(task.read(OUTPUTS)).mean, OUTPUTS.mean(0).softmax(-1), **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_distillation_is_the_divergence_from_the_teacher_by_hand(alpha):
    task = Distillation(teacher(), alpha, temperature=2.5, task=CrossEntropy(0.1))
    student = OUTPUTS.numpy().mean(0)
    expected = (1 - alpha) * references.cross_entropy(student, Y.numpy(), 0.1)
    expected += alpha * 2.5**2 * references.divergence(teacher_logits(), student, 2.5)
    assert task.sequence_loss(OUTPUTS, task.targets(X, Y)).item() == pytest.approx(expected, rel=1e-12)


def test_a_teacher_of_each_step_teaches_each_step():
    task = Distillation(teacher(), 0.4, 2.0, TemporalEfficient(0.3, 0.7))
    expected = 0.6 * references.temporal_efficient(OUTPUTS.numpy(), Y.numpy(), 0.3, 0.7)
    steps = [references.divergence(teacher_logits(), step, 2.0) for step in OUTPUTS.numpy()]
    expected += 0.4 * 4 * float(np.mean(steps))
    assert task.sequence_loss(OUTPUTS, task.targets(X, Y)).item() == pytest.approx(expected, rel=1e-12)


def test_a_function_may_return_one_loss_per_value_per_sample_or_their_mean():
    expected = np.abs(OUTPUTS.numpy().mean(0) - VALUES.numpy()).mean()
    for function in (
        absolute,
        lambda output, y: absolute(output, y).mean(1),
        lambda output, y: absolute(output, y).mean(),
        nn.L1Loss(),
        nn.L1Loss(reduction="none"),
    ):
        assert CustomLoss(function).sequence_loss(OUTPUTS, VALUES).item() == pytest.approx(expected, rel=1e-12)
    steps = CustomLoss(absolute, Regression(per_step=True)).sequence_loss(OUTPUTS, CURVES)
    assert steps.item() == pytest.approx(np.abs(OUTPUTS.numpy() - CURVES.numpy()).mean(), rel=1e-12)


TASKS = {
    "classification": (Classification(), Y),
    "cross_entropy": (CrossEntropy(0.1, WEIGHTS), Y),
    "multi_label": (MultiLabel(WEIGHTS, readout="sum"), LABELS),
    "regression": (Regression("last"), VALUES),
    "regression_per_step": (Regression(per_step=True), CURVES),
    "temporal_efficient": (TemporalEfficient(0.3, 0.7, readout="max"), Y),
    "distillation": (Distillation(teacher(), 0.4, 2.0), Y),
    "distilled_steps": (Distillation(teacher(), 0.4, 2.0, TemporalEfficient()), Y),
    "function": (CustomLoss(absolute), VALUES),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(name):
    task, y = TASKS[name]
    targets = task.targets(X, y)
    outputs = OUTPUTS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: task.sequence_loss(values, targets), outputs)


def padded(steps: Tensor, padding: int, value: float) -> Tensor:
    return torch.cat([steps, torch.full_like(steps[:1], value).expand(padding, *steps.shape[1:])])


@pytest.mark.parametrize("name", TASKS)
def test_padding_changes_neither_loss_nor_gradient_nor_prediction(name):
    """Whatever the network returns for it, also infinities."""
    task, y = TASKS[name]
    lengths = torch.tensor([2, 5, 1, 3, 5, 4])
    found = []
    for padding, value in ((0, 0.0), (3, 9.0), (7, torch.inf)):
        outputs = padded(OUTPUTS, padding, value).requires_grad_()
        targets = padded(y, padding, -2.0) if name == "regression_per_step" else y
        with sequence_lengths(lengths):
            inputs = padded(X, padding, 0.0)
            output, loss = task.output_and_loss(outputs, task.targets(inputs, targets))
            mean, metric_targets = task.evaluated(task.predict(output).mean, targets)
        (gradient,) = torch.autograd.grad(loss, outputs)
        found.append((loss, gradient[:STEPS], mean, metric_targets))
        assert gradient[STEPS:].count_nonzero() == 0
    for others in zip(*found, strict=True):
        for other in others[1:]:
            torch.testing.assert_close(other, others[0], **EXACT)


@pytest.mark.parametrize("name", ["classification", "regression_per_step", "temporal_efficient", "distilled_steps"])
def test_each_sample_has_the_same_weight_however_long_it_is(name):
    task, y = TASKS[name]
    lengths = [2, 5, 1, 3, 5, 4]
    with sequence_lengths(torch.tensor(lengths)):
        loss = task.sequence_loss(OUTPUTS, task.targets(X, y))
    alone = []
    for sample, length in enumerate(lengths):
        rows = slice(sample, sample + 1)
        of_sample = y[:length, rows] if name == "regression_per_step" else y[rows]
        alone.append(task.sequence_loss(OUTPUTS[:length, rows], task.targets(X[:length, rows], of_sample)))
    torch.testing.assert_close(loss, torch.stack(alone).mean(), **EXACT)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 1, 3, 5, 4])], ids=["whole", "lengths"])
def test_losses_of_steps_average_to_the_loss_of_a_sequence_if_they_are_its_parts(name, lengths):
    task, y = TASKS[name]
    with sequence_lengths(lengths):
        targets = task.targets(X, y)
        steps = [task.step_loss(OUTPUTS[step], targets, step, STEPS) for step in task.learned_steps(STEPS)]
        mean, loss = torch.stack(steps).mean(), task.sequence_loss(OUTPUTS, targets)
    if task.per_step or task.readout == "last":
        torch.testing.assert_close(mean, loss, **EXACT)
    else:  # the loss of the mean is not the mean of the losses
        assert abs(mean - loss) > 1e-3


def test_a_function_with_one_loss_per_batch_is_refused_where_samples_have_weights():
    task = CustomLoss(nn.MSELoss(), Regression(per_step=True))
    assert task.sequence_loss(OUTPUTS, CURVES).item() > 0
    with sequence_lengths(torch.tensor([2, 5, 1, 3, 5, 4])), pytest.raises(ValueError, match="one loss per sample"):
        task.sequence_loss(OUTPUTS, CURVES)
    with pytest.raises(ValueError, match=r"the loss <lambda> to return a scalar or one loss per sample.*\(3,\)"):
        CustomLoss(lambda output, y: output.new_zeros(3)).loss(OUTPUTS[0], VALUES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossEntropy(1.5), "`label_smoothing`"),
        (lambda: CrossEntropy(0, [1, -1]), "`class_weights`"),
        (lambda: CrossEntropy(0, [1, 1]).loss(OUTPUTS[0], Y), "`class_weights` to have 4 entries"),
        (lambda: MultiLabel([0.0]), "`pos_weight`"),
        (lambda: MultiLabel([1.0]).loss(OUTPUTS[0], LABELS), "1 outputs per sample.*`pos_weight`"),
        (lambda: MultiLabel().loss(OUTPUTS[0], Y), r"1 or 0 for each label, of shape \(6, 4\).*`F.one_hot`"),
        (lambda: Regression().loss(OUTPUTS[0], CURVES), r"Regression\(per_step=True\)"),
        (lambda: Regression(per_step=True).sequence_loss(OUTPUTS, VALUES), r"shape \[T, B, ...\] with T = 5"),
        (lambda: TemporalEfficient(weight=2), "`weight`"),
        (lambda: TemporalEfficient(target=float("nan")), "`target`"),
        (lambda: Distillation(len), "`teacher` to be a Module"),
        (lambda: Distillation(teacher(), 1.1), "`alpha`"),
        (lambda: Distillation(teacher(), temperature=0), "`temperature`"),
        (lambda: Distillation(teacher(), task=Regression()), "`task` to be a classification.*but got Regression"),
        (lambda: Distillation(teacher(), teacher_input="sum"), "`teacher_input`"),
        (lambda: Distillation(teacher()).loss(OUTPUTS[0], Y), r"`y` to be what `Distillation.targets\(x, y\)`"),
        (lambda: Distillation(nn.Linear(3, 2).double()).sequence_loss(
            OUTPUTS, Distillation(nn.Linear(3, 2).double()).targets(X, Y)), r"`teacher` to return as many outputs"),
        (lambda: Distillation(teacher(), teacher_input="mean").targets((X, X), Y), "one tensor as input of a teacher"),
        (lambda: CustomLoss("mse"), "`function`"),
        (lambda: chosen_task("ranking"), "`task` to be one of 'classification', 'regression', a Task"),
        (lambda: chosen_task(CrossEntropy), "`task` to be one of"),
        (lambda: chosen_task(MultiLabel()), "`num_classes`"),
        (lambda: chosen_task(Classification(num_classes=3), num_classes=4), "`num_classes` to be 3 as in `task`"),
        (lambda: chosen_task("regression", "median"), "`readout`"),
        (lambda: Task().losses(OUTPUTS[0], Y), "Task defines no losses"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_name(call, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call()


def test_a_chosen_task_is_a_copy_with_the_readout_and_classes_of_its_module():
    given = CrossEntropy(0.1, readout="sum")
    chosen = chosen_task(given, num_classes=CLASSES)
    assert (chosen.readout, chosen.num_classes, given.num_classes) == ("sum", CLASSES, None)
    around = chosen_task(Distillation(teacher(), task=given), "max", CLASSES)
    assert (around.readout, around.task.readout, around.task.num_classes) == ("max", "max", CLASSES)
    torch.testing.assert_close(around.read(OUTPUTS), OUTPUTS.amax(0), **EXACT)


def test_a_function_is_the_loss_of_classes_where_there_are_any_and_else_of_values():
    assert chosen_task(absolute).kind == "regression"
    chosen = chosen_task(F.cross_entropy, "last", CLASSES)
    assert (chosen.kind, chosen.readout) == ("classification", "last")
    torch.testing.assert_close(chosen.predict(OUTPUTS[0]).mean, OUTPUTS[0].softmax(-1), **EXACT)
    assert chosen_task(CustomLoss(absolute, Regression()), num_classes=CLASSES).kind == "regression"


class Ranking(Task):
    """A task of one's own: which of two outputs is larger."""

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        return F.softplus(-y * (output[:, 0] - output[:, 1]))

    def predict(self, output: Tensor) -> Prediction:
        return Prediction((output[:, 0] - output[:, 1]).sigmoid(), categorical=False)


def test_a_task_of_ones_own_has_the_means_over_samples_and_steps_of_the_base():
    y = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=torch.float64)
    task = Ranking("sum")
    difference = OUTPUTS.numpy().sum(0)[:, 0] - OUTPUTS.numpy().sum(0)[:, 1]
    expected = np.log1p(np.exp(-y.numpy() * difference)).mean()
    assert task.sequence_loss(OUTPUTS, y).item() == pytest.approx(expected, rel=1e-12)
    task.per_step = True
    difference = OUTPUTS.numpy()[..., 0] - OUTPUTS.numpy()[..., 1]
    expected = np.log1p(np.exp(-y.numpy() * difference)).mean()
    assert task.sequence_loss(OUTPUTS, y).item() == pytest.approx(expected, rel=1e-12)
