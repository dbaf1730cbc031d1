from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods.ttfs import AlphaLinear, FirstSpike, SpikeEncoder
from lightning_snn.methods.ttfs.windows import calibrate, cascade, grow, latency, rescale


def chain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    layers = (nn.Linear(6, 8), FirstSpike(2.0), nn.Linear(8, 8), FirstSpike(3.0), nn.Linear(8, 8), FirstSpike(0.7))
    return nn.Sequential(SpikeEncoder(), *layers, nn.Linear(8, 3)).to(dtype)


def neurons(network: nn.Module) -> list[FirstSpike]:
    return [part for part in network.modules() if isinstance(part, FirstSpike)]


def potentials(network: nn.Module, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [part.register_forward_pre_hook(lambda _, u: found.append(u[0].detach())) for part in neurons(network)]
    network(x)
    for handle in handles:
        handle.remove()
    return found


def assert_windows_tile_time(network: nn.Module) -> None:
    end = 1.0
    for layer in neurons(network):
        assert layer.t_min == end
        end = layer.t_max
    assert latency(network) == end


class Branches(nn.Module):
    """Two branches of neurons that meet in a third, as a mapped network names them."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.both = FirstSpike(2.0), FirstSpike(5.0), FirstSpike(3.0)
        self.spiking = [("short", self.short), ("long", self.long), ("both", self.both)]
        self.sources = {"short": ["input"], "long": ["input"], "both": ["short", "long"], "readout": ["both"]}

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.short(x) - self.long(-x))


def test_windows_of_a_chain_begin_where_the_last_one_ends():
    network = chain()
    cascade(network)
    assert [layer.t_min.item() for layer in neurons(network)] == [1, 3, 6]
    assert latency(network) == 6.7
    assert latency(network).dtype == torch.float64


def test_without_neurons_the_readout_is_read_when_inputs_have_ended():
    network = nn.Sequential(SpikeEncoder(), nn.Linear(6, 2))
    cascade(network)
    assert grow(network) is None
    assert latency(network) == 1


def test_windows_begin_when_all_presynaptic_windows_have_ended():
    network = Branches()
    for wrapped in (network, nn.Sequential(network)):
        network.both.t_min.zero_()
        cascade(wrapped)
        assert [layer.t_min.item() for layer in neurons(network)] == [1, 1, 6]
        assert latency(wrapped) == 9


def test_alpha_layers_take_part_in_the_cascade_and_keep_their_windows():
    network = nn.Sequential(AlphaLinear(6, 8, window=2.0), nn.Linear(8, 8), FirstSpike(), nn.Linear(8, 2))
    x = torch.rand(16, 6)
    network(x)
    grow(network)
    calibrate(network, x)
    rescale(network, 2.0)
    assert network[0].window == 2
    assert network[2].t_min == 3


@pytest.mark.parametrize("gamma", [1.0, 10.0])
def test_after_a_step_windows_last_gamma_times_the_largest_activation_and_never_shrink(gamma: float):
    network = chain(torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    before = [layer.window.item() for layer in neurons(network)]
    grew = False
    for _ in range(20):
        x = torch.rand(16, 6, dtype=torch.float64)
        largest = [potential.amax().clamp(min=0) for potential in potentials(network, x)]
        network.zero_grad()
        for layer in neurons(network):
            layer.forget_peak()
        network(x).square().sum().backward()
        optimizer.step()
        grow(network, gamma)
        after = [layer.window.item() for layer in neurons(network)]
        for new, old, peak in zip(after, before, largest, strict=True):
            assert new == max(old, gamma * peak)
        grew |= after != before
        assert_windows_tile_time(network)
        before = after
    assert grew


def test_peaks_of_several_batches_count_until_windows_grow():
    layer = FirstSpike(1.0)
    for value in (2.0, 7.0, 3.0):
        layer(torch.tensor([value]))
    assert grow(layer, 1.0) == 7
    assert layer.window == 7
    assert layer.peak is None
    layer(torch.tensor([3.5]))
    assert grow(layer, 1.0) == 0.5
    assert layer.window == 7


def test_windows_do_not_grow_from_evaluation_from_clipping_or_where_they_are_frozen():
    network = chain()
    before = [layer.window.item() for layer in neurons(network)]
    x = torch.rand(16, 6)
    network.eval()(100 * x.clamp(max=0.01))
    grow(network)
    assert [layer.window.item() for layer in neurons(network)] == before
    network.train()
    for layer in neurons(network):
        layer.adaptive = False
    network(x)
    assert grow(network, 1e3) is None
    assert [layer.window.item() for layer in neurons(network)] == before
    clipped = FirstSpike(2.0, "clip")
    for _ in range(3):
        clipped(torch.tensor([1.5]))
        grow(clipped, 1.0)
    assert clipped.window == 2


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_batch_that_overflowed_leaves_windows_as_they_are(value: float):
    layer = FirstSpike(2.0)
    layer(torch.tensor([1.0, value]))
    grow(layer)
    assert layer.window == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_windows_grow_in_float64_whatever_the_potential(dtype: torch.dtype):
    layer = FirstSpike(1.0).to(dtype)
    layer(torch.tensor([1 / 3], dtype=dtype))
    grow(layer, 10.0)
    assert layer.window == 10 * torch.tensor(1 / 3, dtype=dtype).double()
    assert layer.window.dtype == torch.float64


def test_calibrated_windows_last_longer_than_the_largest_activation_by_zeta():
    network = chain(torch.float64)
    batches = [torch.rand(32, 6, dtype=torch.float64) for _ in range(3)]
    largest = torch.stack(
        [torch.stack([potential.amax() for potential in potentials(network, x)]) for x in batches]
    ).amax(0)
    calibrate(network, iter(batches), 0.3)
    for layer, peak in zip(neurons(network), largest, strict=True):
        assert layer.window == pytest.approx(1.3 * peak.item(), rel=1e-14)
    assert_windows_tile_time(network)


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.9, 0.999])
def test_quantile_windows_are_those_of_emitted_spikes_over_all_batches(quantile: float):
    layer = FirstSpike()
    batches = [scale * torch.randn(2000) for scale in (1e-3, 1.0, 20.0)]
    calibrate(layer, batches, 0.0, quantile)
    emitted = torch.cat(batches).clamp(min=0)
    emitted = emitted[emitted > 0].sort().values
    rank = -(-quantile * len(emitted) // 1)
    assert layer.window == pytest.approx(emitted[int(rank) - 1].item(), rel=5e-4)
    assert layer.window >= emitted[int(rank) - 1]


def test_calibration_sees_no_constraints_and_leaves_the_network_as_it_was():
    network = chain()
    x = torch.rand(64, 6)
    calibrate(network, x)
    expected = [layer.window.item() for layer in neurons(network)]
    rescale(network, 0.1)
    first, second, third = neurons(network)
    first.constraints, second.overflow, third.time_domain = TimeConstraints(jitter=1.0), "clip", True
    network[0].constraints = TimeConstraints(time_bits=1)
    network[1].eval()
    modes = [part.training for part in network.modules()]
    calibrate(network, x)
    assert [layer.window.item() for layer in neurons(network)] == expected
    assert (first.constraints, second.overflow, third.time_domain) == (TimeConstraints(jitter=1.0), "clip", True)
    assert network[0].constraints == TimeConstraints(time_bits=1)
    assert [part.training for part in network.modules()] == modes
    assert all(layer.peak is None for layer in neurons(network))


def test_a_network_is_left_as_it_was_where_calibration_fails():
    network = chain()
    neurons(network)[0].overflow = "clip"
    with pytest.raises(RuntimeError):
        calibrate(network, torch.rand(4, 5))
    assert network.training
    assert neurons(network)[0].overflow == "clip"
    assert not neurons(network)[0]._forward_pre_hooks


def test_layers_that_never_spike_keep_their_windows_and_are_named():
    network = chain()
    with torch.no_grad():
        network[3].bias.fill_(-100)
        network[5].bias.fill_(1)
    for quantile in (None, 0.5):
        with pytest.warns(UserWarning, match=r"never spiked and keep their windows: 4$"):
            calibrate(network, torch.rand(8, 6), quantile=quantile)
        assert network[4].window == 3
        assert_windows_tile_time(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(chain(), torch.rand(64, 6))


def test_rescaled_windows_divide_latency():
    network = chain()
    rescale(network, 0.25)
    assert [layer.window.item() for layer in neurons(network)] == [0.5, 0.75, 0.175]
    assert_windows_tile_time(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zeta": -1.0}, "`zeta` to be larger than -1"),
        ({"zeta": float("nan")}, "`zeta`"),
        ({"quantile": 0.0}, "`quantile` to be a number between 0 and 1"),
        ({"quantile": 1.0}, "`quantile` to be a number between 0 and 1"),
        ({"batches": []}, "`batches` to have at least one batch"),
    ],
)
def test_arguments_of_calibration_outside_their_range_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        calibrate(**{"network": chain(), "batches": torch.rand(4, 6), **arguments})


def test_factors_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="Expected argument `gamma` to be a finite number of at least 1"):
        grow(chain(), 0.5)
    with pytest.raises(ValueError, match="Expected argument `factor` to be a finite number larger than 0"):
        rescale(chain(), 0.0)


@pytest.mark.parametrize(("quantile", "value"), [(None, torch.nan), (None, torch.inf), (0.5, torch.nan)])
def test_a_potential_that_is_no_number_sets_no_window(quantile: float | None, value: float):
    network, x = nn.Sequential(FirstSpike(2.0)), torch.rand(4, 3)
    x[1] = value
    with pytest.raises(ValueError, match="`batches` to give finite potentials, but got (nan|inf) in layer 0"):
        calibrate(network, x, quantile=quantile)
    assert network[0].window == 2.0
    x[1] = -torch.nan
    with pytest.raises(ValueError, match="finite potentials, but got nan"):
        calibrate(network, x, quantile=quantile)
