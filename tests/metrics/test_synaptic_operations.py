"""Synaptic operations of whole networks: by hand, by NeuroBench, and in the same way for every library.

NeuroBench's figures are those of version 2.3.0, class `SynapticOperations`, in its own words: it was run as

    model = SNNTorchModel(network)
    model.register_hooks()
    metric = SynapticOperations()
    metric(model, model(x.transpose(0, 1)), (x.transpose(0, 1), None))

on the snntorch networks that are built here, with snntorch 1.0.0. It divides by the samples, as we do.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.metrics.activity import Activity, operations_per_sample, record_activity
from lightning_snn.nn import RecurrentLIF

Build = Callable[[str], nn.Module]
NEVER = 1e6  # a threshold that is not reached


def leaky(library: str, threshold: float, beta: float = 0.0, last: bool = False) -> nn.Module:
    """Neurons that are set to zero when they spike, which all libraries do alike; a decay of 0 leaves no memory."""
    if library == "ours":
        return LIF(beta, threshold, reset="zero")
    if library == "spikingjelly":
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        return neuron.LIFNode(tau=1 / (1 - beta), decay_input=False, v_threshold=threshold, v_reset=0.0, step_mode="m")
    snntorch = pytest.importorskip("snntorch")
    options = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True, "output": last}
    return snntorch.Leaky(beta=beta, threshold=threshold, **options)


def counted(library: str, network: nn.Module, x: Tensor) -> Activity:
    """The activity of a run over `x [T, B, ...]`, as users of the library run it."""
    with torch.no_grad(), record_activity(network) as activity:
        if library == "ours":
            run(network, x)
        elif library == "spikingjelly":
            network(x)
        else:
            for step in x:
                network(step)
    return activity


def strided(library: str) -> tuple[nn.Module, Tensor]:
    """A convolution with stride and padding on 4 x 4 pixels, and a linear layer."""
    convolution, linear = nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False), nn.Linear(8, 3)
    for parameter, value in ((convolution.weight[0], 1), (convolution.weight[1], 2), (linear.weight, 1)):
        nn.init.constant_(parameter, value)
    x = torch.zeros(2, 1, 1, 4, 4)
    x[0, 0, 0, 0, 0] = x[0, 0, 0, 1, 1] = x[0, 0, 0, 3, 3] = 1
    x[1, 0, 0, 1, 2], x[1, 0, 0, 2, 1] = 2, 1
    layers = (convolution, leaky(library, 1.5), nn.Flatten(), linear, leaky(library, NEVER, last=True))
    return nn.Sequential(*layers), x


def dilated(library: str) -> tuple[nn.Module, Tensor]:
    """A dilated convolution in two groups, with weights of zero, on 5 places."""
    convolution = nn.Conv1d(4, 4, 3, dilation=2, padding=1, groups=2)
    nn.init.ones_(convolution.weight)
    with torch.no_grad():
        convolution.weight[0, 0, 0] = 0  # first channel to first output
        convolution.weight[:2, 1, 1] = 0  # second channel, middle of the kernel
        convolution.weight[3, 1] = 0  # fourth channel to last output
    x = torch.zeros(2, 1, 4, 5)
    x[0, 0, 0, :2], x[0, 0, 1, 2], x[0, 0, 3, 3] = 1, 1, -1
    x[1, 0, 2, 4], x[1, 0, 0, 3] = 0.5, 1
    return nn.Sequential(convolution, leaky(library, NEVER, last=True)), x


def recurrent(library: str) -> tuple[nn.Module, Tensor]:
    """Three neurons that are connected to one another by six nonzero weights."""
    linear, weight = nn.Linear(2, 3, bias=False), torch.tensor([[2.0, 0, 3], [-1, 0, 3], [2, -3, 0]])
    linear.weight.data = torch.tensor([[2.0, 2], [2, 2], [-2, 2]])
    if library == "ours":
        neurons: nn.Module = RecurrentLIF(3, beta=0.0, threshold=1.0)
        neurons.weight.data = weight
    else:
        snntorch = pytest.importorskip("snntorch")
        options = {"reset_mechanism": "none", "init_hidden": True, "output": True}
        neurons = snntorch.RLeaky(beta=0.0, linear_features=3, threshold=1.0, **options)
        neurons.recurrent.weight.data, neurons.recurrent.bias.data = weight, torch.zeros(3)
    return nn.Sequential(linear, neurons), torch.tensor([[[1.0, 0]], [[0, 0]], [[1, 1]]])


def patterned(library: str) -> tuple[nn.Module, Tensor]:
    """Three layers, three samples and five steps, of which the first two are of ones and the others of twos. A tenth of
    the weights is zero."""
    kind, options = nn, {"bias": False}
    if library == "spikingjelly":
        kind, options["step_mode"] = pytest.importorskip("spikingjelly.activation_based.layer"), "m"
    layers = [
        kind.Conv2d(2, 6, 3, stride=2, padding=1, groups=2, **options),
        leaky(library, 0.7, 0.5),
        kind.Conv2d(6, 8, 3, padding=2, dilation=2, **options),
        leaky(library, 0.7, 0.5),
        nn.Flatten() if library != "spikingjelly" else nn.Flatten(2),
        kind.Linear(128, 10, **options),
        leaky(library, 0.7, 0.5, last=True),
    ]
    for index, factor in ((0, 5), (2, 7), (5, 11)):
        weight = layers[index].weight
        weight.data = ((torch.arange(weight.numel()) * factor % 13 - 6).float() / 6).view_as(weight)
    places = torch.arange(5 * 3 * 2 * 7 * 7)
    x = ((places**2 + 3 * places) % 17).clamp(min=14).sub(14).float().view(5, 3, 2, 7, 7)
    x[2:] *= 2
    return nn.Sequential(*layers), x


# by hand; NeuroBench prints {'Effective_MACs': 8.0, 'Effective_ACs': 45.0, 'Dense': 148.0}
STRIDED = {
    # On each axis 2 outputs cover places -1, 0, 1 and 1, 2, 3: places 0, 1, 2, 3 are seen by 1, 2, 1, 1 of them.
    # Step 1, all ones: pixels (0, 0), (1, 1), (3, 3) are seen by 1 x 1 + 2 x 2 + 1 x 1 = 6 outputs of 2 channels: 12.
    # Step 2, with a two: pixels (1, 2), (2, 1) by 2 x 1 + 1 x 2 = 4 of 2 channels: 8, which multiply.
    # Currents of the channel of ones, threshold 1.5: 2, 1, 1, 2 and then 0, 2, 1, 3: 2 + 2 spikes;
    # of that of twos 4, 2, 2, 4 and then 0, 4, 2, 6: 4 + 3 spikes. Each of the 11 spikes reaches 3 outputs: 33.
    "effective_acs": 12 + 33,
    "effective_macs": 8,
    # On each axis 1 + 2 + 1 + 1 = 5 pairs, so that the kernel has 25 pairs for 2 channels, and 8 x 3 weights; 2 steps.
    "dense": 2 * (50 + 24),
}
# by hand; NeuroBench prints {'Effective_MACs': 6.0, 'Effective_ACs': 6.0, 'Dense': 112.0}
DILATED = {
    # 3 outputs: output o sees places o - 1, o + 1, o + 3 through the offsets 0, 1, 2 of the kernel, so that places
    # 0, 1, 2, 3, 4 are seen through the offsets {0}, {0, 1}, {1}, {1, 2}, {2}: 7 pairs.
    # Step 1: channel 0 at 0 reaches 2 outputs less one of zero: 1; at 1 through offset 0 one, through offset 1 two: 3;
    # channel 1 at 2 meets zeros only: 0; channel 3 at 3 through offsets 1 and 2 output 2 alone: 2.
    "effective_acs": 1 + 3 + 0 + 2,
    # Step 2, with a half: channel 2 at 4 reaches 2 outputs; channel 0 at 3 through offsets 1 and 2 two each: 4.
    "effective_macs": 2 + 4,
    # 7 pairs, 2 channels of a group, 4 outputs, 2 steps
    "dense": 7 * 2 * 4 * 2,
}
# by hand; NeuroBench prints {'Effective_MACs': 0.0, 'Effective_ACs': 16.0, 'Dense': 45.0}
RECURRENT = {
    # 1 + 0 + 2 inputs reach 3 neurons each: 9. Columns of the recurrent weights have 3, 1 and 2 that are not zero.
    # Step 1: currents 2, 2, -2, threshold 1: neurons 0 and 1 spike, and cause 3 + 1 operations in the next step.
    # Step 2: no input, and currents 2, -1, -1 from them: neuron 0 spikes, and causes 3.
    # Step 3: currents 4, 4, 0 and 2, -1, 2 from it: all spike, and no step follows.
    "effective_acs": 9 + 4 + 3,
    "effective_macs": 0,
    # 2 x 3 and 3 x 3 weights, 3 steps
    "dense": 3 * (6 + 9),
}


@pytest.mark.parametrize("library", ["ours", "snntorch"])
@pytest.mark.parametrize(
    ("build", "expected", "one_pass"),
    [(strided, STRIDED, 74), (dilated, DILATED, 56), (recurrent, RECURRENT, 15)],
    ids=["strided", "dilated", "recurrent"],
)
def test_operations_are_those_counted_by_hand_and_by_neurobench(build, expected, one_pass, library):
    activity = counted(library, *build(library))
    assert {name: value.item() for name, value in operations_per_sample(activity).items()} == expected
    assert sum(activity.dense_pass().values()) == one_pass
    assert activity.samples == 1
    assert activity.uncounted == []


@pytest.mark.parametrize("library", ["ours", "snntorch", "spikingjelly"])
def test_every_library_costs_what_neurobench_counts(library):
    network, x = patterned(library)
    activity = counted(library, network, x)
    # NeuroBench prints {'Effective_MACs': 198.66666666666666, 'Effective_ACs': 2905.6666666666665, 'Dense': 24760.0}
    found = operations_per_sample(activity)
    assert activity.samples == 3
    assert found["effective_macs"].item() == 198.66666666666666
    assert found["effective_acs"].item() == 2905.6666666666665
    assert found["dense"] == 24760
    # of the layers that of the input alone multiplies
    macs = {name: int(activity.operations[name] - activity.accumulates[name]) for name in activity.operations}
    first, *others = macs.values()
    assert first > 0
    assert others == [0, 0]


def test_layers_in_a_container_of_spikingjelly_are_distinguished_by_call():
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    container, x = layer.SeqToANNContainer(nn.Linear(3, 5)), torch.ones(4, 2, 3)
    x[3] = 2
    activity = counted("spikingjelly", nn.Sequential(container, leaky("spikingjelly", 1.0, 0.5)), x)
    assert activity.accumulates["0.0"] == 0
    assert activity.operations["0.0"] == activity.dense["0.0"] == 4 * 2 * 15
    assert activity.rows == {"0.0": 8}
    assert activity.samples == 2
