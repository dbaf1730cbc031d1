"""A NaN in one sample, under every neuron and method: its output and the loss are NaN, other samples are as before.

A comparison with NaN is false, so without care a corrupt input would be a silent neuron and a finite loss.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.methods import Method, Prediction
from lightning_snn.nn import Moments, Neuron, folded, posterior_noise
from tests.contract.table import METHODS, LayerRow, MethodRow
from tests.contract.test_methods import X, build
from tests.contract.test_neurons import BATCH, FEATURES, STEPS, batch, built, methods, network
from tests.contract.test_neurons import TABLE as NEURONS
from tests.support.training import trainer

TABLE = NEURONS
BAD = 1  # the sample with a NaN
OTHERS = [sample for sample in range(BATCH) if sample != BAD]
at_any_step = pytest.mark.parametrize("step", [0, 3, STEPS - 1])
at_either_end = pytest.mark.parametrize("step", [0, STEPS - 1])


def corrupted(x: Tensor, step: int) -> Tensor:
    x = x.clone()
    x[step, BAD, 0] = torch.nan
    return x


def twice(x: Tensor, predict: Callable[[Tensor], Prediction], step: int) -> tuple[Tensor, Tensor]:
    """Means of the prediction for clean and for corrupted inputs, with the same noise."""
    means = []
    for each in (x, corrupted(x, step)):
        torch.manual_seed(3)
        with torch.no_grad():
            means.append(predict(each).mean)
    return means[0], means[1]


def skip_if_refused(row: LayerRow, method: str) -> None:
    if method in row.refused_by:
        pytest.skip("it is refused")


@methods
@at_either_end
def test_the_loss_is_nan_and_gradients_are_nan_or_no_update(row, method, step):
    skip_if_refused(row, method)
    module, (x, y) = built(row.make(), method), batch()
    result = module.method.training_step(module.network, corrupted(x, step), y)
    assert result.loss.isnan()
    assert result.output[BAD].isnan().all()
    parameters = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(result.objective, parameters, materialize_grads=True)
    # expectation propagation rejects a proposal that is not finite
    rejected = result.metrics.get("skipped", torch.zeros(())) == 1
    assert all((gradient == 0).all() for gradient in gradients) if rejected else result.objective.isnan()
    assert rejected or all(gradient.isnan().any() for gradient in gradients)


@methods
@at_either_end
def test_the_prediction_is_nan_and_those_of_other_samples_are_as_before(row, method, step):
    skip_if_refused(row, method)
    module, (x, _) = built(row.make(), method).eval(), batch()
    clean, bad = twice(x, lambda each: module.method.predict(module.network, each), step)
    assert clean.isfinite().all()
    assert bad[BAD].isnan().all()
    assert torch.equal(bad[OTHERS], clean[OTHERS])


@pytest.mark.parametrize("variant", METHODS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("step", [0, 3])
def test_every_variant_of_a_method_predicts_nan_from_the_step_on_for_that_sample_alone(variant: MethodRow, step):
    module = build(variant).eval()
    method: Method = module.method
    others = torch.arange(X.shape[1]) != BAD
    clean, bad = twice(X, lambda x: method.predict(module.network, x), step)
    assert clean.isfinite().all()
    assert bad[BAD].isnan().all()
    assert torch.equal(bad[others], clean[others])
    clean, bad = twice(X, lambda x: method.predict_anytime(module.network, x), step)
    assert bad[step:, BAD].isnan().all()
    assert torch.equal(bad[:step, BAD], clean[:step, BAD])
    assert torch.equal(bad[:, others], clean[:, others])


def reached(layer: nn.Module, step: int) -> Tensor:
    """Return where outputs must be NaN: the neuron from that step on, those that receive its spikes a step later."""
    mask = torch.zeros(STEPS, BATCH, FEATURES, dtype=torch.bool)
    mask[step:, BAD, 0] = True
    if not getattr(layer, "independent", True):
        mask[step + 1 :, BAD] = True
    return mask


def assert_nan_where_reached(layer: Neuron, bad: Tensor, clean: Tensor, step: int) -> None:
    mask = reached(layer, step)
    assert torch.equal(bad.isnan(), mask)
    assert torch.equal(bad[~mask], clean[~mask])


@at_any_step
def test_a_neuron_is_nan_from_the_step_on_and_no_reset_heals_it(row, step):
    layer, x = row.make(), 2 * batch()[0]
    clean, bad = layer.scan(x)[0], layer.scan(corrupted(x, step))[0]
    assert clean.isfinite().all()
    assert_nan_where_reached(layer, bad, clean, step)
    with torch.no_grad():
        assert torch.equal(run(layer, corrupted(x, step)).isnan(), reached(layer, step))


@at_any_step
def test_streaming_gives_the_nan_of_the_scan(row, step):
    layer, x = row.make(), corrupted(2 * batch()[0], step)
    whole, last = layer.scan(x)
    state, outputs = None, []
    for current in x:
        output, state = layer.step(current, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs), whole, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, equal_nan=True, rtol=1e-5, atol=1e-5)


@at_any_step
@pytest.mark.parametrize("moment", ["mean", "variance"])
@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
def test_noisy_neurons_are_nan_from_the_step_on(row, mode, moment, step):
    layer, mean = row.make(), batch()[0]
    if mode not in layer.noise_modes:
        pytest.skip("it does not fire in this mode")
    variance = torch.full_like(mean, 0.3)

    def fire(mean: Tensor, variance: Tensor) -> Tensor:
        noise = posterior_noise(0.5, mode, torch.Generator().manual_seed(4))
        with noise, folded(STEPS), torch.no_grad():
            return layer(Moments(mean.flatten(0, 1), variance.flatten(0, 1))).unflatten(0, (STEPS, BATCH))

    clean = fire(mean, variance)
    assert clean.isfinite().all()
    if moment == "mean":
        bad = fire(corrupted(mean, step), variance)
    else:
        # in mode "trace" the caller computes the variance of the membrane, which stays NaN
        last = STEPS if mode == "trace" else step + 1
        variance[step:last, BAD, 0] = torch.nan
        bad = fire(mean, variance)
    assert_nan_where_reached(layer, bad, clean, step)


def test_check_finite_stops_a_run_at_the_first_epoch_with_a_corrupt_sample():
    x, y = batch()
    for inputs, epochs in ((x, 3), (corrupted(x, 3), 1)):
        module = SpikingModule(network(LIF()), num_classes=3)
        fitting = trainer(EarlyStopping("train/loss", patience=99, check_on_train_epoch_end=True), max_epochs=3)
        fitting.fit(module, DataLoader([(x, y), (inputs, y), (x, y)], batch_size=None))
        assert fitting.current_epoch == epochs
        assert fitting.callback_metrics["train/loss"].isnan() == (epochs == 1)


def test_a_bare_comparison_would_swallow_the_nan(row):
    layer, x = row.make(), corrupted(2 * batch()[0], 3)
    spikes = layer.scan(x)[0]
    potentials, threshold = layer.potentials(x, spikes)
    assert potentials.isnan().any()
    assert (potentials > threshold).float().isfinite().all()
