"""Tasks as arguments of `SpikingModule`: metrics, teachers, checkpoints, the command line and callbacks."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.special import expit
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAUROC, MultilabelAUROC

import lightning_snn
from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks import GradientAlignment, InitializationCheck, PredictionWriter
from lightning_snn.methods import Prediction, RateBackprop, SpikingBayes
from lightning_snn.methods.tasks import (
    CrossEntropy,
    CustomLoss,
    Distillation,
    MultiLabel,
    Regression,
    Task,
    TemporalEfficient,
)
from tests.cli.tiny import HERE, call
from tests.support.training import trainer

STEPS, SAMPLES, CHANNELS, CLASSES = 5, 12, 3, 4
_GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(STEPS, SAMPLES, CHANNELS, generator=_GENERATOR)
Y = torch.arange(SAMPLES) % CLASSES
LABELS = (torch.rand(SAMPLES, CLASSES, generator=_GENERATOR) < 0.4).long()
CURVES = torch.randn(STEPS, SAMPLES, CLASSES, generator=_GENERATOR)


def batches(y: Tensor, axis: int = 0) -> DataLoader:
    """Return a loader of batches of 4 samples, which are on an axis of the targets."""
    parts = [(x, targets) for x, targets in zip(X.split(4, 1), y.split(4, axis), strict=True)]
    return DataLoader(parts, batch_size=None)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(CHANNELS, 8), LIF(0.8, threshold=0.3), nn.Linear(8, CLASSES))


def teacher() -> nn.Sequential:
    """The network with ReLUs, dropout and normalization, which differ while training."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(CHANNELS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES))


def with_task(task: object, classes: int | None = CLASSES, **options: object) -> SpikingModule:
    return SpikingModule(network(), num_classes=classes, task=task, learning_rate=0.01, **options)


# metrics


def test_metrics_of_several_labels_are_those_by_hand():
    module = with_task(MultiLabel(), metrics={"auroc": MultilabelAUROC(CLASSES)})
    (found,) = trainer().validate(module, batches(LABELS), verbose=False)
    probabilities = expit(run(module.network, X).mean(0).detach().double().numpy())
    hard, y = (probabilities >= 0.5).astype(int), LABELS.numpy()
    assert found["val/accuracy"] == pytest.approx((y == hard).mean())
    assert found["val/exact_match"] == pytest.approx((y == hard).all(1).mean())
    both, either = (y * hard).sum(0), y.sum(0) + hard.sum(0)
    assert found["val/f1"] == pytest.approx((2 * both / np.maximum(either, 1)).mean())
    assert found["val/nll"] == pytest.approx(-np.log(np.where(y, probabilities, 1 - probabilities)).mean(), rel=1e-6)
    assert set(found) == {f"val/{name}" for name in ("accuracy", "exact_match", "f1", "nll", "auroc")}


def test_metrics_of_ones_own_are_logged_beside_those_of_the_task_or_replace_them():
    own = {"auroc": MulticlassAUROC(CLASSES), "nll": MulticlassAUROC(CLASSES)}
    module = with_task(CrossEntropy(0.1), metrics=own)
    fitting = trainer()
    fitting.fit(module, batches(Y), batches(Y))
    assert {"val/auroc", "val/accuracy"} <= set(fitting.callback_metrics)
    (found,) = fitting.test(module, batches(Y), verbose=False)
    reference = MulticlassAUROC(CLASSES)
    reference.update(run(module.network, X).mean(0).softmax(-1), Y)
    assert found["test/auroc"] == found["test/nll"] == pytest.approx(reference.compute().item())
    assert {"test/accuracy", "test/brier", "test/ece"} <= set(found)
    assert own["auroc"]._update_count == 0  # the module has copies
    with pytest.raises(ValueError, match=r"`metrics` to hold torchmetrics by name, but got .*as 'auroc'"):
        with_task("classification", metrics={"auroc": MulticlassAUROC})


def test_a_regression_of_each_step_is_trained_measured_and_written(tmp_path):
    module = with_task(Regression(per_step=True), None, metrics={"mae": MeanAbsoluteError()})
    fitting = trainer(PredictionWriter(tmp_path), max_epochs=3)
    (before,) = fitting.validate(module, batches(CURVES, 1), verbose=False)
    outputs = run(module.network, X).detach()
    assert before["val/mse"] == pytest.approx((outputs - CURVES).square().mean().item(), rel=1e-5)
    assert before["val/mae"] == pytest.approx((outputs - CURVES).abs().mean().item(), rel=1e-5)
    fitting.fit(module, batches(CURVES, 1))
    assert fitting.callback_metrics["train/loss_epoch"] < before["val/mse"]
    fitting.predict(module, batches(CURVES, 1))
    written = torch.load(tmp_path / "predictions.pt", weights_only=True)
    torch.testing.assert_close(written["mean"], run(module.network, X).detach().transpose(0, 1))
    torch.testing.assert_close(written["target"], CURVES.transpose(0, 1))
    first = SpikingModule(network(), task=Regression(per_step=True), batch_first=True)
    expected = (run(first.network, X) - CURVES).square().mean()
    torch.testing.assert_close(first.training_step((X.transpose(0, 1), CURVES.transpose(0, 1)), 0), expected)


def test_padding_counts_in_no_metric_of_each_step():
    lengths = torch.randint(1, STEPS + 1, (SAMPLES,), generator=torch.Generator().manual_seed(2))
    lengths[0] = STEPS
    valid = torch.arange(STEPS)[:, None] < lengths
    module = with_task(Regression(per_step=True), None)
    loader = DataLoader([(X, CURVES.where(valid[..., None], torch.nan), lengths)], batch_size=None)
    (found,) = trainer().validate(module, loader, verbose=False)
    errors = (run(module.network, X).detach() - CURVES).square()
    assert found["val/mse"] == pytest.approx(errors[valid].mean().item(), rel=1e-5)
    by_sample = [errors[:length, index].mean() for index, length in enumerate(lengths)]
    module = with_task(Regression(per_step=True), None)
    module = with_task(Regression(per_step=True), None)
    objective = module.training_step((X, CURVES.where(valid[..., None], torch.nan), lengths), 0)
    torch.testing.assert_close(objective.detach(), torch.stack(by_sample).mean())
    objective.backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


class Ranking(Task):
    """A task without metrics of its own."""

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        return F.softplus(-y * (output[:, 0] - output[:, 1]))

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output[:, 0] - output[:, 1], categorical=False)


def test_a_task_of_ones_own_has_the_metrics_that_it_is_given():
    y = torch.where(Y > 1, 1.0, -1.0)
    module = with_task(Ranking(), None, metrics={"mae": MeanAbsoluteError()})
    fitting = trainer()
    fitting.fit(module, batches(y), batches(y))
    assert "val/mae" in fitting.callback_metrics
    assert not with_task(Ranking(), None).val_metrics
    scheduled = with_task(Ranking(), None, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert scheduled.configure_optimizers()["lr_scheduler"]["monitor"] == "train/loss_epoch"


# teachers


def test_a_teacher_is_a_copy_that_is_neither_trained_nor_saved_and_stays_in_evaluation_mode():
    given = teacher()
    module = with_task(Distillation(given, alpha=1.0))
    taught = module.method.task.teacher
    assert given.training
    assert all(parameter.requires_grad for parameter in given.parameters())
    before = copy.deepcopy(taught.state_dict())
    module.train()
    assert not any(part.training for part in taught.modules())
    trainer(max_epochs=2).fit(module, batches(Y))
    assert not any(part.training for part in taught.modules())
    for name, value in taught.state_dict().items():
        assert torch.equal(value, before[name])
    own = {id(parameter) for parameter in module.parameters()}
    assert not own & {id(parameter) for parameter in taught.parameters()}
    assert set(module.state_dict()) == set(with_task("classification").state_dict())
    assert module.double().method.task.teacher[0].weight.dtype == torch.float64
    assert copy.deepcopy(module).method.task.teacher is not module.method.task.teacher


def test_a_student_of_one_teacher_alone_becomes_like_it():
    torch.manual_seed(2)
    instructor = nn.Sequential(nn.Linear(CHANNELS, CLASSES))
    nn.init.normal_(instructor[0].weight, std=3.0)
    task = Distillation(instructor, alpha=1.0, temperature=1.0)
    student = nn.Sequential(nn.Linear(CHANNELS, CLASSES))
    module = SpikingModule(student, num_classes=CLASSES, task=task, learning_rate=0.3)
    trainer(max_epochs=40).fit(module, batches(Y))
    expected = run(instructor, X).mean(0).softmax(-1)
    found = module.method.predict(module.network, X).mean
    assert (found - expected).abs().max() < 0.02
    assert (found.argmax(1) != Y).any()  # it did not learn the labels


def test_a_teacher_of_the_mean_input_runs_once():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    instructor = Watched(CHANNELS, CLASSES)
    mean = Distillation(instructor, teacher_input="mean").targets(X, Y).logits
    steps = Distillation(instructor, teacher_input="steps").targets(X, Y).logits
    assert seen == [SAMPLES, STEPS * SAMPLES]
    torch.testing.assert_close(mean, steps)  # of a linear teacher


def test_a_teacher_is_read_from_the_checkpoint_of_its_module(tmp_path):
    module = SpikingModule(teacher(), num_classes=CLASSES)
    fitting = trainer()
    fitting.fit(module, batches(Y))
    fitting.save_checkpoint(tmp_path / "teacher.ckpt")
    torch.save(module.network.state_dict(), tmp_path / "teacher.pt")
    expected = run(module.eval().network, X).mean(0)
    for name in ("teacher.ckpt", "teacher.pt"):
        task = Distillation(teacher(), checkpoint=tmp_path / name)
        torch.testing.assert_close(task.targets(X, Y).logits, expected.detach())
    with pytest.raises(ValueError, match=r"teacher.ckpt to hold the parameters of the teacher, a Linear"):
        Distillation(nn.Linear(2, 2), checkpoint=tmp_path / "teacher.ckpt")
    with pytest.raises(OSError, match=r"missing.ckpt"):
        Distillation(teacher(), checkpoint=tmp_path / "missing.ckpt")


# checkpoints

TASKS = {
    "cross_entropy": (lambda: CrossEntropy(0.1, [1, 2, 3, 4]), Y),
    "multi_label": (lambda: MultiLabel([1, 2, 3, 4]), LABELS),
    "temporal_efficient": (lambda: TemporalEfficient(0.2), Y),
    "distillation": (lambda: Distillation(teacher(), 0.3, task=TemporalEfficient()), Y),
    "function": (lambda: F.cross_entropy, Y),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_fit_is_the_fit_that_was_not_interrupted(name, tmp_path):
    make, y = TASKS[name]
    whole = with_task(make())
    trainer(max_epochs=3).fit(whole, batches(y))
    cut = with_task(make())
    fitting = trainer(max_epochs=2)
    fitting.fit(cut, batches(y))
    fitting.save_checkpoint(tmp_path / "cut.ckpt")
    resumed = with_task(make())
    trainer(max_epochs=3).fit(resumed, batches(y), ckpt_path=tmp_path / "cut.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert not torch.equal(cut.network[0].weight, whole.network[0].weight)
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "cut.ckpt", network=network(), task=make())
    torch.testing.assert_close(loaded.method.predict(loaded.network, X).mean, cut.method.predict(cut.network, X).mean)
    torch.load(tmp_path / "cut.ckpt", weights_only=True)


def test_a_student_predicts_without_its_teacher_but_is_not_resumed_with_another_loss(tmp_path):
    module = with_task(Distillation(teacher(), 0.3))
    fitting = trainer()
    fitting.fit(module, batches(Y))
    fitting.save_checkpoint(tmp_path / "student.ckpt")
    loaded = SpikingModule.load_from_checkpoint(tmp_path / "student.ckpt", network=network())
    torch.testing.assert_close(loaded(X), module.cpu()(X))
    for other in ("classification", Distillation(teacher(), 0.4)):
        with pytest.raises(ValueError, match=r"training \(SpikingModule\): task is \{'class': 'Distillation'.*0.3"):
            trainer(max_epochs=2).fit(with_task(other), batches(Y), ckpt_path=tmp_path / "student.ckpt")
    for other in (MultiLabel(), CustomLoss(F.mse_loss, Regression())):
        with pytest.raises(
            ValueError, match=r"task is a Classification in the checkpoint and a (MultiLabel|Regression)"
        ):
            SpikingModule.load_from_checkpoint(tmp_path / "student.ckpt", network=network(), task=other)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(
            ["CrossEntropy", "--model.task.label_smoothing", "0.1"], CrossEntropy(0.1), marks=pytest.mark.slow
        ),
        (
            [
                *("lightning_snn.methods.tasks.Distillation", "--model.task.teacher", f"{HERE}.SilentNetwork"),
                *("--model.task.alpha", "0.3", "--model.task.task", "TemporalEfficient"),
            ],
            Distillation(nn.Sequential(), 0.3, task=TemporalEfficient()),
        ),
        pytest.param(["torch.nn.functional.cross_entropy"], CustomLoss(F.cross_entropy), marks=pytest.mark.slow),
    ],
    ids=["options", "nested", "function"],
)
def test_the_command_line_takes_a_task_and_its_checkpoint_builds_it_again(arguments, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli = call(monkeypatch, "--output", "out", "--model.task", *arguments, "--method.lam", "0.75")
    expected = expected.configured(None, 3)
    loaded = lightning_snn.load_run("out", allow=[HERE]).module
    for module in (cli.model, loaded):
        task = module.method.task
        assert type(task) is type(expected)
        assert task.extra_repr().replace("SilentNetwork", "Sequential") == expected.extra_repr()
        assert task.num_classes == 3
    path = Path("out/checkpoints/best.ckpt")
    again = SpikingModule.load_from_checkpoint(path, allow=[HERE])
    assert repr(again.method.task) == repr(loaded.method.task)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["task"] = {"class_path": "antigravity.Task"}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"it names antigravity\.Task"):
        SpikingModule.load_from_checkpoint(path, allow=[HERE])


# with the rest


@pytest.mark.parametrize("task", [TemporalEfficient(), Distillation(teacher())], ids=["steps", "teacher"])
def test_callbacks_that_compute_the_loss_again_use_that_of_the_task(task):
    alignment = GradientAlignment(window=STEPS)
    module = SpikingModule(network(), RateBackprop("step"), CLASSES, task)
    check = InitializationCheck(on_fail="warn")
    trainer(check, alignment, max_epochs=1).fit(module, batches(Y))
    assert module.method.task.per_step == task.per_step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "temporal_efficient", "distillation"])
def test_compiled_steps_are_those_of_the_task(name):
    make, y = TASKS[name]
    plain, compiled = with_task(make()), with_task(make())
    compiled.compile(backend="eager")
    for x, targets in batches(y):
        objectives = [module.training_step((x, targets), 0) for module in (plain, compiled)]
        torch.testing.assert_close(*objectives)


def test_the_best_checkpoint_of_several_labels_is_that_of_their_likelihood(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, monitor="val/nll")
    module = with_task(MultiLabel(), lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    fitting = trainer(checkpoints, enable_checkpointing=True, max_epochs=2)
    fitting.fit(module, batches(LABELS), batches(LABELS))
    assert checkpoints.best_model_score == pytest.approx(fitting.callback_metrics["val/nll"].item())
    assert module.configure_optimizers()["lr_scheduler"]["monitor"] == "val/nll"


def test_the_same_task_object_is_given_to_several_modules():
    task = CrossEntropy(0.1)
    modules = [SpikingModule(network(), method, CLASSES, task, readout="sum") for method in (None, SpikingBayes())]
    assert modules[0].method.task is not modules[1].method.task
    assert (task.readout, task.num_classes) == ("mean", None)
    assert modules[0].method.task.readout == "sum"
