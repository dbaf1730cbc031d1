"""SpikingModule: logging, checkpoints, optimization, refused arguments, and memory after use."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import Prediction, Progress, SpikingBayes, SurrogateGradient
from tests.support.event_order import loader, order_of_events, small_network
from tests.support.training import trainer

X, Y = order_of_events(21)  # 42 samples: the last of the batches is smaller


class Passes(nn.Module):
    """A network without spikes whose outputs are the inputs times a trainable 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def logits() -> tuple[Tensor, Tensor]:
    """Return outputs `[T, B, 4]` and classes drawn from them; some bins are underconfident, some overconfident."""
    outputs = 2 * torch.randn(3, 50, 4)
    return outputs, torch.distributions.Categorical(logits=outputs.mean(0)).sample()


def expected_metrics(outputs: Tensor, y: Tensor, number_of_bins: int = 15) -> dict[str, float]:
    """Compute accuracy, negative log-likelihood, Brier score and calibration error, one sample at a time."""
    probabilities = outputs.mean(0).softmax(-1).tolist()
    right, nll, brier = [], [], []
    bins: list[list[tuple[float, float]]] = [[] for _ in range(number_of_bins)]
    for p, label in zip(probabilities, y.tolist(), strict=True):
        confidence = max(p)
        right.append(float(p.index(confidence) == label))
        nll.append(-math.log(p[label]))
        brier.append(sum((value - (index == label)) ** 2 for index, value in enumerate(p)))
        bins[min(int(confidence * number_of_bins), number_of_bins - 1)].append((confidence, right[-1]))
    gaps = [abs(sum(c for c, _ in each) - sum(r for _, r in each)) for each in bins]
    count = len(right)
    return {
        "accuracy": sum(right) / count,
        "nll": sum(nll) / count,
        "brier": sum(brier) / count,
        "ece": sum(gaps) / count,
    }


@pytest.mark.parametrize("stage", ["val", "test"])
def test_classification_metrics_are_logged_and_equal_those_computed_by_hand(stage):
    outputs, y = logits()
    module = SpikingModule(Passes(), num_classes=4, pairs=[(0, 2)])
    run_stage = trainer().validate if stage == "val" else trainer().test
    (logged,) = run_stage(module, loader(outputs, y, 16), verbose=False)
    expected = {f"{stage}/{name}": value for name, value in expected_metrics(outputs, y).items()}
    scored = zip(outputs.mean(0).tolist(), y.tolist(), strict=True)
    chosen = [(values[0] > values[2]) == (label == 0) for values, label in scored if label in (0, 2)]
    expected[f"{stage}/pair_accuracy"] = sum(chosen) / len(chosen)
    assert logged == pytest.approx(expected, rel=1e-5)
    assert 0 < logged[f"{stage}/accuracy"] < 1
    assert abs(logged[f"{stage}/ece"] - expected_metrics(outputs, y, 10)["ece"]) > 1e-3


def test_metrics_start_afresh_in_every_run():
    module, (outputs, y) = SpikingModule(Passes(), num_classes=4), logits()
    whole = trainer().validate(module, loader(outputs, y, 16), verbose=False)
    trainer().validate(module, loader(-outputs[:, :7], y[:7], 16), verbose=False)
    assert trainer().validate(module, loader(outputs, y, 16), verbose=False) == whole


def test_the_training_loss_that_is_logged_is_the_loss_and_not_the_objective():
    class Losses(pl.Callback):
        seen: list[float]
        objectives: list[float]

        def on_train_start(self, *_) -> None:
            self.seen, self.objectives = [], []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.seen.append(trainer.callback_metrics["train/loss_step"].item())
            self.objectives.append(outputs["loss"].item())

    losses = Losses()
    module = SpikingModule(small_network(), SpikingBayes(kl_weight=50.0, warmup_epochs=0), num_classes=2)
    fitting = trainer(losses, max_epochs=1)
    fitting.fit(module, loader(X, Y, 16))
    assert all(objective > loss + 10 for objective, loss in zip(losses.objectives, losses.seen, strict=True))
    sizes = [16, 16, 10]
    mean = sum(size * loss for size, loss in zip(sizes, losses.seen, strict=True)) / 42
    assert fitting.callback_metrics["train/loss_epoch"].item() == pytest.approx(mean, rel=1e-5)


def test_a_regression_is_trained_and_measured_by_its_squared_error():
    x = torch.randn(6, 64, 2)
    y = x.mean(0)[:, :1] * 0.7
    network = nn.Sequential(nn.Linear(2, 1))
    module = SpikingModule(network, task="regression", learning_rate=0.1)
    (before,) = trainer().validate(module, loader(x, y), verbose=False)
    assert before == {"val/mse": pytest.approx(((run(network, x).mean(0) - y) ** 2).mean().item(), rel=1e-5)}
    fitting = trainer(max_epochs=40)
    fitting.fit(module, loader(x, y))
    (after,) = fitting.validate(module, loader(x, y), verbose=False)
    assert after["val/mse"] < 0.01 * before["val/mse"]


def test_a_bayesian_regression_has_a_predictive_variance():
    x = torch.randn(6, 8, 2)
    module = SpikingModule(nn.Sequential(nn.Linear(2, 1)), SpikingBayes(samples=5), task="regression")
    (prediction,) = trainer().predict(module, loader(x, torch.zeros(8, 1)))
    torch.testing.assert_close(prediction.mean, prediction.samples.mean(0))
    torch.testing.assert_close(prediction.variance, ((prediction.samples - prediction.mean) ** 2).mean(0))


def test_a_target_of_another_shape_than_the_output_is_refused():
    module = SpikingModule(nn.Sequential(nn.Linear(2, 1)), task="regression")
    with pytest.raises(ValueError, match=r"`y` to be of shape \(8, 1\), .* but got \(8,\)"):
        trainer(max_epochs=1).fit(module, loader(torch.randn(6, 8, 2), torch.randn(8)))


def test_forward_is_a_plain_run_and_surrogate_gradients_are_the_default():
    module = SpikingModule(small_network(), num_classes=2)
    assert isinstance(module.method, SurrogateGradient)
    assert torch.equal(module(X), run(module.network, X))


@pytest.mark.parametrize("readout", ["mean", "max", "last", "sum", lambda outputs: outputs[2]])
def test_the_readout_shapes_the_prediction(readout):
    module = SpikingModule(Passes(), num_classes=4, readout=readout)
    outputs, y = logits()
    expected = readout(outputs) if callable(readout) else {
        "mean": outputs.mean(0), "max": outputs.amax(0), "last": outputs[-1], "sum": outputs.sum(0)
    }[readout]  # fmt: skip
    torch.testing.assert_close(module.predict_step((outputs, y), 0).mean, expected.softmax(-1))


def test_predictions_are_made_of_batches_with_and_without_labels():
    module = SpikingModule(small_network(), num_classes=2)
    with_labels = trainer().predict(module, loader(X, Y, 16))
    without = trainer().predict(module, DataLoader(list(X.split(16, 1)), batch_size=None))
    assert [len(prediction.mean) for prediction in with_labels] == [16, 16, 10]
    for one, other in zip(with_labels, without, strict=True):
        assert isinstance(one, Prediction)
        assert torch.equal(one.mean, other.mean)


def test_a_test_step_hands_prediction_and_target_to_callbacks():
    class Collects(pl.Callback):
        seen: list[dict]

        def on_test_start(self, *_) -> None:
            self.seen = []

        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
            self.seen.append(outputs)

    collects = Collects()
    module = SpikingModule(small_network(), num_classes=2)
    trainer(collects).test(module, loader(X, Y, 16), verbose=False)
    assert torch.equal(torch.cat([each["target"] for each in collects.seen]), Y)
    probabilities = torch.cat([each["prediction"].mean for each in collects.seen])
    torch.testing.assert_close(probabilities, run(module.network, X).mean(0).softmax(-1))


def test_a_method_receives_the_progress_and_the_size_of_the_training_set():
    class Notes(SurrogateGradient):
        def training_step(self, network, x, y):
            SEEN.append(self.progress)
            return super().training_step(network, x, y)

    SEEN: list[Progress] = []
    module = SpikingModule(small_network(), Notes(), num_classes=2)
    trainer(max_epochs=2).fit(module, loader(X, Y, 16))
    assert [progress.epoch for progress in SEEN] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert {progress.train_size for progress in SEEN} == {42}
    assert [progress.samples for progress in SEEN] == [0, 16, 32, 42, 58, 74]  # the last batch of an epoch has 10


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 42), ({"limit_train_batches": 2}, 32), ({"limit_train_batches": 0.34}, 16), ({"fast_dev_run": True}, 16)],
    ids=str,
)
def test_the_size_of_the_training_set_counts_what_an_epoch_sees(options, size):
    module = SpikingModule(small_network(), num_classes=2)
    trainer(**({"max_epochs": 1} | options)).fit(module, loader(X, Y, 16))
    assert module.method.progress.train_size == size


class LearningRates(pl.Callback):
    """The learning rate of every step."""

    def on_train_start(self, *_) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_cosine_schedule_ends_at_zero_with_the_run(accumulate):
    rates = LearningRates()
    module = SpikingModule(small_network(), num_classes=2, learning_rate=0.1, lr_scheduler="cosine")
    fitting = trainer(rates, max_epochs=2, accumulate_grad_batches=accumulate)
    fitting.fit(module, loader(X, Y, 12))
    steps = 8 // accumulate
    assert fitting.global_step == steps
    expected = [0.05 * (1 + math.cos(math.pi * (index // accumulate) / steps)) for index in range(8)]
    assert rates.seen == pytest.approx(expected)
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_cosine_schedule_needs_a_run_with_an_end():
    module = SpikingModule(small_network(), num_classes=2, lr_scheduler="cosine")
    with pytest.raises(ValueError, match=r"Expected `max_epochs` or `max_steps` to be set for lr_scheduler=\"cosine\""):
        trainer(max_epochs=-1).fit(module, loader(X, Y, 16))


def test_a_scheduler_of_ones_own_steps_once_an_epoch():
    rates = LearningRates()
    module = SpikingModule(
        small_network(),
        num_classes=2,
        learning_rate=0.1,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )
    trainer(rates, max_epochs=3).fit(module, loader(X, Y, 21))
    assert rates.seen == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize(
    ("factory", "kind"),
    [(None, torch.optim.Adam), (lambda parameters: torch.optim.SGD(parameters, 0.3), torch.optim.SGD)],
)
def test_the_optimizer_gets_the_trainable_parameters(factory, kind):
    network = small_network()
    network[0].bias.requires_grad_(False)
    module = SpikingModule(network, num_classes=2, learning_rate=0.3, optimizer=factory)
    optimizer, network = module.configure_optimizers(), module.network
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters() if parameter is not network[0].bias}


def test_the_optimizer_of_a_method_comes_first():
    class Needs(SurrogateGradient):
        def configure_optimizer(self, network):
            return torch.optim.SGD(network.parameters(), 0.7)

    module = SpikingModule(small_network(), Needs(), num_classes=2, optimizer=torch.optim.Adam)
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.7


def test_hyperparameters_are_plain_data_and_load_with_weights_only(tmp_path):
    options = {"num_classes": 2, "readout": "max", "learning_rate": 0.02, "lr_scheduler": "cosine", "pairs": [[0, 1]]}
    module = SpikingModule(small_network(), SpikingBayes(samples=3), **options)
    method = module.hparams["method_options"]
    assert (method["class"], method["samples"], method["kl_weight"]) == ("SpikingBayes", 3, module.method.kl_weight)
    rest = {"task": "classification", "batch_first": None, "method_options": method}
    assert dict(module.hparams) == {**rest, **options}
    assert yaml.safe_load(yaml.dump(dict(module.hparams))) == dict(module.hparams)
    fitting = trainer(max_epochs=1)
    fitting.fit(module, loader(X, Y, 16))
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == dict(module.hparams)
    loaded = SpikingModule.load_from_checkpoint(
        tmp_path / "one.ckpt", network=small_network(), method=SpikingBayes(samples=3), weights_only=True
    )
    assert dict(loaded.hparams) == dict(module.hparams)
    assert (loaded.learning_rate, loaded.method.task.readout) == (0.02, "max")
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_functions_and_modules_stay_out_of_the_hyperparameters():
    module = SpikingModule(
        small_network(),
        num_classes=2,
        readout=lambda outputs: outputs[0],
        optimizer=torch.optim.Adam,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    )
    assert set(module.hparams) == {"num_classes", "task", "pairs", "batch_first", "method_options"}


def test_the_state_dict_holds_the_network_and_nothing_of_a_run():
    module = SpikingModule(small_network(), num_classes=2)
    names = {f"network.{name}" for name in module.network.state_dict()}
    module.validation_step_batch = None
    module.predict_step(X, 0)
    assert set(module.state_dict()) == names


def test_a_method_may_be_handed_to_several_modules():
    method = SurrogateGradient()
    one = SpikingModule(small_network(), method, num_classes=2, readout="max")
    other = SpikingModule(nn.Sequential(nn.Linear(2, 1)), method, task="regression")
    outputs = run(one.network, X).amax(0).softmax(-1)
    torch.testing.assert_close(one.predict_step(X, 0).mean, outputs)
    assert other.predict_step(X, 0).mean.shape == (42, 1)


def backward_and_drop(index: int) -> tuple[weakref.ref, ...]:
    """Build a model, train it for a step, predict with it, and keep weak references only."""
    method = SpikingBayes(samples=2, train_size=42) if index % 2 else SurrogateGradient()
    module = SpikingModule(small_network(), method, num_classes=2)
    optimizer = module.configure_optimizers()
    step = module.method.training_step(module.network, X, Y)
    step.objective.backward()
    optimizer.step()
    prediction = module.predict_step((X, Y), 0)
    return tuple(map(weakref.ref, (module, module.network, module.network[0].weight, step.objective, prediction.mean)))


@pytest.fixture
def only_new_objects():
    """Hide older objects from the garbage collector, which makes collections fast too."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def new_objects() -> list:
    gc.collect()
    return gc.get_objects()


def number_of_tensors(objects: list) -> int:
    return sum(isinstance(each, Tensor) for each in objects)


def test_fifty_models_built_run_and_dropped_leave_nothing_behind(only_new_objects):
    for index in range(4):
        backward_and_drop(index)
    before = new_objects()
    objects, tensors = len(before), number_of_tensors(before)
    del before
    references = [reference for index in range(50) for reference in backward_and_drop(index)]
    after = new_objects()
    assert [reference() for reference in references] == [None] * 250
    assert number_of_tensors(after) == tensors
    assert len(after) - objects <= len(references) + 20  # the references themselves


def test_a_model_that_is_kept_is_noticed(only_new_objects):
    tensors = number_of_tensors(new_objects())
    kept = SpikingModule(small_network(), num_classes=2)
    assert number_of_tensors(new_objects()) >= tensors + len(list(kept.parameters()))


def test_a_fitted_module_leaves_nothing_behind():
    def fit_and_drop() -> tuple[weakref.ref, ...]:
        module = SpikingModule(small_network(), SpikingBayes(), num_classes=2)
        trainer(max_epochs=1).fit(module, loader(X, Y, 16), loader(X, Y, 16))
        return weakref.ref(module), weakref.ref(module.network[0].weight)

    references = fit_and_drop()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_evaluation_leaves_the_module_as_it_is():
    module = SpikingModule(nn.Sequential(nn.Linear(2, 4), LIF(), nn.Dropout(0.5), nn.Linear(4, 2)), num_classes=2)
    state = copy.deepcopy(module.state_dict())
    results = [trainer().validate(module, loader(X, Y, 16), verbose=False) for _ in range(2)]
    assert results[0] == results[1]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "argument `num_classes` to be the number of outputs of the network, but got None"),
        ({"num_classes": 1}, "argument `num_classes` to be an integer of at least 2, but got 1"),
        ({"num_classes": 2, "task": "ranking"}, "argument `task` to be one of 'classification', 'regression'"),
        ({"num_classes": 2, "readout": "median"}, "argument `readout` to be one of .*, but got 'median'"),
        ({"num_classes": 2, "learning_rate": 0}, "argument `learning_rate` to be a finite number larger than 0"),
        ({"num_classes": 2, "lr_scheduler": "linear"}, "argument `lr_scheduler` to be .*, but got 'linear'"),
        ({"num_classes": 3, "pairs": [(1, 3)]}, r"argument `pairs` to hold classes below 3, but got \[\(1, 3\)\]"),
        ({"num_classes": 2, "pairs": [(0, 0)]}, r"argument `pairs` to be disjoint pairs .* but got \[\(0, 0\)\]"),
        ({"num_classes": 2, "method": SpikingBayes}, "argument `method` .* but got SpikingBayes.*`SpikingBayes\\(\\)`"),
        (
            {"num_classes": 2, "method": "SpikingBayes"},
            "`method` .* got 'SpikingBayes'.*SurrogateGradient\\(\\)`",
        ),
        ({"num_classes": 2, "network": [LIF()]}, "argument `network` to be a Module, but got"),
        (
            {"num_classes": 2, "network": nn.BatchNorm1d(2), "method": SpikingBayes()},
            "got the network: BatchNorm1d",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SpikingModule(**({"network": small_network()} | options))
