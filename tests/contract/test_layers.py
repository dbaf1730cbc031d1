"""The promises made of every layer with a state."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.methods.rate import rate_refusals, rate_run
from lightning_snn.nn import StatefulLayer, SynapticDelays, folded
from tests.contract.table import LAYERS

TABLE = LAYERS
STEPS, BATCH = 12, 3


def sequence(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(STEPS, BATCH, 4) + 0.4).to(dtype)


def trainable(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


def streamed(layer: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a sequence given one step at a time."""
    state, outputs = None, []
    for current in x:
        output, state = layer.step(current, state)
        outputs.append(output)
    return torch.stack(outputs)


def test_the_same_sequence_gives_the_same_output_twice(row):
    layer, x = row.make(), sequence()
    assert torch.equal(run(layer, x), run(layer, x))


def test_the_output_depends_on_the_past(row):
    layer, x = row.make(), sequence()
    other = x.clone()
    other[0] += 3
    assert not torch.equal(run(layer, x)[1:], run(layer, other)[1:])


def test_the_output_does_not_depend_on_the_future(row):
    layer, x = row.make(), sequence()
    other = x.clone()
    other[6:] += 3
    assert torch.equal(run(layer, x)[:6], run(layer, other)[:6])
    assert not torch.equal(run(layer, x)[6:], run(layer, other)[6:])


def test_streaming_gives_the_sequence_and_its_gradients(row):
    layer, x = row.make().double(), sequence(torch.float64).requires_grad_()
    outputs, expected = streamed(layer, x), run(layer, x)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    inputs, cotangent = [x, *trainable(layer)], torch.randn_like(expected)
    references = torch.autograd.grad(expected, inputs, cotangent)
    for got, reference in zip(torch.autograd.grad(outputs, inputs, cotangent), references, strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_streaming_starts_at_rest_and_leaves_given_states_alone(row):
    layer, x = row.make(), sequence()
    _, state = layer.step(x[0])
    kept = copy.deepcopy(state)
    one, _ = layer.step(x[1], state)
    layer.step(10 * x[0])
    other, _ = layer.step(x[1], state)
    assert torch.equal(one, other)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)


@torch.no_grad()
def test_a_state_outlives_the_buffer_of_its_input(row):
    layer, frame = row.make(), torch.full((2, 4), 0.5)
    _, state = layer.step(frame)
    kept = copy.deepcopy(state)
    frame.zero_()
    torch.testing.assert_close(state, kept, rtol=0, atol=0)


def test_a_call_leaves_nothing_on_the_layer(row):
    layer, x = row.make(), sequence()
    before, keys = {name: id(value) for name, value in vars(layer).items()}, list(layer.state_dict())
    run(layer, x)
    layer.step(x[0])
    assert {name: id(value) for name, value in vars(layer).items()} == before
    assert list(layer.state_dict()) == keys


def test_another_layer_that_runs_in_between_changes_nothing(row):
    layer, other, x = row.make(), row.make(), sequence()
    expected = run(layer, x)
    with folded(6):
        run(other, 10 * x)
    assert torch.equal(run(layer, x), expected)


def test_samples_of_a_batch_do_not_see_each_other(row):
    layer, x = row.make().double(), sequence(torch.float64)
    whole = run(layer, x)
    for index in range(BATCH):
        torch.testing.assert_close(run(layer, x[:, index : index + 1])[:, 0], whole[:, index], rtol=1e-12, atol=1e-12)


def test_a_state_dict_carries_all_that_shapes_the_output(row):
    layer, x = row.make(), sequence()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    other = row.make()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(run(other, x), run(layer, x))


def test_a_copy_made_after_a_backward_pass_equals_the_original(row):
    layer, x = row.make(), sequence().requires_grad_()
    run(layer, x).sum().backward()
    assert torch.equal(run(copy.deepcopy(layer), x), run(layer, x))


def test_a_dropped_layer_is_gone(row):
    layer, x = row.make(), sequence().requires_grad_()
    output = run(layer, x)
    output.sum().backward()
    alive = weakref.ref(layer), weakref.ref(output)
    del layer, output
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("streaming", [False, True])
def test_rates_of_one_step_windows_keep_the_output_and_reach_all(row, streaming):
    layer, x = row.make(), sequence().requires_grad_()
    assert rate_refusals(layer, one_step_windows=True) == []
    output = rate_run(layer, x, STEPS, streaming)
    assert torch.equal(output, run(layer, x))
    gradients = torch.autograd.grad(output, [x, *trainable(layer)], torch.randn_like(output))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_output_and_gradient_have_the_dtype_of_the_input(row, dtype):
    layer, x = row.make().to(dtype), sequence(dtype).requires_grad_()
    output = run(layer, x)
    output.float().sum().backward()
    assert output.dtype == x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_a_layer_trains_under_autocast(row):
    network, x = nn.Sequential(nn.Linear(4, 4), row.make()), sequence()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(network, x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trainable(network))
    assert network[0].weight.grad.abs().max() > 0


def test_outside_run_the_layer_says_how_to_call_it(row):
    layer = row.make()
    name, remedy = type(layer).__name__, r"lightning_snn\.run\(network, x\).*\[T, B, \.\.\.\].*layer\.step\(x, state\)"
    with pytest.raises(RuntimeError, match=f"Expected {name} to be called within .*{remedy}"):
        layer(torch.rand(6, 4))


def test_the_repr_names_the_layer_and_its_constants(row):
    layer = row.make()
    assert repr(layer).startswith(f"{type(layer).__name__}(")
    parts = [part for part in layer.modules() if isinstance(part, StatefulLayer)]
    constants = [name for part in parts for name in part.constants]
    assert all(
        f"{name}=" in repr(layer) for name in [*constants, *(["delays"] if isinstance(layer, SynapticDelays) else [])]
    )
