"""Networks that NIR can represent, inputs for them, and an independent simulation of a graph's equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.nn import IF, LIF, Recurrent, RecurrentLIF, SynapticLIF

SAMPLES, STEPS = 20, 25


class Case(NamedTuple):
    """A network whose neurons reset to zero, as every simulator of NIR does, and the shape of its input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def excited(network: nn.Module, gain: float = 3.0) -> nn.Module:
    """Return the network with larger weights, so that each layer spikes often."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight.mul_(gain)
    return network


CASES = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(12, 24), LIF(0.9, reset="zero"), nn.Linear(24, 10), LIF(0.8, reset="zero")),
        (12,),
    ),
    "conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            LIF(0.7, reset="zero"),
            nn.AvgPool2d((2, 2), (2, 2), (0, 0)),
            nn.Flatten(),
            nn.Linear(64, 8),
            LIF(0.75, reset="zero"),
        ),
        (2, 8, 8),
    ),
    "recurrent": Case(
        lambda: nn.Sequential(
            nn.Linear(12, 24), RecurrentLIF(24, 0.9, reset="zero"), nn.Linear(24, 10), LIF(0.8, reset="zero")
        ),
        (12,),
    ),
    "cuba": Case(
        lambda: nn.Sequential(
            nn.Linear(12, 24),
            SynapticLIF(0.6, 0.9, reset="zero"),
            nn.Linear(24, 10),
            SynapticLIF(0.5, 0.8, reset="zero"),
        ),
        (12,),
    ),
    "recurrent cuba": Case(
        lambda: nn.Sequential(
            nn.Linear(12, 24),
            Recurrent(SynapticLIF(0.6, 0.9, reset="zero"), 24),
            nn.Linear(24, 10),
            SynapticLIF(0.5, 0.8, reset="zero"),
        ),
        (12,),
    ),
}


def network_of(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, 20 random inputs `[25, 20, ...]`, and the spikes of its run."""
    torch.manual_seed(0)
    case = CASES[name]
    network = excited(case.make()).to(dtype)
    x = torch.rand(STEPS, SAMPLES, *case.shape, dtype=dtype)
    return network, x, spikes_of(network, x)


def network_on_a_grid(dtype: torch.dtype, reset: Any = "zero") -> tuple[nn.Module, Tensor]:
    """Return IF neurons whose integer potentials often meet their thresholds exactly, and integer inputs."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(12, 24, bias=False), IF(3.0, reset=reset), nn.Linear(24, 10, bias=False), IF(2.0, reset=reset)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
    return network.to(dtype), torch.randint(0, 3, (STEPS, SAMPLES, 12)).to(dtype)


@torch.no_grad()
def spikes_of(network: nn.Module, x: Tensor) -> Tensor:
    from lightning_snn import run

    spikes: Tensor = run(network, x)
    assert 0.01 < (spikes != 0).double().mean() < 0.9
    return spikes


def euler(graph: Any, x: np.ndarray, dt: float, reset: str = "zero", at_or_above: bool = False) -> np.ndarray:
    """Simulate the equations of a graph by Euler's method in float64, from its fields alone.

    Subgraphs are simulated recursively; a node that returns to an earlier one gives it its output of the step before.

    Args:
        graph: a `nir.NIRGraph`.
        x: inputs `[T, B, ...]`.
        dt: step.
        reset: "zero" for `v_reset`, or "subtract".
        at_or_above: whether neurons spike at ``v >= v_threshold``.
    """
    simulation = _Simulation(graph, dt, reset, at_or_above)
    return np.stack([simulation.step(step) for step in x.astype(np.float64)])


class _Simulation:
    def __init__(self, graph: Any, dt: float, reset: str, at_or_above: bool) -> None:
        self.graph, self.dt, self.reset, self.at_or_above = graph, dt, reset, at_or_above
        self.parts = {
            name: _Simulation(node, dt, reset, at_or_above)
            for name, node in graph.nodes.items()
            if type(node).__name__ == "NIRGraph"
        }
        self.state: dict[str, Any] = {}
        self.before: dict[str, np.ndarray] = {}

    def step(self, x: np.ndarray) -> np.ndarray:
        nodes, done = self.graph.nodes, {}
        (first,) = (name for name, node in nodes.items() if type(node).__name__ == "Input")
        (last,) = (name for name, node in nodes.items() if type(node).__name__ == "Output")
        done[first] = x

        def value(name: str, path: tuple[str, ...]) -> Any:
            if name in path:
                return self.before.get(name, 0.0)
            if name not in done:
                total = sum(value(source, (*path, name)) for source, target in self.graph.edges if target == name)
                done[name] = self.parts[name].step(total) if name in self.parts else self.node(name, nodes[name], total)
            return done[name]

        result = value(last, ())
        self.before = done
        return result

    def node(self, name: str, node: Any, x: Any) -> np.ndarray:
        kind, dt = type(node).__name__, self.dt
        if kind == "Output":
            return x
        if kind in ("Linear", "Affine"):
            x = np.zeros((1, node.weight.shape[1])) if np.isscalar(x) else x  # before the first step
            return x @ node.weight.T.astype(np.float64) + getattr(node, "bias", 0.0)
        if kind == "Scale":
            return x * node.scale
        if kind == "Flatten":
            return x.reshape(len(x), *node.output_type["output"])
        if kind in ("Conv1d", "Conv2d"):
            weight, bias = (torch.from_numpy(np.array(each, np.float64)) for each in (node.weight, node.bias))
            size = lambda each: each if isinstance(each, str) else tuple(map(int, np.atleast_1d(each)))  # noqa: E731
            options = map(size, (node.stride, node.padding, node.dilation))
            convolve = F.conv1d if kind == "Conv1d" else F.conv2d
            return convolve(torch.from_numpy(x), weight, bias, *options, int(node.groups)).numpy()
        if kind in ("AvgPool2d", "SumPool2d"):
            size = [tuple(map(int, each)) for each in (node.kernel_size, node.stride, node.padding)]
            divisor = None if kind == "AvgPool2d" else 1
            return F.avg_pool2d(torch.from_numpy(x), *size, divisor_override=divisor).numpy()
        if kind == "Delay":
            line = self.state.setdefault(name, [np.zeros_like(x)] * round(float(node.delay.flat[0]) / dt))
            line.append(x)
            return line.pop(0)
        v = self.state.get(name, np.zeros_like(x) + getattr(node, "v_leak", 0.0))
        if kind in ("LI", "LIF"):
            v = v + dt / node.tau.astype(np.float64) * (node.v_leak - v + node.r * x)
        elif kind in ("IF", "I"):
            v = v + dt * node.r * x
        else:
            assert kind == "CubaLIF"
            current, v = self.state.get(name, (np.zeros_like(x), np.zeros_like(x)))
            current = current + dt / node.tau_syn * (node.w_in * x - current)
            v = v + dt / node.tau_mem * (node.v_leak - v + node.r * current)
        if kind in ("LI", "I"):
            self.state[name] = v
            return v
        spikes = (v >= node.v_threshold if self.at_or_above else v > node.v_threshold).astype(np.float64)
        v = v - node.v_threshold * spikes if self.reset == "subtract" else np.where(spikes > 0, node.v_reset, v)
        self.state[name] = (current, v) if kind == "CubaLIF" else v
        return spikes
