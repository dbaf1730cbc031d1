"""Convergence over the epochs of a fit: exact posteriors of linear models, what is logged, and the warning."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.methods import ExpectationPropagation, Method
from lightning_snn.methods.ep.convergence import Convergence
from tests.methods.ep.task import Steps, dense, digits, prepared, updated
from tests.support.training import one_step, trainer

PRIOR, NOISE = 0.5, 0.09


def line(samples: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Inputs, and values of a linear model with noise."""
    generator = torch.Generator().manual_seed(0)
    x, weights, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((samples, inputs), (inputs, 1), (samples, 1))
    )
    return x, x @ weights + NOISE**0.5 * noise


def exact_posterior(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[I]` and covariance `[I, I]` of the conjugate posterior."""
    covariance = torch.linalg.inv(torch.eye(x.shape[1], dtype=x.dtype) / PRIOR + x.T @ x / NOISE)
    return (covariance @ x.T @ y)[:, 0] / NOISE, covariance


class Residuals(pl.Callback):
    """The logged residual of every update."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *_):
        self.found.append(trainer.callback_metrics["train/residual"].item())


def fitted(x: Tensor, y: Tensor, epochs: int, size: int | None = None, **options) -> tuple[Tensor, Tensor, list[float]]:
    """Means and variances `[I]` of a linear layer after epochs of a fit with the method's defaults, and residuals."""
    torch.manual_seed(0)
    method = ExpectationPropagation(prior_variance=PRIOR, noise_variance=NOISE, **options)
    module = SpikingModule(nn.Linear(x.shape[1], 1, bias=False).double(), method, task="regression")
    loader = DataLoader(TensorDataset(x, y), size or len(x), collate_fn=one_step)
    residuals = Residuals()
    trainer(residuals, max_epochs=epochs, precision="64-true").fit(module, loader)
    mean, variance = module.network.chain.blocks[0].layer.moments()
    return mean[0], variance[0], residuals.found


ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("memory", ["per_batch", "average"])
def test_one_weight_and_one_value_reach_the_exact_posterior_by_short_steps(memory):
    mean, variance, residuals = fitted(ONE, 1.5 * ONE, 8, memory=memory, damping=0.3)
    exact_mean, covariance = exact_posterior(ONE, 1.5 * ONE)
    assert exact_mean.item() == pytest.approx(1.2711864406779663)
    torch.testing.assert_close(mean, exact_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, covariance[0], rtol=1e-4, atol=0)
    assert variance.item() == pytest.approx(0.0763, abs=1e-4)
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] > 0.3
    assert residuals[-1] < 1e-4


def test_the_error_shrinks_by_the_damping_of_every_iteration():
    for epochs in (1, 2, 3):
        mean, _, _ = fitted(ONE, 1.5 * ONE, epochs, damping=0.3)
        share = 1 - mean.item() / (75 / 59)
        assert share == pytest.approx(0.7 ** (6 * epochs), rel=1e-6)
        assert share == pytest.approx(0.118**epochs, rel=0.01)


def test_one_epoch_of_the_defaults_is_exact_for_a_single_layer():
    mean, variance, residuals = fitted(ONE, 1.5 * ONE, 1)
    assert mean.item() == pytest.approx(1.2712, abs=1e-4)
    assert mean.item() == pytest.approx(75 / 59, rel=1e-9)
    assert variance.item() == pytest.approx(4.5 / 59, rel=1e-9)
    assert residuals[-1] < 0.1
    mean, _, _ = fitted(ONE, 1.5 * ONE, 1, iterations=1)
    assert mean.item() == pytest.approx(75 / 59, rel=1e-9)  # one solution is exact; the variance takes longer


@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_no_step_is_halved_on_the_way_to_a_value(damping):
    steps = Steps(
        nn.Linear(1, 1, bias=False).double(), True, prior_variance=PRIOR, noise_variance=NOISE, damping=damping
    )
    step = steps.method.training_step(steps.network, ONE[None], 1.5 * ONE)
    assert step.metrics["halved"] == 0


@pytest.mark.parametrize("regression", [False, True])
def test_scores_of_the_output_move_by_the_step_of_the_weights_whatever_the_likelihood(regression):
    x, y = line(60, 20)
    network = prepared(dense(20, 1 if regression else 3), regression, noise_variance=NOISE)
    target = y if regression else (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    whole, part = (updated(network, x, target, 1, damping, 40) for damping in (1.0, 0.3))
    torch.testing.assert_close(part.scores[0], 0.3 * whole.scores[0])
    means = [update.natural[0].precision_mean / update.natural[0].precision for update in (whole, part)]
    before = network.chain.blocks[0].layer.moments()[0]
    torch.testing.assert_close(means[1] - before, 0.3 * (means[0] - before))
    assert (means[0] - before).abs().max() > 0.1


def test_a_pass_that_starts_at_the_cavity_never_gets_further():
    x, y = line(60, 20)
    exact, _ = exact_posterior(x, y)
    network = prepared(nn.Linear(20, 1, bias=False).double(), True, noise_variance=NOISE, prior_variance=PRIOR)
    start, slopes = None, {"restart": [], "continued": []}
    for _ in range(6):
        restarted = updated(network, x, y, 6, 0.3, 40)
        continued = updated(network, x, y, 6, 0.3, 40, start=start)
        start = continued.natural
        for name, update in (("restart", restarted), ("continued", continued)):
            mean = (update.natural[0].precision_mean / update.natural[0].precision)[0]
            slopes[name].append((mean @ exact / (exact @ exact)).item())
    assert slopes["restart"] == pytest.approx([1 - 0.7**6] * 6, abs=1e-3)
    assert slopes["continued"] == pytest.approx([1 - 0.7 ** (6 * epoch) for epoch in range(1, 7)], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_values_with_little_noise_are_met_at_once_by_more_weights_than_values(noise, dtype):
    x, y = line(10, 30)
    covariance = torch.linalg.inv(torch.eye(30, dtype=x.dtype) / PRIOR + x.T @ x / noise)
    exact = (covariance @ x.T @ y)[:, 0] / noise
    layer = nn.Linear(30, 1, bias=False, dtype=dtype)
    network = prepared(layer, True, noise_variance=noise, prior_variance=PRIOR)
    variance = network.chain.blocks[0].layer.moments()[1]
    assert (x.to(dtype).square() @ variance.T).min() > 1000 * noise
    update = updated(network, x.to(dtype), y.to(dtype), 6, 1.0, 60)
    mean = (update.natural[0].precision_mean / update.natural[0].precision)[0].double()
    # before, sites were too wide by V / (1000 noise): the error was 1e-3 and shrank by 0.1 % an iteration
    assert (mean - exact).norm() < 1e-4 * exact.norm()
    again = updated(network, x.to(dtype), y.to(dtype), 1, 1.0, 60, start=update.natural)
    mean = (again.natural[0].precision_mean / again.natural[0].precision)[0].double()
    assert (mean - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("size", [60, 20])
def test_a_linear_model_reaches_the_exact_mean_in_one_batch_and_in_several(size):
    x, y = line(60, 20)
    exact, covariance = exact_posterior(x, y)
    errors = []
    for epochs in (1, 3, 10):
        mean, variance, residuals = fitted(x, y, epochs, size, damping=0.3)
        errors.append(((mean - exact).abs() / covariance.diag().sqrt()).max().item())
    assert (mean @ exact / (exact @ exact)).item() == pytest.approx(1, abs=1e-3)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05
    assert residuals[-1] < 0.01
    # factorized variances differ from those of marginals, and not by much here
    assert 0.7 < (variance / covariance.diag()).mean() < 1.3


@pytest.mark.parametrize(("sizes", "total", "tolerance"), [((24, 3), 60, 1e-6), ((24, 6, 3), 120, 0.1)])
def test_a_returning_batch_goes_on_where_it_stopped(sizes, total, tolerance):
    x, y = digits(200)
    found = {}
    for visits, iterations in ((1, total), (total // 5, 5), (total, 1), (1, 5)):
        steps = Steps(dense(*sizes), iterations=iterations, damping=0.3, solver_iterations=20)
        steps.take(x, y, [torch.arange(200)] * visits, 200)
        found[visits, iterations] = [layer.moments() for layer in steps.layers]
    for (mean, variance), *others in zip(*found.values(), strict=True):
        *same, stopped = (((other - mean).abs().max() / variance.sqrt().mean()).item() for other, _ in others)
        assert max(same) < tolerance
        assert stopped > 0.2


def test_a_fit_that_stops_early_warns_and_one_that_converged_does_not():
    with pytest.warns(
        UserWarning, match="has not converged.*weights by 0.56 of their.*1 batches.*Train for more epochs"
    ):
        fitted(ONE, 1.5 * ONE, 1, damping=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "You defined a|The '|`isinstance")
        fitted(ONE, 1.5 * ONE, 3, damping=0.3)
        fitted(ONE, 1.5 * ONE, 1)


def test_a_fit_that_diverges_warns_with_what_to_reduce():
    x, y = line(20, 5)
    with pytest.warns(UserWarning, match="has diverged.*1 of 1 updates.*Reduce `damping`"):
        fitted(1e8 * x, y, 2)


def test_the_verdict_is_on_the_last_epoch():
    convergence = Convergence()
    assert convergence.problem() is None
    for epoch, residual in ((0, 0.9), (1, 0.05), (1, 0.3), (1, 0.01)):
        convergence.record(epoch, torch.tensor(residual))
    assert convergence.problem() is None
    convergence.record(1, torch.tensor(torch.inf))
    assert "1 of 4 updates" in convergence.problem()
    convergence.record(2, torch.tensor(0.2))
    assert "weights by 0.2 of their standard deviations" in convergence.problem()


def test_a_method_learns_of_the_end_of_training_once():
    class Counting(Method):
        ended = 0

        def training_step(self, network, x, y):
            assert self.ended == 0
            return self.step_on_loss(network(x.flatten(0, 1)).unflatten(0, x.shape[:2]), y)

        def on_train_end(self):
            self.ended += 1

    x, y = digits(40)
    module = SpikingModule(nn.Linear(24, 3).double(), Counting(), num_classes=3)
    loader = DataLoader(TensorDataset(x, y), 20, collate_fn=one_step)
    trainer(max_epochs=2, precision="64-true").fit(module, loader)
    assert module.method.ended == 1
