from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.eligibility import lif_rate
from lightning_snn.methods.rate import Alignment, gradient_alignment, rate_run
from lightning_snn.methods.rate.third_party import module_alignment, rate_backward
from lightning_snn.nn import RecurrentLIF, register_spiking_layer
from lightning_snn.nn.conventions import REGISTERED
from lightning_snn.nn.moments import Moments

STEPS, BATCH, FEATURES, HIDDEN, CLASSES = 6, 4, 5, 9, 3
Y = torch.arange(BATCH) % CLASSES


pytestmark = pytest.mark.usefixtures("float64_by_default")


@pytest.fixture
def registered() -> Any:
    """Registered types of spiking layers, which are removed after the test."""
    yield register_spiking_layer
    for kind in (StepByStep, Wrapper):
        REGISTERED.pop(kind, None)


def varying(*shape: int) -> Tensor:
    """Inputs that differ from step to step."""
    return torch.rand(STEPS, BATCH, *shape)


def mean_loss(outputs: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mean(0), Y)


def loss_of(x: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda module: mean_loss(run(module, x))


def assert_same(found: dict[str, Alignment], expected: dict[str, Alignment], names: dict[str, str] | None = None):
    assert expected["all"].cosine < 0.999  # or the gradient of backpropagation through time would do
    names = {name: name for name in expected} if names is None else names
    assert set(found) == set(names)
    for name, other in names.items():
        assert tuple(found[name]) == pytest.approx(tuple(expected[other]), abs=1e-10), name


class StepByStep(nn.Module):
    """A registered spiking layer that takes one step per call and is reset from outside."""

    def __init__(self, neuron: LIF) -> None:
        super().__init__()
        self.neuron = neuron
        self.v: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        spikes, self.v = self.neuron.step(current, self.v)
        return spikes


class Loop(nn.Module):
    """A network in a loop over time, with the modules of a folded one."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.body = nn.ModuleList(StepByStep(part) if isinstance(part, LIF) else part for part in network)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for part in self.body:
            if isinstance(part, StepByStep):
                part.v = None
        for step in x:
            for part in self.body:
                step = part(step)
            outputs.append(step)
        return torch.stack(outputs)


def dense(**options: Any) -> nn.Sequential:
    options = {"beta": 0.7, "threshold": 0.5, **options}
    first = LIF(**options)
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), first, nn.Linear(HIDDEN, HIDDEN), LIF(0.9, 0.4), nn.Linear(HIDDEN, CLASSES)
    )


DYNAMICS = {
    "subtract": {},
    "detached": {"detach_reset": True},
    "zero": {"reset": "zero"},
    "pending": {"order": "leak_then_reset", "detach_reset": True},
    "learned": {"learn_beta": True, "learn_threshold": True},
    "channels": {"learn_beta": True, "learn_threshold": True, "channels": HIDDEN},
}


@pytest.mark.parametrize("options", DYNAMICS.values(), ids=DYNAMICS)
@pytest.mark.parametrize("loops", [False, True], ids=["folded", "loop"])
def test_it_equals_the_rules_of_rate_run(options: dict[str, Any], loops: bool, registered: Any):
    registered(StepByStep)
    network, x = dense(**options).double(), varying(FEATURES)
    expected = gradient_alignment(network, (x, Y))
    if not loops:
        assert_same(module_alignment(network, loss_of(x)), expected)
        return
    learned = {"body.1.neuron": "1"} if options.get("learn_beta") else {}
    names = {**{f"body.{index}": str(index) for index in (0, 2, 4)}, **learned, "all": "all"}
    assert_same(module_alignment(Loop(network), lambda module: mean_loss(module(x))), expected, names)


def test_it_equals_the_rules_of_rate_run_for_images():
    body = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6).eval(), LIF(0.5, 0.5), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3)]
    network = nn.Sequential(*body, LIF(0.8, 0.3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))
    # of images in black and white several pixels are the largest
    x = varying(2, 14, 14).round()
    assert_same(module_alignment(network, loss_of(x)), gradient_alignment(network, (x, Y)))


def test_skip_connections_pass_errors():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), LIF(0.9, 0.4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), LIF(0.7, 0.5), Skip(), Skip(), nn.Linear(HIDDEN, CLASSES))
    x = varying(FEATURES)
    assert_same(module_alignment(network, loss_of(x)), gradient_alignment(network, (x, Y)))


@pytest.mark.parametrize(
    ("reset", "order"),
    [("subtract", "reset_then_leak"), ("subtract", "leak_then_reset"), ("zero", "reset_then_leak")],
)
@pytest.mark.parametrize("detach", [True, False])
def test_a_constant_error_reaches_each_current_by_the_eligibility(reset: Any, order: Any, detach: bool):
    dynamics = Dynamics(reset, order, detach)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.current = nn.Parameter(torch.rand(STEPS, BATCH, HIDDEN))
            self.lif = LIF(0.8, 0.5, reset, detach, order=order)

    layer, error = Layer(), torch.randn(BATCH, HIDDEN)
    rate_backward(layer, lambda module: (run(module.lif, module.current).mean(0) * error).sum())
    record = lif_rate(layer.current.detach(), 0.8, 0.5, dynamics)[1].record()
    expected = (error * record.eligibility / STEPS).expand(STEPS, -1, -1)
    assert layer.current.grad is not None
    assert (layer.current.grad - expected).abs().max() < 1e-12
    assert expected.abs().max() > 0.01


class Spike(torch.autograd.Function):
    """snntorch's arctangent in double precision: its own spikes are of single precision always."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * distance).square())


def leaky(beta: float, threshold: float = 1.0, **options: Any) -> snntorch.Leaky:
    return snntorch.Leaky(beta, threshold, Spike.apply, **options)


def snntorch_module(network: nn.Sequential, hidden: bool, **options: Any) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            neuron = {"beta": 0.7, "threshold": 0.5, "init_hidden": hidden, **options}
            self.first, self.second = copy.deepcopy(network[0]), copy.deepcopy(network[2])
            self.lif = leaky(**neuron)

        def forward(self, x: Tensor) -> Tensor:
            outputs, membrane = [], self.lif.reset_mem()
            for step in x:
                if hidden:
                    spikes = self.lif(self.first(step))
                else:
                    spikes, membrane = self.lif(self.first(step), membrane)
                outputs.append(self.second(spikes))
            return torch.stack(outputs)

    return Module().double()


def spikingjelly_module(network: nn.Sequential, mode: str, node: Any) -> nn.Module:
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    layer = pytest.importorskip("spikingjelly.activation_based.layer")

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer.Linear(FEATURES, HIDDEN), layer.Linear(HIDDEN, CLASSES)
            self.first.load_state_dict(network[0].state_dict())
            self.second.load_state_dict(network[2].state_dict())
            self.lif = node
            functional.set_step_mode(self, mode)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            if mode == "m":
                return self.second(self.lif(self.first(x)))
            return torch.stack([self.second(self.lif(self.first(step))) for step in x])

    return Module().double()


NAMES = {"first": "0", "second": "2", "all": "all"}


def shallow(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), LIF(**options), nn.Linear(HIDDEN, CLASSES)).double()


@pytest.mark.parametrize("hidden", [False, True], ids=["loop", "init_hidden"])
def test_snntorch_s_neurons_have_the_alignment_of_ours(hidden: bool):
    network = shallow(beta=0.7, threshold=0.5, order="leak_then_reset", detach_reset=True)
    module, x = snntorch_module(network, hidden), varying(FEATURES)
    found = module_alignment(module, lambda each: mean_loss(each(x)))
    assert_same(found, gradient_alignment(network, (x, Y)), NAMES)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_spikingjelly_s_neurons_have_the_alignment_of_ours(mode: str, reset: Any):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    network, x = shallow(beta=0.75, threshold=0.5, reset=reset), varying(FEATURES)
    value = None if reset == "subtract" else 0.0
    node = neuron.LIFNode(4.0, False, 0.5, value, surrogate.ATan(2.0))
    module = spikingjelly_module(network, mode, node)
    found = module_alignment(module, lambda each: mean_loss(each(x)))
    assert_same(found, gradient_alignment(network, (x, Y)), NAMES)


def test_neurons_without_a_leak_have_one_alignment_in_all_libraries():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    network, x = shallow(beta=1.0, threshold=0.5, detach_reset=True), varying(FEATURES)
    modules = [snntorch_module(network, hidden, beta=1.0) for hidden in (False, True)]
    for mode in ("s", "m"):
        node = neuron.IFNode(0.5, None, surrogate.ATan(2.0), detach_reset=True)
        modules.append(spikingjelly_module(network, mode, node))
    expected = gradient_alignment(network, (x, Y))
    for module in modules:
        assert_same(module_alignment(module, lambda each: mean_loss(each(x))), expected, NAMES)


def test_both_gradients_are_the_same_at_one_time_step():
    network = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), RecurrentLIF(HIDDEN), nn.Linear(HIDDEN, CLASSES)
    )
    one = module_alignment(network, loss_of(torch.rand(1, BATCH, FEATURES)))
    del one["2"]  # whose weights receive no spikes
    for alignment in one.values():
        assert alignment == pytest.approx((1, 1), abs=1e-12)
    network[2] = LIF(0.9, 0.5)
    assert module_alignment(network, loss_of(varying(FEATURES)))["0"].cosine < 0.99


def test_a_current_that_is_computed_once_counts_at_every_step():
    class Static(nn.Module):
        def __init__(self, once: bool) -> None:
            super().__init__()
            self.once = once
            self.first, self.lif, self.second = nn.Linear(FEATURES, HIDDEN), leaky(0.7), nn.Linear(HIDDEN, 3)

        def forward(self, x: Tensor) -> Tensor:
            membrane, current, outputs = self.lif.reset_mem(), self.first(x), []
            for _ in range(STEPS):
                spikes, membrane = self.lif(current if self.once else self.first(x), membrane)
                outputs.append(self.second(spikes))
            return torch.stack(outputs)

    x = torch.rand(BATCH, FEATURES)
    each = Static(once=False).double()
    once = copy.deepcopy(each)
    once.once = True
    found, expected = (module_alignment(module, lambda each: mean_loss(each(x))) for module in (once, each))
    for name, alignment in expected.items():
        assert found[name] == pytest.approx((1, 1), abs=1e-10)  # as of any constant current of one layer
        assert alignment == pytest.approx((1, 1), abs=1e-10)


@pytest.mark.parametrize("options", [{}, {"reset_mechanism": "none", "surrogate_disable": True}], ids=["", "silent"])
def test_membranes_that_are_read_out_learn_by_backpropagation_through_time(options: dict[str, Any]):
    class Membranes(nn.Module):
        """As in snntorch's tutorials: a loss of the last membranes at every step."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
            self.lif1, self.lif2 = leaky(0.8, 0.4), leaky(0.9, **options)

        def forward(self, x: Tensor) -> Tensor:
            membrane1, membrane2 = self.lif1.reset_mem(), self.lif2.reset_mem()
            loss = x.new_zeros(())
            for step in x:
                spikes, membrane1 = self.lif1(self.first(step), membrane1)
                _, membrane2 = self.lif2(self.second(spikes), membrane2)
                loss = loss + F.cross_entropy(membrane2, Y)
            return loss

    module, x = Membranes().double(), varying(FEATURES)
    found = module_alignment(module, lambda each: each(x))
    assert found["second"] == pytest.approx((1, 1), abs=1e-12)
    assert found["first"].cosine < 0.99
    # by hand: the errors of the spikes of the first layer by backpropagation through time, their mean, the eligibility
    currents = torch.stack([module.first(step) for step in x]).detach()
    spikes, state = lif_rate(currents, 0.8, 0.4, Dynamics(order="leak_then_reset", detach_reset=True))
    spikes.requires_grad_()
    membrane, loss = module.lif2.reset_mem(), torch.zeros(())
    for step in spikes:
        _, membrane = module.lif2(module.second(step), membrane)
        loss = loss + F.cross_entropy(membrane, Y)
    (errors,) = torch.autograd.grad(loss, spikes)
    expected = (errors.mean(0) * state.record().eligibility).t() @ x.sum(0)
    rate_backward(module, lambda each: each(x))
    torch.testing.assert_close(module.first.weight.grad, expected, rtol=0, atol=1e-12)


def test_only_the_readout_differs_from_rate_run_with_a_loss_at_every_step():
    network, x = dense(), varying(FEATURES)

    def loss(outputs: Tensor) -> Tensor:
        return sum(F.cross_entropy(step, Y) for step in outputs)  # type: ignore[return-value]

    found, expected = copy.deepcopy(network), copy.deepcopy(network)
    rate_backward(found, lambda module: loss(run(module, x)))
    loss(rate_run(expected, x)).backward()
    for index in (0, 2):
        assert (found[index].weight.grad - expected[index].weight.grad).abs().max() < 1e-10
    exact = copy.deepcopy(network)
    loss(run(exact, x)).backward()
    assert (found[4].weight.grad - exact[4].weight.grad).abs().max() < 1e-12
    assert (found[4].weight.grad - expected[4].weight.grad).abs().max() > 1e-3


def with_draws() -> nn.Sequential:
    body = [nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), LIF(0.5, 0.5), nn.Dropout()]
    return nn.Sequential(*body, nn.Linear(HIDDEN, CLASSES))


def test_all_values_are_those_of_an_ordinary_run():
    network = with_draws()
    ordinary, x = copy.deepcopy(network), varying(FEATURES)
    torch.manual_seed(1)
    expected = loss_of(x)(ordinary)
    torch.manual_seed(1)
    assert torch.equal(rate_backward(network, loss_of(x)), expected)
    for name, buffer in ordinary.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def test_nothing_is_left_behind():
    network = with_draws()
    x, before = varying(FEATURES), copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    found = module_alignment(network, loss_of(x))
    assert torch.equal(torch.get_rng_state(), state)
    # the same mask in both runs: what is behind the last spikes has one gradient
    assert found["4"] == pytest.approx((1, 1), abs=1e-12)
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    rate_backward(network, loss_of(x))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_gradients_add_up():
    network, x = dense(learn_beta=True).double(), varying(FEATURES)
    rate_backward(network, loss_of(x))
    once = [parameter.grad.clone() for parameter in network.parameters()]
    rate_backward(network, loss_of(x))
    for parameter, gradient in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_spikes_may_be_changed_in_place_and_first_weights_be_frozen():
    network, x = dense(), varying(FEATURES)
    network.insert(2, nn.ReLU(inplace=True))
    expected = module_alignment(network, loss_of(x))
    network[0].requires_grad_(False)
    found = module_alignment(network, loss_of(x))
    assert list(found) == ["3", "5", "all"]
    assert found["3"] == pytest.approx(tuple(expected["3"]), abs=1e-12)


def test_a_part_without_gradients_is_left_as_it_is():
    network, x = dense(), varying(FEATURES)
    inputs = run(network[:2], x).detach()

    def loss(module: nn.Module) -> Tensor:
        with torch.no_grad():
            spikes = run(module[:2], x)
        return mean_loss(run(module[2:], spikes))

    found = module_alignment(network, loss)
    expected = gradient_alignment(network[2:], (inputs, Y))
    assert found["2"] == pytest.approx(tuple(expected["2"]), abs=1e-10)
    assert found["0"].cosine != found["0"].cosine


class Wrapper(nn.Module):
    """A spiking layer made of another one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_spiking_layer_within_another_is_one_with_it(registered: Any):
    network, x = dense(), varying(FEATURES)
    expected = module_alignment(network, loss_of(x))
    registered(Wrapper, all_steps=True)
    network[1] = Wrapper(network[1])
    assert_same(module_alignment(network, loss_of(x)), expected)


class Feedback(nn.Module):
    """Spikes that come back as current at the next step."""

    def __init__(self, lif: nn.Module) -> None:
        super().__init__()
        self.first, self.lif, self.back = nn.Linear(FEATURES, HIDDEN), lif, nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        spikes, membrane = x.new_zeros(BATCH, HIDDEN), self.lif.reset_mem()
        outputs = []
        for step in x:
            spikes, membrane = self.lif(self.first(step) + self.back(spikes), membrane)
            outputs.append(spikes[:, :CLASSES])
        return torch.stack(outputs)


class Rleaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.lif = snntorch.RLeaky(0.8, linear_features=HIDDEN, threshold=0.5, spike_grad=Spike.apply)

    def forward(self, x: Tensor) -> Tensor:
        spikes, membrane = self.lif.reset_mem()
        outputs = []
        for step in x:
            spikes, membrane = self.lif(self.first(step), spikes, membrane)
            outputs.append(spikes[:, :CLASSES])
        return torch.stack(outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feedback(leaky(0.8, 0.5)), r"lif: Leaky \(it receives its own spikes, or"),
        (Rleaky, r"lif: RLeaky \(it receives its own spikes, or"),
    ],
    ids=["a loop's", "a layer's"],
)
def test_recurrence_is_refused_by_name(make: Callable[[], nn.Module], message: str):
    x = varying(FEATURES)
    with pytest.raises(ValueError, match=message):
        rate_backward(make().double(), lambda module: mean_loss(module(x)))


def test_recurrence_of_our_layers_is_refused_by_name():
    network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), RecurrentLIF(HIDDEN, 0.8, 0.5), nn.Linear(HIDDEN, CLASSES))
    with pytest.raises(ValueError, match=r"1: RecurrentLIF \(its neurons receive input from each other\)"):
        rate_backward(network, loss_of(varying(FEATURES)))
    network[1].weight.data.zero_()
    rate_backward(network, loss_of(varying(FEATURES)))


def test_one_layer_in_two_places_is_refused_by_name():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
            self.lif = leaky(0.8)

        def forward(self, x: Tensor) -> Tensor:
            first = second = None
            for step in x:
                spikes, first = self.lif(self.first(step), first)
                spikes, second = self.lif(self.second(spikes), second)
            return second[None]

    x = varying(FEATURES)
    with pytest.raises(ValueError, match=r"lif: Leaky \(it is called with steps of the shapes \(4, 9\) and \(4, 3\)\)"):
        rate_backward(Twice().double(), lambda module: mean_loss(module(x)))


def test_a_layer_with_a_connection_of_its_own_is_refused_by_name():
    lif = snntorch.LinearLeaky(0.8, FEATURES, CLASSES)
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), lif).float()
    message = r"1: LinearLeaky \(its current and its spikes have the shapes \(6, 4, 5\) and \(6, 4, 3\)\)"
    with pytest.raises(ValueError, match=message):
        rate_backward(network, lambda module: module(varying(FEATURES).float())[0].mean())


def test_a_gaussian_current_is_refused():
    lif = LIF()
    with pytest.raises(ValueError, match=r"LIF: LIF \(it receives a Gaussian current\)"):
        rate_backward(lif, lambda module: module(Moments(torch.rand(4, 2), torch.rand(4, 2))))


@pytest.mark.parametrize(
    ("module", "got"),
    [
        (nn.Linear(FEATURES, CLASSES), "any: it has none"),
        (nn.Sequential(nn.Linear(FEATURES, CLASSES), LIF()), "1"),
    ],
    ids=["none", "not called"],
)
def test_a_run_without_spiking_layers_is_refused(module: nn.Module, got: str):
    linear = module if isinstance(module, nn.Linear) else module[0]
    with pytest.raises(ValueError, match=f"to be called with gradients enabled, but got no call of {got}"):
        rate_backward(module.double(), lambda _: linear(varying(FEATURES)).mean())


def test_a_module_without_trained_parameters_is_refused():
    with pytest.raises(ValueError, match="`module` to have parameters that require a gradient, but got none"):
        module_alignment(LIF(), loss_of(varying(FEATURES)))


def test_hooks_are_gone_after_an_exception():
    network = dense()

    def fails(module: nn.Module) -> Tensor:
        run(module, varying(FEATURES))
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        rate_backward(network, fails)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
