"""ReLU networks and their TTFS equivalents: equal in the time domain, refused if there is none."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.methods.ttfs import FirstSpike, OffsetMap, SpikePool2d
from lightning_snn.methods.ttfs.events import simulate
from lightning_snn.methods.ttfs.mapping import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.synapses import OneToOne
from lightning_snn.methods.ttfs.windows import calibrate
from lightning_snn.networks import MLP, VGG, EventConvNet, RecurrentNet, ResidualConvNet, ResidualMLP, ResNet
from lightning_snn.nn.neurons import LIF, RecurrentLIF
from tests.support.slow import others_slow

LOW, HIGH = -3.0, 3.0
IMAGES = (3, 12, 12)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs(shape: tuple[int, ...], samples: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(samples, *shape, dtype=dtype) * (HIGH - LOW) + LOW


def drawn(network: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """In evaluation mode, with statistics and signs as training might leave them."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            scale = 0.5 + torch.rand_like(module.running_mean)
            for values, spread in ((module.running_mean, 0.3), (module.weight, 1.0), (module.bias, 0.5)):
                if values is not None:
                    nn.init.normal_(values, std=spread)
            module.running_var.copy_(scale)
            if module.weight is not None:
                # at least one scale of either sign
                with torch.no_grad():
                    module.weight[0], module.weight[-1] = -0.7, 0.9
    return network.to(dtype).eval()


def with_relu(network: nn.Module) -> nn.Module:
    """A copy in which ReLU stands where LIF neurons stood."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, LIF):
                setattr(module, name, nn.ReLU())
    return network


def in_time(network: TTFSNetwork, x: Tensor) -> TTFSNetwork:
    """With windows wide enough, and absolute spike times between layers."""
    calibrate(network, x)
    for _, layer in network.spiking:
        layer.time_domain = True
    return network


def mapped(network: nn.Module, x: Tensor, **options: str) -> TTFSNetwork:
    return in_time(from_relu(network, LOW, HIGH, x, **options), x)


def by_spike_times(network: TTFSNetwork, x: Tensor, delayed: bool = True) -> Tensor:
    """Logits from spike times alone: an input spike at t is worth its ramp at the reader's t_min, ``t_min - t``."""
    layers = dict(network.spiking)
    ends = {"encoder": network.encoder.t_max} | {name: layer.t_max for name, layer in layers.items()}
    remaining = network.encoder(x)
    times, emitted = {"encoder": ends["encoder"] - remaining}, {"encoder": remaining > 0}
    for name, sources in network.sources.items():
        begin = layers[name].t_min if name in layers else max(ends[source] for source in sources)
        trains = {}
        for source in sources:
            delay = network.delays[source, name] if delayed else 0.0
            trains[source] = torch.where(emitted[source], begin - (times[source] + delay), 0.0)
        potential = network.potential(name, trains)
        if name not in layers:
            return potential
        emitted[name] = potential > 0
        # V(t_min) + D = potential, theta = window - D, slope 1
        times[name] = begin + layers[name].window - potential
    raise AssertionError("no readout")


class Block(nn.Module):
    """A post-activation residual block as torchvision writes it: one ReLU module for both, and an addition in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PostActivationResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        return self.fc(x.view(x.size(0), -1))


class NoReluAtJunction(nn.Module):
    """``x + relu(F(x))`` of trains, a scaled skip, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.next = nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.conv(x))
        y = torch.relu(self.next(x) / 2)
        y = torch.cat([y, (self.bn(x) + 0.5 * x).relu()], 1)
        return self.fc(y.mean((2, 3)))


class Functional(nn.Module):
    """The classic example of functions in place of layers; dropout and pools come before the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 3))
        x = x.reshape(x.shape[0], x.size(1) * x.size(2) * x.size(3))
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return self.fc2(x)


def before(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip


def after() -> nn.Module:
    """Batch-norm after the activation, before max-pools, zero padding and a Flatten."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1), nn.Dropout(), nn.Flatten(), nn.BatchNorm1d(72),
        nn.Linear(72, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 5),
    )  # fmt: skip


def pooled_potentials() -> nn.Module:
    """Max-pools of potentials, a batch-norm with negative scales between pool and ReLU, weight layers in a row."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
        nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), nn.AvgPool2d(2, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7), nn.Linear(7, 5),
    )  # fmt: skip


def signals() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(3), nn.Conv1d(3, 6, 5, 2, 2), nn.ReLU(), nn.BatchNorm1d(6), nn.Conv1d(6, 8, 3, dilation=2),
        nn.ReLU(), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip


NETWORKS = {
    "mlp": (lambda: MLP(20, 5, (16, 12)), (20,)),
    "batch-norm before": (before, IMAGES),
    "batch-norm after": (after, IMAGES),
    "pooled potentials": (pooled_potentials, IMAGES),
    "conv1d": (signals, (3, 80)),
    "functional": (Functional, (3, 12, 12)),
    "post-activation resnet": (PostActivationResNet, (3, 16, 16)),
    "no relu at junction": (NoReluAtJunction, IMAGES),
    "our vgg": (lambda: VGG((3, 12, 12), 5, (8, "A", 8, "A", 8)), IMAGES),
    "our resnet": (lambda: ResNet((3, 12, 12), 5, (8, 16), 2, hidden=12), IMAGES),
    "our residual mlp": (lambda: ResidualMLP(20, 5, 4, 10, LIF), (20,)),
    "our residual conv net": (lambda: ResidualConvNet((3, 8, 8), 5, (8, 16), 2, batch_norm=True), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_in_the_time_domain_equal_those_of_the_relu_network(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape, 20)
    expected = with_relu(network)(x)
    assert expected.std(0).min() > 1e-4
    spiking = mapped(network, x)
    for logits in (spiking(x), by_spike_times(spiking, x)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12 * max(1.0, expected.abs().max().item()))
        assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_single_precision_stays_single_precision(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make(), torch.float32), inputs(shape, 6, torch.float32)
    spiking = mapped(network, x)
    assert {p.dtype for p in spiking.parameters()} == {torch.float32}
    assert all(layer.window.dtype == torch.float64 for _, layer in spiking.spiking)
    expected = with_relu(network)(x)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(spiking(x), expected, rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_is_the_same_function(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape)
    expected = with_relu(network)(x)
    back = from_relu(network, LOW, HIGH, x).to_relu()
    assert not any(isinstance(module, FirstSpike) for module in back.modules())
    again = from_relu(back, LOW, HIGH, x)
    tolerance = 1e-12 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(back(x), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(again(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("low", "high", "tolerance"), [(0.0, 1.0, 0.0), (LOW, HIGH, 1e-12)])
def test_without_batch_norm_the_parameters_come_back(low, high, tolerance):
    make = [
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 5),
    ]  # fmt: skip
    network = drawn(nn.Sequential(*make))
    spiking = from_relu(network, low, high, inputs(IMAGES))
    # the range of the inputs is all that changes
    assert (low == 0) == all(
        torch.equal(p, dict(spiking.body.named_parameters())[n]) for n, p in network.named_parameters()
    )
    back = spiking.to_relu()
    torch.testing.assert_close(back.state_dict(), network.state_dict(), rtol=tolerance, atol=tolerance)


def test_a_network_of_our_neurons_has_its_own_parameters():
    network = MLP(20, 5, (16, 12))
    spiking = from_relu(network, 0.0, 1.0, torch.rand(2, 20))
    torch.testing.assert_close(dict(spiking.body.named_parameters()), dict(network.named_parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_bitwise_those_of_the_relu_network(dtype):
    network = drawn(Functional(), dtype)
    x, y = torch.rand(8, *IMAGES, dtype=dtype), torch.arange(8) % 5
    spiking = from_relu(network, 0.0, 1.0, x)
    for each in (network, spiking):
        F.cross_entropy(each(x), y).backward()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, spiking.body.get_parameter(name).grad)
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["batch-norm after", "our resnet"])
def test_every_parameter_is_trained(name):
    make, shape = NETWORKS[name]
    spiking = from_relu(drawn(make()), LOW, HIGH, inputs(shape)).train()
    assert any(isinstance(module, OffsetMap) for module in spiking.modules())
    spiking(inputs(shape, 64)).square().sum().backward()
    for parameter in spiking.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_the_original_is_left_as_it_is():
    network = drawn(after()).train()
    state, x = copy.deepcopy(network.state_dict()), inputs(IMAGES)
    spiking = from_relu(network, LOW, HIGH, x)
    with torch.no_grad():
        for parameter in spiking.parameters():
            parameter.zero_()
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    assert spiking.training
    assert all(module.training for module in network.modules())


def test_copies_and_saved_networks_compute_the_same():
    network, x = drawn(PostActivationResNet()), inputs((3, 16, 16))
    spiking = mapped(network, x)
    file = io.BytesIO()
    torch.save(spiking, file)
    file.seek(0)
    for other in (copy.deepcopy(spiking), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), spiking(x))
        assert {id(layer) for _, layer in other.spiking}.isdisjoint(id(layer) for _, layer in spiking.spiking)
        assert other.sources == spiking.sources
    fresh = from_relu(network, LOW, HIGH, x)
    fresh.load_state_dict(spiking.state_dict())
    assert torch.equal(torch.stack([*fresh.delays.values()]), torch.stack([*spiking.delays.values()]))


class Sum(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) - 0.5 * self.other(x)


class Concatenated(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


def random_layers(count: int, depth: int = 0) -> nn.Sequential:
    """Layers of all kinds in random order, on 4 channels of a plane whose size stays."""

    def draw(options: int) -> int:
        return int(torch.randint(options, ()))

    layers: list[nn.Module] = []
    for _ in range(count):
        paths = [random_layers(draw(4), depth + 1) for _ in range(2)] if depth < 2 else [nn.ReLU(), nn.Identity()]
        kernel = 1 + 2 * draw(2)
        mode = ("zeros", "circular")[draw(2)]
        convolution = nn.Conv2d(4, 4, kernel, 1, kernel // 2, groups=1 + draw(2), bias=draw(2) > 0, padding_mode=mode)
        options = [convolution, nn.BatchNorm2d(4), nn.ReLU(), Sum(*paths)]
        options += [nn.Sequential(Concatenated(*paths), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, 1, 1))]
        options += [nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()), nn.AvgPool2d(3, 1, 1)]
        layers.append(options[draw(len(options))])
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", others_slow(range(16), fast=range(5)))
def test_random_networks_are_exact_or_refused(seed):
    torch.manual_seed(seed)
    network, x = drawn(nn.Sequential(random_layers(6), nn.Flatten(), nn.Linear(144, 5))), inputs((4, 6, 6))
    expected = network(x)
    try:
        spiking = from_relu(network, LOW, HIGH, x, ("delay", "relay")[seed % 2])
    except ValueError as error:
        assert "maximum of averages or sums" in str(error)  # noqa: PT017
        return
    back = spiking.to_relu()
    tolerance = 1e-12 * max(1.0, expected.abs().max().item())
    for logits in (in_time(spiking, x)(x), by_spike_times(spiking, x), back(x), from_relu(back, LOW, HIGH, x)(x)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


# border maps


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5, "padding": 2, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1), "groups": 2},
    {"kernel_size": 3, "padding": "same", "groups": 4},
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_batch_norm_after_the_activation_is_exact_before_any_convolution(options):
    network = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 8, **options)))
    x = inputs(IMAGES)
    spiking = mapped(network, x)
    torch.testing.assert_close(spiking(x), network(x), rtol=0, atol=1e-12)
    # only zeros beyond the border make offsets depend on the position
    zeros = options.get("padding", 0) != 0 and options.get("padding_mode", "zeros") == "zeros"
    assert any(isinstance(module, OffsetMap) for module in spiking.modules()) == zeros


def test_threshold_offsets_near_borders_are_a_convolution_of_the_shift():
    network = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)))
    norm, last = network[2], network[3]
    kappa = norm.weight / (norm.running_var + norm.eps).sqrt()
    image = (norm.bias - norm.running_mean * kappa).view(1, -1, 1, 1).expand(1, 4, 10, 10)
    expected = last(image)[0]
    spiking = from_relu(network, 0.0, 1.0, inputs(IMAGES))
    offsets = spiking.potential("readout", {"1": torch.zeros(1, 4, 10, 10, dtype=torch.float64)})[0]
    torch.testing.assert_close(offsets, expected, rtol=0, atol=1e-13)
    # nine different values per channel for a 3x3 kernel
    assert all(len(channel.detach().round(decimals=9).unique()) == 9 for channel in offsets)


@pytest.mark.parametrize("name", ["batch-norm after", "our vgg"])
def test_without_border_maps_the_network_is_another(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape)
    spiking = mapped(network, x)
    maps = [module for module in spiking.modules() if isinstance(module, OffsetMap)]
    assert maps
    for module in maps:
        nn.init.zeros_(module.offset)
    assert (spiking(x) - with_relu(network)(x)).abs().max() > 1e-3


def test_silent_padding_is_zero_padding():
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    remaining = torch.rand(2, *IMAGES, dtype=torch.float64)
    # neurons beyond the border never spike: t = t_max
    times = F.pad(1 - remaining, (1, 1, 1, 1), value=1.0)
    silent = F.conv2d(1 - times, layer.weight, layer.bias)
    torch.testing.assert_close(silent, layer(remaining), rtol=0, atol=1e-15)
    early = F.conv2d(1 - F.pad(1 - remaining, (1, 1, 1, 1), value=0.0), layer.weight, layer.bias)
    assert (early - silent).abs().max() > 0.1


# pools


def test_a_negative_scale_before_a_max_pool_lets_the_latest_spike_win():
    network, x = drawn(after()), inputs(IMAGES)
    spiking = mapped(network, x)
    pools = [module for module in spiking.modules() if isinstance(module, SpikePool2d)]
    for pool, norm in zip(pools, (network[2], network[6]), strict=True):
        assert torch.equal(pool.sign < 0, norm.weight < 0)
        assert 0 < (pool.sign < 0).sum() < len(pool.sign)
    for pool in pools:
        pool.sign = None
    assert (spiking(x) - network(x)).abs().max() > 1e-3


def test_pools_of_potentials_move_behind_the_neurons():
    network, x = drawn(pooled_potentials()), inputs(IMAGES)
    spiking = mapped(network, x)
    first = spiking.spiking[0][0]
    assert spiking.potential(first, {"encoder": spiking.encoder(x)}).shape == (6, 6, 12, 12)
    pool = next(module for module in spiking.modules() if isinstance(module, SpikePool2d))
    assert torch.equal(pool.sign < 0, network[2].weight < 0)


@pytest.mark.parametrize("make", [lambda: nn.AvgPool2d(2), lambda: nn.AdaptiveAvgPool2d(1)])
def test_average_pools_cost_no_neurons_and_equal_an_explicit_layer(make):
    network = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), make(), nn.Flatten(), nn.LazyLinear(5)), torch.float64)
    x = inputs(IMAGES)
    network(x)
    folded = mapped(network, x)
    # what is averaged is not negative, so that another ReLU is a layer with weights 1 / k^2
    pool = nn.Conv2d(4, 4, 2 if isinstance(network[2], nn.AvgPool2d) else 10, 2, groups=4, bias=False).double()
    nn.init.constant_(pool.weight, 1 / pool.weight[0].numel())
    explicit = mapped(nn.Sequential(*network[:2], pool, nn.ReLU(), *network[3:]), x)
    assert [len(each.spiking) for each in (folded, explicit)] == [1, 2]
    torch.testing.assert_close(folded(x), explicit(x), rtol=0, atol=1e-13)


# residual connections


def test_delay_lines_last_as_long_as_the_windows_they_skip():
    network, x = drawn(PostActivationResNet()), inputs((3, 16, 16))
    spiking = mapped(network, x)
    windows = {name: layer.window for name, layer in spiking.spiking}
    skips = {edge: length for edge, length in spiking.delays.items() if length > 0}
    assert spiking.sources["blocks.0.relu_1"] == ["blocks.0.relu", "relu"]
    assert set(skips) == {
        ("relu", "blocks.0.relu_1"),
        ("blocks.0.relu_1", "blocks.1.relu_1"),
        ("blocks.1.relu_1", "blocks.2.relu_1"),
    }
    for block, length in enumerate(skips.values()):
        torch.testing.assert_close(length, windows[f"blocks.{block}.relu"], rtol=1e-12, atol=0)
    with torch.no_grad():
        for _, layer in spiking.spiking:
            layer.window.mul_(2)
    calibrate(spiking, x, zeta=3.0)
    assert spiking.delays["relu", "blocks.0.relu_1"] > skips["relu", "blocks.0.relu_1"]


@pytest.mark.parametrize("name", ["post-activation resnet", "our resnet", "our residual mlp", "no relu at junction"])
def test_spikes_that_skip_layers_without_a_delay_mean_something_else(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape)
    expected, spiking = with_relu(network)(x), mapped(network, x)
    assert (by_spike_times(spiking, x) - expected).abs().max() < 1e-12
    assert (by_spike_times(spiking, x, delayed=False) - expected).abs().max() > 0.1 * expected.std()


@pytest.mark.parametrize("name", ["post-activation resnet", "our resnet"])
def test_relays_equal_delay_lines_for_one_spike_more_a_layer(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape)
    delayed, relayed = mapped(network, x), mapped(network, x, skips="relay")
    relays = {name for name, _ in relayed.spiking} - {name for name, _ in delayed.spiking}
    assert len(relays) == sum(bool(length > 0) for length in delayed.delays.values()) > 0
    torch.testing.assert_close(relayed(x), delayed(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(by_spike_times(relayed, x), delayed(x), rtol=0, atol=1e-12)
    # no spike skips a layer any more, but for windows that differ
    depth = {"encoder": 0}
    for layer, sources in relayed.sources.items():
        assert len({depth[source] for source in sources}) == 1
        depth[layer] = depth[sources[0]] + 1
    assert {name for name, _ in relayed.to_relu().named_modules()}.isdisjoint(relays)


def test_spikes_per_neuron_are_the_active_fraction_of_the_relu_network():
    network, x = drawn(PostActivationResNet()), inputs((3, 16, 16), 20)
    spiking = mapped(network, x)
    active: list[Tensor] = []
    emitted: list[Tensor] = []
    original = F.relu
    handles = [layer.register_forward_hook(lambda m, a, out: emitted.append(out > 0)) for _, layer in spiking.spiking]
    spiking(x)
    for handle in handles:
        handle.remove()
    reference = copy.deepcopy(network)
    for block in reference.blocks:
        block.relu.inplace = False
        block.relu.register_forward_hook(lambda m, a, out: active.append(out > 0))
    first = original(reference.bn(reference.conv(x))) > 0
    reference(x)
    assert [each.sum().item() for each in emitted] == [each.sum().item() for each in [first, *active]]


@pytest.mark.parametrize("name", ["batch-norm after", "post-activation resnet", "no relu at junction"])
def test_event_by_event_gives_the_same_logits(name):
    make, shape = NETWORKS[name]
    network, x = drawn(make()), inputs(shape, 2)
    spiking = from_relu(network, LOW, HIGH, x)
    calibrate(spiking, x)
    torch.testing.assert_close(simulate(spiking, x).outputs, with_relu(network)(x), rtol=0, atol=1e-11)


# refusals


class Uses(nn.Module):
    """A network around one operation."""

    def __init__(self, operation, *layers: nn.Module) -> None:
        super().__init__()
        self.operation = operation
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)
        self.extra = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.operation(self, F.relu(self.conv(x))).mean((2, 3)))


class Subclass(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def tied() -> nn.Module:
    one, other = nn.Linear(20, 20), nn.Linear(20, 20)
    other.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), other, nn.ReLU(), nn.Linear(20, 5))


twice = nn.Linear(20, 20)
REFUSED = {
    "tanh": (nn.Sequential(nn.Linear(20, 5), nn.Tanh()), (20,), "1: Tanh .*max"),
    "gelu": (Uses(lambda net, x: F.gelu(x)), IMAGES, "gelu: gelu .*max"),
    "layer norm": (nn.Sequential(nn.Linear(20, 5), nn.LayerNorm(5)), (20,), "1: LayerNorm .*statistics"),
    "softmax": (nn.Sequential(nn.Linear(20, 5), nn.LogSoftmax(1)), (20,), "1: LogSoftmax .*loss"),
    "all of them": (nn.Sequential(nn.Linear(20, 5), nn.SiLU(), nn.ELU()), (20,), "1: SiLU .*; 2: ELU"),
    "recurrent": (nn.Sequential(nn.Linear(20, 5), RecurrentLIF(5)), (20,), "1: RecurrentLIF .*no first spike time"),
    "our recurrent net": (RecurrentNet(20, 5, (8,)), (20,), "RecurrentLIF .*LeakyIntegrator"),
    "our event net": (EventConvNet((3, 12, 12), 5), IMAGES, "SynapticDelays .*RecurrentLIF"),
    "lstm": (nn.Sequential(nn.LSTM(20, 5)), (7, 20), "0: LSTM .*for the steps of a sequence"),
    "batch statistics": (
        nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        (20,),
        "1: BatchNorm1d .*statistics of each batch",
    ),
    "used twice": (nn.Sequential(twice, nn.ReLU(), twice), (20,), "0: Linear .*called 2 times"),
    "tied": (tied(), (20,), "2: Linear .*shares parameters with 0"),
    "parametrized": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 5))), (20,), "0: .*Linear .*parametrization"
    ),
    "subclass": (nn.Sequential(Subclass(3, 3, 3)), IMAGES, "0: Subclass .*a forward of its own"),
    "gating": (Uses(lambda net, x: x * torch.relu(net.extra[0](x)), nn.Conv2d(3, 3, 1)), IMAGES, "mul .*multiplies"),
    "max of averages": (Uses(lambda net, x: F.max_pool2d(F.avg_pool2d(x, 2), 2)), IMAGES, "max_pool2d .*not a spike"),
    "max of potentials": (
        Uses(lambda net, x: F.max_pool2d(net.extra[0](x), 2), nn.Conv2d(3, 3, 1)), IMAGES, "no ReLU .*max_pool2d"
    ),
    "indices": (
        Uses(lambda net, x: net.extra[0](x)[0], nn.MaxPool2d(2, return_indices=True)), IMAGES, "extra.0: .*indices"
    ),
    "free parameter": (Uses(lambda net, x: x + net.extra[0].bias, nn.Linear(3, 12)), IMAGES, "extra.0.bias"),
    "across samples": (Uses(lambda net, x: x.view(-1, 3, 6, 12)), IMAGES, "view .*sample to sample"),
    "selects samples": (Uses(lambda net, x: x[:2]), IMAGES, "getitem .*samples"),
    "over channels": (Uses(lambda net, x: x - x.mean(1, keepdim=True)), IMAGES, "mean .*channels"),
    "always dropout": (Uses(lambda net, x: F.dropout(x)), IMAGES, "dropout .*active in evaluation"),
    "control flow": (Uses(lambda net, x: x if x.sum() > 0 else -x), IMAGES, "network: Uses .torch.fx cannot trace"),
    "attention": (
        Uses(lambda net, x: net.extra[0](x.flatten(2), x.flatten(2), x.flatten(2))[0], nn.MultiheadAttention(144, 2)),
        IMAGES,
        "extra.0: MultiheadAttention .*for the steps of a sequence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_equivalent_are_refused_by_name(name):
    network, shape, message = REFUSED[name]
    state = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"a network that TimeToFirstSpike can train, but got .*{message}"):
        from_relu(network, LOW, HIGH, inputs(shape, dtype=torch.float32))
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


class Undecided(nn.Module):
    """A neuron whose forward depends on values, so that torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoOutputs(LIF):
    """A neuron that returns its state too, as snntorch's do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Unpacking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = TwoOutputs()

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.neuron(x)
        return spikes


UNTRACEABLE = {
    "neuron": (Undecided(), "1: Undecided (torch.fx cannot trace its forward)"),
    "nested neuron": (nn.Sequential(Undecided()), "1.0: Undecided (torch.fx cannot trace its forward)"),
    "neuron with two outputs": (
        Unpacking(),
        "1.neuron: TwoOutputs (a forward of its own, so it needs a rule of its own)",
    ),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_untraceable_layers_are_named_next_to_the_others_without_errors_of_the_tracer(name):
    layer, refused = UNTRACEABLE[name]
    with pytest.raises(ValueError, match="TimeToFirstSpike can train") as refusal:
        from_relu(nn.Sequential(nn.Linear(20, 5), layer, nn.Tanh()), LOW, HIGH, inputs((20,)))
    tanh = "2: Tanh (a remaining time is max(0, u), so only ReLU has a TTFS equivalent)"
    assert str(refusal.value) == f"Expected a network that TimeToFirstSpike can train, but got {refused}; {tanh}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "high"),
        ({"example": torch.rand(20)}, "example"),
        ({"skips": "none"}, "skips"),
        ({"example": torch.rand(2, 21)}, "example"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"low": 0.0, "high": 1.0, "example": torch.rand(2, 20)} | options
    with pytest.raises(ValueError, match=message):
        from_relu(MLP(20, 5), **arguments)


def test_a_potential_without_all_its_trains_is_refused():
    spiking = from_relu(MLP(20, 5), 0.0, 1.0, torch.rand(2, 20))
    with pytest.raises(ValueError, match="encoder"):
        spiking.potential("2", {})
    with pytest.raises(ValueError, match="name"):
        spiking.potential("7", {})


def test_a_relu_of_nonnegative_values_adds_no_neurons():
    network = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Dropout(), nn.ReLU(), nn.Linear(8, 5))
    assert len(from_relu(network, 0.0, 1.0, torch.rand(2, 20)).spiking) == 1
    # a batch-norm between them can make it negative: a layer of synapses from one to one
    network = drawn(nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)))
    x = inputs((20,))
    spiking = mapped(network, x)
    assert len(spiking.spiking) == 2
    assert any(isinstance(module, OneToOne) for module in spiking.modules())
    torch.testing.assert_close(spiking(x), network(x), rtol=0, atol=1e-12)


def test_frozen_weights_stay_frozen():
    network = MLP(20, 5, (16,))
    network[1].requires_grad_(False)
    spiking = from_relu(network, 0.0, 1.0, torch.rand(2, 20))
    assert [p.requires_grad for p in spiking.parameters()] == [False, False, True, True]


def test_the_memory_format_of_weights_is_kept():
    network = drawn(VGG((3, 12, 12), 5, (8, "A", 8)), torch.float32)
    spiking = from_relu(network, LOW, HIGH, inputs(IMAGES, dtype=torch.float32))
    weights = [module.weight for module in spiking.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
