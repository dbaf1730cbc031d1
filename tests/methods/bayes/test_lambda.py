"""Variance of the gradient by layer, and the lambda that is chosen by it."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from lightning_snn import SpikingModule, run
from lightning_snn.functional import IWST, variance_factor
from lightning_snn.methods import NoisySpikes, SpikingBayes
from lightning_snn.methods.base import Progress
from lightning_snn.methods.bayes import method as bayes_method
from lightning_snn.methods.bayes.method import INITIAL_LAMBDA, MONITOR_EVERY
from lightning_snn.nn import Sign
from lightning_snn.nn import posterior_noise as noise
from tests.support.event_order import loader, order_of_events, small_network
from tests.support.training import trainer


def binary_network(inputs: int = 6, units: int = 8) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(inputs, units), Sign(), nn.Linear(units, units), Sign()]
    return nn.Sequential(*layers, nn.Linear(units, 2))


def batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, size, 6, generator=generator), torch.arange(size) % 2


def measured(lam: float | str, seed: int = 1):
    """Return the metrics of a first step, and the pre-activations of the same noise."""
    torch.manual_seed(0)
    method = SpikingBayes(lam=lam, kl_weight=0.0)
    prepared = method.prepare(binary_network())
    x, y = batch()
    torch.manual_seed(seed)
    metrics = method.training_step(prepared, x, y).metrics
    found: list[np.ndarray] = []
    torch.manual_seed(seed)
    with noise(1.0, observe=lambda layer, t: found.append(t.detach().double().numpy())):
        run(prepared, x)
    return method, metrics, found


def reference(t: np.ndarray) -> tuple[float, float, float]:
    """Return chi_0^2, spread of the slope and mean square of pre-activations, by scipy."""
    slope = norm.pdf(t)
    chi = (slope**2 / (4 * norm.cdf(t) * norm.cdf(-t))).sum() / (slope**2).sum() - 1
    return chi, (slope**2).mean() / slope.mean() ** 2, (t**2).mean()


@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_the_factor_of_each_layer_is_that_of_its_pre_activations(lam):
    _, metrics, (first, second) = measured(lam)
    chi, spread = zip(*(reference(t)[:2] for t in (first, second)), strict=True)
    expected = [1 + (1 - lam) ** 2 * chi[0], (1 + (1 - lam) ** 2 * chi[1]) * spread[1]]
    found = {name: value.item() for name, value in metrics.items() if name.startswith("variance_factor")}
    names = ("2", "4", "all")
    assert found == pytest.approx(
        {f"variance_factor/{name}": value for name, value in zip(names, [*expected, np.prod(expected)], strict=True)},
        rel=1e-4,
    )
    assert ("chi_squared/2" in metrics) is (lam < 1)
    if lam == 1.0:
        assert found["variance_factor/2"] == 1.0  # the first layer has no variance for a linear loss
        assert found["variance_factor/4"] > 1.05


def test_the_factor_of_normal_pre_activations_is_the_predicted_one():
    torch.manual_seed(0)
    method = SpikingBayes(lam=0.0, kl_weight=0.0, gain=1.0)
    prepared = method.prepare(nn.Sequential(nn.Flatten(), nn.Linear(256, 256), Sign(), nn.Linear(256, 2)))
    with torch.no_grad():
        prepared[1].weight.normal_(0.0, 0.7 / 16)
        prepared[1].weight_log_std.fill_(np.log(1 / 16))
        prepared[1].bias.zero_()
        prepared[1].bias_log_std.fill_(-10.0)
    x = torch.randn(1, 512, 256).sign()
    found = method.training_step(prepared, x, torch.arange(512) % 2).metrics["variance_factor/all"]
    assert found.item() == pytest.approx(variance_factor(0.7, 0.0), rel=0.01)


def test_the_factor_of_a_layer_with_several_calls_is_the_product_of_its_calls():
    sign = Sign()
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), sign, nn.Linear(8, 8), sign, nn.Linear(8, 2))
    torch.manual_seed(0)
    method = SpikingBayes(lam=0.5, kl_weight=0.0)
    metrics = method.training_step(method.prepare(network), *batch()).metrics
    assert {name for name in metrics if "factor" in name} == {"variance_factor/2", "variance_factor/all"}
    assert metrics["variance_factor/2"] == metrics["variance_factor/all"]


def test_auto_measures_the_lambda_of_the_smallest_error():
    _, metrics, layers = measured("auto")
    (chi_1, _, square_1), (chi_2, spread, square_2) = map(reference, layers)
    difference = spread * ((1 + chi_1) * (1 + chi_2) - 1)
    beta = np.mean([0.4 * (square / (1 + square)) ** 1.75 / 8 for square in (square_1, square_2)])
    assert metrics["lam"].item() == pytest.approx(1 / (1 + 32 * beta / difference), rel=1e-4)


def test_auto_uses_what_it_measured_from_the_next_step_on_in_quarters():
    method, metrics, _ = measured("auto")
    assert method.estimator == IWST(round(metrics["lam"].item() * 4) / 4) != IWST(INITIAL_LAMBDA)
    assert method.lam == "auto"
    assert method.lam_in_use.item() == method.estimator.lam
    assert "lam=auto" in repr(method)

    prepared = method.prepare(binary_network())
    x, y = batch()
    gradients = []
    for other in (method, SpikingBayes(lam=method.estimator.lam, kl_weight=0.0), SpikingBayes(lam=0.0, kl_weight=0.0)):
        other.progress = Progress(step=1, samples=32)
        torch.manual_seed(3)
        step = other.training_step(prepared, x, y)
        assert not step.metrics
        gradients.append(torch.autograd.grad(step.objective, prepared[1].weight)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)


def test_auto_measures_again_every_so_many_steps_for_the_samples_of_an_optimizer_step():
    torch.manual_seed(0)
    method = SpikingBayes(lam="auto", kl_weight=0.0)
    prepared = method.prepare(binary_network())
    found = {}
    for step, samples in ((0, 0), (1, 32), (MONITOR_EVERY, 32 * MONITOR_EVERY), (MONITOR_EVERY, 10**6 * MONITOR_EVERY)):
        method.progress = replace(method.progress, step=step, samples=samples)
        torch.manual_seed(1)
        found[step, samples] = method.training_step(prepared, *batch()).metrics.get("lam")
    first, none, same, large = found.values()
    assert none is None
    assert same == first
    assert large < 0.01
    assert method.estimator == IWST(0.0)  # ReinMax, for a million samples


def test_processes_use_the_mean_of_what_they_measured(monkeypatch):
    monkeypatch.setattr(bayes_method, "gather", lambda value: [value, 0.0])
    method, metrics, _ = measured("auto")
    assert method.estimator.lam == round(metrics["lam"].item() / 2 * 4) / 4


def test_the_lambda_in_use_survives_checkpoints_and_copies():
    method, _, _ = measured("auto")
    chosen = method.estimator
    assert chosen.lam != INITIAL_LAMBDA
    stored = io.BytesIO()
    torch.save(method.state_dict(), stored)
    stored.seek(0)
    fresh = SpikingBayes(lam="auto")
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    copies = [fresh, copy.deepcopy(method), pickle.loads(pickle.dumps(method))]
    assert [each.estimator for each in copies] == [chosen] * 3
    copies[1].load_state_dict(SpikingBayes(lam="auto").state_dict())
    assert (copies[1].estimator, method.estimator) == (IWST(INITIAL_LAMBDA), chosen)
    assert not SpikingBayes(lam=0.5).state_dict()  # as in earlier checkpoints


def test_a_run_with_nan_keeps_the_lambda():
    method = SpikingBayes(lam="auto", kl_weight=0.0)
    prepared = method.prepare(binary_network())
    x, y = batch()
    metrics = method.training_step(prepared, torch.full_like(x, torch.nan), y).metrics
    assert metrics["lam"].isnan()
    assert method.estimator == IWST(INITIAL_LAMBDA)


class Lambdas(pl.Callback):
    """The lambdas of the steps of a fit."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.used.append(pl_module.method.estimator.lam)


def test_a_resumed_fit_goes_on_with_the_lambda_of_the_checkpoint(tmp_path):
    x, y = order_of_events(16)
    whole, first, second = Lambdas(), Lambdas(), Lambdas()
    last = []
    for seed, callback, epochs, checkpoint in ((0, whole, 2, None), (0, first, 1, None), (5, second, 2, "first.ckpt")):
        pl.seed_everything(seed, verbose=False)
        method = SpikingBayes(lam="auto", gain=1.0, kappa=0.3)
        module = SpikingModule(small_network(), method, num_classes=2, batch_first=False)
        fit = trainer(callback, max_epochs=epochs)
        path = None if checkpoint is None else tmp_path / checkpoint
        fit.fit(module, loader(x, y, 8), ckpt_path=path, weights_only=False)
        if epochs == 1:
            fit.save_checkpoint(tmp_path / "first.ckpt")
        last.append(module.method.lam_in_use.item())
    assert whole.used[0] == first.used[0] == INITIAL_LAMBDA
    assert first.used[-1] != INITIAL_LAMBDA
    assert len(second.used) == len(first.used)
    assert first.used + second.used == whole.used
    assert last[0] == last[2] != INITIAL_LAMBDA


@pytest.mark.slow
def test_compiled_steps_adopt_the_lambda_too():
    torch.manual_seed(0)
    module = SpikingModule(binary_network(), SpikingBayes(lam="auto", train_size=32), num_classes=2)
    module.compile(backend="eager")
    assert module.method.estimator.lam == INITIAL_LAMBDA
    x, y = batch()
    metrics = module._compiled.training_step(module.method, module.network, x, y).metrics
    assert module.method.estimator == IWST(round(metrics["lam"].item() * 4) / 4) != IWST(INITIAL_LAMBDA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikingBayes(lam="best"), "argument `lam` to be a number from 0 to 1 or \"auto\", but got 'best'"),
        (lambda: SpikingBayes(lam=1.5), "argument `lam` to be a number from 0 to 1, but got 1.5"),
        (lambda: SpikingBayes(lam="auto", estimator="agr"), "`estimator` to be None with lam=\"auto\", but got 'agr'"),
        (lambda: NoisySpikes(lam="auto"), "argument `lam` to be a number from 0 to 1, but got 'auto'"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
