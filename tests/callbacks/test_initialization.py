"""The initialization check: what trains passes, what does not fails, and nothing is left behind."""

from __future__ import annotations

import ast
import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_snn.callbacks.initialization.callback as callback_module
from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks.initialization import (
    Finding,
    InitializationCheck,
    check_initialization,
    findings_table,
    measure_initialization,
)
from lightning_snn.callbacks.initialization.thresholds import Band, Thresholds
from lightning_snn.methods import SurrogateGradient
from lightning_snn.methods.ttfs import AlphaLinear, FirstSpike, SpikeEncoder
from lightning_snn.methods.ttfs.mapping import from_relu
from tests.support import training

WIDTH, CLASSES = 64, 10


def chain(layer: Any, *after: Any, depth: int = 7, scale: float = 1.0) -> nn.Sequential:
    """Return a deep network of He-initialized layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        synapses = layer(WIDTH, WIDTH)
        nn.init.kaiming_normal_(synapses.weight)
        synapses.weight.data.mul_(scale)
        nn.init.zeros_(synapses.bias)
        layers += [synapses, *(kind() for kind in after)]
    readout = nn.Linear(WIDTH, CLASSES)
    nn.init.xavier_normal_(readout.weight)
    return nn.Sequential(*layers, readout)


def batch(samples: int = 16, steps: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(steps, samples, WIDTH, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(samples) % CLASSES


def values(findings: list[Finding], quantity: str) -> list[float]:
    return [each.value for each in findings if each.quantity == quantity]


def verdicts(findings: list[Finding]) -> set[Any]:
    return {each.verdict for each in findings}


def test_a_he_initialized_relu_network_passes():
    findings = check_initialization(chain(nn.Linear, nn.ReLU), batch())
    assert verdicts(findings) == {"ok", None}
    assert len(values(findings, "spectral_radius")) == 6
    assert 0.8 < min(values(findings, "spectral_radius")) <= max(values(findings, "spectral_radius")) < 1.25
    assert all(0.2 < value < 0.8 for value in values(findings, "active_fraction"))


def test_a_mapped_network_is_as_its_relu_network():
    relu = chain(nn.Linear, nn.ReLU).double()
    x, y = batch()
    network = from_relu(relu, 0, 1, x[0].double())
    expected = check_initialization(relu, (x.double(), y))
    found = check_initialization(network, (x.double(), y))
    assert verdicts(found) == {"ok", None}
    for quantity in ("spectral_radius", "depth_gain", "gradient_norm", "gradient_ratio", "active_fraction"):
        assert values(found, quantity) == pytest.approx(values(expected, quantity), rel=1e-9)
    assert len(values(found, "overflow")) == 7


def test_naive_neurons_of_other_slopes_fail():
    network = nn.Sequential(SpikeEncoder(), *chain(AlphaLinear))
    findings = check_initialization(network, batch())
    slopes = [each for each in findings if each.quantity == "smallest_slope"]
    assert len(slopes) == 7
    assert all(each.verdict == "fail" and each.value < 0 for each in slopes)
    # P(1 + N(0, 2) < 0) = 24 %
    assert sum(values(findings, "slopes_not_positive")) / 7 == pytest.approx(0.24, abs=0.06)


def test_neurons_of_other_slopes_that_are_mapped_from_relu_have_positive_slopes():
    relu = chain(nn.Linear, nn.ReLU, depth=2, scale=0.1)
    network = chain(AlphaLinear, depth=2)
    for layer, of in zip(network[:2], relu[:4:2], strict=True):
        layer.copy_relu(of)
    found = [each for each in check_initialization(network, batch()) if each.quantity == "smallest_slope"]
    assert {each.verdict for each in found} == {"ok"}


@pytest.mark.parametrize(("scale", "large"), [(0.3, False), (3.0, True)])
def test_weights_of_another_scale_fail(scale: float, large: bool):
    network = chain(nn.Linear, nn.ReLU, scale=scale)
    findings = {(each.quantity, each.layer): each for each in check_initialization(network, batch())}
    depth = findings["depth_gain", "all"]
    assert depth.verdict == ("warn" if large else "fail")
    assert (depth.value > 1) == large
    assert findings["spectral_radius", "9"].verdict == "fail"


def test_layers_that_are_dead_for_some_samples_are_reported():
    network = chain(nn.Linear, nn.ReLU, depth=2)
    with torch.no_grad():
        network[2].weight[:, :].neg_().clamp_(max=0)
        network[2].bias[:5] = 0.1
    x, y = batch()
    x[:, 3] = 0
    findings = {(each.quantity, each.layer): each for each in check_initialization(network, (x, y))}
    assert findings["active_fraction", "3"].verdict == "warn"
    assert findings["dead_share", "3"].value == pytest.approx(59 / 64)
    assert findings["silent_samples", "1"][:4] == ("silent_samples", "1", 1 / 16, "warn")


def test_the_gradient_ratio_is_that_of_the_weights_of_a_step():
    network, (x, y) = chain(nn.Linear, nn.ReLU, depth=3), batch()
    nn.functional.cross_entropy(network(x[0]), y).backward()
    findings = check_initialization(network, (x, y))
    norms = [layer.weight.grad.norm().item() for layer in network if isinstance(layer, nn.Linear)]
    assert values(findings, "gradient_norm") == pytest.approx(norms, rel=1e-5)
    assert values(findings, "gradient_ratio") == pytest.approx([norms[0] / norms[-1]], rel=1e-5)


def test_the_depth_gain_is_that_of_the_product_of_jacobians():
    network, (x, y) = chain(nn.Linear, nn.ReLU, depth=3).double(), batch(4)
    x = x.double()
    hidden = network[:2](x[0])
    products = [torch.autograd.functional.jacobian(network[2:6], each) for each in hidden]
    expected = torch.stack(products).square().sum((1, 2)).mean().div(WIDTH).sqrt().item()
    assert values(check_initialization(network, (x, y)), "depth_gain") == pytest.approx([expected], rel=0.1)


def test_batch_normalization_has_the_statistics_of_the_batch():
    network = chain(nn.Linear, lambda: nn.BatchNorm1d(WIDTH), nn.ReLU, scale=0.01)
    x, y = batch(64)
    assert values(check_initialization(network, (x, y)), "active_fraction") == pytest.approx([0.5] * 7, abs=0.1)
    assert all(layer.num_batches_tracked == 0 for layer in network if isinstance(layer, nn.BatchNorm1d))


def test_a_relu_that_is_called_twice_is_two_layers():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.second(self.relu(self.first(x))))

    findings = check_initialization(Shared(), batch())
    assert [each.layer for each in findings if each.quantity == "active_fraction"] == ["relu", "relu_2"]


def test_nothing_is_left_behind():
    network = nn.Sequential(SpikeEncoder(), nn.Linear(WIDTH, 8), nn.Dropout(), FirstSpike(), nn.Linear(8, CLASSES))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    check_initialization(network, batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network[3].peak is None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("network", "missing"),
    [(nn.Linear(WIDTH, CLASSES), "spiking layers or ReLUs"), (nn.Sequential(nn.ReLU()), "layers with trained weights")],
)
def test_networks_without_layers_to_measure_are_refused(network: nn.Module, missing: str):
    with pytest.raises(ValueError, match=missing):
        check_initialization(network, batch())


def test_neurons_in_a_plain_list_are_named_with_the_remedy_that_helps():
    network = nn.Linear(WIDTH, CLASSES)
    network.neurons = [LIF(), {"last": LIF()}]
    message = r"plain lists or dicts, neurons\[0\], neurons\[1\]\['last'\], nor their parameters"
    with pytest.raises(ValueError, match=message) as caught:
        check_initialization(network, batch())
    assert "register_spiking_layer" not in str(caught.value)


class Plain(pl.LightningModule):
    """Module independent of the library. Its batches have no time dimension."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.steps = net, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def of_plain(**options: Any) -> InitializationCheck:
    return InitializationCheck(network="net", read_batch=lambda batch: (batch[0][None], batch[1]), **options)


def data(collate: Any = None) -> DataLoader:
    x, y = batch(48)
    return DataLoader(TensorDataset(x[0], y), 24, collate_fn=collate)


trainer = partial(training.trainer, max_epochs=2)


def test_a_fit_logs_and_prints_what_was_found(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    check, module = of_plain(samples=16), Plain(chain(nn.Linear, nn.ReLU))
    fitter = trainer(check, logger=logger, log_every_n_steps=1)
    x, y = next(iter(data()))
    expected = check_initialization(module.net, (x[None, :16], y[:16]))
    fitter.fit(module, data())
    assert check.findings == expected
    assert module.steps == 4
    assert findings_table(expected) in capsys.readouterr().out
    logged = {name: float(value) for name, value in fitter.callback_metrics.items()}
    for each in expected:
        assert logged[f"initialization/{each.quantity}/{each.layer}"] == pytest.approx(each.value, rel=1e-6)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["initialization/gradient_ratio/all"]]
    # of two epochs of two steps, with the end of the first
    assert [row["step"] for row in rows] == ["1"]


def test_a_failure_warns_or_ends_the_fit_before_its_first_step():
    bad = chain(nn.Linear, nn.ReLU, scale=0.1)
    module = Plain(bad)
    with pytest.warns(UserWarning, match="not expected to train well .* depth_gain of all is"):
        trainer(of_plain()).fit(module, data())
    assert module.steps == 4
    module = Plain(bad)
    with pytest.raises(RuntimeError, match="not expected to train well .* spectral_radius of 3 is"):
        trainer(of_plain(on_fail="raise")).fit(module, data())
    assert module.steps == 0
    wide = Band((0.0, 1e9), (0.0, 1e9))
    anything = Thresholds(spectral_radius=wide, depth_gain=wide, gradient_ratio=wide)
    trainer(of_plain(on_fail="raise", thresholds=anything)).fit(module, data())
    assert module.steps == 4


def test_a_relu_may_be_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain(nn.Linear, nn.ReLU, depth=2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.net:
                x = layer(input=x)
            return x

    network = Keyword()
    found, expected = (check_initialization(each, batch()) for each in (network, network.net))
    assert [each[2:] for each in found] == [each[2:] for each in expected]


def test_a_resumed_fit_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = Plain(chain(nn.Linear, nn.ReLU, depth=2))
    fitter = trainer(max_epochs=1)
    fitter.fit(module, data())
    fitter.save_checkpoint(tmp_path / "half.ckpt")
    check = of_plain()
    trainer(check).fit(module, data(), ckpt_path=tmp_path / "half.ckpt")
    assert check.findings == []
    assert "active_fraction" not in capsys.readouterr().out


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same_to_the_last_bit_and_measured_once(accumulate: int, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def counted(*arguments: Any) -> list[Finding]:
        measured.append(arguments)
        return measure_initialization(*arguments)

    monkeypatch.setattr(callback_module, "measure_initialization", counted)

    def fit(*callbacks: pl.Callback) -> dict[str, Tensor]:
        module = Plain(chain(nn.Linear, nn.Dropout, nn.ReLU, depth=2))
        torch.manual_seed(3)
        trainer(*callbacks, accumulate_grad_batches=accumulate).fit(module, data())
        return module.state_dict()

    without, found = fit(), fit(of_plain())
    assert all(torch.equal(found[name], value) for name, value in without.items())
    assert len(measured) == 1


def test_the_loss_is_that_of_the_module_s_method(monkeypatch: pytest.MonkeyPatch):
    losses, thresholds = [], Thresholds()

    def measured(network: nn.Module, run: Any, given: Any) -> list[Finding]:
        losses.append((network, run(network), given))
        return [Finding("quantity", "layer", 1.0, None)]

    monkeypatch.setattr(callback_module, "measure_initialization", measured)
    network = nn.Sequential(nn.Linear(WIDTH, 8), LIF(), nn.Linear(8, CLASSES))
    module = SpikingModule(network, SurrogateGradient(), num_classes=CLASSES, readout="sum")
    loader = data(
        lambda samples: (
            torch.stack([x for x, _ in samples])[None].expand(3, -1, -1),
            torch.stack([y for _, y in samples]),
        )
    )
    x, y = next(iter(loader))
    expected = nn.functional.cross_entropy(run(network, x[:, :5]).sum(0), y[:5])
    trainer(InitializationCheck(samples=5, thresholds=thresholds), max_steps=1).fit(module, loader)
    ((found, loss, given),) = losses
    assert found is module.network
    assert given is thresholds
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_time_and_a_missing_network_are_refused_before_the_first_step():
    module = Plain(chain(nn.Linear, nn.ReLU, depth=2))
    with pytest.raises(ValueError, match=r"Expected a batch \(x \[T, B, ...\], .* but got tensors .* `read_batch`"):
        trainer(InitializationCheck(network="net")).fit(module, data())
    with pytest.raises(ValueError, match="`network` to name a module within Plain"):
        trainer(InitializationCheck(network="other")).fit(module, data())
    assert module.steps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_fail": "stop"}, "`on_fail` to be one of 'warn', 'raise', 'rescale', but got 'stop'"),
        ({"xi": 0.0}, "`xi` to be .* larger than 0"),
        ({"samples": 0}, "`samples` to be an integer of at least 1, but got 0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        InitializationCheck(**options)


def test_a_table_has_its_columns_one_below_the_other_and_remedies_below_it():
    findings = [
        Finding("depth_gain", "all", 1.25, "ok"),
        Finding("firing_rate", "1", 0.9, "warn", "it spikes", "smaller weights"),
        Finding("firing_rate", "3", 0.0, "fail", "it is silent", "larger weights"),
        Finding("gradient_norm", "0", 1e-9, None),
    ]
    assert findings_table(findings).splitlines() == [
        "quantity       layer  value  verdict",
        "depth_gain     all    1.25   ok",
        "firing_rate    1      0.9    warn",
        "firing_rate    3      0      fail",
        "gradient_norm  0      1e-09",
        "Overall verdict: fail",
        "fail: firing_rate of 3 is 0: it is silent. Remedy: larger weights.",
        "warn: firing_rate of 1 is 0.9: it spikes. Remedy: smaller weights.",
    ]


def test_the_callback_does_not_know_the_library_s_module():
    imported = set()
    for file in Path(callback_module.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "lightning_snn.functional.jacobian" in imported
    assert not {"lightning_snn.module", "lightning_snn.methods"} & imported
