"""Products that modules compute themselves, against counts over all pairs of factors by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack

from lightning_snn import LIF, run
from lightning_snn.metrics.activity import record_activity
from lightning_snn.metrics.products import Product, effective_products, product_of

T, B, N, D, M = 3, 2, 4, 5, 6


def sparse(*shape: int, seed: int = 0, spikes: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < 0.4
    return kept.float() if spikes else torch.randn(shape, generator=generator) * kept


def pairs(first: Tensor, second: Tensor) -> int:
    """Count the nonzero pairs of factors of matrix products `[..., N, D] @ [..., D, M]`, one by one."""
    count = 0
    for index in itertools.product(*map(range, first.shape[:-2])):
        for n, d, m in itertools.product(range(first.shape[-2]), range(first.shape[-1]), range(second.shape[-1])):
            count += int(first[(*index, n, d)] != 0 and second[(*index, d, m)] != 0)
    return count


class Attention(nn.Module):
    """Attention of spikes by spikes without a softmax, as in spiking transformers; its inputs are the spikes."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.transpose(-1, -2)
        return self.product(scores, x)


@pytest.mark.parametrize("reshaped", [False, True], ids=["folded", "unfolded"])
def test_attention_within_a_run_is_counted_by_its_nonzero_pairs(reshaped: bool) -> None:
    class Unfolds(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.unflatten(0, (T, -1))).flatten(0, 1) if reshaped else super().forward(x)

    x = sparse(T, B, N, D, spikes=True)
    x[1] *= 2.0  # no spikes in this time step, so that its products multiply
    network = nn.Sequential(Unfolds(), nn.Linear(D, 2))
    with record_activity(network) as activity:
        run(network, x)
    scores = x @ x.transpose(-1, -2)
    by_step = [pairs(x[t], x[t].transpose(-1, -2)) + pairs(scores[t], x[t]) for t in range(T)]
    assert activity.operations["0"] == sum(by_step)
    assert activity.accumulates["0"] == by_step[0] + by_step[2]
    assert activity.dense["0"] == 2 * T * B * N * N * D
    assert activity.dense_pass()["0"] == 2 * N * N * D
    assert activity.uncounted == []
    assert 0 < by_step[1] < sum(by_step) < activity.dense["0"]


def test_a_product_with_graded_scores_adds_them_where_the_other_factor_spikes() -> None:
    scores, values = sparse(N, N), sparse(N, D, seed=1, spikes=True)
    both = effective_products(Product(scores, values, torch.matmul), 1)
    assert both.total == both.accumulates == pairs(scores, values)
    graded = effective_products(Product(scores, 1.5 * values, torch.matmul), 1)
    assert (graded.total, graded.accumulates) == (both.total, 0)
    # a weight of -1, 0, 1 still multiplies an input of any value
    weight = nn.Parameter(values)
    assert effective_products(Product(scores, weight, torch.matmul), 1).accumulates == 0


A, W = sparse(B, N, D), sparse(B, D, M, seed=1)
IMAGE, KERNEL = sparse(B, 2, 5, 4), sparse(3, 2, 2, 3, seed=1)
FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "matmul": (torch.matmul, A, W),
    "method": (lambda a, b: a.matmul(b), A, W),
    "operator": (lambda a, b: a @ b, A, W),
    "bmm": (torch.bmm, A, W),
    "mm": (torch.mm, A[0], W[0]),
    "mv": (torch.mv, A[0], W[0, :, 0]),
    "dot": (torch.dot, A[0, 0], W[0, :, 0]),
    "inner": (torch.inner, A[0], W[0].T.contiguous()),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([2], [0])), A, W[0]),
    "einsum": (lambda a, b: torch.einsum("bnd,bdm->bm", a, b), A, W),
    "einsum of a list": (lambda a, b: torch.einsum("nd,dm->mn", [a, b]), A[0], W[0]),
    "linear": (lambda a, b: F.linear(a, b, torch.ones(M)), A, W[0].T.contiguous()),
    "linear by name": (lambda a, b: F.linear(a, weight=b), A, W[0].T.contiguous()),
    "addmm": (lambda a, b: torch.addmm(torch.ones(M), a, b), A[0], W[0]),
    "baddbmm": (lambda a, b: torch.baddbmm(torch.ones(B, N, M), a, b), A, W),
    "conv2d": (lambda a, b: F.conv2d(a, b, torch.ones(3), 2, padding=1, dilation=(1, 2)), IMAGE, KERNEL),
    "conv1d": (lambda a, b: F.conv1d(a, weight=b, stride=2, groups=2), IMAGE[:, :, 0], KERNEL[:2, :1, 0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_are_the_derivatives_by_both_factors_that_are_not_zero(name: str) -> None:
    function, first, second = FUNCTIONS[name]

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x, second)

    module = Calls()
    with record_activity(module) as activity:
        result = module(first)
    assert torch.equal(result, function(first, second))
    # the derivative of a sum of products by a factor is the sum of what this factor is multiplied with
    effective, dense = (
        torch.autograd.functional.jacobian(lambda a, mask=mask: function(a, mask).sum(), first)
        for mask in ((second != 0).float(), torch.ones_like(second))
    )
    count = int(dense.sum().round())
    assert activity.operations["Calls"] == int(effective[first != 0].sum().round())
    assert activity.dense["Calls"] == count
    assert 0 < activity.operations["Calls"] < count


def test_a_loop_over_time_is_one_pass_per_step() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snntorch.Leaky(beta=0.5, threshold=0.3)

        def forward(self, x: Tensor) -> Tensor:
            membrane, outputs = self.lif.init_leaky(), []
            for step in x:
                spikes, membrane = self.lif(step, membrane)
                outputs.append((spikes @ spikes.transpose(-1, -2)) @ spikes)
            return torch.stack(outputs)

    network, seen = Loop(), []
    handle = network.lif.register_forward_hook(lambda layer, args, output: seen.append(output[0]))
    with record_activity(network) as activity:
        network(torch.rand(T, B, N, N, generator=torch.Generator().manual_seed(0)))
    handle.remove()
    expected = sum(pairs(s, s.transpose(-1, -2)) + pairs(s @ s.transpose(-1, -2), s) for s in seen)
    assert activity.operations["Loop"] == activity.accumulates["Loop"] == expected > 0
    assert activity.dense_pass()["Loop"] == 2 * N**3  # two products of the same sizes are not two passes


def test_a_layer_in_multi_step_mode_knows_its_steps() -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron

    network = nn.Sequential(neuron.IFNode(step_mode="m"), Attention())
    with record_activity(network) as activity:
        network(2 * sparse(T, B, N, D, spikes=True))
    assert activity.rows["1"] == T * B
    assert activity.dense_pass()["1"] == 2 * N * N * D


class Shares(nn.Module):
    """Module that uses the weight of another layer, and a weight of low rank."""

    def __init__(self, function: Callable[[Shares, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.lif, self.function = nn.Linear(D, D), LIF(), function
        self.left, self.right = nn.Linear(2, D, bias=False), nn.Linear(D, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.lif(self.first(x)))


def test_a_shared_weight_is_counted_where_it_is_used() -> None:
    network, x = Shares(lambda self, s: F.linear(s, self.first.weight)), 4 * sparse(T, B, D)
    spikes = run(nn.Sequential(network.first, network.lif), x)
    with record_activity(network) as activity:
        run(network, x)
    assert activity.operations["Shares"] == activity.accumulates["Shares"] == D * int(spikes.sum()) > 0
    assert activity.dense_pass()["Shares"] == D * D
    assert activity.dense_pass()["first"] == D * D


def test_the_computation_of_a_weight_is_no_synaptic_operation() -> None:
    network = Shares(lambda self, s: F.linear(s, self.left.weight @ self.right.weight))
    with record_activity(network) as activity:
        run(network, 4 * sparse(T, B, D))
    assert activity.dense_pass()["Shares"] == D * D


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda self, s: F.scaled_dot_product_attention(s, s, s), "scaled_dot_product_attention"),
        (lambda self, s: torch.einsum("td,te,tf->td", s, s, s), "einsum"),
        (lambda self, s: F.bilinear(s, s, self.first.weight[None]).expand_as(s), "bilinear"),
    ],
)
def test_other_products_are_named(function: Any, name: str) -> None:
    network = Shares(function)
    with record_activity(network) as activity:
        run(network, 4 * sparse(T, B, D))
    assert activity.uncounted == [f"Shares ({name})"]
    assert set(activity.operations) == {"first"}


def test_losses_and_neurons_are_no_synaptic_operations() -> None:
    class Similarity(nn.modules.loss._Loss):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.T).mean()

    class Multiplies(LIF):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0 * (x @ x.T @ x))

    class Losing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lif, self.loss = nn.Linear(D, D), Multiplies(), Similarity()

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.lif(self.first(x))
            return spikes + self.loss(spikes)

    network = Losing()
    with record_activity(network) as activity:
        run(network, sparse(T, B, D))
        sparse(N, D) @ sparse(D, M)  # no module runs
    assert set(activity.operations) == {"first"}
    assert activity.uncounted == []


def test_the_mode_ends_with_the_call_also_after_an_exception() -> None:
    def fails(self: Shares, s: Tensor) -> Tensor:
        assert _len_torch_function_stack() == 1
        raise ArithmeticError

    network = Shares(fails)
    with record_activity(network):
        with pytest.raises(ArithmeticError):
            run(network, sparse(T, B, D))
        assert _len_torch_function_stack() == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_counting_changes_neither_gradients_nor_other_counts() -> None:
    network, x = nn.Sequential(nn.Linear(D, D), LIF(), Attention(), nn.Linear(D, 2)), 4 * sparse(T, B, N, D)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(run(network, x).square().sum(), list(network.parameters())))

    plain = gradients()
    with record_activity(network) as alone:
        counted = gradients()
    assert all(map(torch.equal, plain, counted))
    with record_activity(network) as outer, record_activity(network) as inner:
        counted = gradients()
    assert outer == inner == alone
    assert alone.operations["2"] > 0
    assert all(map(torch.equal, plain, counted))


@pytest.mark.parametrize("wrapped", [False, True], ids=["in place", "wrapped"])
def test_a_compiled_network_is_left_alone(wrapped: bool) -> None:
    inner = nn.Sequential(Attention())
    if not wrapped:
        inner.compile(backend="eager", fullgraph=True)
    network = nn.Sequential(torch.compile(inner, backend="eager", fullgraph=True) if wrapped else inner)
    x = sparse(B, N, D)
    with record_activity(network) as activity:
        assert torch.equal(network(x), Attention()(x))
    assert activity.operations == {}


def test_functions_that_are_no_products_are_not_taken_for_any() -> None:
    assert product_of("mul", (A, A), {}) is None
    assert product_of("einsum", ("bnd->bn", A), {}) is None
    assert product_of("matmul", (A.to_sparse(), W), {}) == "matmul"
