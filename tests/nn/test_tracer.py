"""Tracing in one thread while another one runs or traces modules."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, fx, nn

from lightning_snn.nn.tracer import ThreadTracer


class Meanwhile(nn.Module):
    """A network that has another thread run `other` while it is called, so also while it is traced."""

    def __init__(self, other: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.found: list[Tensor | Exception] = []
        self.run_other = lambda: self.found.append(_result(other, x))

    def forward(self, x: Tensor) -> Tensor:
        thread = threading.Thread(target=self.run_other)
        thread.start()
        thread.join()
        return self.layer(x)


def _result(module: nn.Module, x: Tensor) -> Tensor | Exception:
    try:
        return module(x)
    except NameError as error:
        return error


@pytest.fixture
def other() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()


def test_a_module_run_by_another_thread_is_not_traced(other):
    x = torch.rand(5, 4)
    network = Meanwhile(other, x)
    graph = ThreadTracer().trace(network)
    assert torch.equal(network.found[0], other(x))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["layer"]


def test_the_tracer_of_torch_does_trace_it(other):
    """Without `ThreadTracer` the module of the other thread is taken for one of the network's."""
    network = Meanwhile(other, torch.rand(5, 4))
    fx.Tracer().trace(network)
    assert isinstance(network.found[0], NameError)


def test_traces_in_several_threads_leave_modules_as_they_were(other):
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    together = threading.Barrier(4)

    def trace(_: int) -> list[str]:
        together.wait()
        graphs = [ThreadTracer().trace(other) for _ in range(20)]
        return [" ".join(str(node.target) for node in graph.nodes) for graph in graphs]

    with ThreadPoolExecutor(4) as pool:
        found = [nodes for each in pool.map(trace, range(4)) for nodes in each]
    assert set(found) == {"input 0 1 2 3 output"}
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is attribute
