from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks.hardware import (
    Constrained,
    HardwareConstraints,
    HardwareFineTuning,
    export_weights,
    shorten_windows,
)
from lightning_snn.functional.quantization import quantize_weight, weight_range
from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods.ttfs import AlphaLinear, FirstSpike, SpikeEncoder
from tests.support import training
from tests.support.recipes import run_recipe
from tests.support.scripts import run_script

CLASSES = 3
Y = torch.arange(96) % CLASSES
X = torch.rand(96, 1, 6, 6, generator=torch.Generator().manual_seed(0))
X = (X + F.one_hot(Y, CLASSES).repeat_interleave(12, 1).view_as(X)) / 2  # a bright third
TWO_BITS = HardwareConstraints(weight_bits=2)
SPIKE_TIMES = HardwareConstraints(time_bits=3, latency_factor=4)


def loader(shuffle: bool = False, workers: int = 0) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), 16, shuffle=shuffle, num_workers=workers)


def plain_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    )


def spiking_network() -> nn.Sequential:
    torch.manual_seed(0)
    synapses = nn.Conv2d(1, 4, 3), nn.Linear(64, 16), nn.Linear(16, CLASSES)
    first, second = FirstSpike(50.0), FirstSpike(70.0)
    return nn.Sequential(SpikeEncoder(), synapses[0], first, nn.Flatten(), synapses[1], second, synapses[2])


class Plain(pl.LightningModule):
    """Module independent of the library."""

    def __init__(self, network: nn.Module | None = None, schedule: Any = None) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": plain_network() if network is None else network})
        self.schedule = schedule
        self.rates: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["net"](x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        outputs = self(batch[0])
        self.log("val/accuracy", (outputs.argmax(1) == batch[1]).float().mean(), prog_bar=True)
        self.log("val/loss", F.cross_entropy(outputs, batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return optimizer if self.schedule is None else ([optimizer], [self.schedule(optimizer)])


def fine_tuning(constraints: HardwareConstraints = TWO_BITS, **options: Any) -> HardwareFineTuning:
    return HardwareFineTuning(constraints, **{"start_epoch": 2, "metric": "val/loss", **options})


trainer = partial(training.trainer, max_epochs=4)


def loss_of(network: nn.Module) -> float:
    """Return the mean loss of the validation data, without the loops of the library or Lightning."""
    network.eval()
    with torch.no_grad():
        return torch.stack([F.cross_entropy(network(x), y) for x, y in loader()]).mean().item()


def quantized(network: nn.Module, bits: int = 2) -> nn.Module:
    """Return a copy whose weights are replaced permanently."""
    found = copy.deepcopy(network)
    for name, parameter in found.named_parameters():
        if name.endswith("weight"):
            parameter.data = quantize_weight(parameter.data, bits)
    return found


class Keep(pl.Callback):
    """Record the weights at the start of each epoch, before the hooks of other callbacks."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.networks.append(copy.deepcopy(pl_module.inner["net"]))


# constraints on a module


def test_a_constrained_forward_computes_with_quantized_weights_and_leaves_them():
    network = plain_network()
    before = copy.deepcopy(network.state_dict())
    plain = network(X)
    with Constrained(network, TWO_BITS):
        found = network(X)
        assert list(network.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert type(network[0].weight) is nn.Parameter
    assert torch.equal(found, quantized(network)(X))
    assert not torch.allclose(found, plain, atol=1e-2)
    assert torch.equal(network(X), plain)


def test_gradients_of_constrained_weights_are_straight_through():
    network = plain_network().double()
    reference = quantized(network)
    with Constrained(network, TWO_BITS):
        network(X.double()).square().sum().backward()
    reference(X.double()).square().sum().backward()
    for found, expected in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_clipped_weights_receive_no_gradient():
    layer = nn.Linear(20, 10)
    with Constrained(layer, HardwareConstraints(weight_bits=2, weight_percentile=80)):
        layer(torch.ones(20)).sum().backward()
    low, high = weight_range(layer.weight, 80)
    inside = (layer.weight >= low) & (layer.weight <= high)
    assert torch.equal(layer.weight.grad, inside.float())
    assert inside.sum() == 160


def test_weight_noise_is_redrawn_in_every_call_and_has_the_given_size():
    network = nn.Linear(200, 300, bias=False)
    constraints = HardwareConstraints(weight_noise=0.05)
    with Constrained(network, constraints), torch.no_grad():
        first, second = network(torch.eye(200)).T, network(torch.eye(200)).T
    scale = network.weight.abs().max()
    for noise in (first - network.weight, second - network.weight, (first - second) / 2**0.5):
        assert (noise / scale).std().item() == pytest.approx(0.05, rel=0.02)


def test_a_forward_that_raises_leaves_the_plain_weight():
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    layer = Broken(3, 3)
    with Constrained(layer, TWO_BITS):
        with pytest.raises(RuntimeError, match="broken"):
            layer(torch.ones(3))
        assert isinstance(layer.weight, nn.Parameter)


def test_copies_of_a_constrained_module_are_constrained_by_their_own_weights():
    network = plain_network()
    with Constrained(network, TWO_BITS):
        other = copy.deepcopy(network)
        with torch.no_grad():
            other[3].weight.mul_(-2)
        assert torch.equal(other(X), quantized(strip(other))(X))
        assert torch.equal(network(X), quantized(strip(network))(X))


def strip(network: nn.Module) -> nn.Module:
    fresh = plain_network()
    fresh.load_state_dict(network.state_dict())
    return fresh


def test_neurons_of_time_to_first_spike_take_the_constraints_and_give_them_back():
    network = spiking_network()
    encoder, neurons = network[0], network[2]
    constraints = HardwareConstraints(jitter=0.1, time_bits=4, slope_mismatch=0.2, weight_bits=4)
    with Constrained(network, constraints):
        assert neurons.constraints == TimeConstraints(0.1, False, 4, 0.2)
        assert encoder.constraints == TimeConstraints(0.1, False, 4, 0.0)
        assert (neurons.overflow, neurons.adaptive) == ("clip", False)
        assert neurons.window == 50
    for layer in (encoder, neurons):
        assert layer.constraints is None
    assert (neurons.overflow, neurons.adaptive) == ("pass", True)


def test_weights_alone_freeze_windows_and_let_spikes_be_early():
    network = spiking_network()
    with Constrained(network, TWO_BITS):
        assert [neurons.adaptive for neurons in (network[2], network[5])] == [False, False]
        assert (network[2].overflow, network[2].constraints) == ("pass", None)


def test_shortened_windows_tile_time():
    network = spiking_network()
    shorten_windows(network, 4, {"2": torch.tensor(8.0)})
    assert (network[2].window, network[2].t_min) == (2, 1)
    assert (network[5].window, network[5].t_min) == (17.5, 3)
    shorten_windows(network, 1, {"2": torch.tensor(0.0), "5": torch.tensor(-1.0)})  # silent ones keep theirs
    assert (network[2].window, network[5].window) == (2, 17.5)


def test_a_network_without_neurons_refuses_what_concerns_times():
    for name, value in {"jitter": 0.1, "time_bits": 4, "latency_factor": 2.0, "slope_mismatch": 0.1}.items():
        with pytest.raises(
            ValueError, match=f"a module with FirstSpike neurons for {name}, but got Sequential without any"
        ):
            Constrained(plain_network(), HardwareConstraints(**{name: value}))


def test_layers_that_constraints_cannot_act_on_are_named():
    with pytest.raises(ValueError, match="linear or convolutional layers for constraints on weights"):
        Constrained(nn.Sequential(nn.ReLU()), TWO_BITS)
    parametrized = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"but got computed \(parametrized\) ones: 1$"):
        Constrained(parametrized, TWO_BITS)
    with pytest.raises(ValueError, match="with slope 1 for time_bits, but got 1"):
        Constrained(nn.Sequential(FirstSpike(), AlphaLinear(2, 2)), HardwareConstraints(time_bits=4))


def test_layers_that_are_never_called_are_known():
    network = plain_network()
    with Constrained(network, TWO_BITS) as constrained:
        assert list(constrained.never_called) == ["0", "3", "5"]
        network[3](torch.zeros(64))
        assert list(constrained.never_called) == ["0", "5"]


def test_exported_integers_are_the_weights_of_the_constrained_forward():
    network = plain_network()
    constraints = HardwareConstraints(weight_bits=3, weight_percentile=95)
    exported = export_weights(network, constraints)
    assert list(exported) == ["0", "3", "5"]
    chip = copy.deepcopy(network)
    for name, (codes, scale, offset) in exported.items():
        assert (codes.min(), codes.max()) == (0, 7)
        chip.get_submodule(name).weight.data = offset + scale * codes
    with Constrained(network, constraints):
        torch.testing.assert_close(network(X), chip(X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="`weight_bits` for an export"):
        export_weights(network, HardwareConstraints())


CHANNELS = HardwareConstraints(weight_bits=3, weight_ranges="channel")


def by_channel(weight: Tensor, transposed: bool = False) -> Tensor:
    """Compare with output channels that are quantized like separate layers."""
    channels = weight.transpose(0, 1) if transposed else weight
    found = torch.stack([quantize_weight(channel, 3) for channel in channels])
    return found.transpose(0, 1) if transposed else found


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(9, 4), (9,)),
        (nn.Conv1d(2, 4, 3), (2, 5)),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
        (nn.ConvTranspose2d(3, 5, 2), (3, 5, 5)),
    ],
    ids=["linear", "conv1d", "grouped", "transposed"],
)
def test_with_ranges_a_channel_each_channel_is_quantized_by_itself(layer: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    transposed, x = isinstance(layer, nn.ConvTranspose2d), torch.rand(shape)
    with torch.no_grad():
        (layer.weight[:, 0] if transposed else layer.weight[0]).mul_(50)  # or one range would be much as another
    reference = copy.deepcopy(layer)
    reference.weight.data = by_channel(layer.weight.detach(), transposed)
    with Constrained(layer, CHANNELS):
        found = layer(x)
    torch.testing.assert_close(found, reference(x))
    with Constrained(layer, HardwareConstraints(weight_bits=3)):
        assert not torch.allclose(layer(x), found, rtol=1e-2)


def test_exported_integers_of_ranges_a_channel_have_a_scale_a_channel():
    network = plain_network()
    exported = export_weights(network, CHANNELS)
    assert [tuple(integers.scale.shape) for integers in exported.values()] == [(4, 1, 1, 1), (16, 1), (CLASSES, 1)]
    chip = copy.deepcopy(network)
    for name, (codes, scale, offset) in exported.items():
        assert (codes.flatten(1).amin(1) == 0).all()
        assert (codes.flatten(1).amax(1) == 7).all()
        chip.get_submodule(name).weight.data = offset + scale * codes
    with Constrained(network, CHANNELS):
        torch.testing.assert_close(network(X), chip(X), rtol=1e-5, atol=1e-6)


def test_with_ranges_a_channel_noise_is_as_large_as_the_channel():
    network = nn.Linear(300, 2, bias=False)
    with torch.no_grad():
        network.weight[1] *= 100
    with Constrained(network, HardwareConstraints(weight_noise=0.05, weight_ranges="channel")), torch.no_grad():
        noise = network(torch.eye(300)).T - network.weight
    scale = network.weight.detach().abs().amax(1)
    torch.testing.assert_close(noise.std(1) / scale, torch.full((2,), 0.05), rtol=0.15, atol=0)


def test_transposed_convolutions_in_groups_are_refused_for_ranges_a_channel():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match=r'grouped transposed convolutions for weight_ranges="channel", but got 1$'):
        Constrained(network, CHANNELS)
    Constrained(network, TWO_BITS).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 4, "weight_ranges": "row"}, "`weight_ranges` to be one of 'layer', 'channel', but got 'row'"),
        ({"weight_ranges": "channel"}, "`weight_bits` or `weight_noise` to be set if `weight_ranges` is"),
        ({"jitter": -0.1}, "`jitter` to be a finite number of at least 0, but got -0.1"),
        ({"time_bits": 0}, "`time_bits` to be an integer of at least 1, but got 0"),
        ({"weight_bits": 17}, "`weight_bits` to be a number from 1 to 16, but got 17"),
        ({"weight_bits": 4, "weight_percentile": 0.999}, "`weight_percentile` to be a number from 50 to 100"),
        ({"weight_percentile": 99.9}, "`weight_bits` to be set if `weight_percentile` is"),
        ({"jitter_silent": True}, "`jitter` to be larger than 0 if `jitter_silent` is set"),
        ({"latency_factor": 0.5}, "`latency_factor` to be a finite number of at least 1, but got 0.5"),
        ({"slope_mismatch": -1}, "`slope_mismatch` to be a number from 0 to 1, but got -1"),
        ({"weight_noise": float("nan")}, "`weight_noise` to be a finite number of at least 0, but got nan"),
    ],
)
def test_bad_constraints_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        HardwareConstraints(**options)


# the callback


def test_the_metric_is_measured_without_constraints_with_them_and_after_fine_tuning(caplog: Any):
    caplog.set_level("INFO")
    keep, callback, module = Keep(), fine_tuning(), Plain()
    trainer(keep, callback).fit(module, loader(), loader())
    network = keep.networks[2]
    assert callback.results == pytest.approx(
        {
            "hardware/loss_unconstrained": loss_of(network),
            "hardware/loss_before": loss_of(quantized(network)),
            "hardware/loss_after": loss_of(quantized(module.inner["net"])),
        },
        rel=1e-6,
    )
    assert abs(callback.results["hardware/loss_before"] / callback.results["hardware/loss_unconstrained"] - 1) > 0.01
    assert callback.results["hardware/loss_after"] < callback.results["hardware/loss_before"]
    printed = [line.split() for line in caplog.text.splitlines() if line.startswith("hardware/")]
    assert printed == [[name, f"{value:.4f}"] for name, value in callback.results.items()]


def test_until_the_switch_training_is_the_same_to_the_last_bit():
    """Use noise in the measurements, and shuffled data."""
    with_it, without = Keep(), Keep()
    torch.manual_seed(1)
    trainer(without, max_epochs=3).fit(Plain(), loader(True), loader(True))
    torch.manual_seed(1)
    callback = fine_tuning(HardwareConstraints(weight_noise=0.1))
    trainer(with_it, callback, max_epochs=3).fit(Plain(), loader(True), loader(True))
    for mine, theirs in zip(with_it.networks, without.networks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_measuring_changes_no_training():
    def weights(**options: Any) -> list[Tensor]:
        module = Plain()
        torch.manual_seed(1)
        callback = fine_tuning(HardwareConstraints(weight_noise=0.1), **options)
        trainer(callback).fit(module, loader(True), loader(True))
        assert bool(callback.results) == (callback.metric is not None)
        return list(module.parameters())

    for measured, unmeasured in zip(weights(), weights(metric=None), strict=True):
        assert torch.equal(measured, unmeasured)


def test_fine_tuning_is_that_of_a_loop_written_out():
    keep, module = Keep(), Plain()
    trainer(keep, fine_tuning(learning_rate_factor=0.25), max_epochs=3).fit(module, loader(), loader())
    network = Plain()
    reference, optimizer = network.inner["net"], network.configure_optimizers()
    for epoch in range(3):
        if epoch == 2:
            optimizer.param_groups[0]["lr"] = 0.025
        for x, y in loader():
            used = quantized(reference) if epoch == 2 else reference
            used.zero_grad()
            F.cross_entropy(used(x), y).backward()
            for parameter, each in zip(reference.parameters(), used.parameters(), strict=True):
                parameter.grad = each.grad
            optimizer.step()
    for found, expected in zip(module.inner["net"].parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def scheduled(make: Any, factor: float | None, epochs: int = 6) -> list[float]:
    module = Plain(schedule=make)
    callbacks = [] if factor is None else [fine_tuning(learning_rate_factor=factor, metric=None)]
    trainer(*callbacks, max_epochs=epochs).fit(module, loader())
    return module.rates[:: len(loader())]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: lr_scheduler.StepLR(optimizer, 2),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 6),
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=10),
        lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 3, cycle_momentum=False),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer, 0.5), lr_scheduler.CosineAnnealingLR(optimizer, 4)], [3]
        ),
        None,
    ],
    ids=["lambda", "step", "cosine", "one cycle", "cyclic", "sequential", "none"],
)
def test_schedules_go_on_with_learning_rates_times_the_factor(make: Any):
    plain, scaled = scheduled(make, None), scheduled(make, 0.2)
    expected = [rate * (0.2 if epoch >= 2 else 1) for epoch, rate in enumerate(plain)]
    assert scaled == pytest.approx(expected, rel=1e-9)


def test_windows_are_set_to_the_largest_input_current_of_the_validation_data_and_divided():
    keep, module = Keep(), Plain(spiking_network())
    callback = fine_tuning(SPIKE_TIMES)
    trainer(keep, callback).fit(module, loader(), loader())
    currents, network = [], keep.networks[2].eval()
    network[2].register_forward_pre_hook(lambda _, inputs: currents.append(inputs[0].max()))
    loss_of(network)
    first, second = module.inner["net"][2], module.inner["net"][5]
    assert first.window.item() == pytest.approx(max(currents).item() / 4, rel=1e-6)
    assert second.t_min == first.t_max == 1 + first.window
    assert 0 < second.window < 5
    # the clip and the grid are what differs
    unconstrained, before, after = callback.results.values()
    assert before > unconstrained
    assert after < before


def test_without_calibration_windows_are_divided_as_they_are():
    module = Plain(spiking_network())
    trainer(fine_tuning(SPIKE_TIMES, calibrate=False)).fit(module, loader(), loader())
    assert [module.inner["net"][place].window.item() for place in (2, 5)] == [12.5, 17.5]
    module = Plain(spiking_network())
    trainer(fine_tuning(SPIKE_TIMES, metric=None)).fit(module, loader())
    assert [module.inner["net"][place].window.item() for place in (2, 5)] == [12.5, 17.5]


def test_the_trainer_s_test_is_constrained_and_the_module_is_plain_afterwards():
    callback, module = fine_tuning(), Plain()
    tuner = trainer(callback)
    tuner.fit(module, loader(), loader())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())
    (found,) = tuner.test(module, loader(), verbose=False)
    assert found["test/loss"] == pytest.approx(loss_of(quantized(module.inner["net"])), rel=1e-6)
    assert found["test/loss"] == pytest.approx(callback.results["hardware/loss_after"], rel=1e-6)
    (plain,) = trainer().test(module, loader(), verbose=False)
    assert plain["test/loss"] == pytest.approx(loss_of(module.inner["net"]), rel=1e-6)
    assert plain["test/loss"] != pytest.approx(found["test/loss"], rel=1e-3)


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(stopped_after: int, tmp_path: Path):
    constraints = HardwareConstraints(weight_bits=3, time_bits=3, latency_factor=4)

    def make() -> tuple[HardwareFineTuning, Plain]:
        schedule = lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.5)  # noqa: E731
        return fine_tuning(constraints), Plain(spiking_network(), schedule)

    whole, expected = make()
    trainer(whole, max_epochs=5).fit(expected, loader(), loader())
    callback, module = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter = trainer(fine_tuning(constraints), Stop(stopped_after), max_epochs=5)
        fitter.fit(make()[1], loader(), loader())
    fitter.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert saved["epoch"] == stopped_after
    assert list(saved["state_dict"]) == list(module.state_dict())
    trainer(callback, max_epochs=5).fit(module, loader(), loader(), ckpt_path=tmp_path / "half.ckpt")
    for (name, found), value in zip(module.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, value), name
    assert callback.results == whole.results
    assert module.rates == expected.rates[stopped_after * len(loader()) :]


class Stop(pl.Callback):
    """Callback that ends a run early."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_a_checkpoint_with_other_windows_is_refused(tmp_path: Path):
    fitter = trainer(fine_tuning(SPIKE_TIMES), max_epochs=3)
    fitter.fit(Plain(spiking_network()), loader(), loader())
    fitter.save_checkpoint(tmp_path / "three.ckpt")
    callback = fine_tuning(HardwareConstraints(time_bits=3, latency_factor=2))
    with pytest.raises(ValueError, match=r"`latency_factor` to be that of the checkpoint, 4, but got 2"):
        trainer(callback).fit(Plain(spiking_network()), loader(), loader(), ckpt_path=tmp_path / "three.ckpt")


def test_a_test_from_a_checkpoint_is_constrained(tmp_path: Path):
    module, callback = Plain(), fine_tuning()
    fitter = trainer(callback)
    fitter.fit(module, loader(), loader())
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    (found,) = trainer(fine_tuning()).test(Plain(), loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert found["test/loss"] == pytest.approx(callback.results["hardware/loss_after"], rel=1e-6)


def test_other_callbacks_and_loggers_see_the_usual_validations_only(tmp_path: Path):
    class Count(pl.Callback):
        validations, seen = 0, ()

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not trainer.sanity_checking:
                self.validations += 1
                self.seen = (*self.seen, trainer.callback_metrics["val/loss"].item())

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert trainer.callback_metrics.get("val/loss", 0) == (self.seen[-1] if self.seen else 0)

    count, callback = Count(), fine_tuning(start_epoch=3)
    others = [
        EarlyStopping("val/loss", patience=9),
        ModelCheckpoint(tmp_path, monitor="val/loss"),
        LearningRateMonitor(),
    ]
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"check_val_every_n_epoch": 2, "enable_checkpointing": True, "logger": logger, "log_every_n_steps": 1}
    fitter = trainer(callback, count, *others, **options)
    fitter.fit(Plain(), loader(), loader())
    assert count.validations == 2
    assert fitter.callback_metrics["val/loss"].item() == count.seen[-1]
    rows = (tmp_path / "metrics.csv").read_text()
    assert all(name in rows.splitlines()[0] for name in callback.results)
    assert {name: fitter.callback_metrics[name].item() for name in callback.results} == callback.results


def test_the_best_epoch_is_one_under_constraints(tmp_path: Path):
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/loss")
    callback = fine_tuning(HardwareConstraints(weight_bits=1), start_epoch=3, learning_rate_factor=1e-6)
    fitter = trainer(callback, best, enable_checkpointing=True)
    fitter.fit(Plain(), loader(), loader())
    # one bit is worse than all, so that an epoch before it would win
    assert callback.results["hardware/loss_after"] > callback.results["hardware/loss_unconstrained"]
    assert Path(best.best_model_path).name == "epoch=3.ckpt"
    (found,) = fitter.test(Plain(), loader(), ckpt_path="best", verbose=False)
    assert found["test/loss"] == pytest.approx(callback.results["hardware/loss_after"], rel=1e-6)
    assert {name: found[name] for name in callback.results} == pytest.approx(callback.results, rel=1e-6)
    assert len(callback.results) == 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_stopping_early_compares_scores_under_constraints_only(mode: str):
    class Stuck(Plain):
        """Module with the best possible score before the switch, and a worse, constant one after it."""

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            worse = self.current_epoch >= 2
            self.log("val/score", float(worse) if mode == "min" else float(not worse))

    def epochs(*callbacks: pl.Callback) -> int:
        stopping = EarlyStopping("val/score", patience=3, mode=mode)
        fitter = trainer(*callbacks, stopping, max_epochs=20)
        fitter.fit(Stuck(), loader(), loader())
        return fitter.current_epoch

    # epoch 0 is the best of all; with the switch epoch 2 is the best of the rest
    assert epochs() == 4
    assert epochs(fine_tuning()) == 6


def test_averaged_weights_are_plain_and_constrained_in_the_forward():
    callback, module = fine_tuning(start_epoch=1), Plain()
    fitter = trainer(callback, StochasticWeightAveraging(0.01, swa_epoch_start=2))
    fitter.fit(module, loader(), loader())
    assert list(module.state_dict()) == list(Plain().state_dict())
    assert callback.results["hardware/loss_after"] > 0
    (found,) = fitter.test(module, loader(), verbose=False)
    assert found["test/loss"] == pytest.approx(loss_of(quantized(module.inner["net"])), rel=1e-6)


@pytest.mark.parametrize("progress", [False, True])
def test_a_fast_dev_run_fine_tunes_and_writes_nothing(progress: bool, tmp_path: Path):
    callback = fine_tuning(SPIKE_TIMES, start_epoch=100)
    options = {"fast_dev_run": True, "enable_progress_bar": progress, "logger": True, "default_root_dir": tmp_path}
    trainer(callback, **options).fit(Plain(spiking_network()), loader(), loader())
    assert len(callback.results) == 3
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_sanity_check_and_with_a_progress_bar_measures():
    callback = fine_tuning()
    trainer(callback, num_sanity_val_steps=0, enable_progress_bar=True, max_epochs=3).fit(Plain(), loader(), loader())
    assert len(callback.results) == 3


class Save(pl.Callback):
    """Return the results of one process."""

    def __init__(self, hardware: HardwareFineTuning, folder: Path) -> None:
        self.hardware, self.folder = hardware, folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ending = {"state": pl_module.state_dict(), "results": self.hardware.results}
        torch.save(ending, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow  # two processes start
def test_all_processes_end_with_the_same_weights_windows_and_results(tmp_path: Path):
    callback = fine_tuning(HardwareConstraints(jitter=0.02, time_bits=3, weight_bits=4, latency_factor=4))
    options = {"devices": 2, "strategy": "ddp_spawn"}
    trainer(callback, Save(callback, tmp_path), **options).fit(Plain(spiking_network()), loader(), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["results"] == second["results"]
    assert len(first["results"]) == 3
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert first["state"]["inner.net.2.window"] < 5


def test_layers_whose_weights_are_read_elsewhere_cause_a_warning():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.read = nn.Linear(36, 8), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.called(x.flatten(1)), self.read.weight, self.read.bias)

    with pytest.warns(UserWarning, match=r"does not constrain .* inner.net.read$"):
        trainer(fine_tuning(), max_epochs=3).fit(Plain(Reads()), loader(), loader())


def test_an_exception_leaves_a_plain_module():
    class Breaks(Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 2 and batch_idx == 1:
                assert any(part._forward_pre_hooks for part in self.modules())
                raise RuntimeError("broken")

    module = Breaks()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(fine_tuning()).fit(module, loader(), loader())
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_a_run_that_ends_before_the_switch_warns():
    with pytest.warns(UserWarning, match="ended before epoch 2, so the network was not fine-tuned"):
        trainer(fine_tuning(), Stop(1)).fit(Plain(), loader(), loader())


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (fine_tuning(start_epoch=4), {}, "`start_epoch` to be smaller than the trainer's max_epochs = 4, but got 4"),
        (
            fine_tuning(HardwareConstraints(jitter=0.1)),
            {},
            "a module with FirstSpike neurons for jitter, but got Plain without any",
        ),
        (
            fine_tuning(),
            {"limit_val_batches": 0},
            "`metric` to be None for a run without validation, but got 'val/loss'",
        ),
    ],
    ids=["late", "times", "no validation"],
)
def test_what_cannot_be_done_is_refused_before_training(callback: pl.Callback, options: Any, message: str):
    module = Plain()
    with pytest.raises(ValueError, match=message):
        trainer(callback, **options).fit(module, loader(), loader())
    assert not module.rates


def test_a_metric_that_is_not_logged_is_refused_after_the_first_epoch():
    module = Plain()
    with pytest.raises(ValueError, match=r"one of .*val/accuracy, val/loss.*, but got 'val/nll'"):
        trainer(fine_tuning(metric="val/nll")).fit(module, loader(), loader())
    assert len(module.rates) == len(loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_epoch": -1}, "`start_epoch` to be an integer of at least 0, but got -1"),
        ({"learning_rate_factor": 0}, "`learning_rate_factor` to be a finite number larger than 0, but got 0"),
        ({"constraints": {"weight_bits": 4}}, "`constraints` to be HardwareConstraints, but got"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        HardwareFineTuning(**{"constraints": TWO_BITS, "start_epoch": 0, **options})


def test_the_catalog_script_prints_the_table(tmp_path: Path):
    printed = run_script("hardware_fine_tuning.py", tmp_path)
    found = dict(line.split() for line in printed.splitlines() if line.startswith("hardware/"))
    moments = ["unconstrained", "before", "after"]
    assert list(found) == [f"hardware/accuracy_{moment}" for moment in moments]
    assert float(found["hardware/accuracy_after"]) > float(found["hardware/accuracy_before"])
    assert not list(tmp_path.iterdir())


def test_the_catalog_fragment_fine_tunes_in_a_recipe(monkeypatch: Any, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    fragment = Path(__file__).resolve().parents[2] / "callbacks" / "hardware_fine_tuning.yaml"
    data = {"train_subjects": 2, "val_subjects": 1, "test_subjects": 1, "repetitions": 1, "time_steps": 4}
    cli = run_recipe(
        "sbnn_dvs",
        monkeypatch,
        *(part for name, value in data.items() for part in (f"--data.{name}", str(value))),
        *("--method", "SurrogateGradient", "--network.hidden", "16", "--config", str(fragment)),
        *("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"),
    )
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, HardwareFineTuning))
    assert callback.constraints == HardwareConstraints(weight_bits=4, weight_percentile=99.9)
    scores = ("accuracy", "nll", "brier", "ece", "pair_accuracy")
    moments = ("unconstrained", "before", "after")
    assert set(callback.results) == {f"hardware/{score}_{moment}" for score in scores for moment in moments}


def test_without_arguments_the_last_fifth_of_the_epochs_has_weights_of_8_bits_and_all_scores_are_compared():
    callback, module = HardwareFineTuning(), Plain()
    trainer(callback, max_epochs=5).fit(module, loader(), loader())
    assert callback.constraints == HardwareConstraints(weight_bits=8)
    assert [rate < 0.1 for rate in module.rates] == [False] * 4 * len(loader()) + [True] * len(loader())
    scores = {f"hardware/{score}_{moment}" for score in ("accuracy", "loss") for moment in ("before", "after")}
    assert scores < set(callback.results)


MOMENTS = ("unconstrained", "before", "after")
LOADERS = {"": 0.0, "/1": 10.0}  # values that `Logging` logs for them


class Logging(Plain):
    """Module that logs constants."""

    def __init__(self, *names: str) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), CLASSES)))
        self.names = names

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        for value, name in enumerate(self.names):
            self.log(name, float(value + 10 * dataloader_idx))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val/loss", "val/a/loss", "val_loss", "a"], {"loss": 0, "a/loss": 1, "val_loss": 2, "a": 3}),
        (["loss", "val/loss", "val/own"], {"loss": 0, "val/loss": 1, "val/own": 2}),
    ],
    ids=["parts", "collision"],
)
def test_every_metric_has_a_name_of_its_own(names: list[str], expected: dict[str, float]):
    callback = fine_tuning(metric="all", start_epoch=0)
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer(callback, **options).fit(Logging(*names), loader(), loader())
    assert callback.results == {f"hardware/{name}_{m}": value for name, value in expected.items() for m in MOMENTS}


@pytest.mark.parametrize("metric", ["all", "val/loss"])
@pytest.mark.parametrize("several", [list, lambda loaders: dict(zip("ab", loaders, strict=True))], ids=["list", "dict"])
def test_metrics_of_several_loaders_are_compared_and_logged_again_with_a_test(several: Any, metric: str):
    callback, module = fine_tuning(metric=metric, start_epoch=0), Logging("val/loss")
    made = trainer(callback, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    made.fit(module, loader(), several([loader(), loader()]))
    expected = {f"hardware/loss_{moment}{suffix}": value for moment in MOMENTS for suffix, value in LOADERS.items()}
    assert callback.results == expected
    (tested,) = made.test(module, loader(), verbose=False)
    assert {name: tested[name] for name in expected} == expected


def test_an_epoch_to_start_from_is_asked_for_where_a_run_has_no_number_of_epochs():
    with pytest.raises(ValueError, match="argument `start_epoch` to be set for a run without max_epochs, but got None"):
        trainer(HardwareFineTuning(), max_epochs=-1, max_steps=3).fit(Plain(), loader(), loader())
