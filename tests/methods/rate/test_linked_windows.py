"""Windows whose errors pass through the states of neurons: from the gradient of rates to that through time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.linked_windows import WindowLink, linked
from lightning_snn.functional.surrogate import Sigmoid
from lightning_snn.methods import RateBackprop
from lightning_snn.methods.rate import rate_run
from lightning_snn.nn import IF, LIF, AdaptiveLIF, LeakyIntegrator, RecurrentLIF, SynapticDelays, SynapticLIF, run

STEPS, SAMPLES, INPUTS, HIDDEN, CLASSES = 12, 4, 7, 9, 3


def network(make: Callable[[], nn.Module], depth: int = 2, *tail: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, *(depth - 1) * (HIDDEN,)):
        layers += [nn.Linear(inputs, HIDDEN), make()]
    found = nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES), *tail).double()
    for layer in found.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.6 / layer.in_features**0.5)
    return found


def lif(
    beta: float = 0.7,
    reset: str = "subtract",
    detach: bool = True,
    order: str = "reset_then_leak",
    learned: bool = False,
) -> LIF:
    betas = [beta + 0.02 * index for index in range(HIDDEN)] if learned else beta
    return LIF(betas, 0.6, reset, detach, Sigmoid(), order=order, learn_beta=learned, learn_threshold=learned)


def events(steps: int = STEPS, density: float = 0.5) -> Tensor:
    """A pattern that moves over the inputs, in float64."""
    torch.manual_seed(1)
    place = torch.arange(INPUTS) - torch.rand(SAMPLES, 1) * INPUTS
    position = (place - torch.arange(steps)[:, None, None] * INPUTS / steps) % INPUTS
    return (torch.rand(steps, SAMPLES, INPUTS) < density * torch.exp(-0.5 * (position - 2) ** 2) + 0.1).double()


def gradients(outputs: Tensor, model: nn.Module, constant: bool = False) -> list[Tensor]:
    torch.manual_seed(2)
    cotangent = torch.randn(1 if constant else len(outputs), SAMPLES, CLASSES, dtype=torch.float64)
    return list(torch.autograd.grad((outputs * cotangent).sum(), list(model.parameters())))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    difference = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(each.square().sum()) for each in expected)) ** 0.5


def linked_error(model: nn.Module, x: Tensor, window: int, link: bool = True, **options: bool) -> float:
    exact = gradients(run(model, x), model, **options)
    return error(gradients(rate_run(model, x, window, link=link), model, **options), exact)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("reset", "detach", "order"), list(product(RESETS, (True, False), ORDERS)))
def test_one_window_per_step_is_backpropagation_through_time(depth, reset, detach, order):
    model = network(lambda: lif(0.7, reset, detach, order), depth)
    assert linked_error(model, events(), STEPS) < 1e-12
    assert linked_error(model, events(), STEPS, link=False) > 0.1


@pytest.mark.parametrize(("reset", "detach", "order"), list(product(RESETS, (True, False), ORDERS)))
def test_learned_decays_and_thresholds_are_linked_too(reset, detach, order):
    model = network(lambda: lif(0.7, reset, detach, order, learned=True))
    assert {name.split(".")[1] for name, _ in model.named_parameters()} >= {"beta_logit", "threshold_log"}
    assert linked_error(model, events(), STEPS) < 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda: IF(0.6),
        lambda: SynapticLIF(0.5, 0.7, 0.5),
        lambda: AdaptiveLIF(0.7, 0.5, rho=0.8, strength=0.3),
        lambda: AdaptiveLIF(0.7, 0.5, rho=0.8, strength=0.3, learn_beta=True, learn_threshold=True),
    ],
    ids=["IF", "SynapticLIF", "AdaptiveLIF", "AdaptiveLIF, learned"],
)
def test_it_is_for_neurons_with_any_state(make):
    model = network(make)
    assert linked_error(model, events(), STEPS) < 1e-12
    assert linked_error(model, events(), STEPS, link=False) > 0.05


def test_it_is_for_layers_with_a_step_that_do_not_spike():
    assert linked_error(network(lif, 2, LeakyIntegrator(0.8)), events(), STEPS) < 1e-12


@pytest.mark.parametrize("window", [4, 6, 12])
def test_delayed_spikes_arrive_in_later_windows(window):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), lif(), SynapticDelays((0, 1, 5, 20)), nn.Linear(4 * HIDDEN, CLASSES)
    )
    model = model.double()
    nn.init.normal_(model[0].weight, std=0.6)
    found, detached = (linked_error(model, events(), window, link=link) for link in (True, False))
    assert found < 1e-12 if window == STEPS else 0 < found < detached
    assert detached > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_keeps_the_identity(training):
    model = network(lif, 2, nn.BatchNorm1d(CLASSES)).train(training)
    model[-1].running_var.fill_(0.3)
    assert linked_error(model, events(), STEPS) < 1e-12


@pytest.mark.parametrize("window", [2, 4, 12])
@pytest.mark.parametrize("make", [lif, lambda: lif(learned=True), lambda: SynapticLIF(0.5, 0.7, 0.5)])
def test_streaming_has_the_same_gradients(window, make):
    model, x = network(make), events()
    found = (gradients(rate_run(model, x, window, streaming, link=True), model) for streaming in (True, False))
    assert error(*found) < 1e-13


@pytest.mark.parametrize(("beta", "detached"), [(0.2, 0.1), (0.5, 0.4), (0.8, 0.8)])
def test_the_error_falls_with_the_number_of_windows_and_detached_windows_lose_credit(beta, detached):
    model, x = network(lambda: lif(beta)), events(40)
    # the errors of a mean readout are the same at all steps
    errors = [linked_error(model, x, window, constant=True) for window in (2, 5, 10, 20, 40)]
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 1e-12
    assert linked_error(model, x, 40, link=False, constant=True) > detached


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_on_static_input_every_number_of_windows_is_close(beta):
    model, x = network(lambda: lif(beta)), events(1).expand(40, -1, -1)
    errors = [linked_error(model, x, window, constant=True) for window in (1, 2, 4, 5, 8, 10, 20, 40)]
    assert max(errors) < 0.07
    # without links, not even on static input
    assert linked_error(model, x, 40, link=False, constant=True) > 0.07


def test_derivatives_are_those_of_the_recursion_by_autograd():
    torch.manual_seed(0)
    windows, parts, samples = 3, 2, 5
    x, e, b = (torch.rand(windows, samples, dtype=torch.float64) for _ in range(3))
    p = torch.rand(samples, dtype=torch.float64)

    def factors(*shape: int) -> Tensor:
        return torch.rand(windows, *shape, samples, dtype=torch.float64)

    f, a, c, u = factors(parts), factors(parts), factors(parts, parts), factors(1, parts)
    links = [
        WindowLink(tuple(f[k]), tuple(a[k]), tuple(map(tuple, c[k])), tuple(map(tuple, u[k]))) for k in range(windows)
    ]
    x.requires_grad_(), p.requires_grad_()
    state = [torch.zeros(samples, dtype=torch.float64) for _ in range(parts)]
    outputs = []
    for k in range(windows):
        outputs.append(e[k] * x[k] + b[k] * p + sum(f[k][j] * state[j] for j in range(parts)))
        state = [
            a[k][i] * x[k] + u[k][0][i] * p + sum(c[k][j][i] * state[j] for j in range(parts)) for i in range(parts)
        ]
    cotangent = torch.randn(windows, samples, dtype=torch.float64)
    expected = torch.autograd.grad((torch.stack(outputs) * cotangent).sum(), (x, p))
    given = (x.flatten(), torch.zeros(windows * samples), e.flatten(), links, [(p, b.flatten())])
    found = torch.autograd.grad((linked(*given) * cotangent.flatten()).sum(), (x, p))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_the_method_trains_with_it_and_says_so():
    method, x, y = RateBackprop(window=STEPS, link=True), events(), torch.arange(SAMPLES) % CLASSES
    model = network(lif)
    assert "window=12, link=True" in str(method)
    method.training_step(method.prepare(model), x, y).objective.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    loss = nn.functional.cross_entropy(run(model, x).mean(0), y)
    assert error(found, list(torch.autograd.grad(loss, list(model.parameters())))) < 1e-12


def test_one_window_has_nothing_to_link():
    model, x = network(lambda: lif(learned=True)), events()
    found = (gradients(rate_run(model, x, 1, link=link), model) for link in (True, False))
    assert error(*found) < 1e-15


def test_recurrence_is_refused():
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), RecurrentLIF(HIDDEN))
    RateBackprop(window="step").prepare(model)
    with pytest.raises(ValueError, match=r"RateBackprop\(link=True\).*1: RecurrentLIF"):
        RateBackprop(window="step", link=True).prepare(model)


def test_a_state_of_another_shape_than_the_neurons_is_refused():
    class Shared(nn.Module):
        """One state for all neurons of a sample."""

        def step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            state = x.mean(-1, keepdim=True) if state is None else 0.5 * state + x.mean(-1, keepdim=True)
            return x + state, state

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    from lightning_snn.functional.step_eligibility import step_rate

    layer = Shared()
    _, state = step_rate(layer.step, torch.rand(2, SAMPLES, HIDDEN), link=True)
    with pytest.raises(ValueError, match=r"one entry per neuron in each part .* \(4, 9\), but got a part of shape"):
        step_rate(layer.step, torch.rand(2, SAMPLES, HIDDEN), state.next_window(), link=True)


def test_memory_for_the_backward_pass_grows_by_three_tensors_per_neuron_and_window(memory):
    model, x = network(lif, 1).float(), events(40).float()
    parameters = list(model.parameters())

    def saved(window: int) -> int:
        return memory.saved_bytes(lambda: rate_run(model, x, window, link=True), parameters)

    # a window keeps the mean input, the mean spikes, their derivatives along the current and along the state
    per_window = SAMPLES * (INPUTS + 3 * HIDDEN) * 4
    assert saved(20) - saved(10) == 10 * per_window
