from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.functional.ttfs import TimeConstraints, spike_times
from lightning_snn.methods.ttfs import (
    AlphaConv2d,
    AlphaLinear,
    FirstSpike,
    OffsetMap,
    SpikeEncoder,
    SpikePool2d,
    bound_row_sums,
)
from lightning_snn.methods.ttfs.windows import calibrate, cascade, grow, rescale

INPUTS, CLASSES = 24, 5


def relu_network(depth: int, width: int = 32, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """`depth` linear layers, He-initialized, with ReLU in between."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [INPUTS, *[width] * (depth - 1), CLASSES]
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        linear = nn.Linear(before, after)
        with torch.no_grad():
            linear.weight.normal_(0, (2 / before) ** 0.5, generator=generator)
            linear.bias.normal_(0, 0.1, generator=generator)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).to(dtype)


def spiking(network: nn.Sequential, time_domain: bool = True) -> nn.Sequential:
    """The same parameters with first spikes in place of ReLU, windows calibrated."""
    other = copy.deepcopy(network)
    for place, part in enumerate(other):
        if isinstance(part, nn.ReLU):
            other[place] = FirstSpike(time_domain=time_domain)
    calibrate(other, images(64, 1)[0].to(other[0].weight.dtype))
    return other


def alpha(network: nn.Sequential, window: float = 3.0) -> nn.Sequential:
    """The same function by neurons of slope 1 + sum_j W_ij, or the best that is left of it."""
    linears = [part for part in network if isinstance(part, nn.Linear)]
    hidden = []
    for linear in linears[:-1]:
        layer = AlphaLinear(linear.in_features, linear.out_features, window=window, dtype=linear.weight.dtype)
        layer.copy_relu(linear)
        hidden.append(layer)
    return nn.Sequential(*hidden, copy.deepcopy(linears[-1]))


def images(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes of noisy prototypes in [0, 1], in float64."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(CLASSES, INPUTS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    y = torch.randint(0, CLASSES, (samples,), generator=generator)
    noise = 0.4 * torch.randn(samples, INPUTS, generator=generator, dtype=torch.float64)
    return (prototypes[y] + noise).clamp(0, 1), y


def in_absolute_times(network: nn.Sequential, x: Tensor) -> Tensor:
    """Logits where spike times alone go from layer to layer, with thresholds theta = window - D written out."""
    times, end = 1 - x, torch.tensor(1.0, dtype=torch.float64)
    for linear, neurons in zip(network[:-1:2], network[1::2], strict=True):
        assert neurons.t_min == end
        value = F.linear(end.to(x.dtype) - times, linear.weight)
        times = spike_times(value, neurons.window - linear.bias, 1.0, neurons.window, neurons.t_min)
        end = neurons.t_max
    return F.linear(end.to(x.dtype) - times, network[-1].weight, network[-1].bias)


def gradients(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(forward(x), y), list(network.parameters())))


def parameters(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    return F.cosine_similarity(flat(a), flat(b), 0).item()


@pytest.mark.parametrize("depth", [2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_through_spike_times_are_those_of_relu(depth: int, dtype: torch.dtype):
    relu = relu_network(depth, dtype=dtype)
    network = spiking(relu)
    x = images(64, 1)[0].to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if depth == 2 else 1e-4
    expected = relu(x)
    for logits in (network(x), in_absolute_times(network, x)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
        # a time is rounded, a remaining time is not
        assert not torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_remaining_times_give_logits_and_gradients_of_relu_to_the_last_bit(dtype: torch.dtype):
    relu = relu_network(8, dtype=dtype)
    network = spiking(relu, time_domain=False)
    x, y = images(64, 1)
    x = x.to(dtype)
    assert torch.equal(network(x), relu(x))
    for found, expected in zip(gradients(network, network, x, y), gradients(relu, relu, x, y), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("depth", [2, 16])
def test_gradients_through_spike_times_are_those_of_relu(depth: int):
    relu = relu_network(depth)
    network = spiking(relu)
    x, y = images(64, 1)
    expected = gradients(relu, relu, x, y)
    for forward in (network, lambda x: in_absolute_times(network, x)):
        found = gradients(network, forward, x, y)
        torch.testing.assert_close(flat(found), flat(expected), rtol=0, atol=1e-13)
        assert cosine(found, expected) > 1 - 1e-12


def one_ulp(network: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """The control: every weight moved to a neighboring float."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            away = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
            parameter.copy_(torch.nextafter(parameter, away.to(parameter)))
    return other


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05),
    "adam": lambda parameters: torch.optim.Adam(parameters, 2e-3),
}


def trained(
    networks: dict[str, nn.Sequential], optimizer: str, steps: int, probes: tuple[int, ...] = ()
) -> list[dict[str, Tensor]]:
    """Parameters of networks trained side by side, at probes and at the end."""
    optimizers = {name: OPTIMIZERS[optimizer](network.parameters()) for name, network in networks.items()}
    snapshots = []
    for step in range(1, steps + 1):
        x, y = images(32, 1000 + step)
        for name, network in networks.items():
            optimizers[name].zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizers[name].step()
            grow(network)
        if step in (*probes, steps):
            snapshots.append(
                {
                    name: nn.utils.parameters_to_vector(network.parameters()).detach()
                    for name, network in networks.items()
                }
            )
    return snapshots


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("depth", [2, 8])
def test_training_through_spike_times_follows_the_relu_network(depth: int, optimizer: str):
    relu = relu_network(depth)
    start = parameters(relu)
    networks = {"relu": relu, "spikes": spiking(relu), "control": one_ulp(relu)}
    first_windows = [part.window.item() for part in networks["spikes"][1::2]]
    (end,) = trained(networks, optimizer, 300)
    assert (end["relu"] - start).abs().max() > 0.05
    drift = (end["spikes"] - end["relu"]).abs().max()
    control = (end["control"] - end["relu"]).abs().max()
    assert drift <= 1e-11
    assert control <= 1e-11
    # thresholds moved along with windows that grew meanwhile
    assert all(part.window > 5 * first for part, first in zip(networks["spikes"][1::2], first_windows, strict=True))
    x, y = images(500, 3)
    accuracy = (relu(x).argmax(1) == y).double().mean()
    assert accuracy > 0.7
    assert torch.equal(networks["spikes"](x).argmax(1), relu(x).argmax(1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_alpha_slopes_leaves_the_relu_network(optimizer: str):
    relu = relu_network(8)
    bound_row_sums([part for part in relu if isinstance(part, nn.Linear)])
    mapped, naive = alpha(relu), alpha(relu)
    for layer, linear in zip(naive[:-1], relu[:-1:2], strict=True):
        layer.load_state_dict({**layer.state_dict(), "weight": linear.weight, "bias": 0 * linear.bias})
    networks = {"relu": relu, "spikes": spiking(relu), "mapped": mapped, "naive": naive}
    x, y = images(500, 3)
    torch.testing.assert_close(mapped(x), relu(x), rtol=1e-11, atol=1e-11)
    trained(networks, optimizer, 100)
    losses = {name: F.cross_entropy(network(x), y).item() for name, network in networks.items()}
    logits = {name: network(x) for name, network in networks.items()}
    assert losses["spikes"] == pytest.approx(losses["relu"], abs=1e-11)
    assert losses["naive"] > losses["relu"] + 0.1
    for name in ("mapped", "naive"):
        assert (logits[name] - logits["relu"]).abs().max() > 0.1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sixteen_layers_drift_as_networks_do_that_differ_by_one_ulp(optimizer: str):
    relu = relu_network(16)
    controls = {f"control {seed}": one_ulp(relu, seed) for seed in range(3)}
    networks = {"relu": relu, "spikes": spiking(relu), **controls}
    for probe in trained(networks, optimizer, 100, (25, 50)):
        control = max((probe[name] - probe["relu"]).abs().max() for name in controls)
        drift = (probe["spikes"] - probe["relu"]).abs().max()
        assert 0 < drift <= 100 * control
        assert drift <= 1e-10


@pytest.mark.parametrize("depth", [2, 8])
def test_alpha_slopes_compute_the_relu_network_whose_row_sums_are_bounded(depth: int):
    relu = relu_network(depth)
    x = images(64, 1)[0]
    before = relu(x)
    bound_row_sums([part for part in relu if isinstance(part, nn.Linear)])
    torch.testing.assert_close(relu(x), before, rtol=0, atol=1e-12)
    network = alpha(relu)
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-11)
    for layer, linear in zip(network[:-1], relu[:-1:2], strict=True):
        weight, bias = layer.relu_parameters()
        torch.testing.assert_close(weight, linear.weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bias, linear.bias, rtol=1e-12, atol=1e-12)


def test_row_sums_of_one_or_more_have_no_alpha_equivalent():
    linear = nn.Linear(2, 1)
    nn.init.constant_(linear.weight, 0.5)
    with pytest.raises(ValueError, match="sum to less than 1, but got 1"):
        AlphaLinear(2, 1).copy_relu(linear)
    with pytest.raises(ValueError, match="to have a bias"):
        AlphaLinear(2, 1, bias=False).copy_relu(nn.Linear(2, 1))


def test_alpha_slopes_turn_the_first_step_away_from_that_of_relu():
    relu = relu_network(4)
    bound_row_sums([part for part in relu if isinstance(part, nn.Linear)])
    x, y = images(64, 1)
    wanted = gradients(relu, relu, x, y)

    def step(network: nn.Sequential, rate: float) -> list[Tensor]:
        """The change of the equivalent ReLU parameters in a step of SGD, over -rate."""

        def equivalent() -> list[Tensor]:
            layers = [part for part in network if isinstance(part, nn.Linear)]
            pairs = [p.relu_parameters() if isinstance(p, AlphaLinear) else (p.weight, p.bias) for p in layers]
            return [tensor.detach().clone() for pair in pairs for tensor in pair]

        before = equivalent()
        found = gradients(network, network, x, y)
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), found, strict=True):
                parameter -= rate * gradient
        return [(a - b) / -rate for a, b in zip(equivalent(), before, strict=True)]

    assert cosine(step(spiking(relu), 1e-4), wanted) > 1 - 1e-10
    assert cosine(step(alpha(relu), 1e-9), wanted) < 0.5


def test_longer_windows_do_not_change_unit_slopes_but_alpha_slopes():
    relu = relu_network(8)
    network = spiking(relu)
    x = images(64, 1)[0]
    before = network(x)
    rescale(network, 2.0)
    torch.testing.assert_close(network(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(in_absolute_times(network, x), before, rtol=0, atol=1e-12)
    bound_row_sums([part for part in relu if isinstance(part, nn.Linear)])
    other = alpha(relu)
    for layer in other[:-1]:
        layer.window.mul_(2)
    assert (other(x) - before).abs().max() > 1


def test_alpha_convolutions_are_alpha_layers_on_every_patch():
    conv = AlphaConv2d(3, 4, 3, stride=2, padding=1, window=2.0, dtype=torch.float64)
    linear = AlphaLinear(27, 4, window=2.0, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    x = torch.rand(2, 3, 7, 7, dtype=torch.float64)
    patches = F.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
    expected = linear(patches.reshape(-1, 27)).view(2, 16, 4).transpose(1, 2).reshape(2, 4, 4, 4)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-13)
    plain = nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.mul_(0.2)
    conv.copy_relu(plain)
    torch.testing.assert_close(conv(x), torch.relu(plain(x)), rtol=0, atol=1e-13)


def test_alpha_neurons_with_a_negative_slope_are_silent_with_finite_gradients():
    layer = AlphaLinear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -1, 0, 0], [0, 0, 0.5, 0.5]]))
        layer.bias.fill_(-10)
    found = layer(torch.ones(3, 4))
    found.sum().backward()
    assert torch.equal(found[:, 0], torch.zeros(3))
    assert (found[:, 1] > 0).all()
    assert torch.isfinite(layer.weight.grad).all()
    assert torch.equal(layer.weight.grad[0], torch.zeros(4))


@pytest.mark.parametrize("kernel", [(3, 2, 1, 1, False), (2, 2, 0, 1, False), (2, 2, 0, 1, True), (2, 1, 1, 2, False)])
def test_pooling_is_a_race_with_the_gradient_of_max_pooling(kernel: tuple[int, int, int, int, bool]):
    size, stride, padding, dilation, ceil_mode = kernel
    # few values: ties everywhere
    x = torch.randint(0, 4, (2, 3, 7, 7)).double()
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool = SpikePool2d(size, stride, padding, dilation=dilation, ceil_mode=ceil_mode)
    plain = nn.MaxPool2d(size, stride, padding, dilation, ceil_mode=ceil_mode)
    found, expected = pool(x), plain(other)
    assert torch.equal(found, expected)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(x.grad, other.grad)


def test_the_earliest_spike_of_a_pool_is_the_smallest_time():
    x = torch.relu(torch.randn(2, 3, 8, 8))
    times = 5 - x
    earliest = -F.max_pool2d(-times, 2)
    torch.testing.assert_close(SpikePool2d(2)(x), 5 - earliest)


def test_a_negative_scale_takes_the_latest_spike_and_silence_if_any_member_is_silent():
    scale = torch.tensor([2.0, -2.0, -1.0], dtype=torch.float64)
    x = torch.randint(0, 4, (2, 3, 8, 8)).double()
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool = SpikePool2d(3, 2, 1, sign=scale.sign())
    found = pool(x) * scale.view(-1, 1, 1)
    expected = F.max_pool2d(other * scale.view(-1, 1, 1), 3, 2, 1)
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, other.grad)
    # the earliest would be another
    assert not torch.equal(SpikePool2d(3, 2, 1)(x), pool(x))
    with pytest.raises(ValueError, match="Expected argument `sign` to have values 1 and -1"):
        SpikePool2d(2, sign=torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("padding", [1, (2, 0)])
def test_padding_by_zeros_is_padding_by_silent_neurons(padding: int | tuple[int, int]):
    # integers, so that no order of summation matters
    x = torch.randint(0, 4, (2, 3, 8, 8)).double()
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=padding, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-3, 4, conv.weight.shape))
        conv.bias.copy_(torch.randint(-3, 4, conv.bias.shape))
    t_max = 7.0
    vertical, horizontal = (padding, padding) if isinstance(padding, int) else padding
    times = F.pad(t_max - x, (horizontal, horizontal, vertical, vertical), value=t_max)
    assert torch.equal(F.conv2d(t_max - times, conv.weight, conv.bias, 2), conv(x))
    others = F.pad(t_max - x, (horizontal, horizontal, vertical, vertical), value=0.0)
    assert not torch.equal(F.conv2d(t_max - others, conv.weight, conv.bias, 2), conv(x))


def test_overflow_passes_clips_or_raises():
    u = torch.tensor([[-1.0, 1.0], [2.5, 3.0]], dtype=torch.float64, requires_grad=True)
    expected = {"pass": ([[0, 1], [2.5, 3]], [[0, 1], [1, 1]]), "clip": ([[0, 1], [2, 2]], [[0, 1], [0, 0]])}
    for overflow, (values, slopes) in expected.items():
        for time_domain in (False, True):
            neurons = FirstSpike(2.0, overflow, time_domain).eval()
            found = neurons(u)
            assert found.tolist() == values
            assert torch.autograd.grad(found.sum(), u)[0].tolist() == slopes
            assert neurons.overflow_fraction == 0.5
    neurons = FirstSpike(2.0, "error")
    with pytest.raises(ValueError, match="window of length 2, but got a potential of 3"):
        neurons(u)
    assert neurons(u - 1).tolist() == [[0, 0], [1.5, 2]]
    neurons = FirstSpike(2.0, "clip")
    assert neurons(torch.tensor([1.0, torch.nan, 3.0])).isnan().tolist() == [False, True, False]
    assert neurons.overflow_fraction.isnan()


def test_overflow_is_not_counted_in_training_that_passes_it_and_the_peak_shows_it():
    neurons = FirstSpike(2.0)
    neurons(torch.tensor([1.0, 3.0]))
    assert neurons.overflow_fraction is None
    neurons(torch.tensor([1.0, 2.0]))
    assert neurons.peak == 3.0
    neurons.forget_peak()
    assert neurons.peak is None
    neurons.eval()(torch.tensor([1.0, 3.0]))
    assert neurons.peak is None
    assert neurons.overflow_fraction == 0.5
    neurons.train()(torch.tensor([1.0]))
    assert neurons.overflow_fraction is None
    neurons.forget_peak()
    neurons.adaptive = False
    neurons(torch.tensor([1.0]))
    assert neurons.peak is None


def test_the_peak_of_clipped_neurons_is_that_of_their_potential():
    neurons = FirstSpike(2.0, "clip")
    neurons(torch.tensor([1.0, 3.0]))
    assert neurons.peak == 3.0


def test_constraints_act_in_training_and_evaluation_alike():
    u = torch.rand(4, 6)
    for training in (True, False):
        neurons = FirstSpike(1.0).train(training)
        neurons.constraints = TimeConstraints()
        assert torch.equal(neurons(u), torch.relu(u))
        neurons.constraints = TimeConstraints(time_bits=1)
        assert torch.equal(neurons(u), u.round())
        encoder = SpikeEncoder().train(training)
        encoder.constraints = TimeConstraints(time_bits=1, slope_mismatch=0.5)
        assert torch.equal(encoder(u), u.round())


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda m: m.to(torch.half)])
def test_windows_stay_float64_and_exact_whatever_the_network_is_cast_to(convert: Callable[[nn.Module], nn.Module]):
    network = nn.Sequential(nn.Linear(3, 4), FirstSpike(1 / 3), AlphaLinear(4, 2, window=1 / 7))
    convert(network)
    assert network[1].window.item() == 1 / 3
    assert network[2].window.item() == 1 / 7
    assert network[2].weight.dtype == network[0].weight.dtype
    state = copy.deepcopy(network.state_dict())
    assert {"1.window", "1.t_min", "2.window", "2.t_min"} < set(state)
    assert state["1.window"].dtype == torch.float64
    other = nn.Sequential(nn.Linear(3, 4), FirstSpike(), AlphaLinear(4, 2))
    other.load_state_dict(state)
    assert other[1].window.item() == 1 / 3


def test_a_network_after_a_step_can_be_copied():
    network = nn.Sequential(nn.Linear(3, 4), FirstSpike(), nn.Linear(4, 2))
    network(torch.rand(2, 3)).sum().backward()
    other = copy.deepcopy(network)
    assert other[1].peak == network[1].peak


def test_offsets_of_positions_are_added_to_the_potential_and_learned():
    offsets = OffsetMap((2, 3, 3))
    u = torch.randn(4, 2, 3, 3)
    assert torch.equal(offsets(u), u)
    with torch.no_grad():
        offsets.offset[1, 0, 2] = 5
    assert torch.equal(offsets(u)[:, 1, 0, 2], u[:, 1, 0, 2] + 5)
    offsets(u).sum().backward()
    assert torch.equal(offsets.offset.grad, torch.full((2, 3, 3), 4.0))


def test_inputs_are_spikes_the_larger_the_earlier():
    x = torch.tensor([[-3.0, 0.0, 3.0]], dtype=torch.float64)
    assert SpikeEncoder(-3, 3)(x).tolist() == [[0, 0.5, 1]]
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    encoded = F.linear(SpikeEncoder(-3, 3)(x), 6 * weight, bias - 3 * weight.sum(1))
    torch.testing.assert_close(encoded, F.linear(x, weight, bias), rtol=0, atol=1e-13)
    encoder = SpikeEncoder()
    assert (encoder.t_min, encoder.t_max) == (0, 1)
    with pytest.raises(ValueError, match="Expected argument `high` to be larger than low = 1"):
        SpikeEncoder(1, 1)


def test_inputs_outside_the_range_are_moved_to_its_ends_counted_and_warned_of_once():
    encoder = SpikeEncoder(0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(torch.tensor([0.0, 1.0, 2.0]))
    with pytest.warns(UserWarning, match=r"2 inputs were outside the range \[0, 2\]"):
        found = encoder(torch.tensor([-1.0, 1.0, 3.0]))
    assert found.tolist() == [0, 0.5, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(7):
            encoder(torch.tensor([-1.0, 1.0, 3.0]))
    assert encoder.outside == 16


def test_jittered_inputs_stay_in_their_window_and_silent_ones_silent():
    encoder = SpikeEncoder()
    encoder.constraints = TimeConstraints(jitter=0.5)
    x = torch.cat([torch.zeros(100), torch.rand(1000)])
    found = encoder(x)
    assert torch.equal(found[:100], x[:100])
    assert (found - x)[100:].abs().max() > 0.3
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FirstSpike(0.0), "`window` to be a finite number larger than 0"),
        (lambda: FirstSpike(overflow="saturate"), "`overflow` to be one of 'pass', 'clip', 'error'"),
        (lambda: AlphaLinear(2, 2, window=-1.0), "`window` to be a finite number larger than 0"),
        (lambda: AlphaConv2d(2, 2, 3, window=0.0), "`window` to be a finite number larger than 0"),
        (lambda: SpikeEncoder(float("nan"), 1), "`low` to be"),
    ],
)
def test_arguments_outside_their_range_are_refused(build: Callable[[], nn.Module], message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_window_longer_than_needed_loses_nothing_and_cascades():
    network = spiking(relu_network(4))
    network[1].window.fill_(100.0)
    cascade(network)
    assert network[3].t_min == 101
