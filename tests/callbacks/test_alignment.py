from __future__ import annotations

import ast
import copy
import csv
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_snn.callbacks.alignment as alignment_module
from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks import GradientAlignment
from lightning_snn.methods import RateBackprop, SurrogateGradient
from lightning_snn.methods.rate import gradient_alignment, gradient_decomposition
from lightning_snn.methods.rate.third_party import rate_backward
from lightning_snn.nn import RecurrentLIF, SynapticDelays
from tests.support import third_party
from tests.support.third_party import MODULES
from tests.support.training import time_first, trainer

STEPS, CLASSES = 4, 3
X = torch.randn(24, STEPS, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % CLASSES


def loader(batch_size: int = 8, collate: Any = time_first, y: Tensor = Y) -> DataLoader:
    return DataLoader(TensorDataset(X, y), batch_size, shuffle=batch_size == 6, collate_fn=collate)


def network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Linear(6, 16), nn.BatchNorm1d(16), LIF(0.5, 0.5), nn.Dropout(0.2), nn.Linear(16, 16), LIF(0.5, 0.5)]
    return nn.Sequential(*hidden, *more, nn.Linear(16, CLASSES))


class Plain(pl.LightningModule):
    """Module that uses only layers of the library."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": network() if net is None else net})
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        x, y = batch[:2]
        return nn.functional.cross_entropy(run(self.inner["net"], x).mean(0), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def of_plain(**options: Any) -> GradientAlignment:
    return GradientAlignment(**{"every_n_steps": 2, "network": "inner.net", **options})


def logged(fitter: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in fitter.callback_metrics.items() if name.startswith("alignment/")}


def expected_of(net: nn.Module, *arguments: Any) -> dict[str, float]:
    batch = time_first([(X[index], Y[index]) for index in range(8)])
    found = gradient_alignment(net, batch, *arguments)
    assert found["all"].cosine < 0.9999  # or any gradient would do
    return {
        f"alignment/{quantity}/{layer}": value
        for layer, each in found.items()
        for quantity, value in each._asdict().items()
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record the arguments of `gradient_alignment`."""
    made: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Any:
        made.append(arguments)
        return gradient_alignment(*arguments)

    monkeypatch.setattr(alignment_module, "gradient_alignment", record)
    return made


class StepRecorder(pl.Callback):
    """Record the steps with a new measurement."""

    def __init__(self, calls: list) -> None:
        self.calls, self.steps = calls, []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        while len(self.steps) < len(self.calls):
            self.steps.append(trainer.global_step)


def test_the_alignment_of_a_plain_module_is_logged_layer_by_layer():
    module = Plain().eval()
    net = copy.deepcopy(module.inner["net"])
    fitter = trainer(of_plain(), max_steps=1)
    torch.manual_seed(1)
    fitter.fit(module, loader())
    assert fitter.global_step == 1
    layers = ["0", "1", "4", "6", "all"]
    assert set(logged(fitter)) == {f"alignment/{name}/{layer}" for name in ("cosine", "norm_ratio") for layer in layers}
    assert logged(fitter) == pytest.approx(expected_of(net.eval()), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_measures_the_first_and_each_nth_step_once(calls: list, accumulate: int):
    recorder = StepRecorder(calls)
    options = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    trainer(of_plain(every_n_steps=3), recorder, **options).fit(Plain(), loader(8 // accumulate))
    # the number of steps that were complete after the batch: the first of several that share a step is measured
    assert recorder.steps == ([1, 3, 6, 9] if accumulate == 1 else [0, 2, 5, 8, 11])


def test_a_resumed_run_measures_at_the_same_steps(calls: list, tmp_path: Path):
    fitter = trainer(of_plain(every_n_steps=4), max_steps=5, max_epochs=-1)
    fitter.fit(Plain(), loader())
    fitter.save_checkpoint(tmp_path / "half.ckpt")
    calls.clear()
    recorder = StepRecorder(calls)
    resumed = trainer(of_plain(every_n_steps=4), recorder, max_steps=13, max_epochs=-1)
    resumed.fit(Plain(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert recorder.steps == [6, 8, 12]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "rates", "time"])
def test_training_is_the_same_to_the_last_bit(kind: str, accumulate: int):
    def fit(*callbacks: pl.Callback) -> tuple[dict[str, Tensor], Tensor]:
        methods = {"rates": RateBackprop(2), "time": SurrogateGradient()}
        module = Plain() if kind == "plain" else SpikingModule(network(), methods[kind], num_classes=CLASSES)
        fitter = trainer(*callbacks, max_epochs=2, accumulate_grad_batches=accumulate)
        torch.manual_seed(3)
        fitter.fit(module, loader(6))  # shuffled
        assert (logged(fitter) != {}) == bool(callbacks)
        return module.state_dict(), torch.get_rng_state()

    without, state = fit()
    options = {"every_n_steps": 1, "network": "inner.net"} if kind == "plain" else {"every_n_steps": 1}
    found, state_after = fit(GradientAlignment(**options))
    assert torch.equal(state, state_after)
    for name, value in without.items():
        assert torch.equal(found[name], value), name


def test_a_measurement_leaves_no_gradient_and_no_hook():
    class Looks(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert all(parameter.grad is None for parameter in self.parameters())
            assert all("forward" not in vars(module) and not module._forward_hooks for module in self.modules())
            assert self.inner["net"][1].num_batches_tracked == 0
            return super().training_step(batch, batch_idx)

    module = Looks()
    fitter = trainer(of_plain(), max_steps=1)
    fitter.fit(module, loader())
    assert module.steps == 1
    assert logged(fitter)


def test_values_go_to_a_logger(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    fitter = trainer(of_plain(), logger=logger, max_epochs=2, log_every_n_steps=2)
    fitter.fit(Plain(), loader())
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("alignment/cosine/all")]
    assert [int(row["step"]) for row in rows] == [0, 1, 3, 5]  # the steps that were measured, each once
    assert float(rows[-1]["alignment/cosine/all"]) == pytest.approx(logged(fitter)["alignment/cosine/all"])
    assert len({row["alignment/norm_ratio/0"] for row in rows}) == 4


@pytest.mark.parametrize("logger", [False, True])
def test_a_fast_dev_run_measures_and_writes_nothing(tmp_path: Path, logger: bool):
    fitter = trainer(of_plain(every_n_steps=100), fast_dev_run=True, logger=logger, default_root_dir=tmp_path)
    fitter.fit(Plain(), loader())
    assert "alignment/cosine/all" in logged(fitter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "window", "streaming", "link"),
    [
        (SurrogateGradient(), 1, False, False),
        (RateBackprop(2, streaming=True), 2, True, False),
        (RateBackprop(2, link=True), 2, False, True),
        (RateBackprop("step"), STEPS, False, False),
    ],
    ids=str,
)
def test_loss_windows_and_streaming_are_those_of_the_module_s_method(
    calls: list, method: Any, window: int, streaming: bool, link: bool
):
    module = SpikingModule(network(), method, num_classes=CLASSES, readout="sum")
    fitter = trainer(GradientAlignment(), max_steps=1)
    fitter.fit(module, loader())
    ((net, (x, y), loss, *rest),) = calls
    assert net is module.network
    assert rest == [window, streaming, link]
    outputs = run(module.network, x)
    torch.testing.assert_close(loss(outputs, y), nn.functional.cross_entropy(outputs.sum(0), y))


def test_arguments_come_before_the_method_s(calls: list):
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.square().mean()

    module = SpikingModule(network(), RateBackprop(2, streaming=True, link=True), num_classes=CLASSES)
    callback = GradientAlignment(loss=loss, window="step", streaming=False, samples=5, link=False)
    trainer(callback, max_steps=1).fit(module, loader())
    ((_, (x, y), *rest),) = calls
    assert rest == [loss, STEPS, False, False]
    assert x.shape == (STEPS, 5, 6)
    assert torch.equal(y, Y[:5])


def test_a_recurrent_network_is_measured_in_windows_of_one_step():
    net = nn.Sequential(nn.Linear(6, 8), RecurrentLIF(8, 0.5, 0.5), nn.Linear(8, CLASSES))
    fitter = trainer(of_plain(window="step"), max_steps=1)
    fitter.fit(Plain(net), loader())
    assert logged(fitter)["alignment/cosine/2"] == pytest.approx(1.0, abs=1e-5)
    assert logged(fitter)["alignment/cosine/1"] < 0.9999


def test_batches_of_another_form_are_read_by_read_batch():
    class BatchFirst(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(read(batch), batch_idx)

    def collate(samples: list) -> dict[str, Tensor]:
        x, y = time_first(samples)
        return {"x": x.transpose(0, 1), "y": y}

    def read(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["x"].transpose(0, 1), batch["y"]

    module = BatchFirst().eval()
    net = copy.deepcopy(module.inner["net"])
    fitter = trainer(of_plain(read_batch=read), max_steps=1)
    fitter.fit(module, loader(collate=collate))
    assert logged(fitter) == pytest.approx(expected_of(net), rel=1e-5)


def test_a_network_that_is_built_late_is_measured():
    class Late(Plain):
        def __init__(self) -> None:
            super().__init__(nn.Identity())

        def configure_model(self) -> None:
            self.inner["net"] = network()

    fitter = trainer(of_plain(), max_steps=1)
    fitter.fit(Late(), loader())
    assert "alignment/cosine/6" in logged(fitter)


def test_a_missing_network_is_named_before_training():
    module = Plain()
    with pytest.raises(ValueError, match="`network` to name a module within Plain, which has inner, but got 'net'"):
        trainer(GradientAlignment(network="net")).fit(module, loader())
    assert module.steps == 0


@pytest.mark.parametrize(
    "options",
    [{"loss": nn.functional.cross_entropy}, {"window": 2}, {"streaming": True}, {"read_batch": tuple}, {"samples": 2}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_of_a_network_by_itself_needs_one(options: dict[str, Any]):
    with pytest.raises(ValueError, match="`network` to name a module within Plain, which has inner, but got 'netw"):
        trainer(GradientAlignment(**options)).fit(Plain(), loader())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (RecurrentLIF(16), r"6: RecurrentLIF \(neurons that receive each other's spikes"),
        (nn.LayerNorm(16), "6: LayerNorm"),
    ],
)
def test_a_network_that_has_no_rates_is_refused_by_name_before_training(layer: nn.Module, reason: str):
    module = Plain(network(layer))
    with pytest.raises(ValueError, match=f"rate-based backpropagation can train, but got {reason}"):
        trainer(of_plain()).fit(module, loader())
    assert module.steps == 0


@pytest.mark.parametrize(
    ("collate", "got"),
    [
        (lambda samples: torch.stack([x for x, _ in samples], 1), "Tensor"),
        (lambda samples: (*time_first(samples), torch.zeros(8)), "tuple"),
        (
            lambda samples: (torch.stack([x for x, _ in samples]), time_first(samples)[1]),
            r"shapes \(8, 4, 6\) and \(8,\)",
        ),
    ],
    ids=["no target", "three parts", "batch first"],
)
def test_a_batch_of_another_form_is_refused_before_the_first_step(collate: Any, got: str):
    module = Plain()
    with pytest.raises(ValueError, match=rf"Expected a batch \(x \[T, B, ...\], .* but got .*{got}.* `read_batch`"):
        trainer(of_plain(every_n_steps=100)).fit(module, loader(collate=collate))
    assert module.steps == 0


def test_a_window_that_does_not_divide_the_time_steps_is_refused_before_the_first_step():
    module = Plain()
    with pytest.raises(ValueError, match="argument `window` to divide the number of time steps 4, but got 3"):
        trainer(of_plain(every_n_steps=100, window=3)).fit(module, loader())
    assert module.steps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` to be an integer of at least 1, but got 0"),
        ({"window": "steps"}, "`window` to be an integer of at least 1, but got 'steps'"),
        ({"samples": 0}, "`samples` to be an integer of at least 1, but got 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        GradientAlignment(**options)


@pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
def test_without_arguments_the_gradients_are_those_of_the_module_s_training_step(make: Any):
    torch.manual_seed(0)
    module = make().eval()
    x, y = third_party.X[:12], third_party.Y[:12]
    copied = copy.deepcopy(module)
    exact = vector_of(copied, nn.functional.cross_entropy(copied(x), y))
    copied = copy.deepcopy(module)
    rate_backward(copied, lambda each: nn.functional.cross_entropy(each(x), y))
    rates = torch.cat([parameter.grad.flatten() for parameter in copied.parameters()])
    fitter = trainer(GradientAlignment(), max_steps=1)
    fitter.fit(module, third_party.loader())
    trained = {name.rsplit(".", 1)[0] for name, _ in module.named_parameters()} | {"all"}
    assert {name.split("/", 2)[2] for name in logged(fitter)} == trained
    cosine = torch.nn.functional.cosine_similarity(rates, exact, 0)
    assert logged(fitter)["alignment/cosine/all"] == pytest.approx(float(cosine), rel=1e-5)
    assert logged(fitter)["alignment/norm_ratio/all"] == pytest.approx(float(rates.norm() / exact.norm()), rel=1e-5)
    # constant currents of one layer and mean spikes have one gradient, membranes that are read out two
    assert (float(cosine) > 0.999999) == (make not in (third_party.SnntorchLoop, third_party.SnntorchHidden))
    # what is behind the last spikes, or their membranes
    assert logged(fitter)[f"alignment/cosine/{last_of(module)}"] == pytest.approx(1, abs=1e-5)


def vector_of(module: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(module.parameters()))])


def last_of(module: nn.Module) -> str:
    return [name.rsplit(".", 1)[0] for name, _ in module.named_parameters()][-1]


def test_without_arguments_a_folded_network_has_the_alignment_of_its_rules():
    module = Plain().eval()
    expected = expected_of(copy.deepcopy(module.inner["net"]))
    fitter = trainer(GradientAlignment(name="own"), max_steps=1)
    fitter.fit(module, loader())
    found = {name: float(value) for name, value in fitter.callback_metrics.items()}
    assert found == pytest.approx(
        {
            name.replace("alignment/", "own/") if name.endswith("all") else _within(name, "own", "inner.net"): value
            for name, value in expected.items()
        },
        rel=1e-5,
    )


def _within(name: str, first: str, path: str) -> str:
    _, quantity, layer = name.split("/")
    return f"{first}/{quantity}/{path}.{layer}"


def test_both_runs_draw_the_same_random_numbers():
    """Cover torch, numpy, and Python: other random numbers would change the gradient behind the last spikes."""

    class Draws(third_party.SnntorchLoop):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            x = x + torch.rand_like(x) + np.random.random() + random.random()
            return {"loss": super().training_step((x, y), batch_idx)}

    fitter = trainer(GradientAlignment(), max_steps=1)
    torch.manual_seed(0)
    fitter.fit(Draws(), third_party.loader())
    assert logged(fitter)["alignment/cosine/second"] == pytest.approx(1, abs=1e-5)
    assert logged(fitter)["alignment/norm_ratio/second"] == pytest.approx(1, abs=1e-5)
    assert logged(fitter)["alignment/cosine/first"] < 0.99999


def test_batches_of_any_form_are_measured_by_the_training_step():
    class OfDicts(third_party.SnntorchLoop):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("inside", 1.0)
            return super().training_step((batch["input"]["x"], batch["y"]), batch_idx)

    def collate(samples: Any) -> Any:
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"input": {"x": x}, "y": y}

    data = DataLoader(TensorDataset(third_party.X, third_party.Y), 12, collate_fn=collate)
    fitter = trainer(GradientAlignment(), max_steps=1)
    fitter.fit(OfDicts(), data)
    assert 0 < logged(fitter)["alignment/cosine/first"] < 1


def test_a_module_without_spiking_layers_is_refused_before_training():
    module = Plain(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
    message = "a module with spiking layers of .* for GradientAlignment, but got Plain without any"
    with pytest.raises(ValueError, match=message):
        trainer(GradientAlignment()).fit(module, loader())
    assert module.steps == 0


def test_recurrence_is_refused_by_name_before_the_first_step():
    module = Plain(nn.Sequential(nn.Linear(6, 8), RecurrentLIF(8, 0.5, 0.5), nn.Linear(8, CLASSES)))
    with pytest.raises(ValueError, match=r"inner.net.1: RecurrentLIF \(its neurons receive input from each other\)"):
        trainer(GradientAlignment()).fit(module, loader())
    assert module.steps == 0


def test_manual_optimization_is_refused_before_training():
    class Manual(Plain):
        automatic_optimization = False

    with pytest.raises(ValueError, match="automatic optimization .* for GradientAlignment, but got one with manual"):
        trainer(GradientAlignment()).fit(Manual(), loader())


def test_the_terms_of_the_difference_are_logged_when_asked():
    module = Plain().eval()
    net = copy.deepcopy(module.inner["net"])
    fitter = trainer(of_plain(decompose=True), max_steps=1)
    fitter.fit(module, loader())
    batch = time_first([(X[index], Y[index]) for index in range(8)])
    found = gradient_decomposition(net.eval(), batch, measure=False)
    expected = expected_of(net.eval())
    for layer, each in found.layers.items():
        expected[f"alignment/covariance/{layer}"] = each.covariance
        expected[f"alignment/remainder/{layer}"] = each.remainder
    assert expected["alignment/covariance/0"] > 0.01
    expected["alignment/windows/linked"] = found.linked.windows
    expected["alignment/windows/detached"] = found.detached.windows
    assert logged(fitter) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_terms_change_no_training_and_use_the_loss_of_the_method():
    def fit(*callbacks: pl.Callback) -> dict[str, Tensor]:
        module = SpikingModule(network().eval(), RateBackprop(2), num_classes=CLASSES, readout="sum")
        torch.manual_seed(3)
        trainer(*callbacks, max_epochs=1).fit(module, loader(6))
        return module.state_dict()

    seen = []

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        seen.append(len(y))
        return nn.functional.cross_entropy(outputs.sum(0), y)

    without = fit()
    for options in ({}, {"loss": loss, "samples": 3}):
        found = fit(GradientAlignment(1, decompose=True, **options))
        assert all(torch.equal(found[name], value) for name, value in without.items())
    assert set(seen) == {3}


def test_what_cannot_be_decomposed_is_refused_by_name_before_the_first_step():
    module = Plain(nn.Sequential(nn.Linear(6, 8), SynapticDelays((0, 1)), LIF(0.5), nn.Linear(16, CLASSES)))
    trainer(of_plain(), max_steps=1).fit(module, loader())
    module.steps = 0
    with pytest.raises(ValueError, match=r"GradientAlignment\(decompose=True\).*1: SynapticDelays \(its memory"):
        trainer(of_plain(decompose=True), max_steps=1).fit(module, loader())
    assert module.steps == 0


def test_the_callback_does_not_know_the_library_s_module():
    tree = ast.parse(Path(alignment_module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "lightning_snn.methods.rate" in imported
    assert not {"lightning_snn.module", "lightning_snn.methods"} & imported
