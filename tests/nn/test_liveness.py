"""The look at a training step: silent and saturated layers are named, healthy networks never, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.methods import Method, Progress, RateBackprop, SpikingBayes, SurrogateGradient
from lightning_snn.networks import MLP, VGG, EventConvNet, RecurrentNet, ResidualConvNet, ResidualMLP, ResNet
from lightning_snn.nn.folding import folded
from lightning_snn.nn.liveness import watch_activity
from tests.contract.table import METHODS, MethodRow
from tests.support.event_order import order_of_events

X = 2 * torch.rand(8, 16, 10, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def layers(*scales: float, bias: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for scale in scales:
        made += [nn.Linear(10, 10), LIF()]
        nn.init.normal_(made[-2].weight, std=scale)
        nn.init.constant_(made[-2].bias, bias)
    return nn.Sequential(*made, nn.Linear(10, 3))


def test_silent_layers_before_weights_are_named():
    network = layers(1.0, 0.001, 0.001)
    with watch_activity(network) as activity:
        run(network, X)
    assert activity.silent() == ["3", "5"]
    assert activity.saturated() == []
    assert activity.warning() == (
        "The network may not learn: in the first training batch no neuron spikes in 3, 5. Rescale the initial weights "
        'with the callback InitializationCheck(on_fail="rescale"), or change the thresholds of these layers'
    )


def test_saturated_layers_are_named():
    network = layers(0.1, 0.1, bias=5.0)
    with watch_activity(network) as activity:
        run(network, X)
    assert (activity.silent(), activity.saturated()) == ([], ["1", "3"])
    assert "most neurons always spike in 1, 3" in (activity.warning() or "")


def test_a_silent_output_layer_learns_and_is_not_named():
    network = layers(1.0, 0.001)[:-1]
    with watch_activity(network) as activity:
        run(network, X)
    assert activity.warning() is None


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_steps_one_at_a_time_are_as_all_at_once(scale: float):
    network = layers(1.0, scale)[:-1]
    with watch_activity(network) as activity:
        for x in X:
            with folded(1):
                network(x)
    # the weights of the first layer are used again after the last layer, at the next step
    assert activity.silent() == []


def test_a_few_spikes_are_not_silence():
    network = layers(1.0)
    x = torch.zeros_like(X)
    x[0, 0] = 10.0
    with watch_activity(network) as activity:
        spikes = run(network[:2], x)
        run(network, x)
    assert 0 < spikes.mean() < 0.02
    assert activity.warning() is None


def step_of(row: MethodRow, watched: bool) -> tuple[list[Tensor], str | None]:
    """Return what a training step leaves, to the last bit: loss, gradients, buffers, random state; and the warning."""
    torch.manual_seed(0)
    method = row.make()
    network = method.prepare(row.network())
    method.progress = Progress(0.5, 64)
    with watch_activity(network) if watched else nullcontext() as activity:
        step = method.training_step(network, *order_of_events(16))
    step.objective.backward()
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    left = [step.loss, step.output, *gradients, *network.buffers(), torch.get_rng_state()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    return left, activity.warning() if activity is not None else None


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_a_step_of_any_method_is_the_same_to_the_last_bit_and_a_healthy_network_causes_no_warning(row: MethodRow):
    expected, _ = step_of(row, watched=False)
    found, warning = step_of(row, watched=True)
    assert warning is None
    assert len(found) == len(expected) > 3
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "method",
    [SurrogateGradient(), SpikingBayes(kl_weight=0.0), RateBackprop(), RateBackprop(streaming=True), RateBackprop(4)],
    ids=repr,
)
def test_silence_is_found_under_every_method_that_runs_on_spikes(method: Method):
    network = method.prepare(MLP(10, 3, (20, 20)))
    for name, parameter in network.named_parameters():
        # the noise of a posterior would cause spikes
        nn.init.constant_(parameter, -10.0) if name.endswith("log_std") else parameter.data.mul_(1e-3)
    with watch_activity(network) as activity:
        method.training_step(network, X, Y)
    assert activity.silent() == ["2", "4"]


SHAPE = (2, 16, 16)


@pytest.mark.parametrize(
    "network",
    [
        lambda: MLP(SHAPE, 3, (64,) * 6),
        lambda: RecurrentNet(SHAPE, 3, (64, 64)),
        lambda: ResidualMLP(SHAPE, 3, 6, 64, neuron=LIF),
        lambda: ResidualConvNet(SHAPE, 3, (8, 16)),
        lambda: VGG(SHAPE, 3, (8, "A", 16, "A", 32)),
        lambda: ResNet(SHAPE, 3, (8, 16)),
        lambda: EventConvNet(SHAPE, 3, (8, 16), 32),
    ],
    ids=["mlp", "recurrent", "residual_mlp", "residual_conv", "vgg", "resnet", "event_conv"],
)
def test_our_networks_are_active_on_events_with_their_default_weights(network: Callable[[], nn.Module]):
    x = (torch.rand(10, 8, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    made = network()
    with watch_activity(made) as activity:
        run(made, x)
    assert activity.warning() is None


def test_a_first_convolutional_network_with_the_weights_of_pytorch_is_named():
    network = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), LIF(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), LIF(), nn.Flatten(), nn.Linear(200, 32)),
        *(LIF(), nn.Linear(32, 3)),
    )
    x = (torch.rand(10, 8, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    with watch_activity(network) as activity:
        run(network, x)
    assert "7" in activity.silent()


def test_compiled_networks_are_left_alone():
    network = layers(0.001)
    network.compile(backend="eager")
    with watch_activity(network) as activity:
        assert not any(module._forward_hooks for module in network.modules())
    assert activity.warning() is None
