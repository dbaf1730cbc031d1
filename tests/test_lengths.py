"""Batches `(x, y, lengths)`: the amount of padding changes nothing, under every method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule, methods, run
from lightning_snn.callbacks import EnergyMonitor, FiringRateMonitor, InitializationCheck, MembraneTrace
from lightning_snn.methods import ActivityPenalty, Progress, noisy
from lightning_snn.metrics.activity import record_activity
from lightning_snn.nn import (
    AdaptiveLIF,
    DivisiveNormalization,
    OverTime,
    RecurrentLIF,
    SynapticDelays,
    sequence_lengths,
)
from tests.support.slow import others_slow
from tests.support.training import trainer

T, B, FEATURES, CLASSES = 9, 5, 6, 3
LENGTHS = torch.tensor([3, 9, 5, 9, 1])
Y = torch.arange(B) % CLASSES


def inputs() -> Tensor:
    return 2 * torch.rand(T, B, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain(*before_neurons: nn.Module, neuron: Callable[[], nn.Module] = LIF) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 16), *before_neurons, neuron(), nn.Linear(16, CLASSES)).double()


def deep(neuron: Callable[[], nn.Module] = LIF) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(FEATURES, 16), neuron(), nn.Linear(16, 12), neuron(), nn.Linear(12, CLASSES)]
    return nn.Sequential(*layers).double()


def pooled() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [DivisiveNormalization(), SynapticDelays([0, 2]), nn.Linear(2 * FEATURES, 16), LIF()]
    pooling = [nn.Unflatten(1, (1, 16)), nn.MaxPool1d(2), nn.Flatten(), nn.ReLU()]
    return nn.Sequential(*layers, *pooling, nn.Linear(8, CLASSES)).double()


def normalized(**options: Any) -> nn.Sequential:
    return plain(nn.BatchNorm1d(16, **options))


def recurrent() -> nn.Sequential:
    return plain(neuron=lambda: RecurrentLIF(16))


class Case(NamedTuple):
    method: Callable[[], methods.Method]
    network: Callable[[], nn.Module] = deep
    readout: Any = "mean"
    penalties: bool = False


def own(outputs: Tensor) -> Tensor:
    return outputs.square().mean(0)


Surrogate, Rates = methods.SurrogateGradient, methods.RateBackprop
Online, EProp = methods.OnlineThroughTime, methods.EProp
CASES = {
    **{
        f"surrogate {kind if isinstance(kind, str) else 'own'}": Case(Surrogate, readout=kind)
        for kind in ("mean", "last", own)
    },
    **{f"surrogate {kind}": Case(Surrogate, plain, kind) for kind in ("max", "sum")},
    "surrogate, penalty": Case(Surrogate, penalties=True),
    "surrogate, norm": Case(Surrogate, normalized),
    "surrogate, norm without running statistics": Case(Surrogate, lambda: normalized(track_running_stats=False)),
    "surrogate, GRU": Case(Surrogate, lambda: plain(OverTime(nn.GRU(16, 16)))),
    "surrogate, recurrent": Case(Surrogate, recurrent, "last"),
    "surrogate, pieces": Case(lambda: Surrogate(checkpoint=2), readout="last", penalties=True),
    "surrogate, truncated": Case(lambda: Surrogate(truncate=2)),
    "rates": Case(lambda: Rates(check_drift=True)),
    "rates, sum": Case(Rates, readout="sum"),
    "rates, own": Case(Rates, readout=own),
    "rates, streaming": Case(lambda: Rates(streaming=True)),
    "rates, any neuron": Case(Rates, lambda: deep(AdaptiveLIF)),
    "rates, learned decay": Case(Rates, lambda: deep(lambda: LIF(0.8, learn_beta=True, learn_threshold=True))),
    "rates, layers": Case(Rates, pooled),
    "rates, layers, streaming": Case(lambda: Rates(streaming=True), pooled),
    "rates, steps": Case(lambda: Rates(window="step"), recurrent, penalties=True),
    "online": Case(Online),
    "online, last": Case(Online, readout="last"),
    "online, sum": Case(Online, readout="sum", penalties=True),
    "online, own": Case(Online, readout=own),
    "online, space": Case(lambda: Online(trace=False)),
    "online, streaming": Case(lambda: Online(streaming=True)),
    "e-prop": Case(EProp, recurrent),
    "e-prop, last": Case(EProp, plain, "last"),
    "e-prop, random": Case(lambda: EProp("random")),
    "e-prop, streaming": Case(lambda: EProp(streaming=True), recurrent),
    "noisy spikes": Case(lambda: methods.NoisySpikes(samples=2), readout="last"),
    "noisy spikes, steps": Case(lambda: methods.NoisySpikes(noise_mode="step"), normalized),
    "Bayes": Case(lambda: methods.SpikingBayes(bias_weight=0.1, samples=2)),
    "Bayes, last": Case(lambda: methods.SpikingBayes(bias_weight=0.1, bias_form="synapse"), readout="last"),
    "Bayes, weights": Case(lambda: methods.SpikingBayes(samples=2, sampling="weights")),
    "EP": Case(lambda: methods.ExpectationPropagation(iterations=2)),
}

# each method and each layer that masks padding in a way of its own, with one readout
IN_TEST_COMMAND = [
    *("surrogate last", "surrogate own", "surrogate max", "surrogate, penalty", "surrogate, norm", "surrogate, GRU"),
    *("surrogate, pieces", "rates", "rates, any neuron", "rates, layers", "rates, steps", "online", "online, sum"),
    *("online, streaming", "e-prop", "e-prop, last", "noisy spikes", "noisy spikes, steps", "Bayes, last", "EP"),
]


def seed_by_layer(network: nn.Module) -> None:
    """Seed the noise before each call of a layer: its draws of a step then depend neither on T nor on other layers."""

    def seed(number: int, *_: Any) -> None:
        torch.manual_seed(number)

    for number, layer in enumerate(network.modules()):
        if not isinstance(layer, nn.Sequential):
            layer.register_forward_pre_hook(partial(seed, number))


def fixed_sample(mean: Tensor, variance: Tensor, generator: Any) -> Tensor:
    """Return outputs with noise that is the same at every step, in place of the last draw of a run."""
    noise = torch.arange(mean[0].numel(), dtype=mean.dtype).sin().view_as(mean[0])
    return mean + variance.sqrt() * noise


@pytest.fixture(autouse=True)
def outputs_have_the_same_noise_for_every_length(monkeypatch):
    monkeypatch.setattr(noisy, "sample", fixed_sample)


def batch(pad: int, content: float = 0.0, lengths: bool = True) -> tuple[Tensor, ...]:
    x = torch.cat([inputs(), torch.zeros(pad, B, FEATURES, dtype=torch.float64)])
    for sample, length in enumerate(LENGTHS):
        x[length:, sample] = content
    return (x, Y, LENGTHS) if lengths else (x, Y)


def results(case: Case, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the numbers of a training step and of a validation step on a batch."""
    torch.manual_seed(3)
    penalties = {"rate": ActivityPenalty(0.1)} if case.penalties else None
    module = SpikingModule(case.network(), case.method(), CLASSES, readout=case.readout, penalties=penalties)
    module.method.progress = Progress(0.5, 64)
    module.method.check_lengths(module.network)
    seed_by_layer(module.network)
    with record_activity(module.network) as activity:
        objective = module.training_step(given, 0)
    objective.backward()
    found = {"objective": objective.detach()}
    found |= {f"grad {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.eval()
    torch.manual_seed(5)
    found["prediction"] = module.validation_step(given, 0)["prediction"].mean
    found |= {name: values.clone() for name, values in module.named_buffers() if values.numel()}
    found |= {name: metric.compute() for name, metric in module.val_metrics.items()}
    totals = (activity.spikes, activity.neuron_steps, activity.operations, activity.accumulates, activity.dense)
    for number, total in enumerate((*totals, activity.rows)):
        # the products that RateBackprop computes for recurrent neurons are those of one step more
        names = total.keys() - {"Sequential"}
        found |= {f"{number} {name}": torch.as_tensor(total[name]) for name in names}
    return found


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    found = {name: float((one[name].double() - other[name].double()).abs().max()) for name in one}
    return max(found.values())


@pytest.mark.parametrize("name", others_slow(CASES, IN_TEST_COMMAND))
@pytest.mark.parametrize(
    "padding", [((7, float("nan")),), pytest.param(((1, 0.0), (50, 0.0)), marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_the_amount_of_padding_changes_no_number_of_any_method(name, padding):
    """Compared with as little padding as the lengths allow; without lengths the same padding changes the numbers."""
    expected = results(CASES[name], batch(0))
    for pad, content in padding:
        assert difference(results(CASES[name], batch(pad, content)), expected) < 1e-12, (pad, content)
    assert difference(results(CASES[name], batch(padding[-1][0], lengths=False)), expected) > 1e-3


BY_SAMPLES = ["surrogate mean", "surrogate last", "surrogate own", "surrogate, pieces", "rates", "rates, layers"]
BY_SAMPLES += ["rates, any neuron", "online", "online, last", "online, streaming", "e-prop"]


@pytest.mark.parametrize("name", BY_SAMPLES)
def test_a_padded_batch_is_the_mean_of_its_samples_alone(name):
    """The gradient of each sample is computed without padding, in a batch of its own."""
    case = CASES[name]._replace(penalties=False)
    expected: dict[str, Tensor] = {}
    for sample, length in enumerate(LENGTHS):
        module = SpikingModule(case.network(), case.method(), CLASSES, readout=case.readout)
        alone = slice(sample, sample + 1)
        module.training_step((inputs()[:length, alone], Y[alone]), 0).backward()
        for parameter, weights in module.named_parameters():
            expected[parameter] = expected.get(parameter, 0) + weights.grad / B
    found = results(case, batch(4))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[f"grad {parameter}"], gradient, rtol=0, atol=1e-12)


REFUSED = {
    "windows": (
        Case(lambda: Rates(window=3)),
        'window` to be 1 or "step" for RateBackprop on batches with `lengths`, .*3',
    ),
    "paper": (Case(lambda: Rates(grad_scale="paper")), "`grad_scale` to be 'natural'"),
    "rates of a norm": (
        Case(Rates, normalized),
        "1: BatchNorm1d .its statistics would count padd",
    ),
    "penalty on rates": (Case(Rates, penalties=True), "no `penalties` for RateBackprop .*window=1"),
    "drawn steps": (
        Case(lambda: Online(steps=2)),
        "`steps` to be None for OnlineThroughTime on batches with `lengths`",
    ),
    "online norm": (
        Case(Online, normalized),
        "1: BatchNorm1d .its statistics would count padding",
    ),
    "presentations": (
        Case(
            methods.TimeToFirstSpike, lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        ),
        "no argument `lengths` in batches of TimeToFirstSpike",
    ),
    "both directions": (
        Case(Surrogate, lambda: plain(OverTime(nn.GRU(16, 8, bidirectional=True)))),
        "1: OverTime .GRU looks at later steps, which are padding: use a causal layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_count_padding_is_refused_by_name(name):
    case, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        results(case, batch(0))


def test_a_penalty_that_does_not_know_of_padding_is_refused():
    module = SpikingModule(deep(), num_classes=CLASSES, penalties={"mine": lambda spikes: spikes.mean()})
    with pytest.raises(ValueError, match=r"`penalties` that leave out padding .*mine.*masks_padding = True"):
        module.training_step(batch(0), 0)
    module.training_step(batch(0, lengths=False), 0)


WRONG = {
    "too long": (LENGTHS + 1, "here T = 9, but got lengths from 2 to 10"),
    "zero": (LENGTHS - 1, "here T = 9, but got lengths from 0 to 8"),
    "floats": (LENGTHS.float(), r"got torch.float32. Convert the numbers of steps with `lengths.long\(\)`"),
    "a mask": (LENGTHS > 3, "got torch.bool"),
    "too few": (LENGTHS[:4], r"with B = 5 samples, but got the shape \(4,\)"),
    "a list": (LENGTHS.tolist(), "got a list. Convert it with `torch.as_tensor`"),
    "another device": (LENGTHS.to("meta"), r"on cpu as the inputs are, but got meta. Move it with `lengths.to\(x.dev"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_lengths_are_refused_by_name(name):
    lengths, message = WRONG[name]
    module = SpikingModule(deep(), num_classes=CLASSES)
    for step in (module.training_step, module.validation_step, module.test_step, module.predict_step):
        with pytest.raises(ValueError, match=f"^Expected argument `lengths` of a batch to be a tensor .*{message}"):
            step((inputs(), Y, lengths), 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_lengths_of_any_integer_type_are_alike(dtype):
    module = SpikingModule(deep(), num_classes=CLASSES)
    x, y, lengths = batch(3)
    assert torch.equal(module.training_step((x, y, lengths.to(dtype)), 0), module.training_step((x, y, lengths), 0))


def test_batch_first_gives_the_same():
    one, other = (SpikingModule(deep(), num_classes=CLASSES, batch_first=first) for first in (False, True))
    x, y, lengths = batch(2)
    assert torch.equal(one.training_step((x, y, lengths), 0), other.training_step((x.transpose(0, 1), y, lengths), 0))


def test_predictions_after_each_step_stay_at_the_end_of_a_sequence():
    x, _, lengths = batch(2)
    for readout in ("mean", "max", "last", "sum", own):
        module = SpikingModule(deep(), num_classes=CLASSES, readout=readout)
        with sequence_lengths(lengths):
            after = module.method.predict_anytime(module.network, x).mean
        whole = module.method.predict_anytime(module.network, x).mean
        for sample, length in enumerate(lengths):
            torch.testing.assert_close(after[:length, sample], whole[:length, sample])
            assert torch.equal(after[length:, sample], after[length - 1, sample].expand_as(after[length:, sample]))


def test_masked_batch_normalization_has_the_statistics_of_valid_rows():
    x, _, lengths = batch(2, content=5.0)
    norm = nn.BatchNorm1d(FEATURES).double()
    with sequence_lengths(lengths, norm, len(x)):
        found = run(norm, x)
    valid = torch.arange(len(x))[:, None] < lengths
    expected = nn.BatchNorm1d(FEATURES).double()
    assert torch.equal(found[valid], expected(x[valid]))
    assert not found[~valid].any()
    assert torch.equal(norm.running_var, expected.running_var)


class Recordings:
    """A loader of one padded batch."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __iter__(self):
        yield batch(self.pad)

    def __len__(self) -> int:
        return 1


def logged(pad: int, folder: Path) -> dict[str, Tensor]:
    torch.manual_seed(2)
    module = SpikingModule(
        plain(neuron=lambda: RecurrentLIF(16)), num_classes=CLASSES, optimizer="sgd", learning_rate=0.1
    )
    callbacks = [
        EnergyMonitor(every_n_batches=1),
        FiringRateMonitor(every_n_batches=1),
        MembraneTrace(),
        InitializationCheck(on_fail="warn"),
    ]
    fitter = trainer(*callbacks, default_root_dir=folder)
    fitter.fit(module, Recordings(pad), Recordings(pad))
    return fitter.callback_metrics


def test_padding_changes_nothing_that_callbacks_log(tmp_path):
    expected = logged(0, tmp_path)
    assert any("energy/train" in key for key in expected)
    assert any("firing_rates/val" in key for key in expected)
    assert any("membrane" in key for key in expected)
    found = logged(23, tmp_path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surrogate mean", "surrogate last", "surrogate, norm", "rates", "Bayes, last"])
def test_compiled_steps_are_those_without_the_compiler_for_every_length(name):
    case = CASES[name]._replace(penalties=False)
    torch.manual_seed(3)
    module = SpikingModule(case.network(), case.method(), CLASSES, readout=case.readout)
    module.method.progress = Progress(0.5, 64)
    compiled = copy.deepcopy(module)
    compiled.compile(backend="eager")
    for pad, lengths in ((0, True), (3, True), (5, False)):
        found = []
        for each in (module, compiled):
            torch.manual_seed(7)
            objective = each.training_step(batch(pad, lengths=lengths), 0)
            trained = [parameter for parameter in each.parameters() if parameter.requires_grad]
            found.append([objective.detach(), *torch.autograd.grad(objective, trained)])
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
