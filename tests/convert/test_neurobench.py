"""NeuroBench's harness runs on our networks, and counts what `EnergyMonitor` counts."""

from __future__ import annotations

import builtins
import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule, run
from lightning_snn.callbacks import EnergyMonitor
from lightning_snn.convert import to_neurobench
from lightning_snn.methods import SpikingBayes
from lightning_snn.nn import LIF, RecurrentLIF, SynapticLIF
from tests.support.training import time_first, trainer

SAMPLES, STEPS = 12, 7


def data(real: bool) -> tuple[Tensor, Tensor]:
    """Inputs `[N, T, 2, 6, 6]` and classes; spikes, or in every second step real values."""
    torch.manual_seed(1)
    x = (torch.rand(SAMPLES, STEPS, 2, 6, 6) < 0.3).float()
    if real:
        x[:, ::2] *= torch.rand(SAMPLES, STEPS, 2, 6, 6)[:, ::2]
    return x, torch.arange(SAMPLES) % 3


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        LIF(0.8, threshold=0.2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(36, 16), SynapticLIF(0.5, 0.8, threshold=0.2)),
        nn.Linear(16, 3),
    )
    with torch.no_grad():
        network[3][0].weight[torch.rand(16, 36) < 0.25] = 0
    return network


def measured(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    pytest.importorskip("neurobench")
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations

    static = [Footprint, ParameterCount, ConnectionSparsity]
    workload = [ClassificationAccuracy, ActivationSparsity, SynapticOperations]
    benchmark = Benchmark(
        to_neurobench(network),
        DataLoader(TensorDataset(x, y), 4),
        [],
        [lambda outputs: outputs.mean(1).argmax(1)],
        [static, workload],
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found: dict[str, Any] = benchmark.run(quiet=True)
    return found


def monitored(module: SpikingModule, x: Tensor, y: Tensor) -> dict[str, float]:
    loader = DataLoader(TensorDataset(x, y), 4, collate_fn=time_first)
    found: dict[str, float] = trainer(EnergyMonitor(batches=100)).validate(module, loader, verbose=False)[0]
    return found


@pytest.mark.parametrize("real", [False, True], ids=["spikes", "real values"])
def test_the_harness_counts_what_the_energy_monitor_counts(real: bool):
    x, y = data(real)
    module = SpikingModule(convolutional(), num_classes=3)
    found, own = measured(module, x, y), monitored(module, x, y)
    operations = found["SynapticOperations"]
    for theirs, ours in (("Effective_ACs", "effective_acs"), ("Effective_MACs", "effective_macs"), ("Dense", "dense")):
        assert operations[theirs] == pytest.approx(own[f"energy/val/{ours}"], rel=1e-6)
    assert (operations["Effective_MACs"] > 0) == real
    neurons = STEPS * (4 * 3 * 3 + 16)
    assert found["ActivationSparsity"] == pytest.approx(1 - own["energy/val/spikes"] / neurons)
    assert 0.05 < found["ActivationSparsity"] < 0.95
    network = module.network
    assert found["ParameterCount"] == sum(each.numel() for each in network.parameters())
    assert found["Footprint"] == 4 * found["ParameterCount"]
    weights = [layer.weight for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    zeros = sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)
    assert found["ConnectionSparsity"] == pytest.approx(zeros, abs=5e-5)
    assert found["ClassificationAccuracy"] == pytest.approx(own["val/accuracy"])


def test_recurrent_weights_are_counted_by_the_energy_monitor_alone():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), RecurrentLIF(8, threshold=0.1), nn.Linear(8, 3))
    x, y = data(real=False)
    module = SpikingModule(network, num_classes=3)
    found, own = measured(module, x, y)["SynapticOperations"], monitored(module, x, y)
    recurrent = own["energy/val/effective_acs/network.2"]
    assert recurrent > 0
    assert found["Effective_ACs"] == pytest.approx(own["energy/val/effective_acs"] - recurrent, rel=1e-6)


def test_a_model_returns_the_outputs_of_a_run_in_its_order():
    pytest.importorskip("neurobench")
    x, _ = data(real=True)
    for network in (convolutional(), nn.Linear(6, 2)):
        outputs = to_neurobench(network)(x)
        assert torch.allclose(outputs.transpose(0, 1), run(network, x.transpose(0, 1)), atol=1e-6)


def test_a_bayesian_module_is_measured_as_its_mean():
    pytest.importorskip("neurobench")
    module = SpikingModule(convolutional(), SpikingBayes(noise_mode="step"), num_classes=3)
    model = to_neurobench(module)
    assert [type(layer).__name__ for layer in model.connection_layers()] == ["Conv2d", "Linear", "Linear"]
    assert torch.equal(model.__net__()[0].weight, module.network[0].weight)


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("neurobench"):
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'lightning-snn\[neurobench\]'"):
        to_neurobench(nn.Linear(3, 3))
