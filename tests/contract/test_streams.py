"""The promises of the networks of every method: they advance step by step as they run over a whole sequence."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from lightning_snn import SpikingModule, Stream, advance, run
from lightning_snn.methods import SpikingBayes, TimeToFirstSpike
from lightning_snn.methods.ep import ExpectationPropagation
from lightning_snn.methods.noisy import NoisyMethod
from lightning_snn.nn import posterior_noise, weight_draws
from lightning_snn.nn.observation import observe
from tests.contract.table import METHODS, MethodRow
from tests.support.event_order import CLASSES, order_of_events

TABLE = METHODS
X, _ = order_of_events(2)


def build(row: MethodRow, dtype: torch.dtype = torch.float64) -> tuple[SpikingModule, Tensor]:
    torch.manual_seed(0)
    module = SpikingModule(row.network(), row.make(), num_classes=CLASSES)
    # inputs of first-spike networks have a range
    return module.to(dtype).eval(), (4 * X if has_states(row) else X).to(dtype)


def streamed(stream: Stream, x: Tensor) -> Tensor:
    return torch.stack([stream(step) for step in x])


def has_states(row: MethodRow) -> bool:
    """The neurons of these methods forget at the end of a step."""
    return not isinstance(row.make(), (TimeToFirstSpike, ExpectationPropagation))


def spikes_of(module: SpikingModule, x: Tensor, by_steps: bool) -> list[Tensor]:
    found: dict[str, list[Tensor]] = {}
    with observe(module.network, lambda call: found.setdefault(call.name, []).append(call.spikes)), torch.no_grad():
        streamed(Stream(module.network), x) if by_steps else run(module.network, x)
    return [torch.cat(pieces) for pieces in found.values()]


def test_a_stream_gives_the_outputs_of_a_run(row):
    """Outputs are those of `run` row by row, to 1e-12 in float64 and to 1e-6 in float32."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        module, x = build(row, dtype)
        with torch.no_grad():
            expected = run(module.network, x)
            fresh = torch.stack([advance(module.network, step[None])[0][0] for step in x])
        found = streamed(Stream(module.network), x)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert expected.std() > 1e-2
        # the states matter
        assert ((fresh - expected).abs().max() > 1e-2) == has_states(row)


def test_the_spikes_of_a_stream_are_those_of_a_run(row):
    """Spikes of all layers are equal in float64."""
    module, x = build(row)
    whole, steps = (spikes_of(module, x, by_steps) for by_steps in (False, True))
    assert len(whole) == len(steps)
    for one, other in zip(whole, steps, strict=True):
        assert torch.equal(one, other)
        assert one.any()


def test_a_sample_of_a_stream_is_reset_and_the_others_go_on(row):
    """After a reset, the outputs for a sample are those from rest, and those for others as without the reset."""
    module, x = build(row)
    stream, untouched = Stream(module.network), Stream(module.network)
    for step in x[:4]:
        stream(step), untouched(step)
    stream.reset([1])
    got, others, rested = (streamed(each, x[4:]) for each in (stream, untouched, Stream(module.network)))
    assert torch.equal(got[:, 1], rested[:, 1])
    assert torch.equal(got[:, [0, 2, 3]], others[:, [0, 2, 3]])


def test_a_stream_saved_by_weights_only_goes_on(row):
    """A stream that loads the states of another one gives the outputs of that one."""
    module, x = build(row)
    stream, file = Stream(module.network), io.BytesIO()
    for step in x[:4]:
        stream(step)
    torch.save(stream.state_dict(), file)
    file.seek(0)
    loaded = Stream(module.network)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(streamed(loaded, x[4:]), streamed(stream, x[4:]))


def test_another_number_of_samples_is_refused_by_name(row):
    """The states belong to the samples of the steps before; without any, every step is one of its own."""
    module, x = build(row)
    stream = Stream(module.network)
    stream(x[0])
    if not has_states(row):
        assert stream.state == {}
        assert len(stream(x[1, :3])) == 3
        return
    with pytest.raises(ValueError, match="B = 4 samples, as those of the state of .+, but got 3"):
        stream(x[1, :3])


def test_anytime_predictions_are_those_of_the_steps_so_far(row):
    """Row t is the prediction from the outputs of a stream up to step t; that of samples, and of rates, is its own."""
    module, x = build(row)
    method = module.method
    if isinstance(method, NoisyMethod) and method.samples > 0:
        method.samples = 0
    found = method.predict_anytime(module.network, x).mean
    for time in range(len(x)):
        if isinstance(method, ExpectationPropagation):
            expected = method.predict(module.network, x[: time + 1]).mean
        else:
            outputs = streamed(Stream(module.network), x[: time + 1])
            expected = method.task.predict(method.task.read(outputs)).mean
        torch.testing.assert_close(found[time], expected, rtol=1e-9, atol=1e-12)


def test_draws_of_a_posterior_are_refused_and_its_mean_streams(row):
    """Noise and weights are drawn for a whole sequence, so a stream takes the mean or a copy with drawn weights."""
    module, x = build(row)
    for context in (posterior_noise(), weight_draws(1)):
        with context, pytest.raises(ValueError, match="draws belong to a whole sequence"):
            Stream(module.network)(x[0])
    if isinstance(module.method, SpikingBayes):
        mean, drawn = module.method.posterior_mean(module.network), module.method.posterior_sample(module.network)
        assert torch.equal(streamed(Stream(mean), x), streamed(Stream(module.network), x))
        torch.testing.assert_close(streamed(Stream(drawn), x), run(drawn, x).detach(), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(run(drawn, x), run(mean, x))
