"""Precisions of a Trainer, for every method on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import SpikingModule
from lightning_snn.functional.ep import spike_message
from lightning_snn.functional.gaussian import mills_ratio, normal_cdf, normal_log_odds
from lightning_snn.methods import ExpectationPropagation
from lightning_snn.methods.ep.firing import FiringProbability, SpikeLogOdds
from lightning_snn.nn import LeakyIntegrator
from tests.contract.table import METHODS, every_method
from tests.support.event_order import CLASSES, loader, order_of_events, small_network
from tests.support.training import trainer

X, Y = order_of_events(16)
DTYPES = {"16-mixed": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@pytest.mark.parametrize("precision", DTYPES)
@every_method
def test_every_method_trains_and_predicts_in_every_precision(row, precision):
    torch.manual_seed(0)
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, batch_first=False)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    fitting = trainer(max_epochs=2, precision=precision)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitting.fit(module, loader(X, Y, 16), loader(X, Y, 16))
    assert fitting.callback_metrics["val/nll"].isfinite()
    messages = isinstance(module.method, ExpectationPropagation)
    dtype = torch.float32 if messages else DTYPES[precision]
    after = list(module.parameters())
    assert all(new.dtype == dtype and new.isfinite().all() for new in after)
    # small changes are lost in half precision, such as those of the logarithm of a standard deviation
    assert any(not torch.equal(old.to(dtype), new) for old, new in zip(before, after, strict=True))
    for prediction in fitting.predict(module, loader(X, Y, 16)):
        assert prediction.mean.isfinite().all()
    said = [each for each in caught if "epsilon of Adam" in str(each.message)]
    assert len(said) == (precision == "16-true" and not messages)


@pytest.mark.parametrize("name", [row.name for row in METHODS if row.name.startswith("expectation")])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_messages_in_half_precision_are_those_of_float32_on_rounded_inputs(name, precision, dtype):
    row = next(row for row in METHODS if row.name == name)

    def fitted(x: Tensor, **options: str) -> SpikingModule:
        torch.manual_seed(0)
        module = SpikingModule(row.network(), row.make(), num_classes=CLASSES, batch_first=False)
        trainer(max_epochs=2, **options).fit(module, loader(x, Y, 16))
        return module

    rounded = X.to(dtype).float()
    assert not torch.equal(rounded, X)
    half, single, other = fitted(X, precision=precision), fitted(rounded), fitted(X)
    states = [module.network.state_dict() for module in (half, single, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[2])


def test_natural_parameters_are_widened_and_moved_but_never_narrowed():
    network = ExpectationPropagation(learn_noise=True).prepare(small_network())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for convert in (nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.float16)):
        converted = convert(network)
        assert all(torch.equal(value, state[key]) for key, value in converted.state_dict().items())
    assert all(value.dtype == torch.float64 for value in network.double().state_dict().values())
    assert all(value.dtype == torch.float32 for value in network.half().state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [mills_ratio, normal_cdf, normal_log_odds])
def test_normal_tails_in_half_precision_are_those_of_float32_rounded(function, dtype):
    z = torch.linspace(0, 3, 50).to(dtype)
    assert torch.equal(function(z), function(z.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["probit", "sigmoid"])
def test_spike_probabilities_and_messages_exist_in_half_precision(activation, dtype):
    u = torch.linspace(-3, 3, 20).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    for layer in (FiringProbability(activation), SpikeLogOdds(activation)):
        torch.testing.assert_close(layer(u).float(), layer(u.float()), rtol=tolerance, atol=tolerance)
    message = spike_message(u, torch.ones_like(u), torch.full_like(u, torch.inf), activation)
    exact = spike_message(u.float(), torch.ones(20), torch.full((20,), torch.inf), activation)
    torch.testing.assert_close(message.score.float(), exact.score, rtol=4 * tolerance, atol=4 * tolerance)


def test_a_membrane_is_accumulated_in_float32_from_currents_in_half_precision():
    current = torch.full((300, 1, 1), 2.0**-9, dtype=torch.bfloat16)
    outputs, state = LeakyIntegrator(beta=1.0).scan(current)
    assert state.dtype == torch.float32
    assert state.item() == 300 * 2.0**-9
    in_half = torch.zeros(1, dtype=torch.bfloat16)
    for step in current:
        in_half = in_half + step[0]
    assert in_half.item() == 0.5  # a sum in bfloat16 stops there
    assert outputs.dtype == torch.bfloat16
