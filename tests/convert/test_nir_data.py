"""Graphs of the NIR paper's repository, against independent loops and the traces of its simulators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.convert import from_nir, to_nir
from lightning_snn.nn import LIF
from lightning_snn.nn.observation import Traces
from tests.convert.nir_cases import euler
from tests.convert.test_nir_peers import snntorch_spikes, spikingjelly_spikes

nir = pytest.importorskip("nir")
DT = 1e-4


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    if not (shared_data / "nir").is_dir():
        pytest.skip("the optional graphs `shared/data/nir` are not next to this checkout")
    return shared_data / "nir"


def frames(path: Path, samples: range, steps: int) -> tuple[Tensor, np.ndarray]:
    """Counts of events in frames of 1 ms from the first event on `[T, B, 2, 34, 34]`, y before x, and the labels."""
    with np.load(path) as file:
        x, y, p, t = (file[f"test_{name}"] for name in "xypt")
        offsets, labels = file["test_offsets"], file["test_labels"]
    found = np.zeros((steps, len(samples), 2, 34, 34), np.float32)
    for place, sample in enumerate(samples):
        part = slice(offsets[sample], offsets[sample + 1])
        step = (t[part].astype(np.int64) - int(t[part].min())) // 1000
        kept = step < steps
        np.add.at(found, (step[kept], place, p[part][kept], y[part][kept], x[part][kept]), 1)
    return torch.from_numpy(found), labels[samples.start : samples.stop]


def independent_loop(graph: Any, x: Tensor, reset: str) -> Tensor:
    """The network of sinabs step by step: nodes 0 to 12 in a row, each IF with the threshold 1."""
    potentials: dict[int, Tensor] = {}
    outputs = []
    for signal in x:
        for index in range(13):
            node = graph.nodes[str(index)]
            kind = type(node).__name__
            if kind == "Conv2d":
                weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
                signal = F.conv2d(signal, weight, bias, tuple(node.stride.tolist()), tuple(node.padding.tolist()))
            elif kind == "SumPool2d":
                signal = signal.unflatten(3, (-1, 2)).sum(4).unflatten(2, (-1, 2)).sum(3)
            elif kind == "Flatten":
                signal = signal.flatten(1)
            elif kind == "Affine":
                signal = signal @ torch.from_numpy(node.weight).T + torch.from_numpy(node.bias)
            else:
                potential = potentials.get(index, torch.zeros_like(signal)) + signal
                signal = (potential > 1).float()
                potentials[index] = potential - signal if reset == "subtract" else potential * (1 - signal)
        outputs.append(signal)
    return torch.stack(outputs)


def compare(folder: Path, samples: range, steps: int, reset: Any) -> float:
    """Return the accuracy of the network, after its spikes were compared with those of the loop."""
    x, labels = frames(folder.parent / "nmnist_events_small.npz", samples, steps)
    path = folder / "cnn_sinabs.nir"
    network, graph = from_nir(path, reset=reset), nir.read(path)
    right = 0
    with torch.no_grad():
        for part in range(0, len(samples), 10):
            batch = x[:, part : part + 10]
            spikes = run(network, batch)
            assert torch.equal(spikes, independent_loop(graph, batch, reset))
            right += int((spikes.sum(0).argmax(1).numpy() == labels[part : part + 10]).sum())
    return right / len(samples)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_the_network_of_sinabs_spikes_as_an_independent_loop(reset: str, folder: Path):
    compare(folder, range(2), 40, reset)


@pytest.mark.slow
@pytest.mark.parametrize(("reset", "accuracy"), [("subtract", 0.97), ("zero", 1.0)])
def test_the_network_of_sinabs_classifies_the_test_recordings(reset: str, accuracy: float, folder: Path):
    assert compare(folder, range(100), 300, reset) == accuracy


def braille_loop(graph: Any, x: np.ndarray, reset: str, bias_at_first: bool) -> np.ndarray:
    """A Braille network by hand: Affine or Linear, recurrent CubaLIF, Affine or Linear, CubaLIF, in float64.

    Args:
        graph: of the file.
        x: inputs `[T, B, 12]`.
        reset: "zero" or "subtract".
        bias_at_first: whether the bias of the recurrent weights is part of the current of the first step.
    """
    nodes = {name: {key: np.float64(value) for key, value in vars(node).items() if isinstance(value, np.ndarray)}
             for name, node in graph.nodes.items()}  # fmt: skip
    state = {name: [0.0, 0.0] for name in ("lif1.lif", "lif2")}

    def weighted(name: str, signal: Any) -> Any:
        return signal @ nodes[name]["weight"].T + nodes[name].get("bias", 0.0)

    def fire(name: str, signal: np.ndarray) -> np.ndarray:
        fields, (current, v) = nodes[name], state[name]
        current = (1 - DT / fields["tau_syn"]) * current + DT / fields["tau_syn"] * fields["w_in"] * signal
        v = (1 - DT / fields["tau_mem"]) * v + DT / fields["tau_mem"] * fields["r"] * current
        spikes = (v > fields["v_threshold"]).astype(float)
        state[name] = [current, v - fields["v_threshold"] * spikes if reset == "subtract" else v * (1 - spikes)]
        return spikes

    before, outputs = np.zeros((x.shape[1], len(nodes["lif1.w_rec"]["weight"]))), []
    for index, step in enumerate(x):
        back = weighted("lif1.w_rec", before) if bias_at_first or index else 0.0
        before = fire("lif1.lif", weighted("fc1", step) + back)
        outputs.append(fire("lif2", weighted("fc2", before)))
    return np.stack(outputs)


BRAILLE = ["braille_noDelay_bias_zero", "braille_noDelay_noBias_subtract"]


def braille(folder: Path, name: str) -> tuple[Path, Tensor]:
    torch.manual_seed(0)
    return folder / f"{name}.nir", (torch.rand(60, 20, 12) < 0.2).float()


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("name", BRAILLE)
def test_the_braille_networks_spike_as_their_equations(name: str, reset: Any, folder: Path):
    path, x = braille(folder, name)
    expected = braille_loop(nir.read(path), x.numpy(), reset, bias_at_first=True)
    assert 100 < expected.sum() < 0.9 * expected.size
    assert np.array_equal(run(from_nir(nir.read(path), reset=reset), x).detach(), expected)
    in_float64 = from_nir(nir.read(path), reset=reset, dtype=torch.float64)
    assert np.array_equal(run(in_float64, x.double()).detach(), expected)
    assert np.array_equal(euler(nir.read(path), x.numpy(), DT, reset), expected)


@pytest.mark.parametrize("name", BRAILLE)
@torch.no_grad()
def test_the_braille_networks_spike_as_in_other_libraries(name: str, folder: Path):
    pytest.importorskip("nirtorch")
    pytest.importorskip("spikingjelly")
    path, x = braille(folder, name)
    network = from_nir(nir.read(path))
    expected = run(network, x)
    # snntorch 1.0 cannot import the file itself
    assert torch.equal(snntorch_spikes(to_nir(network, (12,)), x), expected)
    assert torch.equal(spikingjelly_spikes(to_nir(network, (12,)), x), expected)
    # nirtorch, which SpikingJelly uses, leaves the bias of recurrent weights out of the first step
    by_hand = braille_loop(nir.read(path), x.numpy(), "zero", bias_at_first=False)
    assert np.array_equal(spikingjelly_spikes(nir.read(path), x), by_hand)
    assert np.array_equal(by_hand, expected) == ("noBias" in name)


def trace(folder: Path, simulator: str) -> np.ndarray:
    """Input, membrane potential and spikes of one LIF neuron over 1,000 steps, `[3, 1000]`."""
    return np.loadtxt(folder / f"lif_{simulator}.csv", delimiter=",").T


def simulated(network: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return membrane potentials before the reset, and spikes, in float64."""
    traces = Traces(membranes=True)
    with traces.recording(network), torch.no_grad():
        spikes = run(network, torch.from_numpy(x)[:, None, None])
    (found,) = traces.found().values()
    assert found.membrane is not None
    return found.membrane.flatten().numpy(), spikes.flatten().numpy()


GAIN = 0.04  # dt / tau: the membrane potential here is in units of the input, that of the file 0.04 of it


@pytest.mark.parametrize("simulator", ["norse", "snntorch", "nengo", "spyx"])
def test_a_neuron_spikes_as_in_the_simulators_that_step_by_euler(simulator: str, folder: Path):
    x, _, spikes = trace(folder, simulator)
    network = from_nir(nir.read(folder / "lif_norse.nir"), dtype=torch.float64)
    membrane, found = simulated(network, x)
    # spyx returns spikes one step later
    assert np.array_equal(np.roll(found, 1) if simulator == "spyx" else found, spikes)
    assert found.sum() == 4
    after = np.where(found > 0, 0, membrane)
    if simulator == "norse":
        assert np.allclose(GAIN * after, trace(folder, simulator)[1], atol=1e-7)
    if simulator == "snntorch":
        # which keeps the potential before the reset, in units of the input
        assert np.abs(trace(folder, simulator)[1] - after).max() < 3
        silent = found == 0
        assert np.allclose(trace(folder, simulator)[1][silent], membrane[silent], atol=1e-5)


@pytest.mark.parametrize("simulator", ["rockpool", "sinabs"])
def test_simulators_that_decay_exponentially_spike_as_another_decay(simulator: str, folder: Path):
    _, potential, spikes = trace(folder, simulator)
    x = trace(folder, "norse")[0]
    # both subtract the threshold
    membrane, found = simulated(LIF(math.exp(-GAIN), threshold=0.1 / GAIN, reset="subtract"), x)
    assert np.array_equal(found, spikes)
    assert np.allclose(GAIN * membrane - 0.1 * found, potential, atol=1e-6)
    euler_spikes = simulated(from_nir(nir.read(folder / "lif_norse.nir"), dtype=torch.float64), x)[1]
    assert not np.array_equal(euler_spikes, spikes)  # two of the four spikes are ten steps later
