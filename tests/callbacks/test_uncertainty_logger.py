"""`UncertaintyLogger` on modules of every kind, against numpy by hand."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import pytest
import snntorch
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import entropy, mannwhitneyu
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import ConformalSets, UncertaintyLogger
from lightning_snn.callbacks.predictions import FURTHER_SCORES
from lightning_snn.methods import Prediction, SpikingBayes, SurrogateGradient
from lightning_snn.metrics.functional import (
    area_under_generalized_risk_coverage,
    classwise_calibration_error,
    ood_aupr,
    ood_fpr,
    predictive_entropy,
    smooth_calibration_error,
)
from tests.support.processes import on_two_processes
from tests.support.training import trainer

N, CLASSES = 50, 3
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % CLASSES
OUTSIDE = 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
KEYS = {"nll", "brier", "ece", "adaptive_ece", "entropy", "aurc"}


def loader(batch_size: int = 15, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size, shuffle=shuffle)


def outside() -> DataLoader:
    return DataLoader(OUTSIDE, 8)


class Plain(pl.LightningModule):
    """Network that does not spike; its `forward` returns logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        pass

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class ByPredictStep(Plain):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0] if isinstance(batch, (list, tuple)) else batch).softmax(1)


class ByStep(Plain):
    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"prediction": self(batch[0]).softmax(1), "target": batch[1]}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("the step already returns predictions")


class Sampling(Plain):
    """Module that draws the samples of its predictions."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        samples = (self(x) + torch.randn(4, len(x), CLASSES)).softmax(-1)
        return Prediction(samples.mean(0), None, samples)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Skip figures: most tests check numbers only."""
    if "figure" not in request.node.name:
        monkeypatch.setattr("lightning_snn.callbacks.uncertainty.may_write", lambda _: False)


def logged(fitter: pl.Trainer, stage: str, name: str = "uncertainty") -> dict[str, float]:
    prefix = f"{name}/{stage}/"
    found = fitter.callback_metrics.items()
    return {key.removeprefix(prefix): value.item() for key, value in found if key.startswith(prefix)}


def scored(
    callback: UncertaintyLogger, module: pl.LightningModule, data: Any = None, **options: Any
) -> dict[str, float]:
    fitter = trainer(callback, **options)
    fitter.test(module, loader() if data is None else data, verbose=False)
    return logged(fitter, "test")


def by_hand(logits: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Compute the expected scores in numpy."""
    p, y = np.exp(log_softmax(logits.detach().double().numpy(), axis=1)), y.numpy()
    confidence, right = p.max(1), p.argmax(1) == y
    ece = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    order = np.argsort(confidence)
    parts = np.array_split(order, bins)
    adaptive = sum(len(part) / len(y) * abs(right[part].mean() - confidence[part].mean()) for part in parts)
    uncertainty = entropy(p, axis=1)
    wrong = ~right[np.argsort(uncertainty)]
    return {
        "nll": -np.log(p[np.arange(len(y)), y]).mean(),
        "brier": ((p - np.eye(CLASSES)[y]) ** 2).sum(1).mean(),
        "ece": ece,
        "adaptive_ece": adaptive,
        "entropy": uncertainty.mean(),
        "aurc": (np.cumsum(wrong) / np.arange(1, len(y) + 1)).mean(),
    }


def logits_of(module: Plain, x: Tensor = X) -> Tensor:
    return module.eval()(x).detach()


@pytest.mark.parametrize("kind", [Plain, ByPredictStep, ByStep])
def test_scores_are_those_by_hand_wherever_predictions_come_from(kind: type[Plain]):
    module = kind()
    found = scored(UncertaintyLogger(), module)
    assert found == pytest.approx(by_hand(logits_of(module), Y), abs=1e-6)
    assert set(found) == KEYS
    assert min(found.values()) > 0.01


def test_the_number_of_bins_counts():
    module = Plain()
    assert scored(UncertaintyLogger(n_bins=4), module) == pytest.approx(by_hand(logits_of(module), Y, 4), abs=1e-6)


def test_predictions_of_a_function_come_before_all_others():
    module = ByStep()
    found = scored(UncertaintyLogger(predict=lambda module, batch: (module(batch[0]) / 2).softmax(1)), module)
    assert found == pytest.approx(by_hand(logits_of(module) / 2, Y), abs=1e-6)
    again = scored(UncertaintyLogger(predict=lambda module, batch: module(batch[0]) / 2, outputs="logits"), module)
    assert again == pytest.approx(found, abs=1e-6)


def test_batches_of_another_form_are_read_by_the_argument():
    class Dicts(Plain):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch)

    data = DataLoader([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 15)
    module = Dicts()
    read = UncertaintyLogger(read_batch=lambda batch: (batch["x"], batch["y"]))
    assert scored(read, module, data) == pytest.approx(by_hand(logits_of(module), Y), abs=1e-6)
    with pytest.raises(
        ValueError, match=r"a batch \(x, y \[B\]\) for UncertaintyLogger, but got dict. Pass `read_batch`"
    ):
        scored(UncertaintyLogger(), module, data)


def test_samples_have_mutual_information():
    samples = (2 * torch.randn(4, N, CLASSES)).softmax(-1)

    class Fixed(Plain):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            part = samples[:, 15 * batch_idx :][:, :15]
            return SimpleNamespace(mean=part.mean(0), samples=part)

    found = scored(UncertaintyLogger(), Fixed())
    mean = samples.mean(0)
    divergences = [entropy(sample, mean.numpy(), axis=-1) for sample in samples.numpy()]
    assert found.pop("mutual_information") == pytest.approx(np.mean(divergences), abs=1e-6)
    assert found == pytest.approx(by_hand(mean.log(), Y), abs=1e-6)


@pytest.mark.parametrize("given", [outside(), outside], ids=["loader", "function"])
def test_inputs_from_outside_are_ranked_against_those_of_the_test(given: Any):
    module = Plain()
    found = scored(UncertaintyLogger(given), module)
    inner, outer = (entropy(logits_of(module, x).softmax(1).numpy(), axis=1) for x in (X, OUTSIDE))
    assert found["ood_auroc"] == pytest.approx(mannwhitneyu(outer, inner).statistic / (N * len(outer)), abs=1e-6)
    assert 0 < found["ood_auroc"] < 0.5  # large inputs make a network surer
    assert "ood_auroc_mutual_information" in scored(UncertaintyLogger(given), Sampling())
    with pytest.raises(ValueError, match="`ood_dataloader` to return at least one batch, but got none"):
        scored(UncertaintyLogger([]), module)


def test_a_step_without_samples_goes_with_predictions_that_have_them():
    class Both(Sampling):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return {"prediction": self(batch[0]).softmax(1), "target": batch[1]}

    assert set(scored(UncertaintyLogger(outside), Both())) == KEYS | {"ood_auroc"}


def test_a_mean_of_ones_that_rounds_to_more_is_a_probability():
    above = torch.nextafter(torch.ones(()), torch.tensor(2.0))
    ones = UncertaintyLogger(predict=lambda module, batch: above * F.one_hot(batch[1], CLASSES))
    assert scored(ones, Plain()) == dict.fromkeys(KEYS, 0)


def test_inputs_from_outside_take_the_way_of_the_data():
    class Moved(Plain):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert not self.training
            return [batch[0] + 1, batch[1]] if isinstance(batch, list) else batch + 1

    module = Moved()
    found = scored(UncertaintyLogger(outside), module)
    inner, outer = (entropy(logits_of(module, x + 1).softmax(1).numpy(), axis=1) for x in (X, OUTSIDE))
    assert found["ood_auroc"] == pytest.approx(mannwhitneyu(outer, inner).statistic / (N * len(outer)), abs=1e-6)


def test_the_temperature_of_the_validation_is_used_in_the_test():
    module, callback = Plain(), UncertaintyLogger()
    logits = logits_of(module)
    val, test = slice(20), slice(20, N)
    fitter = trainer(callback)
    fitter.validate(module, DataLoader(TensorDataset(X[val], Y[val]), 7), verbose=False)

    def likelihood(temperature: float, part: slice) -> float:
        return by_hand(logits[part].double() / temperature, Y[part])["nll"]

    best = minimize_scalar(likelihood, bounds=(1e-2, 1e2), args=(val,), method="bounded", options={"xatol": 1e-9}).x
    found = logged(fitter, "val")
    assert found.pop("temperature") == pytest.approx(best, rel=1e-5)
    assert found == pytest.approx(by_hand(logits[val], Y[val]), abs=1e-6)
    fitter.test(module, DataLoader(TensorDataset(X[test], Y[test]), 7), verbose=False)
    found = logged(fitter, "test")
    expected = by_hand(logits[test].double() / callback.fitted_temperature, Y[test])
    assert found["nll_tempered"] == pytest.approx(expected["nll"], abs=1e-6)
    assert found["ece_tempered"] == pytest.approx(expected["ece"], abs=1e-6)
    assert found["nll_tempered"] < found["nll"]


def test_without_temperature_none_is_fitted():
    fitter = trainer(callback := UncertaintyLogger(temperature=False))
    fitter.validate(module := Plain(), loader(), verbose=False)
    assert set(logged(fitter, "val")) == KEYS
    fitter.test(module, loader(), verbose=False)
    assert set(logged(fitter, "test")) == KEYS
    assert callback.fitted_temperature is None


def test_a_checkpoint_is_tested_with_its_own_temperature_and_resumes(tmp_path: Path):
    callback = UncertaintyLogger()
    fitter = trainer(callback, max_epochs=2)
    fitter.fit(Plain(), loader(), loader())
    fitter.save_checkpoint(tmp_path / "end.ckpt")
    temperature = callback.fitted_temperature
    assert temperature is not None
    new = UncertaintyLogger()
    assert "nll_tempered" not in scored(UncertaintyLogger(), Plain())
    again = trainer(new)
    again.test(Plain(), loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert new.fitted_temperature == temperature
    assert "nll_tempered" in logged(again, "test")
    trainer(new, max_epochs=3).fit(Plain(), loader(), loader(), ckpt_path=tmp_path / "end.ckpt")
    assert new.fitted_temperature != temperature


@pytest.mark.parametrize("kind", ["plain", "sampling", "bayes", "surrogate"])
def test_training_is_the_same_to_the_last_bit(kind: str):
    def build() -> pl.LightningModule:
        torch.manual_seed(0)
        method = {"bayes": SpikingBayes(samples=2), "surrogate": SurrogateGradient()}.get(kind)
        if method is None:
            return Plain() if kind == "plain" else Sampling()
        return SpikingModule(nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, 3)), method, num_classes=CLASSES)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = zip(*samples, strict=True)
        return torch.stack(x)[None].expand(2, -1, -1), torch.stack(y)

    spiking = kind in ("bayes", "surrogate")
    collated: dict[str, Any] = {"collate_fn": collate} if spiking else {}
    noise = DataLoader(
        OUTSIDE[None].expand(2, -1, -1).transpose(0, 1),
        8,
        shuffle=True,
        **({"collate_fn": lambda parts: torch.stack(parts, 1)} if spiking else {}),
    )

    def fit(*callbacks: pl.Callback) -> tuple[dict[str, Tensor], Tensor]:
        module = build()
        fitter = trainer(*callbacks, max_epochs=2)
        torch.manual_seed(3)
        train = DataLoader(TensorDataset(X, Y), 15, shuffle=True, **collated)
        fitter.fit(module, train, DataLoader(TensorDataset(X, Y), 15, **collated))
        found = logged(fitter, "val")
        assert set(found) == (
            KEYS
            | {"temperature", "ood_auroc", "conformal_threshold"}
            | ({"mutual_information", "ood_auroc_mutual_information"} if samples else set())
            if callbacks
            else set()
        )
        return module.state_dict(), torch.get_rng_state()

    samples = kind in ("sampling", "bayes")
    without, state = fit()
    unfamiliar = noise if spiking else DataLoader(OUTSIDE, 8, shuffle=True)
    found, state_after = fit(UncertaintyLogger(unfamiliar, conformal=ConformalSets(over_time=spiking)))
    assert torch.equal(state, state_after)
    assert without.keys() == found.keys()
    for name, value in without.items():
        assert torch.equal(found[name], value), name


def test_of_a_sanity_check_the_first_batch_is_predicted_and_nothing_is_scored(monkeypatch: pytest.MonkeyPatch):
    callback = UncertaintyLogger()
    asked, log = mock.Mock(wraps=callback._predict), mock.Mock(wraps=callback._log)
    monkeypatch.setattr(callback, "_predict", asked)
    monkeypatch.setattr(callback, "_log", log)
    module = Plain()
    trainer(callback, num_sanity_val_steps=2, limit_val_batches=2).fit(module, loader(), loader())
    assert asked.call_count == 1 + 2
    assert log.call_count == 2  # the temperature and the scores, of the validation
    assert callback._collected == callback._scored == {}


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda self, x: (self.net(x), x), "tuple"),
        (lambda self, x: {"logits": self.net(x)}, "dict"),
        (lambda self, x: self.net(x)[None, None], r"a tensor of torch.float32 and shape \(1, 1, 15, 3\)"),
    ],
    ids=["tuple", "dict", "four axes"],
)
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_what_forward_gives_is_refused_before_training_with_a_remedy(forward: Any, got: str, sanity_steps: int):
    steps: list[int] = []

    class Other(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            steps.append(batch_idx)
            return self.net(batch[0]).sum()

    Other.forward = forward
    remedies = "Pass `predict` .* a `predict_step`, or return .*prediction.*target.* from the step"
    with pytest.raises(ValueError, match=f"from its `forward` of Other .*, but got {got}. {remedies}"):
        trainer(UncertaintyLogger(), num_sanity_val_steps=sanity_steps).fit(Other(), loader(), loader())
    assert not steps


class OverTime(Plain):
    """Module that returns outputs of all time steps, as snntorch's networks do.

    Args:
        returns: "outputs" or "membranes" `[T, B, C]`, "spikes", a pair, or "batch first".
    """

    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns, self.lif = returns, snntorch.Leaky(beta=0.8, threshold=0.5)

    def forward(self, x: Tensor) -> Any:
        membrane, spikes, membranes = self.lif.init_leaky(), [], []
        for scale in (0.5, 1.5, 1.0, 2.0):
            spike, membrane = self.lif(scale * self.net(x), membrane)
            spikes.append(spike)
            membranes.append(membrane)
        over_time = {"spikes": torch.stack(spikes), "membranes": torch.stack(membranes)}
        pair = over_time["spikes"], over_time["membranes"]
        return over_time | {"pair": pair, "reversed": pair[::-1], "batch first": pair[1].transpose(0, 1)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0])["membranes"].mean(0), batch[1])


class Returning(OverTime):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[self.returns]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("the fit does not start")


@pytest.mark.parametrize(
    ("returns", "taken", "said"),
    [
        ("membranes", "membranes", "the mean of outputs over time is used. Pass `predict`"),
        ("spikes", "spikes", "the mean of spikes over time is used, the firing rates. Treated as logits they give"),
        (
            "pair",
            "membranes",
            "the mean of membrane potentials over time is used as logits, and the spikes are",
        ),
        ("reversed", "membranes", "the mean of membrane potentials over time is used as logits, and the spikes are"),
    ],
)
def test_outputs_of_all_time_steps_are_averaged_and_said_once(returns: str, taken: str, said: str):
    module = Returning(returns)
    with torch.no_grad():
        over_time = OverTime.forward(module.eval(), X)
    assert {0.0, 1.0} == set(over_time["spikes"].unique().tolist())
    with pytest.warns(UserWarning, match=said) as warned:
        found = scored(UncertaintyLogger(), module)
    # equal rates have no order, on which the other scores by hand depend
    keys = KEYS - ({"adaptive_ece", "aurc"} if returns == "spikes" else set())
    means = {name: over_time[name].mean(0) for name in ("membranes", "spikes")}
    expected, (other,) = by_hand(means.pop(taken), Y), (by_hand(mean, Y) for mean in means.values())
    assert {key: found[key] for key in keys} == pytest.approx({key: expected[key] for key in keys}, abs=1e-6)
    assert abs(found["nll"] - other["nll"]) > 1e-3
    assert len([each for each in warned if "over time is used" in str(each.message)]) == 1
    assert not [each for each in warned if "are treated as logits, but lie" in str(each.message)]


def test_spikes_of_one_output_per_step_are_not_taken_for_probabilities():
    sure = F.one_hot(Y, CLASSES).float()
    module = Plain()
    module.forward = lambda x: sure[: len(x)].expand(4, -1, -1)
    with pytest.warns(UserWarning, match="the firing rates"):
        found = scored(UncertaintyLogger(), module, loader(N))
    assert found["nll"] == pytest.approx(np.log(1 + 2 / np.e), abs=1e-6)


def test_class_probabilities_of_all_time_steps_are_mixed():
    module = OverTime("membranes")
    predict = lambda module, batch: module(batch[0])["membranes"].softmax(-1)  # noqa: E731
    with torch.no_grad():
        mixture = module.eval()(X)["membranes"].softmax(-1).mean(0)
    assert scored(UncertaintyLogger(predict=predict), module) == pytest.approx(by_hand(mixture.log(), Y), abs=1e-6)


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_outputs_with_the_samples_first_are_refused_at_the_start(sanity_steps: int):
    message = r"outputs \[T, B, C\] of B = 15 samples from its `forward` .* \(15, 4, 3\), which looks like \[B, T, C\]"
    with pytest.raises(ValueError, match=message):
        trainer(UncertaintyLogger(), num_sanity_val_steps=sanity_steps).fit(
            Returning("batch first"), loader(), loader()
        )


@pytest.mark.parametrize("kind", [Plain, ByStep, Sampling])
def test_the_check_at_the_start_of_a_fit_leaves_no_trace(kind: type[Plain]):
    class Counting(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.accuracy(self(batch[0]), batch[1])
            self.log("accuracy", self.accuracy)
            return super().test_step(batch, batch_idx)

    def fit(*callbacks: pl.Callback) -> tuple[dict[str, Tensor], Tensor]:
        module, fitter = (
            Counting(),
            trainer(*callbacks, num_sanity_val_steps=0, check_val_every_n_epoch=2, max_epochs=2),
        )
        torch.manual_seed(3)
        fitter.fit(module, loader(shuffle=True), loader(shuffle=True))
        assert module.accuracy.tp.sum() == 0
        return module.state_dict(), fitter.callback_metrics["accuracy"]

    (plain, accuracy), (monitored, same) = fit(), fit(UncertaintyLogger())
    assert torch.equal(accuracy, same)
    for name, value in plain.items():
        assert torch.equal(monitored[name], value), name


def test_a_module_that_cannot_be_copied_is_not_checked_at_the_start():
    class Locked(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    fitter = trainer(UncertaintyLogger(), num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="outputs of Locked are not checked before .* cannot copy"):
        fitter.fit(Locked(), loader(), loader())
    assert set(logged(fitter, "val")) == KEYS | {"temperature"}


def unlabeled() -> DataLoader:
    return DataLoader(TensorDataset(X, torch.where(torch.arange(N) % 5 == 1, -1, Y)), 15)


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize("kind", [Plain, ByStep])
def test_labels_of_no_class_are_refused_before_training(kind: type[Plain], sanity_steps: int):
    class Other(kind):  # type: ignore[misc, valid-type]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return super().test_step(batch, batch_idx)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("the fit does not start")

    message = "targets for UncertaintyLogger to be classes from 0 to 2, but got values from -1 to 2. Leave out samples"
    with pytest.raises(ValueError, match=message):
        trainer(UncertaintyLogger(), num_sanity_val_steps=sanity_steps).fit(Other(), loader(), unlabeled())


@pytest.mark.parametrize("kind", [Plain, ByStep])
def test_samples_without_a_label_are_left_out_by_functions(kind: type[Plain]):
    def labeled(batch: Any) -> tuple[Tensor, Tensor]:
        return batch[0][batch[1] >= 0], batch[1][batch[1] >= 0]

    module = kind()
    callback = UncertaintyLogger(predict=lambda module, batch: module(labeled(batch)[0]).softmax(1), read_batch=labeled)
    known = torch.arange(N) % 5 != 1
    expected = by_hand(logits_of(module, X[known]), Y[known])
    assert scored(callback, module, unlabeled()) == pytest.approx(expected, abs=1e-6)


def test_a_predict_step_gets_the_index_of_the_loader():
    class Indexed(Plain):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Tensor:
            return ((1 + dataloader_idx) * self(batch[0])).softmax(1)

    module, fitter = Indexed(), trainer(UncertaintyLogger())
    fitter.test(module, {"a": loader(), "b": loader()}, verbose=False)
    logits = logits_of(module)
    expected = by_hand(logits, Y) | {f"{key}/1": value for key, value in by_hand(2 * logits, Y).items()}
    assert logged(fitter, "test") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [Plain, ByPredictStep])
def test_predictions_of_modules_of_pytorch_lightning_are_scored(kind: type[Plain]):
    package = pytest.importorskip("pytorch_lightning", reason="`pytorch_lightning` is not installed")

    class Other(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kind()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        test_step = Plain.test_step

    if kind is ByPredictStep:
        Other.predict_step = lambda self, batch, batch_idx: (2 * self(batch[0])).softmax(1)
    module, fitter = Other(), trainer(UncertaintyLogger(), trainer=package.Trainer)
    fitter.test(module, loader(), verbose=False)
    scale = 2 if kind is ByPredictStep else 1
    assert logged(fitter, "test") == pytest.approx(by_hand(scale * logits_of(module), Y), abs=1e-6)


class Rates(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).sigmoid()


def test_rates_that_are_treated_as_logits_cause_one_warning():
    fitter = trainer(UncertaintyLogger(), max_epochs=2)
    with pytest.warns(UserWarning, match='within \\[0, 1\\], .* outputs="logits"; .* `predict`') as warned:
        fitter.fit(Rates(), loader(), loader())
    assert len([each for each in warned if "treated as logits" in str(each.message)]) == 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"outputs": "logits"}, Rates),
        ({"predict": lambda module, batch: module(batch[0]).softmax(1)}, Rates),
        ({}, Plain),
        ({}, type("Silent", (Plain,), {"forward": lambda self, x: 0 * self.net(x)})),
    ],
    ids=["argument", "predicted", "logits", "silent"],
)
def test_known_outputs_cause_no_warning(options: dict[str, Any], kind: type[Plain], recwarn: Any):
    scored(UncertaintyLogger(**options), kind())
    assert not [each for each in recwarn if "treated as logits" in str(each.message)]


def test_several_loggers_receive_the_values(tmp_path: Path):
    loggers = [CSVLogger(tmp_path, name=name, version="") for name in ("one", "two")]
    fitter = trainer(UncertaintyLogger(), logger=loggers, max_epochs=2)
    fitter.fit(Plain(), loader(), loader())
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["uncertainty/val/nll"]]
        assert len(rows) == 2
        assert float(rows[-1]["uncertainty/val/nll"]) == pytest.approx(logged(fitter, "val")["nll"])


def test_several_of_them_have_names_of_their_own():
    fitter = trainer(UncertaintyLogger(n_bins=4), UncertaintyLogger(name="rough", n_bins=1))
    module = Plain()
    fitter.validate(module, loader(), verbose=False)
    assert logged(fitter, "val")["ece"] == pytest.approx(by_hand(logits_of(module), Y, 4)["ece"], abs=1e-6)
    assert logged(fitter, "val", "rough")["ece"] == pytest.approx(by_hand(logits_of(module), Y, 1)["ece"], abs=1e-6)


def test_each_of_several_loaders_has_its_scores():
    module, fitter = Plain(), trainer(UncertaintyLogger())
    parts = [slice(20), slice(20, N)]
    fitter.test(module, [DataLoader(TensorDataset(X[part], Y[part]), 7) for part in parts], verbose=False)
    logits = logits_of(module)
    expected = {}
    for suffix, part in zip(("", "/1"), parts, strict=True):
        expected |= {key + suffix: value for key, value in by_hand(logits[part], Y[part]).items()}
    assert logged(fitter, "test") == pytest.approx(expected, abs=1e-6)


def test_the_figures_of_a_test_and_of_a_validation_lie_in_the_folder(tmp_path: Path):
    module, callback = Sampling(), UncertaintyLogger(outside, folder=tmp_path / "own")
    fitter = trainer(callback, limit_val_batches=1)
    fitter.fit(module, loader(), loader())
    assert not (tmp_path / "own").exists()
    fitter.validate(module, loader(), verbose=False)
    kinds = ("entropy", "mutual_information", "reliability", "risk_coverage")
    assert sorted(file.name for file in (tmp_path / "own").iterdir()) == [
        f"uncertainty_val_{kind}.png" for kind in kinds
    ]
    scored(UncertaintyLogger(name="root"), Plain(), default_root_dir=tmp_path / "root")
    kinds = ("entropy", "reliability", "risk_coverage")
    assert sorted(file.name for file in (tmp_path / "root").iterdir()) == [f"root_test_{kind}.png" for kind in kinds]


@pytest.mark.parametrize("logger", [False, True])
def test_a_fast_dev_run_scores_and_draws_no_figures(tmp_path: Path, logger: bool):
    fitter = trainer(UncertaintyLogger(outside), fast_dev_run=True, logger=logger, default_root_dir=tmp_path)
    module = Plain()
    fitter.fit(module, loader(), loader())
    assert set(logged(fitter, "val")) == KEYS | {"temperature", "ood_auroc"}
    fitter.test(module, loader(), verbose=False)
    assert {"nll_tempered", "ood_auroc"} < set(logged(fitter, "test"))
    assert not list(tmp_path.iterdir())


def test_what_is_no_prediction_of_classes_is_refused():
    def refused(message: str, predict: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            scored(UncertaintyLogger(predict=predict, **options), Plain())

    refused(
        "from `predict` of Plain for UncertaintyLogger, .* but got values from -.* For logits pass outputs=",
        lambda module, batch: module(batch[0]),
    )
    refused("probabilities .* but got a tensor of torch.int64 and shape", lambda m, batch: m(batch[0]).argmax(1))
    refused("of at least two classes .* but got a tensor", lambda m, batch: m(batch[0])[:, :1], outputs="logits")
    refused("but got NoneType", lambda module, batch: None)
    refused(
        "predictions of classes from `predict` .* of a regression",
        lambda module, batch: Prediction(module(batch[0]), categorical=False),
    )
    soft = type("Soft", (Plain,), {"forward": lambda self, x: self.net(x).softmax(1)})()
    with pytest.raises(ValueError, match="logits from its `forward` of Soft .* For class probabilities pass outputs="):
        scored(UncertaintyLogger(), soft)
    assert "nll" in scored(UncertaintyLogger(outputs="probabilities"), soft)
    with pytest.raises(
        ValueError,
        match=r"the targets for UncertaintyLogger to be classes, integers of shape \(15,\), .* torch.float32",
    ):
        scored(UncertaintyLogger(), Plain(), DataLoader(TensorDataset(X, Y.float()), 15))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_bins": 0}, "`n_bins` to be an integer of at least 1, but got 0"),
        ({"outputs": "log"}, "`outputs` to be one of None, 'probabilities', 'logits', but got 'log'"),
        ({"temperature": 2.0}, "`temperature` to be one of True, False, but got 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        UncertaintyLogger(**options)


# further scores


def test_further_scores_are_those_of_the_functions_and_only_if_they_are_chosen():
    module = Plain()
    probabilities = logits_of(module).double().softmax(1)
    inner, outer = (predictive_entropy(logits_of(module, x).double().softmax(1)) for x in (X, OUTSIDE))
    errors = probabilities.argmax(1) != Y
    expected = {
        "classwise_ece": classwise_calibration_error(probabilities, Y, 7),
        "smooth_ece": smooth_calibration_error(probabilities, Y),
        "augrc": area_under_generalized_risk_coverage(inner, errors),
        "ood_fpr95_out": ood_fpr(inner, outer),
        "ood_fpr95_in": ood_fpr(inner, outer, positive="in"),
        "ood_aupr_out": ood_aupr(inner, outer),
        "ood_aupr_in": ood_aupr(inner, outer, "in"),
    }
    every = ("classwise_ece", "smooth_ece", "augrc", "ood_fpr95", "ood_aupr")
    found = scored(UncertaintyLogger(outside, n_bins=7, scores=every), Plain())
    assert set(found) == KEYS | {"ood_auroc"} | set(expected)
    assert {key: found[key] for key in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, abs=1e-6)
    assert set(scored(UncertaintyLogger(scores=["augrc", "ood_fpr95"]), Plain())) == KEYS | {"augrc"}
    assert "ood_aupr_in_mutual_information" in scored(UncertaintyLogger(outside, scores=["ood_aupr"]), Sampling())


# prediction sets


def over_time(module: pl.LightningModule, batch: Any) -> Tensor:
    """Predictions that become surer over three time steps."""
    logits = module(batch[0])
    return torch.stack([(step * logits).softmax(1) for step in (0.1, 0.5, 1.0)])


def halves() -> tuple[DataLoader, DataLoader]:
    held_out, test = slice(0, N // 2), slice(N // 2, N)
    return tuple(DataLoader(TensorDataset(X[part], Y[part]), 7) for part in (held_out, test))


def sets_by_hand(probabilities: Tensor, alpha: float) -> tuple[float, float, float]:
    """Threshold, coverage and size of LAC: calibrated with the first half, tested on the second."""
    p = probabilities.double().numpy()
    n = N // 2
    held_out = sorted(1 - p[range(n), Y[:n].numpy()])
    threshold = held_out[int(np.ceil((n + 1) * (1 - alpha))) - 1]
    sets = 1 - p[n:] <= threshold
    return threshold, sets[range(N - n), Y[n:].numpy()].mean(), sets.sum(1).mean()


def test_prediction_sets_are_calibrated_in_the_validation_and_scored_in_the_test(tmp_path: Path):
    module, alpha = Plain().eval(), 0.3
    callback = UncertaintyLogger(conformal=ConformalSets(alpha, "lac", over_time=over_time))
    held_out, test = halves()
    fitter = trainer(callback)
    fitter.test(module, test, verbose=False)
    assert not any(key.startswith("conformal") for key in logged(fitter, "test")), "there was no calibration"
    fitter.validate(module, held_out, verbose=False)
    threshold, coverage, size = sets_by_hand(logits_of(module).softmax(1), alpha)
    assert logged(fitter, "val")["conformal_threshold"] == pytest.approx(threshold, abs=1e-6)
    fitter.test(module, test, verbose=False)
    found = logged(fitter, "test")
    assert (found["conformal_coverage"], found["conformal_size"]) == pytest.approx((coverage, size), abs=1e-6)
    for t, step in enumerate(over_time(module, (X,)), start=1):
        _, coverage, size = sets_by_hand(step.detach(), alpha)
        after = found[f"conformal_coverage_t{t}"], found[f"conformal_size_t{t}"]
        assert after == pytest.approx((coverage, size), abs=1e-6)
    assert after == (found["conformal_coverage"], found["conformal_size"]), "the last step is the prediction"
    assert found["conformal_size_t1"] != found["conformal_size_t3"]


def test_a_sequence_that_has_ended_keeps_its_last_prediction():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
    module = SpikingModule(network, num_classes=3).eval()
    x, y, lengths = torch.rand(6, 2, 4), torch.tensor([0, 1]), torch.tensor([6, 2])
    sets, shape = ConformalSets(over_time=True), torch.Size((2, 3))
    whole = sets.predict_over_time(module, (x, y), shape)
    found = sets.predict_over_time(module, (x, y, lengths), shape)
    torch.testing.assert_close(found[:, 0], whole[:, 0])
    torch.testing.assert_close(found[:2, 1], whole[:2, 1])
    assert torch.equal(found[2:, 1], found[1, 1].expand(4, 3))
    assert not torch.allclose(found[2:, 1], whole[2:, 1])


@pytest.mark.parametrize("score", ["aps", "raps"])
def test_random_numbers_of_the_sets_repeat_with_their_seed(score: Any):
    def threshold(seed: int) -> float:
        fitter = trainer(UncertaintyLogger(conformal=ConformalSets(0.3, score, seed=seed)))
        fitter.validate(Plain(), loader(), verbose=False)
        return logged(fitter, "val")["conformal_threshold"]

    assert threshold(0) == threshold(0) != threshold(1)


def test_a_checkpoint_has_the_thresholds_and_those_of_other_settings_are_dropped(tmp_path: Path):
    held_out, test = halves()
    fitter = trainer(UncertaintyLogger(conformal=ConformalSets(0.3, "lac")), max_epochs=1)
    module = Plain()
    fitter.fit(module, held_out, held_out)
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    fitter.test(module, test, verbose=False)
    expected = logged(fitter, "test")
    other = trainer(UncertaintyLogger(conformal=ConformalSets(0.3, "lac", seed=5)))
    other.test(Plain(), test, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert logged(other, "test") == expected
    assert "conformal_size" in expected
    another = trainer(UncertaintyLogger(conformal=ConformalSets(0.2, "lac")))
    with pytest.warns(UserWarning, match="thresholds of the checkpoint belong to the conformal settings"):
        another.test(Plain(), test, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert "conformal_size" not in logged(another, "test")


def test_sets_of_a_spiking_module_after_each_time_step_end_with_its_prediction_in_a_figure(tmp_path: Path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, CLASSES))
    module = SpikingModule(network, SurrogateGradient(), num_classes=CLASSES)
    callback = UncertaintyLogger(folder=tmp_path, conformal=ConformalSets(0.3, over_time=True))
    fitter = trainer(callback, limit_val_batches=1.0)
    data = [DataLoader(TensorDataset(X.repeat(4, 1, 1).transpose(0, 1)[part], Y[part]), 10, collate_fn=time_first)
            for part in (slice(0, 25), slice(25, N))]  # fmt: skip
    fitter.validate(module, data[0], verbose=False)
    fitter.test(module, data[1], verbose=False)
    found = logged(fitter, "test")
    assert {f"conformal_size_t{t}" for t in range(1, 5)} < set(found)
    assert found["conformal_size_t4"] == pytest.approx(found["conformal_size"], abs=1e-6)
    assert found["conformal_coverage_t4"] == pytest.approx(found["conformal_coverage"], abs=1e-6)
    assert (tmp_path / "uncertainty_test_conformal.png").is_file()
    assert not (tmp_path / "uncertainty_val_conformal.png").exists()


def time_first(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, y = zip(*samples, strict=True)
    return torch.stack(x, 1), torch.stack(y)


def test_predictions_over_time_of_other_modules_or_shapes_are_refused_before_training():
    def refused(message: str, function: Any) -> None:
        fitter = trainer(UncertaintyLogger(conformal=ConformalSets(over_time=function)), max_epochs=1)
        with pytest.raises(ValueError, match=message):
            fitter.fit(Plain(), loader(), loader())
        assert fitter.global_step == 0

    refused("argument `over_time` to be a function for Plain, because it is no SpikingModule", True)
    refused(r"\[T, 15, 3\] after each time step for `over_time`, but got a tensor", lambda m, b: m(b[0]))
    refused(r"for `over_time`, but got a tensor .* \(15, 3, 3\)", lambda m, b: over_time(m, b).transpose(0, 1))
    refused("for `over_time`, at least 0 with rows that sum to 1, but got", lambda m, b: m(b[0])[None])
    refused(
        "for `over_time`, at least 0 with rows that sum to 1, but got values from nan",
        lambda m, b: over_time(m, b) * np.nan,
    )
    callback = UncertaintyLogger(conformal=ConformalSets(over_time=lambda m, b: over_time(m, b)[: len(b[0]) // 5]))
    with pytest.raises(ValueError, match="Expected predictions after 3 time steps, as in earlier batches, but got 1"):
        trainer(callback).validate(Plain(), loader(), verbose=False)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: UncertaintyLogger(scores=["ece"]), "scores"),
        (lambda: UncertaintyLogger(scores="augrc"), "scores"),
        (lambda: ConformalSets(alpha=1.5), "alpha"),
        (lambda: ConformalSets(score="thr"), "score"),
        (lambda: ConformalSets(randomized="yes"), "randomized"),
        (lambda: ConformalSets(penalty=-1), "penalty"),
        (lambda: ConformalSets(free_classes=-1), "free_classes"),
        (lambda: ConformalSets(seed=-1), "seed"),
        (lambda: ConformalSets(over_time="yes"), "over_time"),
    ],
)
def test_settings_out_of_range_are_named(build: Any, name: str):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be"):
        build()


# processes


def thresholds_of(callback: UncertaintyLogger) -> dict[str, float]:
    thresholds = callback.sets.calibration.thresholds
    return {f"threshold after step {t}": value for t, value in enumerate(thresholds.tolist(), start=1)}


def with_everything() -> UncertaintyLogger:
    return UncertaintyLogger(outside, scores=FURTHER_SCORES, conformal=ConformalSets(0.3, "lac", over_time=over_time))


def _on_one_process(rank: int) -> dict[str, Any]:
    callback = with_everything()
    fitter = trainer(
        callback,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
    )
    part = slice(0, 30) if rank == 0 else slice(30, N)
    module = Plain()
    with (
        mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)}),  # the processes are there already
        mock.patch("lightning_snn.callbacks.uncertainty.may_write", return_value=False),
    ):
        fitter.validate(module, DataLoader(TensorDataset(X[part], Y[part]), 15), verbose=False)
    return logged(fitter, "val") | thresholds_of(callback)


def test_two_processes_with_unequal_shares_log_the_scores_of_all_samples(tmp_path: Path):
    first, second = on_two_processes(_on_one_process, tmp_path)
    assert first == second
    callback = with_everything()
    alone = trainer(callback)
    alone.validate(Plain(), loader(), verbose=False)
    assert first == pytest.approx(logged(alone, "val") | thresholds_of(callback), abs=1e-6)
    assert len(thresholds_of(callback)) == 3
